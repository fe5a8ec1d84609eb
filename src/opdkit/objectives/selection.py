"""Which positions of a step train, where only a share of them does.

teachable            KL_t · C_t, each held within its 5 and 95 %                      F17, arXiv 2605.26844
uncertain_or_wrong   1 − (1 − h_t)(1 − d_t), entropy and KL over their largest        F18, arXiv 2604.14084
random               a score by chance, of (seed, step)                               control
first, last          of every response                                                control

The share with the highest score is taken. KL_t is over the student's top k and all the rest as one more token, a lower bound of
KL(p‖q); C_t is the teacher's mass in that top k: disagreement the student can follow. Under several ranks each selects among its
own positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opdkit.config.objective import ObjectiveConfig
from opdkit.objectives.likelihood import sampled_columns
from opdkit.types import Batch, Scores


@dataclass(frozen=True)
class Moment:
    """When a signal is made: what chance depends on, whether a sequential reward has taken over, how deep the horizon is."""

    seed: int = 0
    step: int = 0
    rewarded: bool = False
    window: int = 0  # only the first so many response tokens learn from the teacher; 0 = what the record says


def selected(spec: ObjectiveConfig, batch: Batch, learns: Tensor, moment: Moment) -> Bool[Tensor, " N"]:
    signal = spec.signal
    if signal.select in ("first", "last"):
        return _segment(batch, learns, share=signal.share, last=signal.select == "last")
    if signal.select == "random":
        generator = torch.Generator().manual_seed(moment.seed * 1_000_003 + moment.step + 7)
        score = torch.rand(len(batch.row), generator=generator)
    else:
        score = _scored(spec, batch, learns)
    return highest(score, learns, share=signal.share)


def highest(score: Float[Tensor, " N"], among: Bool[Tensor, " N"], *, share: float) -> Bool[Tensor, " N"]:
    """The share of positions with the highest score, at least one where there is any; ties go to the earlier."""
    count = min(int(among.sum()), max(1, round(share * int(among.sum()))))
    order = torch.where(among, score, -torch.inf).argsort(descending=True, stable=True)
    chosen = torch.zeros(len(score), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen & among


def _segment(batch: Batch, learns: Tensor, *, share: float, last: bool) -> Bool[Tensor, " N"]:
    """The first or the last tokens of every response: its share, at least one."""
    lengths = torch.tensor([r.length for r in batch.rollouts], dtype=torch.float64)
    kept = (share * lengths).round().clamp(min=1.0)[batch.row]
    place = lengths[batch.row] - 1 - batch.depth if last else batch.depth
    return learns & (place < kept)


def _scored(spec: ObjectiveConfig, batch: Batch, among: Tensor) -> Float[Tensor, " N"]:
    p, q = _candidates(spec, batch)
    kl = coarse_kl(p, q)
    if spec.signal.select == "teachable":
        return _held(kl, among) * _held(q.exp().sum(-1), among)
    entropy = sampled_columns(batch.rollouts)[1]
    return 1.0 - (1.0 - _relative(entropy, among)) * (1.0 - _relative(kl, among))


def coarse_kl(p: Float[Tensor, "N K"], q: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
    """KL over K tokens and all the rest as one more, ≤ KL over the vocabulary (data processing); nats."""
    eps = torch.finfo(p.dtype).eps
    p_rest, q_rest = (1.0 - x.exp().sum(-1).clamp(max=1.0 - eps) for x in (p, q))
    return (p.exp() * (p - q)).sum(-1) + p_rest * (p_rest.log() - q_rest.log())


def _held(values: Tensor, among: Tensor) -> Tensor:
    """Within the 5 and the 95 % of the positions that count."""
    if not among.any():
        return values
    low, high = torch.quantile(values[among].double(), torch.tensor([0.05, 0.95], dtype=torch.float64))
    return values.clamp(float(low), float(high))


def _relative(values: Tensor, among: Tensor) -> Tensor:
    """Over the largest among those that count; 0 where that is nothing."""
    largest = float(values[among].max()) if among.any() else 0.0
    return (values / largest).clamp(0.0, 1.0) if largest > 0.0 else torch.zeros_like(values)


def _candidates(spec: ObjectiveConfig, batch: Batch) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
    """Both models' log-probs at the student's top k."""
    own = [r.topk_logp[:, : spec.k] for r in batch.rollouts if r.topk_logp is not None and r.length]
    theirs = column(batch.scores["teacher"], "at_logp")[:, : spec.k]
    return torch.cat(own).double().cpu(), theirs


def column(scores: tuple[Scores, ...], name: str) -> Tensor:
    """One field of what a model said, packed, on the CPU, float64: what couples positions is summed over many."""
    found = [getattr(s, name) for s in scores]
    assert all(x is not None for x in found), f"the plan asked for {name}"
    return torch.cat([x.double().cpu() for x in found])
