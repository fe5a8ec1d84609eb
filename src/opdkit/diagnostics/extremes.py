"""The largest and the smallest training advantage seen, with both probabilities there. No mean, so no tally.

Logged by the released code of arXiv 2604.13016. A run that goes wrong often shows it here first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from opdkit.diagnostics.candidates import Candidates, candidates, detached, vocabulary, widest_top
from opdkit.support import Dist


@dataclass(frozen=True)
class Extreme:
    """One entry (position, token): w (log q − log p) in nats, and p and q of that token."""

    advantage: float
    student_p: float
    teacher_p: float


@dataclass(frozen=True)
class Extremes:
    largest: Extreme
    smallest: Extreme

    def named(self) -> dict[str, float]:
        """Flat names as they are logged: `advantage_max`, `advantage_max_student_p`, …"""
        ends = {"advantage_max": self.largest, "advantage_min": self.smallest}
        return {
            name + suffix: value
            for name, end in ends.items()
            for suffix, value in (
                ("", end.advantage),
                ("_student_p", end.student_p),
                ("_teacher_p", end.teacher_p),
            )
        }


@torch.no_grad()
def extremes(
    student: Dist, teacher: Dist, *, k: int, keep: Bool[Tensor, " M"] | None = None
) -> Extremes | None:
    """max and min of A(v) = w(v) (log q(v) − log p(v)) over S^p at kept positions; None if there are none."""
    student, teacher = detached(student), detached(teacher)
    top = widest_top(student, [k], size=vocabulary(student, teacher))
    found = None if top is None else candidates(student, teacher, top.ids)
    if found is None:
        return None
    seen = found.sent if keep is None else found.sent & keep
    if not bool(seen.any()):
        return None
    index = seen.nonzero()[:, 0]
    advantage = found.advantage[index].flatten()
    return Extremes(
        largest=_entry(found, index, int(advantage.argmax())),
        smallest=_entry(found, index, int(advantage.argmin())),
    )


def merge(parts: Iterable[Extremes | None]) -> Extremes | None:
    """The extremes of several chunks, micro-batches or ranks."""
    present = [part for part in parts if part is not None]
    if not present:
        return None
    return Extremes(
        largest=max((part.largest for part in present), key=lambda end: end.advantage),
        smallest=min((part.smallest for part in present), key=lambda end: end.advantage),
    )


def _entry(found: Candidates, index: Int[Tensor, " n"], flat: int) -> Extreme:
    """The entry at a flat place among the [n, S] entries of some positions."""
    place, slot = divmod(flat, found.ids.shape[-1])
    row = int(index[place])
    values = (
        found.advantage[row, slot],
        found.student_logp[row, slot].exp(),
        found.teacher_logp[row, slot].exp(),
    )
    return Extreme(*(float(value) for value in values))
