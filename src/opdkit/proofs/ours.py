"""The package's side of a proof: an objective called on whole rows of logits. The one place that does it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from opdkit.config import ObjectiveConfig
from opdkit.objectives import Objective
from opdkit.support import Dist, RowDist
from opdkit.types import Support


def value_and_gradient(loss_of: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Loss per position, and d (Σ positions) / d logits."""
    leaf = logits.clone().requires_grad_()
    loss = loss_of(leaf)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf, allow_unused=True)
    return loss.detach(), torch.zeros_like(logits) if gradient is None else gradient


def loss(
    objective: Objective, student: Dist, teacher: Dist, *, sampled: Tensor, support: Support | None = None
) -> Tensor:
    """Loss per position [N]; the support is chosen here unless it is given."""
    chosen = support or objective.support(student, teacher, sampled_ids=sampled)
    return objective.local(student, teacher, chosen)


def local(
    spec: ObjectiveConfig,
    student: Tensor,
    teacher: Tensor,
    *,
    sampled: Tensor | None = None,
    support: Support | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss [N], gradient [N, V]) of the package's objective, logits of both models given; y = 0 if unset."""
    objective = Objective(spec)
    drawn = torch.zeros(len(student), dtype=torch.long) if sampled is None else sampled
    q = RowDist(teacher, sampled_ids=drawn)
    return value_and_gradient(
        lambda z: loss(objective, RowDist(z, sampled_ids=drawn), q, sampled=drawn, support=support), student
    )


def expectation(spec: ObjectiveConfig, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_y p(y)·(value, gradient at y): every token of the vocabulary drawn once, weighted by its probability.

    One call: N positions × V draws are N·V positions.
    """
    positions, size = student.shape
    drawn = torch.arange(size).repeat(positions)
    value, gradient = local(
        spec,
        student.repeat_interleave(size, 0),
        teacher.repeat_interleave(size, 0),
        sampled=drawn,
    )
    p = student.softmax(-1)
    mean_gradient = (p[:, :, None] * gradient.view(positions, size, size)).sum(1)
    return (p * value.view(positions, size)).sum(1), mean_gradient
