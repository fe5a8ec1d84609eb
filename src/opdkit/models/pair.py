"""Both models over the same rollouts, without gradient: what all diagnostics say at every response position.

Student and teacher only by name: two teachers are compared at the student's states in the same way.
Letters: N packed response positions, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from opdkit.diagnostics import Measures, concatenate, measure, stopping, teachable
from opdkit.models.head import Head
from opdkit.models.load import LoadedModel
from opdkit.models.teacher import LocalTeacher
from opdkit.support import RowDist
from opdkit.types import Needs, Rollout

PIECE_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
"""Logits of positions that are measured together: on a CPU a piece stays in cache."""


@dataclass(frozen=True)
class Reader:
    """A model that reads rollouts: its weights, the temperature its logits are divided by, its end tokens."""

    loaded: LoadedModel
    temperature: float = 1.0
    stop_ids: tuple[int, ...] = ()
    batch_tokens: int = 16384

    @property
    def head(self) -> Head:
        return self.loaded.head.at_temperature(self.temperature)

    def states(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """[T, D] per rollout: the states that predict its response tokens."""
        reading = LocalTeacher(self.loaded, frozen=False, batch_tokens=self.batch_tokens)
        return [s.hidden for s in reading.score(rollouts, needs=Needs(full=True)) if s.hidden is not None]


@dataclass(frozen=True)
class Reading:
    """Measures of all positions of some rollouts, packed one rollout after another."""

    measures: Measures
    row: Int[Tensor, " N"]  # which of the rollouts
    depth: Int[Tensor, " N"]  # response position; the last one of a response that ended lies after its end
    after_end: Bool[Tensor, " N"]  # says something of stopping only


@torch.no_grad()
def read_pair(
    rollouts: Sequence[Rollout], *, student: Reader, teacher: Reader, k: int, ks: Sequence[int]
) -> Reading:
    """One forward of each model over all rollouts, then their heads side by side, a piece at a time."""
    room = min(student.loaded.max_length, teacher.loaded.max_length)
    ended = [r.finish_reason == "stop" and 0 < r.length < room - _prompt_length(r) for r in rollouts]
    # The end token is read as well, so that there is a state after it.
    longer = [
        replace(r, response_ids=(*r.response_ids, r.response_ids[-1])) if end else r
        for r, end in zip(rollouts, ended, strict=True)
    ]
    own = [replace(r, teacher_prompt_ids=None) for r in longer]  # the student read its own prompt
    ours, theirs = torch.cat(student.states(own)), torch.cat(teacher.states(longer))
    sampled = torch.tensor([i for r in longer for i in r.response_ids], device=ours.device)
    lengths = torch.tensor([r.length for r in longer])
    row = torch.repeat_interleave(torch.arange(len(longer)), lengths)
    depth = torch.cat([torch.arange(int(n)) for n in lengths])
    after = torch.tensor(ended)[row] & (depth == lengths[row] - 1)
    at = torch.tensor(ended)[row] & (depth == lengths[row] - 2)
    pieces = []
    for part in _pieces(len(sampled), student.head):
        p = RowDist(student.head.logits(ours[part]), sampled_ids=sampled[part])
        q = RowDist(teacher.head.logits(theirs[part]), sampled_ids=sampled[part])
        keep = ~after[part].to(ours.device)
        found = {
            name: (torch.where(keep, total, 0.0), torch.where(keep, count, 0.0))
            for name, (total, count) in (measure(p, q, k=k, ks=ks) | teachable(p, q)).items()
        }
        found |= stopping(
            p,
            q,
            ends=student.stop_ids,
            teacher_ends=teacher.stop_ids,
            at_end=at[part].to(ours.device),
            after_end=after[part].to(ours.device),
        )
        pieces.append(found | _before_the_end(found, at[part].to(ours.device)))
    return Reading(concatenate(pieces), row=row, depth=depth, after_end=after)


def _before_the_end(found: Measures, at_end: Tensor) -> Measures:
    """The teacher's shared mass where nothing ends: another end token alone is no other way of thinking."""
    total, count = found["overlap_mass_teacher"]
    kept = torch.where(at_end, 0.0, total), torch.where(at_end, 0.0, count)
    return {"overlap_mass_teacher_before_end": kept}


def _prompt_length(rollout: Rollout) -> int:
    return max(len(rollout.prompt.ids), len(rollout.teacher_prompt_ids or ()))


def _pieces(count: int, head: Head) -> Iterator[slice]:
    budget = PIECE_BYTES.get(head.weight.device.type, PIECE_BYTES["cuda"])
    size = max(1, budget // (4 * head.rows))
    return (slice(begin, min(begin + size, count)) for begin in range(0, count, size))
