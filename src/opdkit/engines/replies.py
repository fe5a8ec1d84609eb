"""What an answer must hold before a number of it is used: length, finite, sorted, a distribution. Refused, never patched.

Letters: T response positions, K top-k width, S slots, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from opdkit.engines.client import EngineError
from opdkit.types import Needs, Rollout, Scores

SLACK = {"float32": 1e-4, "float16": 2e-2}
"""Nats by which numbers that belong together may part: rounding on the wire, float16 near -16."""


class BadReply(EngineError):
    """A served model's answer that cannot be what was asked for."""

    def __init__(self, where: str, what: str):
        super().__init__(
            f"{where} answered with {what}; the answer was thrown away",
            hint="nothing was trained on it; look at the server's log, restart it, then resume the run",
        )


def check_scores(
    scores: Scores, rollout: Rollout, *, needs: Needs, rows: int, slack: float, where: str
) -> None:
    """Raises BadReply unless `scores` hold exactly what `needs` asks of this rollout's T response positions.

    `rows` is the vocabulary that the server's distributions are over.
    """
    length = rollout.length
    wanted = {
        "sampled": (length,) if needs.sampled else None,
        "topk_ids": (length, needs.top_k) if needs.top_k else None,
        "topk_logp": (length, needs.top_k) if needs.top_k else None,
        "at_logp": (length, -1) if needs.at_ids else None,
        "entropy": (length,) if needs.entropy else None,
        "hidden": (length, -1) if needs.full else None,
    }
    for name, shape in wanted.items():
        value = getattr(scores, name)
        if shape is None:
            continue
        if value is None:
            raise BadReply(where, f"no {_WORDS[name]}")
        if (
            value.ndim != len(shape)
            or value.shape[0] != length
            or (shape[-1] > 0 and value.shape[-1] != shape[-1])
        ):
            raise BadReply(
                where, f"{_WORDS[name]} of shape {tuple(value.shape)} for {length} response tokens"
            )
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise BadReply(where, f"{_WORDS[name]} that are not finite")
    _check_logps(scores, slack, where)
    if needs.top_k:
        _check_topk(scores, rollout, rows=rows, slack=slack, where=where)
    if needs.entropy and scores.entropy is not None:
        _within(scores.entropy, -slack, math.log(rows) + 0.01 * math.log(rows) + slack, "entropies", where)


_WORDS = {
    "sampled": "log-probs of the tokens taken",
    "topk_ids": "top-k ids",
    "topk_logp": "top-k log-probs",
    "at_logp": "log-probs at the given ids",
    "entropy": "entropies",
    "hidden": "hidden states",
}


def _check_logps(scores: Scores, slack: float, where: str) -> None:
    for name in ("sampled", "topk_logp", "at_logp"):
        value = getattr(scores, name)
        if value is not None and value.numel():
            _within(value, -math.inf, slack, _WORDS[name], where)


def _check_topk(scores: Scores, rollout: Rollout, *, rows: int, slack: float, where: str) -> None:
    ids, logp = scores.topk_ids, scores.topk_logp
    assert ids is not None and logp is not None
    if not len(ids):
        return
    if int(ids.min()) < 0 or int(ids.max()) >= rows:
        raise BadReply(where, f"token {int(ids.max())} of a vocabulary of {rows}: another tokenizer's")
    if bool((ids.sort(-1).values.diff(dim=-1) == 0).any()):
        raise BadReply(where, "one token twice among the top k")
    if bool((logp.diff(dim=-1) > slack).any()):
        raise BadReply(where, "top-k log-probs that are not sorted")
    if float(logp.double().exp().sum(-1).max()) > 1 + 4 * slack:
        raise BadReply(where, "top-k probabilities that add up to more than 1")
    if scores.sampled is not None:
        _check_taken(ids, logp, scores.sampled, rollout, slack, where)


def _check_taken(
    ids: Tensor, logp: Tensor, sampled: Tensor, rollout: Rollout, slack: float, where: str
) -> None:
    """The token taken has one log-prob, in the list or not above its end: what a shifted answer breaks."""
    taken = torch.tensor(rollout.response_ids)
    found = ids == taken[:, None]
    listed = torch.where(found, logp, -torch.inf).max(-1).values
    apart = torch.where(found.any(-1), (listed - sampled).abs(), (sampled - logp[:, -1]).clamp(min=0))
    if float(apart.max()) > slack:
        raise BadReply(where, f"two log-probs of one token, {float(apart.max()):.3g} nats apart")


def _within(value: Tensor, low: float, high: float, what: str, where: str) -> None:
    if bool((value > high).any()) or bool((value < low).any()):
        worst = float(value.max()) if bool((value > high).any()) else float(value.min())
        raise BadReply(where, f"{what} as far as {worst:.4g}, which no distribution has")
