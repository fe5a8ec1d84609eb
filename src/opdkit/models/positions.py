"""The loss of every response position by itself: what the learner adds up before it differentiates.

The objective is positionwise once its signal is prepared, so a step's loss is Σ_t loss_t, and its gradient Σ_t ∇loss_t.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from opdkit.models.head import Head
from opdkit.models.student import Student, support_at
from opdkit.objectives import Likelihood, Objective
from opdkit.types import MicroBatch, Scores


def position_losses(
    student: Student,
    micro: MicroBatch,
    objective: Objective | Likelihood,
    heads: Mapping[str, Head] | None = None,
) -> Iterator[Tensor]:
    """loss_t of each packed position, one after another; their sum is what `student(micro, …)` returns.

    One forward of the body stands behind all of them: differentiate each with `retain_graph`. Nothing is measured.
    """
    hidden = student.states(micro)
    for n in range(len(hidden)):
        loss, _ = student.loss(hidden[n : n + 1], _only(micro, slice(n, n + 1)), objective, heads)
        yield loss


def _only(micro: MicroBatch, part: slice) -> MicroBatch:
    """The packed positions in `part`, as the head sees them; the rows of the body are left as they are."""

    def here(column: Tensor | None) -> Tensor | None:
        return None if column is None else column[part]

    return replace(
        micro,
        gather=micro.gather[part],
        sampled_ids=micro.sampled_ids[part],
        weight=micro.weight[part],
        measured=torch.zeros_like(micro.measured[part]),
        index=micro.index[part],
        advantage=here(micro.advantage),
        sampler_logp=here(micro.sampler_logp),
        support=support_at(micro.support, part),
        scores={name: _scores_at(said, part) for name, said in micro.scores.items()},
    )


def _scores_at(scores: Scores, part: slice) -> Scores:
    columns = {f.name: getattr(scores, f.name) for f in fields(scores)}
    there: dict[str, Any] = {name: x[part] for name, x in columns.items() if isinstance(x, Tensor)}
    return replace(scores, **there)
