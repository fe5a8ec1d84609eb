"""What couples positions: from a step's rollouts and what the models said of them to one weight and one advantage per position.

The loss of position t is  m_t·D_t − A_t·log p(y_t)  with weight m_t ≥ 0 on the divergence there and A_t, detached, on the
sampled token. With δ_t = log target(y_t) − log p(y_t), shaped as the objective says, over the positions that learn (trained, in
the window):

    positions   prefix      m_t = 1 + (w − 1)(1 − Σ_{s<t}|δ_s| / Σ_s|δ_s|)        F19, arXiv 2606.22600
                half_life   m_t = 2^(−t / h)
    select      m_t = 0 but for a share of the step                                objectives/selection.py
    gate        m_t = 0 where sign δ_t is not that of the grade                    F21
    prompts     m_t · r(1 − r), of the step or from before the run                 F28, arXiv 2603.11178
    discount    A_t = m_t Σ_{s>t} γ^(s−t) δ_s                                      F16, F2
    token_rewards  m_t / σ, δ → (δ − μ)/σ and A_t − μ/σ                            arXiv 2604.13016, token_grpo
    reward      A_t + w·R (additive) · m_t = 0, A_t = w·clip(e^(sign(R) δ_t), 1 ± ε)·R (modulating)
                · m_t = 0, A_t = w·R after the switch (sequential)                 F26, F27
    control     m_t = 0, A_t = δ of another token, or ±δ_t by chance

R is the group-relative advantage of the response.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opdkit.config.objective import ObjectiveConfig
from opdkit.objectives.likelihood import advantages, score_of, scored_groups
from opdkit.objectives.selection import Moment, column, selected
from opdkit.objectives.shaping import shaped
from opdkit.types import Batch, Rollout, Signal

POSITIONS = {"prefix": 1.5, "half_life": 512.0}
"""Where `positions_value` is unset: the authors' largest weight; tokens, ours."""
RIGHT = 0.5
"""A score of at least this is of a right response."""


def prepare(
    spec: ObjectiveConfig,
    batch: Batch,
    *,
    parts: dict[str, float],
    masked: Bool[Tensor, " N"],
    moment: Moment,
) -> Signal:
    """The signal of one step. `parts`: model → its weight in the target, "student" for p itself; `masked`: never train."""
    signal = spec.signal
    trained = batch.trained & ~masked
    windows = [window for window in (signal.window, moment.window) if window]
    learns = trained & (batch.depth < min(windows)) if windows else trained
    ratio = (
        _log_ratio(spec, batch, parts)
        if signal.reads_log_ratios
        else torch.zeros(len(batch.row), dtype=torch.float64)
    )
    ratio = torch.where(learns, ratio, 0.0)
    # `weight` is of credit, `own` of the divergence at the position itself
    weight = own = _weights(spec, batch, ratio, learns, moment)
    advantage = torch.zeros_like(weight)
    if signal.token_rewards != "raw":
        mean, spread = _pooled(batch, ratio, learns)
        spread = spread if signal.token_rewards == "standardised" else torch.ones_like(spread)
        ratio = torch.where(learns, (ratio - mean) / spread, 0.0)
        advantage, own = -weight * mean / spread, weight / spread
    if signal.discount > 0.0:
        advantage = advantage + weight * ahead(ratio, batch.row, discount=signal.discount)
    if signal.control != "none":
        advantage = weight * _controlled(signal.control, ratio, learns, moment)
        own = torch.zeros_like(own)
    if signal.reward != "none":
        own, advantage = _rewarded(spec, batch, ratio, trained, own, advantage, moment)
    return Signal(weight=own, advantage=advantage if signal.pushes else None)


# --- weights ------------------------------------------------------------------------------------------------------------


def _weights(spec: ObjectiveConfig, batch: Batch, ratio: Tensor, learns: Tensor, moment: Moment) -> Tensor:
    """m_t ≥ 0; exactly 0 or 1 where nothing but masks and windows is asked for."""
    signal = spec.signal
    weight = learns.to(torch.float64)
    value = signal.positions_value or POSITIONS.get(signal.positions, 0.0)
    if signal.positions == "prefix":
        weight = weight * prefix_weights(ratio, batch.row, largest=value)
    if signal.positions == "half_life":
        weight = weight * torch.exp2(-batch.depth / value)
    if signal.select != "none":
        weight = torch.where(selected(spec, batch, learns, moment), weight, 0.0)
    if signal.gate == "verifier":
        weight = torch.where(_agrees(batch, ratio), weight, 0.0)
    if signal.prompts != "none":
        weight = weight * PROMPTS[signal.prompts](batch.rollouts)[batch.row]
    return weight


def prefix_weights(ratio: Float[Tensor, " N"], row: Tensor, *, largest: float) -> Float[Tensor, " N"]:
    """1 + (w − 1)(1 − share of the response's Σ|δ| that came before): w at its first token, → 1 towards its last.

    >>> prefix_weights(torch.tensor([1.0, -1.0, 2.0]), torch.tensor([0, 0, 0]), largest=1.5).tolist()
    [1.5, 1.375, 1.25]
    """
    weights = []
    for one in ratio.abs().double().split(_lengths(row)):
        total = one.sum()
        before = (one.cumsum(0) - one) / total if total > 0.0 else torch.zeros_like(one)
        weights.append(1.0 + (largest - 1.0) * (1.0 - before))
    return torch.cat(weights).to(ratio.dtype) if weights else ratio


def _lengths(row: Tensor) -> list[int]:
    """Positions of each response that has any."""
    return torch.unique_consecutive(row, return_counts=True)[1].tolist()


def pass_rate_weights(rollouts: tuple[Rollout, ...]) -> Float[Tensor, " R"]:
    """r(1 − r) of each rollout's prompt; 0 for one that has no score."""
    result = torch.zeros(len(rollouts), dtype=torch.float64)
    for members in scored_groups(rollouts):
        rate = sum(_right(rollouts[i]) for i in members) / len(members)
        result[members] = rate * (1.0 - rate)
    return result


def row_weights(rollouts: tuple[Rollout, ...]) -> Float[Tensor, " R"]:
    """What the row of each rollout's prompt says, 1 where it says nothing."""
    return torch.tensor([float(r.prompt.extra.get("weight", 1.0)) for r in rollouts])


PROMPTS = {"pass_rate": pass_rate_weights, "row": row_weights}
"""Weights of prompts, one per rollout: of the step, or from before the run."""


def _agrees(batch: Batch, ratio: Tensor) -> Bool[Tensor, " N"]:
    """sign δ = sign of the grade; a response without a score is not judged, and passes."""
    wanted = torch.zeros(len(batch.rollouts), dtype=torch.float64)
    for i, rollout in enumerate(batch.rollouts):
        if rollout.grade is not None and rollout.grade.score is not None:
            wanted[i] = 1.0 if _right(rollout) else -1.0
    judge = wanted[batch.row]
    return (judge == 0.0) | (ratio.sign() == judge)


# --- advantages ---------------------------------------------------------------------------------------------------------


def ahead(rewards: Float[Tensor, " N"], row: Tensor, *, discount: float) -> Float[Tensor, " N"]:
    """Σ_{s>t} γ^(s−t) r_s within each response.

    >>> ahead(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 0, 0, 1]), discount=0.5).tolist()
    [2.0, 2.0, 0.0, 0.0]
    """
    result = []
    for one in rewards.double().split(_lengths(row)):
        credit, later = torch.zeros_like(one), 0.0
        for t in range(len(one) - 1, -1, -1):
            credit[t] = later
            later = discount * (float(one[t]) + later)
        result.append(credit)
    return torch.cat(result).to(rewards.dtype) if result else rewards


def _pooled(batch: Batch, ratio: Tensor, learns: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of δ over all responses to the position's prompt."""
    groups: dict[str, int] = {}
    which = torch.tensor([groups.setdefault(r.prompt.id, len(groups)) for r in batch.rollouts])[batch.row]
    nothing = torch.zeros(len(groups), dtype=torch.float64)
    count = nothing.index_add(0, which, learns.double()).clamp(min=1.0)
    mean = nothing.index_add(0, which, ratio) / count
    apart = torch.where(learns, (ratio - mean[which]) ** 2, 0.0)
    spread = (nothing.index_add(0, which, apart) / (count - 1.0).clamp(min=1.0)).sqrt()
    return mean[which], spread[which] + 1e-6


def _controlled(kind: str, ratio: Tensor, learns: Tensor, moment: Moment) -> Tensor:
    """δ with the teacher's knowledge taken out of it, its sizes left."""
    generator = torch.Generator().manual_seed(moment.seed * 1_000_003 + moment.step + 13)
    if kind == "random_sign":
        return torch.where(torch.rand(len(ratio), generator=generator) < 0.5, ratio, -ratio)
    here = learns.nonzero()[:, 0]
    moved = ratio.clone()
    moved[here] = ratio[here[torch.randperm(len(here), generator=generator)]]
    return moved


def _rewarded(
    spec: ObjectiveConfig,
    batch: Batch,
    ratio: Tensor,
    trained: Tensor,
    weight: Tensor,
    advantage: Tensor,
    moment: Moment,
) -> tuple[Tensor, Tensor]:
    """Weight and advantage with the task's reward in them. It reaches every trained token, whatever window and selection say."""
    signal = spec.signal
    if signal.reward == "sequential" and not moment.rewarded:
        return weight, advantage
    per_response = advantages(batch.rollouts, scale=signal.reward_scale, dtype=torch.float64)
    if signal.prompts != "none":
        per_response = per_response * PROMPTS[signal.prompts](batch.rollouts)
    reward = torch.where(trained, signal.reward_weight * per_response[batch.row], 0.0)
    if signal.reward == "additive":
        return weight, advantage + reward
    if signal.reward == "modulating":
        factor = (reward.sign() * ratio).exp().clamp(1.0 - signal.reward_clip, 1.0 + signal.reward_clip)
        return torch.zeros_like(weight), factor * reward
    return torch.zeros_like(weight), reward


# --- what was said before the learner's forward -------------------------------------------------------------------------


def _log_ratio(spec: ObjectiveConfig, batch: Batch, parts: dict[str, float]) -> Float[Tensor, " N"]:
    """δ of every sampled token, in nats."""
    assert batch.sampler_logp is not None, "the sampler knows the log-prob of what it drew"
    p = batch.sampler_logp.double().cpu()
    target = torch.zeros_like(p)
    for name, share in parts.items():
        said = p if name == "student" else column(batch.scores[name], "sampled")
        target = target + share * said
    return shaped(spec.shaping, target - p, p, target, spec.shaping_value)


def _right(rollout: Rollout) -> bool:
    return score_of(rollout) >= RIGHT
