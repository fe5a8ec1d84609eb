"""Shaping of the token signal: what is done to the detached advantage A = log q − log p before it meets ∇log p.

Each bounds or compresses it; none keeps the gradient of KL(p‖q), and how far off it is depends on the two models.

clip    max(−c, min(A, c))                 hard bound; tokens beyond it lose their order            (F13, arXiv 2607.13399)
log     sign(A) log(1 + |A|)               odd, order preserving, unbounded but slow                (F13)
power   qᵃ − pᵃ                            in [−1, 1]; → a·A as a → 0                               (F11, arXiv 2606.17199)
floor   max(A, log(λ / (1 − λ)))           bounds what a token the teacher rejects can cost         (F12, arXiv 2603.11137)
"""

from __future__ import annotations

import math
from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

Shape = Callable[[Float[Tensor, "*N"], Float[Tensor, "*N"], Float[Tensor, "*N"], float], Float[Tensor, "*N"]]
"""(advantage, student_logp, teacher_logp, parameter) → advantage."""


def _clip(advantage: Tensor, p: Tensor, q: Tensor, bound: float) -> Tensor:
    return advantage.clamp(-bound, bound)


def _log(advantage: Tensor, p: Tensor, q: Tensor, _unused: float) -> Tensor:
    return advantage.sign() * advantage.abs().log1p()


def _power(advantage: Tensor, p: Tensor, q: Tensor, exponent: float) -> Tensor:
    return (exponent * q).exp() - (exponent * p).exp()


def _floor(advantage: Tensor, p: Tensor, q: Tensor, share: float) -> Tensor:
    return advantage.clamp(min=math.log(share / (1.0 - share)))


SHAPES: dict[str, Shape] = {"clip": _clip, "log": _log, "power": _power, "floor": _floor}

DEFAULTS = {"clip": 5.0, "log": 1.0, "power": 5.0, "floor": 0.17}
"""Of the parameter: nats, unused, exponent and mixture share of the papers' authors (the clip is ours)."""


def bounds(name: str, advantage: Float[Tensor, "*N"], value: float | None) -> Bool[Tensor, "*N"] | None:
    """Where a bound changes the advantage; None for a shaping that has none."""
    limit = DEFAULTS.get(name, 0.0) if value is None else value
    if name == "clip":
        return advantage.abs() > limit
    return advantage < math.log(limit / (1.0 - limit)) if name == "floor" else None


def shaped(
    name: str,
    advantage: Float[Tensor, "*N"],
    p: Float[Tensor, "*N"],
    q: Float[Tensor, "*N"],
    value: float | None,
) -> Float[Tensor, "*N"]:
    """The advantage under shaping `name`; `value` unset takes the authors'.

    >>> import torch
    >>> A, p, q = torch.tensor([-9.0, 0.5]), torch.tensor([-0.1, -2.0]), torch.tensor([-9.1, -1.5])
    >>> for name in SHAPES:
    ...     print(name, [round(x, 3) for x in shaped(name, A, p, q, None).tolist()])
    clip [-5.0, 0.5]
    log [-2.303, 0.405]
    power [-0.607, 0.001]
    floor [-1.586, 0.5]
    """
    if name == "none":
        return advantage
    return SHAPES[name](advantage, p, q, DEFAULTS[name] if value is None else value)
