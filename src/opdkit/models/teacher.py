"""The local teacher: scores response positions of rollouts with a frozen model in this process.

What it sends is chosen by `payload`: `hidden` states (with its head lent to the learner's chunks everything
can be computed, nothing of size V travels), or log-probs at ids, the way a scoring server answers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from opdkit.models.adapter import merge
from opdkit.models.batching import Way, forwards
from opdkit.models.head import Ahead, Head, read
from opdkit.models.load import LoadedModel, describe
from opdkit.models.rows import lay_out, packed_states, ways_of
from opdkit.support import Dist, RowDist, StoredDist
from opdkit.types import Needs, Rollout, Scores

OFFERS: dict[str, Needs] = {
    "hidden": Needs(sampled=True, top_k=1 << 30, at_ids=True, entropy=True, full=True),
    "ids": Needs(sampled=True, top_k=1 << 30, at_ids=True, entropy=True, full=False),
}
"""What each payload can give; `train/plan.py` compares it with what is needed before anything is loaded."""


class LocalTeacher:
    """A frozen causal LM. `score` reads every rollout once and returns response positions only."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        temperature: float = 1.0,
        payload: Literal["hidden", "ids"] = "hidden",
        batch_tokens: int = 16384,
        round_to_bfloat16: bool = False,
        frozen: bool = True,
    ):
        """`round_to_bfloat16`: weights are rounded before the first score, and the error of that is kept.

        `frozen` false only reads a model that is being trained: what is told of it, not what trains; or its base (`loaded.bare`).
        """
        self.loaded = loaded
        self.temperature = temperature
        self.payload = payload
        self.batch_tokens = batch_tokens
        self.offers = OFFERS[payload]
        self.rounding_pending = round_to_bfloat16
        self.rounding_kl: float | None = None  # mean KL(float32 ‖ bfloat16), nats
        if frozen:
            loaded.model.requires_grad_(False)

    @property
    def head(self) -> Head:
        """The head lent to the learner's chunks, at the teacher's temperature."""
        return self.loaded.head.at_temperature(self.temperature)

    @property
    def fingerprint(self) -> str:
        return self.loaded.fingerprint

    @torch.no_grad()
    def score(
        self, rollouts: Sequence[Rollout], *, needs: Needs, ids: Sequence[Tensor] | None = None
    ) -> list[Scores]:
        """One `Scores` per rollout, [T, …] at response positions; `ids` [T, S] each for `needs.at_ids`."""
        if self.rounding_pending and rollouts:
            self.rounding_kl, self.rounding_pending = self.to_bfloat16(rollouts), False
        scores: list[Scores | None] = [None] * len(rollouts)
        for rows, hidden in self._forwards(rollouts):
            parts = hidden.split([rollouts[i].length for i in rows])
            for i, part in zip(rows, parts, strict=True):
                scores[i] = self._pack(rollouts[i], part, needs, None if ids is None else ids[i])
        return [s for s in scores if s is not None]

    def _forwards(self, rollouts: Sequence[Rollout]) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """Which rollouts, and the states [N, D] that predict their response tokens, one rollout after another."""
        prompts = [r.teacher_prompt_ids or r.prompt.ids for r in rollouts]
        device, lengths = self.loaded.device, [r.length for r in rollouts]
        for forward in forwards(
            prompts, lengths, budget=self.batch_tokens, device_type=device.type, ways=self._ways
        ):
            responses = [rollouts[i].response_ids for i in forward.rows]
            layout = lay_out([prompts[i] for i in forward.rows], responses, way=forward.way, device=device)
            with self.loaded.reading():
                states = packed_states(self.loaded.body, layout)
            yield forward.rows, states

    @cached_property
    def _ways(self) -> frozenset[Way]:
        loaded = self.loaded
        with loaded.reading():
            return ways_of(loaded.body, vocabulary=loaded.head.rows, device=loaded.device)

    def _hidden(self, rollouts: Sequence[Rollout]) -> Tensor:
        """[N, D]: all states of rollouts that are read one by one."""
        return torch.cat([hidden for r in rollouts for _, hidden in self._forwards([r])])

    def _pack(self, rollout: Rollout, hidden: Tensor, needs: Needs, ids: Tensor | None) -> Scores:
        lent = hidden if self.payload == "hidden" else None
        beside = replace(needs, full=False)
        if lent is not None and beside == Needs():
            return Scores(fingerprint=self.fingerprint, temperature=self.temperature, hidden=lent)
        told = read(
            hidden,
            self.head,
            needs=beside,
            sampled_ids=torch.tensor(rollout.response_ids, dtype=torch.long, device=hidden.device),
            ids=None if ids is None else ids.to(hidden.device),
            fingerprint=self.fingerprint,
        )
        return told if lent is None else replace(told, hidden=lent)

    def to_bfloat16(self, rollouts: Sequence[Rollout]) -> float:
        """Convert the weights; returns mean KL(float32 ‖ bfloat16) in nats over all response positions."""
        exact = self._hidden(rollouts).float()
        head = self.head
        exact_logp = [RowDist(head.logits(h)).full for h in exact.split(64)]
        self.loaded.model.to(torch.bfloat16)
        rounded = self._hidden(rollouts)
        errors = [
            (p.exp() * (p - RowDist(head.logits(h)).full)).sum(-1)
            for p, h in zip(exact_logp, rounded.split(64), strict=True)
        ]
        return float(torch.cat(errors).mean())

    @torch.no_grad()
    def adopt(self, state: dict[str, Tensor], *, keep: float = 0.0) -> None:
        """Take these weights: how a teacher that is the student's earlier copy moves on; `keep` · own + (1 − keep) · these."""
        if keep > 0.0:
            own = self.loaded.model.state_dict()
            state = {
                name: torch.lerp(theirs.to(own[name]), own[name], keep) for name, theirs in state.items()
            }
        self.loaded.model.load_state_dict(state)


def frozen_copy(loaded: LoadedModel, *, dtype: torch.dtype | None = None) -> LoadedModel:
    """The same model again, with weights of its own: a student's earlier copy, an adapter merged."""
    model: Any = merge(copy.deepcopy(loaded.model))
    if dtype is not None:
        model = model.to(dtype)
    name = f"{loaded.name} (copy)"
    return describe(model.requires_grad_(False).eval(), loaded.tokenizer, name=name, rows=loaded.head.rows)


def teacher_dist(
    scores: Scores, head: Head | None, *, part: Any, sampled_ids: Tensor, ahead: Ahead | None = None
) -> Dist:
    """The teacher at some packed positions: rows from lent hidden states, or the log-probs that were sent.

    `ahead` has the rows at slices that come in order.
    """
    if ahead is not None:
        return RowDist(ahead.logits(part), sampled_ids=sampled_ids)
    if scores.hidden is not None:
        assert head is not None, "hidden states need the head they belong to"
        return RowDist(head.logits(scores.hidden[part]), sampled_ids=sampled_ids)

    def cut(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[part]

    return StoredDist(
        sampled=cut(scores.sampled),
        sampled_ids=sampled_ids,
        at_ids=cut(scores.at_ids),
        at_logp=cut(scores.at_logp),
        topk_ids=cut(scores.topk_ids),
        topk_logp=cut(scores.topk_logp),
        entropy=cut(scores.entropy),
    )
