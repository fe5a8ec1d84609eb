"""Divergences token by token. p is the student, q the teacher, both log-probs in nats.

Each divergence is D(p, q) = Σ_v g(p_v, q_v). `value` is g; `advantage` is −∂g/∂p_v up to a constant that does
not depend on v (it cancels over the full vocabulary because Σ p ∇log p = 0), so that

    ∇D = − Σ_v p_v · advantage_v · ∇log p_v        (full vocabulary)

reverse_kl   KL(p‖q) = Σ p (log p − log q)                               advantage  log q − log p
forward_kl   KL(q‖p) = Σ q (log q − log p)                               advantage  q / p
js           β KL(q‖m) + (1−β) KL(p‖m),  m = β q + (1−β) p               advantage  (1−β) (log m − log p)
             GKD, arXiv 2306.13649. ∂g/∂p = (1−β)(log p/m + 1 − (β q + (1−β) p)/m) = (1−β) log p/m.
skewed_reverse_kl   KL(p‖m),  m = (1−α) q + α p                          advantage  log m − log p + α p / m
skewed_forward_kl   KL(q‖m),  m = α q + (1−α) p                          advantage  (1−α) q / m
             DistiLLM, arXiv 2402.03898: mixing a share α of the first distribution into the second bounds the log-ratio.
             ∂g/∂p = log p − log m + 1 − α p / m, and − (1−α) q / m.

The third argument is β for js, α for the skewed ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_LINEAR = 50.0
"""Above it log(1 + e^x) is x: what is left out, e^−50, is nothing beside 50 in float64."""

Terms = Callable[[Float[Tensor, "N S"], Float[Tensor, "N S"], float], Float[Tensor, "N S"]]


@dataclass(frozen=True)
class DivergenceTerms:
    """`value(student_logp, teacher_logp, beta)` and `advantage(…)`, both [N, S]."""

    value: Terms
    advantage: Terms


def _reverse_value(p: Tensor, q: Tensor, beta: float) -> Tensor:
    return p.exp() * (p - q)


def _reverse_advantage(p: Tensor, q: Tensor, beta: float) -> Tensor:
    return q - p


def _forward_value(p: Tensor, q: Tensor, beta: float) -> Tensor:
    return q.exp() * (q - p)


def _forward_advantage(p: Tensor, q: Tensor, beta: float) -> Tensor:
    return (q - p).exp()


def _mixed(ratio: Tensor, share: float) -> Tensor:
    """log m − log p where m holds `share` of q and the rest of p: log(1 − share + share · q / p), from log q − log p.

    One function of the ratio: neither probability is made, and where p and q agree nothing cancels.
    """
    odds = math.log(share) - math.log1p(-share)
    return torch.nn.functional.softplus(ratio + odds, threshold=_LINEAR) + math.log1p(-share)


def _js_value(p: Tensor, q: Tensor, beta: float) -> Tensor:
    ratio = q - p
    m = _mixed(ratio, beta)
    return beta * q.exp() * (ratio - m) - (1 - beta) * p.exp() * m


def _js_advantage(p: Tensor, q: Tensor, beta: float) -> Tensor:
    return (1 - beta) * _mixed(q - p, beta)


def _skewed_reverse_value(p: Tensor, q: Tensor, alpha: float) -> Tensor:
    return -p.exp() * _mixed(q - p, 1 - alpha)


def _skewed_reverse_advantage(p: Tensor, q: Tensor, alpha: float) -> Tensor:
    m = _mixed(q - p, 1 - alpha)
    return m + alpha * (-m).exp()


def _skewed_forward_value(p: Tensor, q: Tensor, alpha: float) -> Tensor:
    ratio = q - p
    return q.exp() * (ratio - _mixed(ratio, alpha))


def _skewed_forward_advantage(p: Tensor, q: Tensor, alpha: float) -> Tensor:
    ratio = q - p
    return (1 - alpha) * (ratio - _mixed(ratio, alpha)).exp()


DIVERGENCES: dict[str, DivergenceTerms] = {
    "reverse_kl": DivergenceTerms(_reverse_value, _reverse_advantage),
    "forward_kl": DivergenceTerms(_forward_value, _forward_advantage),
    "js": DivergenceTerms(_js_value, _js_advantage),
    "skewed_reverse_kl": DivergenceTerms(_skewed_reverse_value, _skewed_reverse_advantage),
    "skewed_forward_kl": DivergenceTerms(_skewed_forward_value, _skewed_forward_advantage),
}
