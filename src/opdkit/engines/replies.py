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
            hint="nothing was trained on it; look at the server's log, restart it",
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
        "at_logp": None if scores.at_ids is None else tuple(scores.at_ids.shape),
        "entropy": (length,) if needs.entropy else None,
        "hidden": (length, -1) if needs.full else None,
    }
    for name, shape in wanted.items():
        value = getattr(scores, name)
        if shape is None:
            if value is not None:  # the learner prefers hidden states to log-probs, wherever they come from
                raise BadReply(where, f"{_WORDS[name]} that nobody asked for")
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
    _check_logps(scores, rollout, slack, where)
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


def _check_logps(scores: Scores, rollout: Rollout, slack: float, where: str) -> None:
    for name in ("sampled", "topk_logp", "at_logp"):
        value = getattr(scores, name)
        if value is not None and value.numel():
            _within(value, -math.inf, slack, _WORDS[name], where)
    if scores.at_ids is not None and scores.at_logp is not None:
        _check_at(scores.at_ids, scores.at_logp, scores.sampled, rollout, slack, where)


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
    _check_listed(ids, logp, scores, rollout, slack, where)


def _check_at(
    ids: Tensor, logp: Tensor, sampled: Tensor | None, rollout: Rollout, slack: float, where: str
) -> None:
    """The token taken has its own log-prob. Distinct ids are disjoint events; one asked for twice counts once."""
    if sampled is not None:
        taken = ids == torch.tensor(rollout.response_ids)[:, None]
        apart = float(torch.where(taken, (logp - sampled[:, None]).abs(), 0.0).max())
        if not apart <= slack:
            raise BadReply(where, f"two log-probs of one token, {apart:.3g} nats apart")
    order = ids.sort(-1)
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[:, 1:] = order.values.diff(dim=-1) == 0
    mass = torch.where(again, 0.0, logp.double().gather(-1, order.indices).exp()).sum(-1)
    if mass.numel() and float(mass.max()) > 1 + 4 * slack:
        raise BadReply(where, "probabilities at the given ids that add up to more than 1")


def _check_listed(
    ids: Tensor, logp: Tensor, scores: Scores, rollout: Rollout, slack: float, where: str
) -> None:
    """The token taken, and every candidate, have one log-prob each: what a shifted or a swapped answer breaks."""
    named: list[tuple[Tensor, Tensor | None]] = [
        (
            torch.tensor(rollout.response_ids)[:, None],
            None if scores.sampled is None else scores.sampled[:, None],
        )
    ]
    if scores.at_ids is not None:
        named.append((scores.at_ids.long(), scores.at_logp))
    for some, said in named:
        apart = 0.0 if said is None else contradiction(some, said, ids, logp)
        if not apart <= slack:
            raise BadReply(where, f"two log-probs of one token, {apart:.3g} nats apart")


def contradiction(ids: Tensor, logp: Tensor, top_ids: Tensor, top_logp: Tensor) -> float:
    """Nats by which log-probs at `ids` [T, S] and a top-k list [T, K] cannot both be right; 0 where they can.

    A token in the list has the list's log-prob; one that is not in it is no likelier than the list's last.

    >>> top = torch.tensor([[7, 9]]), torch.tensor([[-0.5, -2.0]])
    >>> contradiction(torch.tensor([[9, 3]]), torch.tensor([[-2.0, -1.5]]), *top)
    0.5
    """
    if not ids.numel():
        return 0.0
    order = top_ids.sort(-1)
    slot = torch.searchsorted(order.values, ids.contiguous()).clamp(max=top_ids.shape[-1] - 1)
    found = order.values.gather(-1, slot) == ids
    listed = top_logp.gather(-1, order.indices.gather(-1, slot))
    apart = torch.where(found, (listed - logp).abs(), (logp - top_logp[:, -1:]).clamp(min=0))
    return float(apart.max())


def _within(value: Tensor, low: float, high: float, what: str, where: str) -> None:
    if bool((value > high).any()) or bool((value < low).any()):
        worst = float(value.max()) if bool((value > high).any()) else float(value.min())
        raise BadReply(where, f"{what} as far as {worst:.4g}, which no distribution has")
