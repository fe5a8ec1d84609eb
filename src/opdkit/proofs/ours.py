"""The package's side of a proof: an objective called on whole rows of logits. The one place that does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
    objective: Objective,
    student: Dist,
    teacher: Dist,
    *,
    sampled: Tensor,
    support: Support | None = None,
    others: Mapping[str, RowDist] | None = None,
) -> Tensor:
    """Loss per position [N]; the support is chosen here unless it is given."""
    p, q = objective.seen(student), objective.seen(teacher)
    taken = p.sampled_ids if isinstance(p, RowDist) and p.sampled_ids is not None else sampled
    chosen = support or objective.support(p, q, sampled_ids=taken)
    return objective.local(p, q, chosen, {n: objective.seen(d) for n, d in (others or {}).items()})


def local(
    spec: ObjectiveConfig,
    student: Tensor,
    teacher: Tensor,
    *,
    sampled: Tensor | None = None,
    support: Support | None = None,
    others: Mapping[str, Tensor] | None = None,
    ends: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor]:
    """(loss [N], gradient [N, V]) of the package's objective, logits of all models given; y = 0 if unset."""
    objective = Objective(spec, ends=ends)
    drawn = torch.zeros(len(student), dtype=torch.long) if sampled is None else sampled
    q = RowDist(teacher, sampled_ids=drawn)
    more = {name: RowDist(logits, sampled_ids=drawn) for name, logits in (others or {}).items()}

    def of(z: Tensor) -> Tensor:
        p = RowDist(z, sampled_ids=drawn)
        return loss(objective, p, q, sampled=drawn, support=support, others=more)

    return value_and_gradient(of, student)


def expectation(
    spec: ObjectiveConfig,
    student: Tensor,
    teacher: Tensor,
    others: Mapping[str, Tensor] | None = None,
    ends: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor]:
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
        others={name: logits.repeat_interleave(size, 0) for name, logits in (others or {}).items()},
        ends=ends,
    )
    p = student.softmax(-1)
    mean_gradient = (p[:, :, None] * gradient.view(positions, size, size)).sum(1)
    return (p * value.view(positions, size)).sum(1), mean_gradient
