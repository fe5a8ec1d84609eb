"""The head's two chunked losses against plain autograd over whole logits: value, d hidden, d weight, d bias.

`fused_loss` builds rows chunk by chunk, `columns_loss` only the support's columns. The plain side writes the head out
by itself: z = cap(scale · (h Wᵀ + b)) / temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from opdkit.config import ObjectiveConfig
from opdkit.models.head import Head, columns_loss, fused_loss
from opdkit.objectives import Objective
from opdkit.proofs.objectives import relative
from opdkit.proofs.ours import loss
from opdkit.proofs.records import Check, Worst, largest
from opdkit.proofs.specs import PRESET_VOCABULARY, presets
from opdkit.support import ColumnDist, RowDist
from opdkit.types import Support

POSITIONS, HIDDEN = 11, 6
CHUNKS = (1, 4, 100)
"""Positions per chunk: one at a time, with a rest, all at once."""
KINDS: dict[str, tuple[bool, dict[str, float]]] = {
    "plain": (False, {}),
    "with a bias": (True, {}),
    "scaled and capped": (True, {"scale": 0.6, "softcap": 3.0, "temperature": 1.7}),
}
"""(bias, settings of `Head`); two rows of the embedding beyond the vocabulary in each."""


@dataclass(frozen=True)
class Case:
    """A head, hidden states that lead to it, and a teacher's logits at the same positions."""

    head: Head
    hidden: Tensor
    teacher: RowDist
    sampled: Tensor

    def leaves(self) -> list[Tensor]:
        bias = self.head.bias
        return [self.hidden, self.head.weight, *([] if bias is None else [bias])]

    def logits(self) -> Tensor:
        """All of them, written out."""
        z = self.hidden @ self.head.weight[: self.head.rows].T
        if self.head.bias is not None:
            z = z + self.head.bias[: self.head.rows]
        z = z * self.head.scale
        if self.head.softcap is not None:
            z = self.head.softcap * torch.tanh(z / self.head.softcap)
        return z / self.head.temperature

    def student(self, logits: Tensor, part: slice) -> RowDist:
        return RowDist(logits, sampled_ids=self.sampled[part])

    def theirs(self, part: slice) -> RowDist:
        return RowDist(self.teacher.logits[part], sampled_ids=self.sampled[part])


def case(kind: str, *, seed: int = 0) -> Case:
    biased, settings = KINDS[kind]
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    output = nn.Linear(HIDDEN, PRESET_VOCABULARY + 2, bias=biased, dtype=torch.float64, device="meta")
    output = output.to_empty(device="cpu")  # nn.Linear would draw from the global generator
    with torch.no_grad():
        for parameter in output.parameters():
            parameter.copy_(draw(*parameter.shape))
    sampled = torch.randint(PRESET_VOCABULARY, (POSITIONS,), generator=generator)
    return Case(
        Head(output, rows=PRESET_VOCABULARY, **settings),
        draw(POSITIONS, HIDDEN).requires_grad_(),
        RowDist(draw(POSITIONS, PRESET_VOCABULARY) * 1.5, sampled_ids=sampled),
        sampled,
    )


def gradients(loss: Tensor, case: Case) -> list[Tensor]:
    """The loss itself, then d loss / d hidden, weight and bias."""
    found = torch.autograd.grad(loss, case.leaves(), allow_unused=True)
    zero = [torch.zeros_like(leaf) for leaf in case.leaves()]
    return [loss.detach(), *(z if g is None else g for g, z in zip(found, zero, strict=True))]


def plain(case: Case, spec: ObjectiveConfig) -> list[Tensor]:
    objective, whole = Objective(spec), slice(0, POSITIONS)
    student, teacher = case.student(case.logits(), whole), case.theirs(whole)
    return gradients(loss(objective, student, teacher, sampled=case.sampled).sum(), case)


def fused(case: Case, spec: ObjectiveConfig, *, rows: int) -> list[Tensor]:
    objective = Objective(spec)

    def chunk(logits: Tensor, part: slice) -> Tensor:
        student, teacher = case.student(logits, part), case.theirs(part)
        return loss(objective, student, teacher, sampled=case.sampled[part]).sum()

    return gradients(fused_loss(case.hidden, case.head, chunk, chunk_rows=rows), case)


def columns(case: Case, spec: ObjectiveConfig, *, rows: int) -> list[Tensor]:
    objective = Objective(spec)
    student = RowDist(case.logits().detach(), sampled_ids=case.sampled)
    support = objective.support(student, case.teacher, sampled_ids=case.sampled)
    assert support.ids is not None and support.keep is not None
    ids, keep = support.ids, support.keep

    def chunk(logits: Tensor, part: slice) -> Tensor:
        teacher = ColumnDist(case.teacher.logits[part].gather(-1, ids[part]) + 7.0, ids=ids[part])
        held = Support(ids=ids[part], keep=keep[part], source=support.source)
        student = ColumnDist(logits, ids=ids[part])
        return loss(objective, student, teacher, sampled=case.sampled[part], support=held).sum()

    return gradients(columns_loss(case.hidden, case.head, ids, chunk, chunk_rows=rows), case)


def the_fused_head() -> Iterator[Check]:
    """Every preset, every kind of head, three sizes of chunk."""
    worst = Worst()
    for kind, (name, spec) in product(KINDS, presets().items()):
        for rows in CHUNKS:
            worst.attempt(f"{name}, {kind}, {rows} positions a chunk", spec, _fused_error(kind, spec, rows))
    yield worst.check("the fused head against plain autograd: loss, d hidden, d weight, d bias")


def _fused_error(kind: str, spec: ObjectiveConfig, rows: int) -> Callable[[], float]:
    made = case(kind)
    return lambda: largest(map(relative, fused(made, spec, rows=rows), plain(made, spec)))


def the_columns_only_head() -> Iterator[Check]:
    """Every preset whose normaliser over the vocabulary cancels."""
    worst = Worst()
    for kind, (name, spec) in product(KINDS, presets().items()):
        if Objective(spec).columns_only:
            for rows in CHUNKS:
                who = f"{name}, {kind}, {rows} positions a chunk"
                worst.attempt(who, spec, _columns_error(kind, spec, rows))
    yield worst.check("the columns-only head against plain autograd over whole rows")


def _columns_error(kind: str, spec: ObjectiveConfig, rows: int) -> Callable[[], float]:
    made = case(kind)
    return lambda: largest(map(relative, columns(made, spec, rows=rows), plain(made, spec)))


HEADS = (the_fused_head, the_columns_only_head)
