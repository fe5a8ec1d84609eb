"""Draw one token per row: truncation, inverse CDF in integers, and one random stream per row.

A row's uniforms are keyed by (seed, step, prompt, sample) and counted by position, so its tokens do not
depend on which rows are decoded beside it, in which order, or after which resume. Nothing draws from a global
generator.

Letters: R rows of one decoding step, V vocabulary, K top-k.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opdkit.support import RowDist
from opdkit.types import Needs

_WEIGHT_ONE = (
    2.0**52
)  # integer weight of probability 1: a sum over any vocabulary fits int64 with room to spare
_BLOCK = 512  # the inverse CDF first picks a block of so many tokens, then a token in it
_CPU_ENTRIES = (
    1 << 18
)  # of one piece of rows on a CPU: the passes over a piece stay in cache and in the allocator's own heap


@dataclass(frozen=True)
class Drawn:
    """What one step gave for its R rows. Log-probs in nats, float32 or wider, on the model's device."""

    ids: Int[Tensor, " R"]
    behaviour_logp: Float[Tensor, " R"]  # under the distribution drawn from
    logp: Float[Tensor, " R"]  # untruncated, same temperature
    topk_ids: Int[Tensor, "R K"] | None = None
    topk_logp: Float[Tensor, "R K"] | None = None
    entropy: Float[Tensor, " R"] | None = None


def stream_key(*, seed: int, step: int, prompt: str, sample: int) -> int:
    """128 bits that name one response's random stream, the same in every process."""
    text = json.dumps([seed, step, prompt, sample]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def uniforms(count: int, *, seed: int, step: int, prompt: str, sample: int) -> np.ndarray:
    """The first `count` numbers in [0, 1) of one row's stream; a longer call begins with the same numbers."""
    key = stream_key(seed=seed, step=step, prompt=prompt, sample=sample)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def draw(
    logits: Float[Tensor, "R V"],
    uniform: Float[Tensor, " R"],
    *,
    needs: Needs,
    top_k: int = 0,
    top_p: float = 1.0,
    banned: Bool[Tensor, "R V"] | None = None,
) -> Drawn:
    """One token per row from softmax(logits) after bans, top-k and top-p, each renormalising what is left."""
    pieces = []
    for part in _pieces(logits):
        ban = None if banned is None else banned[part]
        pieces.append(_draw(logits[part], uniform[part], needs=needs, top_k=top_k, top_p=top_p, banned=ban))
    if len(pieces) == 1:
        return pieces[0]
    values: dict[str, Any] = {f.name: [getattr(piece, f.name) for piece in pieces] for f in fields(Drawn)}
    joined: dict[str, Any] = {
        name: None if parts[0] is None else torch.cat(parts) for name, parts in values.items()
    }
    return Drawn(**joined)


def _pieces(logits: Tensor) -> list[slice]:
    rows, vocabulary = logits.shape
    width = rows if logits.device.type != "cpu" else max(1, _CPU_ENTRIES // vocabulary)
    return [slice(begin, begin + width) for begin in range(0, rows, width)]


def _draw(
    logits: Tensor, uniform: Tensor, *, needs: Needs, top_k: int, top_p: float, banned: Tensor | None
) -> Drawn:
    row = RowDist(logits)
    logp = row.full
    kept = logits if banned is None else torch.where(banned, -torch.inf, logits)
    kept = _nucleus(_most_probable(kept, top_k), top_p)
    behaviour = logp if kept is logits else kept.log_softmax(-1)
    ids = pick(behaviour.exp(), uniform)
    picked = logp.gather(-1, ids[:, None])[:, 0]
    topk_ids, topk_logp = row.topk(min(needs.top_k, logits.shape[-1])) if needs.top_k else (None, None)
    return Drawn(
        ids=ids,
        behaviour_logp=picked if behaviour is logp else behaviour.gather(-1, ids[:, None])[:, 0],
        logp=picked,
        topk_ids=topk_ids,
        topk_logp=topk_logp,
        entropy=row.entropy if needs.entropy else None,
    )


def pick(probability: Float[Tensor, "R V"], uniform: Float[Tensor, " R"]) -> Int[Tensor, " R"]:
    """Inverse CDF: the first token whose cumulative probability exceeds `uniform` (float64, in [0, 1)).

    Probabilities become integers (unit 2⁻⁵²) before they are added. Integer sums are exact and do not depend
    on their order, so a token of probability 0 is never drawn, u next to 1 still lands on a token, and
    summing blocks first gives the same token as one long sum.

    >>> uniform = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    >>> pick(torch.tensor([[0.5, 0.0, 0.5, 0.0]]).repeat(3, 1), uniform)
    tensor([0, 2, 2])
    """
    weight = (probability * _WEIGHT_ONE).long()
    rows, vocabulary = weight.shape
    if vocabulary <= 2 * _BLOCK:
        cdf = weight.cumsum(-1)
        return _position(cdf, _target(cdf, uniform))
    weight = torch.nn.functional.pad(weight, (0, -vocabulary % _BLOCK)).view(rows, -1, _BLOCK)
    block, rest = _first_above(weight.sum(-1).cumsum(-1), uniform)
    inside = weight[torch.arange(rows, device=weight.device), block].cumsum(-1)
    return block * _BLOCK + _position(inside, rest)


def _first_above(
    cdf: Int[Tensor, "R n"], uniform: Float[Tensor, " R"]
) -> tuple[Int[Tensor, " R"], Int[Tensor, " R"]]:
    """(first position whose sum exceeds u × total, what is left of u × total at that position)."""
    target = _target(cdf, uniform)
    position = _position(cdf, target)
    before = cdf.gather(-1, (position - 1).clamp_(min=0)[:, None])[:, 0]
    return position, torch.where(position > 0, target - before, target)


def _target(cdf: Int[Tensor, "R n"], uniform: Float[Tensor, " R"]) -> Int[Tensor, " R"]:
    """u × total, below the total even where u is next to 1."""
    total = cdf[:, -1]
    return torch.minimum((uniform * total).long(), total - 1)


def _position(cdf: Int[Tensor, "R n"], target: Int[Tensor, " R"]) -> Int[Tensor, " R"]:
    # The clamp matters for rows of NaN only; they are refused once the rollouts are complete.
    return torch.searchsorted(cdf, target[:, None], right=True)[:, 0].clamp_(max=cdf.shape[-1] - 1)


def _most_probable(logits: Float[Tensor, "R V"], k: int) -> Float[Tensor, "R V"]:
    """-inf outside the k largest; ties with the k-th stay, as in transformers."""
    if not 0 < k < logits.shape[-1]:
        return logits
    smallest = logits.topk(k, dim=-1).values[:, -1:]
    return torch.where(logits >= smallest, logits, -torch.inf)


def _nucleus(logits: Float[Tensor, "R V"], top_p: float) -> Float[Tensor, "R V"]:
    """-inf outside the smallest set of most probable tokens of mass `top_p`; ties with the last one stay."""
    if top_p >= 1.0:
        return logits
    falling = _falling(logits)
    mass = falling.softmax(-1).cumsum(-1, dtype=torch.float64)
    last = (mass < top_p).sum(-1, keepdim=True).clamp_(max=logits.shape[-1] - 1)
    return torch.where(logits >= falling.gather(-1, last), logits, -torch.inf)


def _falling(values: Float[Tensor, "R V"]) -> Float[Tensor, "R V"]:
    """Each row sorted, largest first. On a CPU numpy's sort is about ten times as fast as torch's."""
    if values.device.type != "cpu":
        return values.sort(-1, descending=True).values
    return torch.from_numpy(np.sort(values.numpy(), axis=-1)).flip(-1)
