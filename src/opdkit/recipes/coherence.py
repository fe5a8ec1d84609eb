"""Do a teacher's lessons point one way? The gradient of every response position by itself, and how these add up.

    rollouts → teacher's scores, the objective's signal → ∇loss_t for each position t → ratio, growth, cosine, within and between

The loss is the learner's own, the signal that of all given rollouts together: Σ_t ∇loss_t, over the number of trained tokens, is
the gradient of a step on them. What is asked is the hypothesis of arXiv 2604.13016, 6.2, which its authors did not verify: that
a teacher whose students fail teaches in directions that cancel. The numbers are defined in `diagnostics/coherence.py`.

Cost: a forward and T backward passes per response of T tokens. Memory: T gradients at a time and one per response, of all
weights, or of `dimensions` numbers each.

Letters: R responses, T positions of one, D parameters or dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from opdkit.config import ObjectiveConfig
from opdkit.diagnostics import coherence as coherence_of
from opdkit.diagnostics.coherence import KINDS, between, within
from opdkit.diagnostics.sketch import count_sketch
from opdkit.models.head import Head
from opdkit.models.load import LoadedModel
from opdkit.models.positions import position_losses
from opdkit.models.student import Student
from opdkit.models.teacher import LocalTeacher
from opdkit.objectives import Objective
from opdkit.recipes.probe import LEVEL, RESAMPLES, Means, Number
from opdkit.train.collate import collate, micro_batches
from opdkit.train.feed import with_candidates
from opdkit.types import Batch, Needs, Rollout, RunError, Signal, UserError

DIMENSIONS = 4096
"""Of a sketch: cosines to about 0.02 (`diagnostics/sketch.py`)."""
EXACT_BYTES = 512 << 20
"""Gradients of all weights are kept as they are up to here."""

Project = Callable[[Sequence[Tensor | None]], Tensor]
"""Gradients, one per trainable parameter → one vector [D]."""


def coherence(
    student: LoadedModel,
    teacher: LoadedModel,
    rollouts: Sequence[Rollout],
    *,
    objective: ObjectiveConfig,
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    dimensions: int | None = None,
    seed: int = 0,
) -> dict[str, Number]:
    """How the gradients of the positions of these rollouts add up; counts, and 95 % intervals over prompts.

    `dimensions`: of a sketch of the gradient; None keeps all of it. UserError for an objective that asks a third model.
    """
    answered = [r for r in rollouts if r.length]
    said = Objective(objective, *_named_ids(objective, student, teacher))
    batch, heads = scored(student, teacher, answered, said, (temperature, teacher_temperature))
    learner = Student(student, temperature=temperature)
    project = projection(learner, dimensions=dimensions, seed=seed)
    parts, prompts, sums = [], [], []
    for row, gradients in position_gradients(learner, batch, said.prepare(batch), said, heads, project):
        parts.append(coherence_of(gradients))
        prompts.append(answered[row].prompt.id)
        sums.append(gradients.sum(0, dtype=torch.float64))
    if not parts:
        return {}
    means, apart = Means(prompts, seed=seed), [within([part]) for part in parts]
    found = {name: means.of([_pair(told.get(name)) for told in apart]) for name in within(parts)}
    return found | _between(torch.stack(sums), prompts, seed=seed)


def bounded_dimensions(student: LoadedModel, rollouts: Sequence[Rollout]) -> int | None:
    """None where all gradients that are held at a time have room in EXACT_BYTES, else DIMENSIONS."""
    weights = sum(p.numel() for p in student.model.parameters())
    longest = max((r.length for r in rollouts), default=0)
    return None if weights * (4 * longest + 8 * len(rollouts)) <= EXACT_BYTES else DIMENSIONS


def refuse_others(spec: ObjectiveConfig) -> None:
    """UserError for an objective that asks a model beside student and teacher."""
    if spec.others:
        raise UserError(
            f"the objective asks {', '.join(spec.others)} as well, and gradients are compared for one teacher",
            hint='objective.target="teacher" objective.anchor=0',
        )


# --- gradients ------------------------------------------------------------------------------------------------


def scored(
    student: LoadedModel,
    teacher: LoadedModel,
    rollouts: Sequence[Rollout],
    objective: Objective,
    temperatures: tuple[float, float],
) -> tuple[Batch, dict[str, Head]]:
    """The rollouts as a step's batch, with what the teacher says of them and its head. Both models are only read."""
    refuse_others(objective.spec)
    ours, theirs = objective.early_needs
    drawn = [replace(r, temperature=temperatures[0]) for r in rollouts]
    if ours != Needs():
        drawn = with_candidates(student, drawn, needs=ours)
    reader = LocalTeacher(teacher, temperature=temperatures[1], frozen=False)
    ids = [r.topk_ids for r in drawn if r.topk_ids is not None] if theirs.at_ids else None
    scores = reader.score(drawn, needs=theirs, ids=ids)
    return collate(drawn, {"teacher": scores}), {"teacher": reader.head}


def position_gradients(
    student: Student,
    batch: Batch,
    signal: Signal,
    objective: Objective,
    heads: Mapping[str, Head],
    project: Project,
) -> Iterator[tuple[int, Float[Tensor, "T D"]]]:
    """(rollout, ∇loss_t of its positions that train), longest first; a rollout that trains nowhere is left out.

    RunError where a gradient is not finite.
    """
    weights = [p for p in student.parameters() if p.requires_grad]
    for micro in micro_batches(batch, signal, budget=1, device=student.loaded.device):
        row = int(batch.row[int(micro.index[0])])
        trains = micro.weight != 0.0
        if micro.advantage is not None:
            trains = trains | (micro.advantage != 0.0)
        losses = position_losses(student, micro, objective, heads)
        found = [
            project(torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True))
            for loss, learns in zip(losses, trains.tolist(), strict=True)
            if learns
        ]
        if not found:
            continue
        gradients = torch.stack(found)
        if not gradients.isfinite().all():
            raise RunError(
                f"a gradient of the response to {batch.rollouts[row].prompt.id} is not finite",
                hint="dtype=float32 for the student, or leave this rollout out",
            )
        yield row, gradients


def projection(student: Student, *, dimensions: int | None, seed: int = 0) -> Project:
    """All gradients one after another, or a count sketch of them."""
    weights = [p for p in student.parameters() if p.requires_grad]
    if dimensions is not None:
        sizes = [p.numel() for p in weights]
        return count_sketch(sizes, dimensions=dimensions, seed=seed, device=student.loaded.device)

    def whole(gradients: Sequence[Tensor | None]) -> Tensor:
        pairs = zip(weights, gradients, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])

    return whole


def _named_ids(
    spec: ObjectiveConfig, student: LoadedModel, teacher: LoadedModel
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """End tokens of both models, and what else is special, where the objective treats them apart; as `train/plan.py` does."""
    rows = student.head.rows
    ends = {*student.stop_ids, *(teacher.stop_ids if spec.merge_ends else ())}
    special = {i for i in student.tokenizer.all_special_ids if i < rows} - ends
    return tuple(sorted(i for i in ends if 0 <= i < rows)), tuple(sorted(special))


# --- intervals ------------------------------------------------------------------------------------------------


def _pair(told: tuple[float, int] | None) -> tuple[float, float]:
    """(mean, count) → (sum, count)."""
    return (0.0, 0.0) if told is None else (told[0] * told[1], float(told[1]))


def _between(sums: Float[Tensor, "R D"], prompts: Sequence[str], *, seed: int) -> dict[str, Number]:
    """The numbers of the responses' sums; without an interval where there is one prompt."""
    told = between(coherence_of(sums))
    drawn = _resampled((sums @ sums.T).cpu().numpy(), prompts, seed=seed)
    return {name: Number(value, count, *drawn.get(name, ())) for name, (value, count) in told.items()}


def _resampled(products: np.ndarray, prompts: Sequence[str], *, seed: int) -> dict[str, tuple[float, float]]:
    """95 % intervals from prompts drawn with replacement, by the products K_ij = G_i·G_j alone.

    A prompt that is drawn twice would agree with itself, so its copies do not meet: with c how often a prompt is drawn and P of
    them, pairs of one prompt count c_p times, pairs of two prompts c_p c_q · P / (P − 1) times. On average that is once.
    """
    names = list(dict.fromkeys(prompts))
    if len(names) < 2:
        return {}
    where = np.array([names.index(name) for name in prompts])
    lengths = np.sqrt(products.diagonal())
    scale = np.where(lengths > 0.0, lengths, np.inf)
    cosines, pairs = products / np.outer(scale, scale), np.outer(lengths > 0.0, lengths > 0.0).astype(float)
    np.fill_diagonal(cosines, 0.0)
    np.fill_diagonal(pairs, 0.0)
    generator = np.random.Generator(np.random.Philox(seed))
    draws = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    again: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for times in draws:
        count = times[where].astype(float)
        meet = np.outer(count, count) * len(names) / (len(names) - 1)
        meet = np.where(where[:, None] == where, count, meet)
        length = np.sqrt(max(0.0, float((meet * products).sum())))
        for kind, above, below in (
            ("ratio", length, count @ lengths),
            ("growth", length, np.sqrt(count @ lengths**2)),
            ("cosine", (meet * cosines).sum(), (meet * pairs).sum()),
        ):
            if below > 0.0:
                again[kind].append(float(above / below))
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    quantiles = {kind: np.quantile(values, ends) for kind, values in again.items() if values}
    return {f"gradient_{kind}_between": (float(low), float(high)) for kind, (low, high) in quantiles.items()}
