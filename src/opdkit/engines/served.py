"""A Teacher over HTTP: scores of response positions, from `opd serve` or vLLM.

Every request carries one known sequence beside its rollouts, the sentinel: its log-probs are what they were at the start,
or the answer is refused. So a server that was restarted with another model, or answers shifted, is noticed in the same step.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opdkit.engines.client import Endpoint, Request
from opdkit.engines.dialects import Completions, Dialect, Facts, Frames, prompt_of
from opdkit.engines.replies import SLACK, BadReply, check_scores, contradiction
from opdkit.models.batching import length_groups
from opdkit.models.head import Head
from opdkit.types import Needs, Prompt, Rollout, Scores

SENTINEL_PROMPT, SENTINEL_RESPONSE = 4, 8  # tokens: nothing beside a request of rollouts


class ServedTeacher:
    """Asks in requests of about `batch_tokens`, several at once; hands scores back in order, checked."""

    rounding_pending = False
    rounding_kl = None

    def __init__(
        self,
        endpoint: Endpoint,
        facts: Facts,
        *,
        rows: int,
        temperature: float = 1.0,
        values: str = "float32",
        batch_tokens: int = 16384,
        head: Head | None = None,
    ):
        """`rows` is the vocabulary in use; `head` makes logits of the hidden states that are then asked for."""
        own = facts.api == "opd"
        self.rows = rows
        # opd serve normalises over the rows asked for
        self.facts = replace(facts, rows=rows) if own else facts
        self.endpoint, self.temperature = endpoint, temperature
        self.batch_tokens = batch_tokens
        self.head = None if head is None else head.at_temperature(temperature)
        self.offers = facts.offers if head is not None else replace(facts.offers, full=False)
        self.slack = SLACK[values if own else "float32"]
        self.dialect: Dialect = (
            Frames(self.facts, temperature, values) if own else Completions(facts, shared=rows)
        )
        self.sentinel: Sentinel | None = None  # set once the start-up probe has seen it answered
        self._numbers = itertools.count(time.time_ns())  # no reply to an earlier run answers to one of these

    @property
    def fingerprint(self) -> str:
        return self.facts.fingerprint

    @property
    def known(self) -> list[float] | None:
        """Log-probs of the known sequence's response tokens, once the probe has asked."""
        said = None if self.sentinel is None else self.sentinel.said.sampled
        return None if said is None else said.tolist()

    def score(
        self, rollouts: Sequence[Rollout], *, needs: Needs, ids: Sequence[Tensor] | None = None
    ) -> list[Scores]:
        """One `Scores` per rollout, [T, …] at response positions; `ids` [T, S] each for `needs.at_ids`.

        Raises EngineError when the deadline passes or an answer cannot be right.
        """
        assert not needs.unmet(self.offers), needs.unmet(self.offers)
        answered = [i for i, r in enumerate(rollouts) if r.length]
        lengths = [len(prompt_of(rollouts[i])) + rollouts[i].length for i in answered]
        groups = length_groups(lengths, budget=self.batch_tokens, slack=self.batch_tokens)
        asked = [self._part([answered[j] for j in group], rollouts, needs, ids) for group in groups]
        bodies = self.endpoint.ask([part.request for part in asked]) if asked else []
        found: dict[int, Scores] = {}
        for part, body in zip(asked, bodies, strict=True):
            found |= self._read(part, body, needs)
        return [
            found.get(i) or self._nothing(needs, None if ids is None else ids[i])
            for i in range(len(rollouts))
        ]

    def _part(
        self, rows: Sequence[int], rollouts: Sequence[Rollout], needs: Needs, ids: Sequence[Tensor] | None
    ) -> _Part:
        number = next(self._numbers)
        chosen = [rollouts[i] for i in rows]
        some = None if ids is None else [ids[i].cpu() for i in rows]
        if self.sentinel is not None:
            chosen = [*chosen, self.sentinel.rollout]
            if some is not None:
                some = [*some, self.sentinel.candidates(some[0].shape[-1])[0].to(some[0].dtype)]
        guarded = some is not None and needs.sampled and some[0].shape[-1] < self.facts.max_top_k
        if some is not None and guarded:
            some = [_with_taken(one, rollout) for one, rollout in zip(some, chosen, strict=True)]
        request = self.dialect.request(chosen, needs=needs, ids=some, number=number)
        return _Part(number, tuple(rows), tuple(chosen), some, request, guarded)

    def _read(self, part: _Part, body: bytes, needs: Needs) -> dict[int, Scores]:
        scores = self.dialect.read(body, part.rollouts, needs=needs, ids=part.ids, number=part.number)
        for one, rollout in zip(scores, part.rollouts, strict=True):
            check_scores(one, rollout, needs=needs, rows=self.rows, slack=self.slack, where=self.endpoint.url)
        if part.guarded:
            scores = [_without_taken(one) for one in scores]
        if self.sentinel is not None:
            self.sentinel.compare(scores[-1], where=self.endpoint.url)
        return dict(zip(part.rows, scores, strict=False))

    def _nothing(self, needs: Needs, ids: Tensor | None) -> Scores:
        """Of a rollout without a response."""
        empty, wide = torch.empty(0), torch.empty(0, needs.top_k)
        width = 0 if ids is None else ids.shape[-1]
        return Scores(
            fingerprint=self.fingerprint,
            temperature=self.temperature,
            sampled=empty if needs.sampled else None,
            topk_ids=wide.long() if needs.top_k else None,
            topk_logp=wide if needs.top_k else None,
            at_ids=torch.empty(0, width, dtype=torch.long) if needs.at_ids else None,
            at_logp=torch.empty(0, width) if needs.at_ids else None,
            entropy=empty if needs.entropy else None,
            hidden=torch.empty(0, 0 if self.head is None else self.head.weight.shape[1])
            if needs.full
            else None,
        )


@dataclass(frozen=True)
class _Part:
    """One request: which of the rollouts, what was asked."""

    number: int
    rows: tuple[int, ...]
    rollouts: tuple[Rollout, ...]
    ids: list[Tensor] | None
    request: Request
    guarded: bool  # the token taken is asked for beside the ids, a slot that is known from elsewhere


class Sentinel:
    """A known sequence and what the server said of it at the start, in whatever form that comes back."""

    def __init__(self, rollout: Rollout, said: Scores, *, tolerance: float):
        self.rollout, self.said, self.tolerance = rollout, said, tolerance

    def candidates(self, width: int) -> tuple[Tensor, Tensor]:
        """Ids [T, width] whose log-probs are known, and those: the token taken, the most probable, then again."""
        said = self.said
        assert said.sampled is not None and said.topk_ids is not None and said.topk_logp is not None
        taken = torch.tensor(self.rollout.response_ids)[:, None]
        slots = torch.arange(width) % (1 + said.topk_ids.shape[-1])
        return (
            torch.cat([taken, said.topk_ids], -1)[:, slots],
            torch.cat([said.sampled[:, None], said.topk_logp], -1)[:, slots],
        )

    def compare(self, scores: Scores, *, where: str) -> None:
        """Raises BadReply where a number that both hold differs by more than `tolerance` nats, or a token's place."""
        for name in ("sampled", "entropy"):
            before, now = getattr(self.said, name), getattr(scores, name)
            if before is not None and now is not None:
                _near(before, now, self.tolerance, where)
        if self.said.topk_logp is not None and scores.topk_logp is not None:
            width = min(self.said.topk_logp.shape[-1], scores.topk_logp.shape[-1])
            _near(self.said.topk_logp[:, :width], scores.topk_logp[:, :width], self.tolerance, where)
            assert self.said.topk_ids is not None and scores.topk_ids is not None
            known = self.said.topk_ids, self.said.topk_logp
            _close(
                contradiction(*known, scores.topk_ids, scores.topk_logp), self.tolerance, where
            )  # ids, not ranks: near ties may change places
        if scores.at_logp is not None:
            _near(self.candidates(scores.at_logp.shape[-1])[1], scores.at_logp, self.tolerance, where)
        if self.said.hidden is not None and scores.hidden is not None:
            _near(
                self.said.hidden,
                scores.hidden,
                self.tolerance * (1 + float(self.said.hidden.abs().max())),
                where,
            )


def _with_taken(ids: Tensor, rollout: Rollout) -> Tensor:
    """Its log-prob must be the sampled one: candidates that stand in another order, or a row off, do not pass."""
    return torch.cat([ids, torch.tensor(rollout.response_ids, dtype=ids.dtype)[:, None]], -1)


def _without_taken(scores: Scores) -> Scores:
    assert scores.at_ids is not None and scores.at_logp is not None
    return replace(scores, at_ids=scores.at_ids[:, :-1], at_logp=scores.at_logp[:, :-1])


def _near(before: Tensor, now: Tensor, tolerance: float, where: str) -> None:
    _close(float((before - now).abs().max()), tolerance, where)


def _close(apart: float, tolerance: float, where: str) -> None:
    if not apart <= tolerance:
        raise BadReply(
            where,
            f"other log-probs of the known sequence than at the start ({apart:.3g} nats apart, at most "
            f"{tolerance:.2g}): another model, or shifted",
        )


def sentinel_rollout(rows: int) -> Rollout:
    """Ids spread over the vocabulary; the same for every run."""
    count = SENTINEL_PROMPT + SENTINEL_RESPONSE
    ids = tuple((7 + 7919 * i) % rows for i in range(count))
    prompt = Prompt(id="sentinel", ids=ids[:SENTINEL_PROMPT])
    return Rollout(prompt=prompt, response_ids=ids[SENTINEL_PROMPT:], finish_reason="length")
