"""The learner: a student with its optimizer. One `update` is one optimizer step over one batch, or a counted skip.

Normalisation happens once: the global number of trained tokens is known before the first backward, every micro-batch's
summed loss is divided by it, gradients are summed over ranks. Any split into micro-batches or ranks gives the same
gradient. World size 1 is the same path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opdkit.config import LearnerConfig, OptimConfig
from opdkit.diagnostics import (
    Extremes,
    Measures,
    by_position,
    by_sequence,
    by_teacher,
    merge,
    reliability,
    sequence_reward,
    tally,
)
from opdkit.diagnostics.alignment import where_defined
from opdkit.models.adapter import adapter_state, merged_state
from opdkit.models.batching import Way
from opdkit.models.head import Head
from opdkit.models.student import Notes, Student
from opdkit.objectives import Likelihood, Objective
from opdkit.run.world import World, like, whole
from opdkit.train.collate import micro_batches, row_groups
from opdkit.types import Batch, RunError, Signal, Tally


@dataclass(frozen=True)
class Part:
    """What a step learns from: rollouts, their signal, the objective that reads both. Mostly one; two where data is mixed in."""

    batch: Batch
    signal: Signal
    objective: Objective | Likelihood
    window: int = 0  # the loss that is told is a mean over so many first tokens of a response; 0 = all. Gradients: over all

    @property
    def told(self) -> Tensor:
        """[N], True at the positions whose loss is told."""
        return self.batch.trained & (self.batch.depth < self.window) if self.window else self.batch.trained


@dataclass(frozen=True)
class Update:
    """What one step did. `sequences` are means per rollout (nan where nothing was measured), this rank's rollouts only."""

    tally: Tally  # summed over ranks
    sequences: Mapping[str, Tensor]
    extremes: Extremes | None  # this rank's measured positions
    grad_norm: float
    skipped: bool


class Learner:
    """Student, optimizer, schedule, guards. `version` counts applied updates."""

    def __init__(
        self,
        student: Student,
        *,
        optim: OptimConfig,
        learner: LearnerConfig,
        steps: int,
        world: World,
        bins: int = 8,
        max_tokens: int = 256,
    ):
        self.student, self.optim, self.cfg, self.steps, self.world = student, optim, learner, steps, world
        self.bins, self.max_tokens = bins, max_tokens
        self.version = 0
        self.skipped_steps = 0
        self.skipped_in_a_row = 0
        self.sharded = sharded(learner, world)
        self.module = world.shard(student, _layers(student)) if self.sharded else student
        self.optimizer = torch.optim.AdamW(
            _decayed(student, optim.weight_decay),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            fused=not self.sharded,
        )

    # --- one step ---------------------------------------------------------------------------------------------------

    def update(
        self,
        *parts: Part,
        step: int,
        heads: Mapping[str, Head] | None = None,
    ) -> Update:
        """One optimizer step on all `parts`, of which the first is told of; `step` counts from 0 and sets the learning rate.

        `heads`: of the models that sent hidden states, by name.
        """
        count = self._global_count(parts)
        losses, notes = self._backward(parts, heads or {}, count)
        loss = sum(losses)
        batch = parts[0].batch
        norm = self._clip()
        skipped = not (math.isfinite(loss) and math.isfinite(norm))
        if not skipped:
            self._apply(step)
        self.optimizer.zero_grad(set_to_none=True)
        if skipped:
            self._skip(loss, norm)
        tallied, sequences = self._tally(batch, notes, losses[0] * count, self._summed_count([parts[0].told]))
        if len(parts) > 1:
            tallied = tallied + Tally({"loss_data": (losses[1] * count, self._global_count(parts[1:]))})
        return Update(tallied, sequences, merge(notes.extremes), grad_norm=norm, skipped=skipped)

    def _global_count(self, parts: Sequence[Part]) -> float:
        """Trained tokens over all ranks, those of weight 0 too; at least 1: an empty step is one of nothing."""
        return self._summed_count([part.batch.trained for part in parts])

    def _summed_count(self, masks: Sequence[Tensor]) -> float:
        mine = torch.stack([mask.sum() for mask in masks]).sum()
        return max(float(self.world.sum(mine).item()), 1.0)

    def _backward(
        self,
        parts: Sequence[Part],
        heads: Mapping[str, Head],
        count: float,
    ) -> tuple[list[float], Notes]:
        """Gradients of Σ loss / count into the parameters; each part's share of that loss over all ranks, and this rank's
        notes of the first."""
        budget = self.cfg.batch_tokens
        device = next(self.student.parameters()).device
        total, told = torch.zeros(len(parts), dtype=torch.float64, device=device), Notes()
        for number, part in enumerate(parts):
            rollouts = part.batch.rollouts
            # FSDP2 gathers a layer's weights around each of its forwards: one forward per micro-batch there
            ways = frozenset[Way]() if self.sharded else self.student.ways
            mine = len(row_groups(rollouts, budget=budget, device=device, ways=ways))
            everyone = int(self.world.max(torch.tensor([float(mine)])).item())
            for micro in micro_batches(
                part.batch, part.signal, budget=budget, device=device, at_least=everyone, ways=ways
            ):
                loss, seen = self.module(micro, part.objective, heads)
                (loss / count).backward()
                total[number] += loss.detach().to(torch.float64)
                if number == 0:
                    told.extend(seen)
        if not self.sharded:
            self.world.sum_gradients(p for p in self.student.parameters() if p.requires_grad)
        return (self.world.sum(total) / count).tolist(), told

    def _clip(self) -> float:
        """Scales gradients to norm `optim.clip` at most; returns the norm before, over all ranks."""
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.student.parameters() if p.grad is not None]
        )
        norm = whole(norm)
        if math.isfinite(float(norm)):
            torch.nn.utils.clip_grads_with_norm_(list(self.student.parameters()), self.optim.clip, norm)
        return float(norm)

    def _apply(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.optim, step=step, steps=self.steps)
        self.optimizer.step()
        self.version += 1
        self.skipped_in_a_row = 0

    def _skip(self, loss: float, norm: float) -> None:
        """A non-finite loss or gradient never reaches the parameters. Every rank sees the same numbers and skips alike."""
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.cfg.skip_limit:
            raise RunError(
                f"{self.skipped_in_a_row} steps in a row had a non-finite loss or gradient (loss {loss}, norm {norm})",
                hint="resume with a lower optim.lr, or learner.compute=float32",
            )

    # --- what is told -----------------------------------------------------------------------------------------------

    def _tally(
        self, batch: Batch, notes: Notes, loss_sum: float, count: float
    ) -> tuple[Tally, dict[str, Tensor]]:
        """Measures over trained positions, by position bin, and per sequence; sums and counts added over ranks."""
        measures, index = notes.packed()
        index = index.cpu()
        measures = {name: (s.cpu(), c.cpu()) for name, (s, c) in measures.items()}
        here = tally(measures, keep=batch.trained[index])
        here = here + by_position(measures, batch.depth[index], bins=self.bins, max_tokens=self.max_tokens)
        here = here + by_teacher(
            measures,
            batch.row[index],
            teachers=[s.teacher for s in batch.scores.get("teacher", ())],
            keep=batch.trained[index],
        )
        here = here + self._reliability(batch, notes) + _stops(batch, notes)
        sequences = dict(by_sequence(measures, batch.row[index], rows=len(batch.rollouts)))
        sequences["sequence_reward"] = _sequence_rewards(batch, notes)
        everywhere = self.summed(here) + Tally({"loss": (loss_sum, count)})
        return everywhere, sequences

    def _reliability(self, batch: Batch, notes: Notes) -> Tally:
        """The token signal's size and whether its signs go with the grade, over all positions that both models were read at."""
        if not notes.sampled_index:
            return Tally()
        index = torch.cat(notes.sampled_index).cpu()
        p, q = torch.cat(notes.student_logp).cpu(), torch.cat(notes.teacher_logp).cpu()
        scores = [None if r.grade is None else r.grade.score for r in batch.rollouts]
        found = reliability(p, q, batch.row[index], scores)
        depth, keep = batch.depth[index], batch.trained[index]
        return tally(found, keep=keep) + by_position(
            found, depth, bins=self.bins, max_tokens=self.max_tokens, keep=keep
        )

    def summed(self, here: Tally) -> Tally:
        """A tally of this rank's, added over ranks."""
        if self.world.size == 1:
            return here
        everyone = self.world.gather({name: list(pair) for name, pair in here.entries.items()})
        return Tally.total(Tally({name: (pair[0], pair[1]) for name, pair in e.items()}) for e in everyone)

    # --- what is kept -----------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, Tensor]:
        """Whole weights by name, detached; an adapter is merged (a collective under FSDP2)."""
        return merged_state(self.student.model, self._held())

    def adapter(self) -> dict[str, Tensor]:
        """The adapter alone, by the names in its file; empty where all weights are trained (a collective)."""
        return adapter_state(self.student.model, self._held(adapter_only=True))

    def _held(self, *, adapter_only: bool = False) -> dict[str, Tensor]:
        state = self.student.model.state_dict().items()
        return {name: whole(t.detach()) for name, t in state if not adapter_only or ".lora_" in name}

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizer's state by parameter name, whole, so that another world size can take it up."""
        kept: dict[str, Tensor] = {}
        for name, parameter in self.student.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                kept[f"{key}.{name}"] = whole(value.detach()).contiguous()
        return kept

    def state(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take up optimizer tensors and counters of a checkpoint; weights are loaded with the model."""
        for name, parameter in self.student.model.named_parameters():
            found = {key.partition(".")[0]: t for key, t in tensors.items() if key.partition(".")[2] == name}
            if found:
                self.optimizer.state[parameter] = {
                    key: value.clone() if key == "step" else like(value, parameter)
                    for key, value in found.items()
                }
        self.version = int(state["version"])
        self.skipped_steps = int(state["skipped_steps"])
        self.skipped_in_a_row = int(state["skipped_in_a_row"])


def sharded(learner: LearnerConfig, world: World) -> bool:
    """Whether the ranks share one copy of the weights. On a CPU FSDP2's traffic costs more than it saves: whole copies."""
    if learner.shard == "auto":
        return world.size > 1 and world.device.type != "cpu"
    return world.size > 1 and learner.shard == "always"


def _stops(batch: Batch, notes: Notes) -> Tally:
    """p(E) and q(E) of end tokens E where the student stopped and where it did not (arXiv 2609.37326: a teacher may give stop
    probability only where the student stops already)."""
    if not notes.stop_index:
        return Tally()
    index = torch.cat(notes.stop_index).cpu()
    lasts = torch.tensor([r.length - 1 if r.finish_reason == "stop" else -1 for r in batch.rollouts])
    at_end = batch.depth[index] == lasts[batch.row[index]]
    found: Measures = {}
    for who, noted in (("student", notes.student_stop), ("teacher", notes.teacher_stop)):
        mass = torch.cat(noted).cpu()
        for where, keep in (("at_end", at_end), ("elsewhere", ~at_end)):
            found[f"stop_{who}_{where}"] = where_defined(mass, keep)
    return tally(found, keep=batch.trained[index])


def learning_rate(optim: OptimConfig, *, step: int, steps: int) -> float:
    """Linear warm-up over `warmup_steps`, then constant, or cosine to `final` of the peak at `steps`.

    `step` counts from 0.

    >>> [round(learning_rate(OptimConfig(lr=1.0, warmup_steps=2), step=s, steps=4), 2) for s in range(4)]
    [0.5, 1.0, 1.0, 1.0]
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    progress = (step - optim.warmup_steps) / max(steps - optim.warmup_steps, 1)
    fall = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return optim.lr * (optim.final + (1.0 - optim.final) * fall)


def _decayed(student: Student, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, vectors (norms, biases) do not."""
    parameters = [p for p in student.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _layers(student: Student) -> list[torch.nn.Module]:
    layers = getattr(student.model.base_model, "layers", None)
    return list(layers) if isinstance(layers, torch.nn.ModuleList) else []


def _sequence_rewards(batch: Batch, notes: Notes) -> Tensor:
    """r̄(y) = mean_t(log q(y_t) − log p(y_t)) per rollout, over the positions at which both were read."""
    if not notes.sampled_index:
        return torch.full((len(batch.rollouts),), math.nan)
    index = torch.cat(notes.sampled_index).cpu()
    student, teacher = torch.cat(notes.student_logp).cpu(), torch.cat(notes.teacher_logp).cpu()
    return sequence_reward(student, teacher, batch.row[index], rows=len(batch.rollouts))
