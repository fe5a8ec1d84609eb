"""The student: a causal LM whose forward is the loss, so that hooks of FSDP2, tied weights and checkpointing all work.

One forward = body over padded rows → packed response positions → the head's chunks, where objective and diagnostics see
student and teacher side by side. Returns the summed loss and what was noted on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from opdkit.diagnostics import Extremes, Measures, concatenate, extremes, measure, measure_alone
from opdkit.models.adapter import train_adapter_only
from opdkit.models.batching import Way
from opdkit.models.head import Ahead, Head, columns_loss, fused_loss
from opdkit.models.keep import Keep
from opdkit.models.load import LoadedModel
from opdkit.models.rows import packed_states, ways_of
from opdkit.models.teacher import teacher_dist
from opdkit.objectives import Likelihood, Objective, guard, pushed
from opdkit.support import ColumnDist, Dist, RowDist, in_set
from opdkit.types import MicroBatch, Support

MEASURED_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
"""Logits of positions that are measured together: on a CPU a piece stays in cache."""


@dataclass
class Notes:
    """What a forward saw, per packed position, detached. `index` arrays say which positions of the step they belong to."""

    measures: list[Measures] = field(default_factory=list)
    measured_index: list[Tensor] = field(default_factory=list)
    extremes: list[Extremes | None] = field(default_factory=list)
    student_logp: list[Tensor] = field(default_factory=list)  # of sampled tokens
    teacher_logp: list[Tensor] = field(default_factory=list)
    sampled_index: list[Tensor] = field(default_factory=list)
    student_stop: list[Tensor] = field(
        default_factory=list
    )  # probability of the end tokens, where both models' rows are whole
    teacher_stop: list[Tensor] = field(default_factory=list)
    stop_index: list[Tensor] = field(default_factory=list)
    keep: Keep = field(default_factory=Keep)  # whatever is noted beside a chunk's logits goes through it

    def extend(self, other: Notes) -> None:
        for name, noted in vars(self).items():
            if isinstance(noted, list):
                noted.extend(getattr(other, name))

    def measured(self, measures: Measures, index: Tensor) -> None:
        """Measures at positions `index` of the step."""
        keep = self.keep
        self.measures.append({name: (keep(total), keep(count)) for name, (total, count) in measures.items()})
        self.measured_index.append(keep(index))

    def sampled(self, student: Dist, teacher: Dist, index: Tensor) -> None:
        """What both gave the tokens taken."""
        self.student_logp.append(self.keep(student.sampled))
        self.teacher_logp.append(self.keep(teacher.sampled))
        self.sampled_index.append(self.keep(index))

    def packed(self) -> tuple[Measures, Tensor]:
        """All measures one after another, with the step's packed index of each."""
        index = torch.cat(self.measured_index) if self.measured_index else torch.empty(0, dtype=torch.long)
        return concatenate(self.measures), index


class Student(nn.Module):
    """The trained model. `forward(micro, objective)` is the whole differentiable part of a step."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        temperature: float = 1.0,
        compute: torch.dtype | None = None,
        gradient_checkpointing: bool = False,
        chunk_rows: int = 0,
        k: int = 16,
        ks: Sequence[int] = (),
        ends: Sequence[int] = (),
    ):
        """`ends`: the student's end tokens, whose probability is noted."""
        super().__init__()
        self.model = loaded.model
        self.loaded = loaded
        self.head = loaded.head.at_temperature(temperature)
        self.compute = compute
        self.chunk_rows = chunk_rows
        self.ends = tuple(i for i in ends if 0 <= i < self.head.rows)
        self.k, self.ks = min(k, self.head.rows), tuple(x for x in ks if x <= self.head.rows)
        _silence_dropout(self.model)
        train_adapter_only(self.model)
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.train()

    def forward(
        self,
        micro: MicroBatch,
        objective: Objective | Likelihood,
        heads: Mapping[str, Head] | None = None,
    ) -> tuple[Tensor, Notes]:
        """`heads`: of the models whose hidden states came with the micro-batch, by their names there."""
        return self.loss(self.states(micro), micro, objective, heads)

    def loss(
        self,
        hidden: Tensor,
        micro: MicroBatch,
        objective: Objective | Likelihood,
        heads: Mapping[str, Head] | None = None,
    ) -> tuple[Tensor, Notes]:
        """The second half of `forward`: from the states at the packed positions on."""
        notes = Notes()
        if isinstance(objective, Likelihood):
            return self._alone(hidden, micro, objective, notes), notes
        if objective.columns_only and micro.support is not None:
            return self._columns(hidden, micro, objective, heads or {}, notes), notes
        return self._rows(hidden, micro, objective, heads or {}, notes), notes

    @cached_property
    def ways(self) -> frozenset[Way]:
        """How the body can read rows beside plain ones; where layers are run again, it drops its cache and its attention."""
        if self.gradient_checkpointing:
            return frozenset()
        return ways_of(self.loaded.body, vocabulary=self.head.rows, device=self.loaded.device)

    def states(self, micro: MicroBatch) -> Tensor:
        """[N, D]: the states that predict the response tokens."""
        with self._autocast(micro.input_ids.device):
            packed = packed_states(self.model.base_model, micro)
        return packed if self.compute is None else packed.to(self.compute)

    def _rows(
        self,
        hidden: Tensor,
        micro: MicroBatch,
        objective: Objective,
        heads: Mapping[str, Head],
        notes: Notes,
    ) -> Tensor:
        """Full rows, a chunk at a time: any support, any divergence; diagnostics from the chunk that is there anyway."""
        size = self.head.chunk_rows(self.chunk_rows, of=len(hidden))
        ahead = {
            name: Ahead(said.hidden, heads[name], chunk_rows=size)
            for name, said in micro.scores.items()
            if said.hidden is not None
        }
        waiting = _Waiting(objective)

        def loss(logits: Tensor, part: slice) -> Tensor:
            sampled_ids = micro.sampled_ids[part]
            student = RowDist(logits, sampled_ids=sampled_ids)
            models = {
                name: teacher_dist(said, None, part=part, sampled_ids=sampled_ids, ahead=ahead.get(name))
                for name, said in micro.scores.items()
            }
            p = objective.seen(student)
            seen = {name: objective.seen(dist) for name, dist in models.items()}
            q, taken = seen["teacher"], sampled_ids if p.sampled_ids is None else p.sampled_ids
            support = objective.support(p, q, sampled_ids=taken, given=support_at(micro.support, part))
            loss = _weighted(objective.local(p, q, support, seen), micro.weight[part])
            if micro.advantage is not None:
                loss = loss + pushed(p, micro.advantage[part]).sum()
            self._note(notes, micro, part, student, models["teacher"], support, waiting)
            return loss

        total = fused_loss(hidden, self.head, loss, chunk_rows=self.chunk_rows)
        self._measure_waiting(notes, micro, waiting)
        return total

    def _alone(self, hidden: Tensor, micro: MicroBatch, objective: Likelihood, notes: Notes) -> Tensor:
        """Without a teacher: the likelihood of the tokens taken, and what can be said of the student alone."""

        def loss(logits: Tensor, part: slice) -> Tensor:
            student = RowDist(logits, sampled_ids=micro.sampled_ids[part])
            self._note_alone(notes, micro, part, student)
            return _weighted(objective.local(student), micro.weight[part])

        return fused_loss(hidden, self.head, loss, chunk_rows=self.chunk_rows)

    def _columns(
        self,
        hidden: Tensor,
        micro: MicroBatch,
        objective: Objective,
        heads: Mapping[str, Head],
        notes: Notes,
    ) -> Tensor:
        """Only the support's columns of both heads; diagnostics on the measured positions alone."""
        assert micro.support is not None and micro.support.ids is not None
        scores, ids, teacher_head = micro.scores["teacher"], micro.support.ids, heads.get("teacher")

        def loss(logits: Tensor, part: slice) -> Tensor:
            student = ColumnDist(logits, ids=ids[part])
            teacher: Dist
            if scores.hidden is not None:
                assert teacher_head is not None
                teacher = ColumnDist(teacher_head.columns(scores.hidden[part], ids[part]), ids=ids[part])
            else:
                teacher = teacher_dist(scores, None, part=part, sampled_ids=micro.sampled_ids[part])
            given = support_at(micro.support, part)
            assert given is not None
            support = objective.support(student, teacher, sampled_ids=micro.sampled_ids[part], given=given)
            return _weighted(objective.local(student, teacher, support), micro.weight[part])

        self._note_sample(hidden.detach(), micro, teacher_head, notes)
        return columns_loss(hidden, self.head, ids, loss)

    @torch.no_grad()
    def _note(
        self,
        notes: Notes,
        micro: MicroBatch,
        part: slice,
        student: RowDist,
        teacher: Dist,
        support: Support,
        waiting: _Waiting,
    ) -> None:
        """Sampled log-probs everywhere (they are by-products), the full set of diagnostics where `measured` says."""
        notes.sampled(student, teacher, micro.index[part])
        self._note_ends(notes, student, teacher, micro.index[part])
        rows = micro.measured[part].nonzero()[:, 0]
        if len(rows):
            waiting.add(rows, rows + part.start, student, teacher, support)
            if waiting.count >= self._measured_rows(rows.device):
                self._measure_waiting(notes, micro, waiting)

    @torch.no_grad()
    def _note_alone(self, notes: Notes, micro: MicroBatch, part: slice, student: RowDist) -> None:
        rows = micro.measured[part].nonzero()[:, 0]
        if len(rows):
            here, measured = rows + part.start, student.rows(rows)
            notes.measured(measure_alone(measured) | _mismatch(measured, micro, here), micro.index[here])

    @torch.no_grad()
    def _note_sample(
        self, hidden: Tensor, micro: MicroBatch, teacher_head: Head | None, notes: Notes
    ) -> None:
        # few positions beside a loss that builds no logits: small chunks, or they would be the step's peak
        measured = micro.measured.nonzero()[:, 0]
        for here in measured.split(self.head.chunk_rows(self.chunk_rows, of=len(measured), least=16)):
            sampled_ids = micro.sampled_ids[here]
            student = RowDist(self.head.logits(hidden[here]), sampled_ids=sampled_ids)
            teacher = teacher_dist(micro.scores["teacher"], teacher_head, part=here, sampled_ids=sampled_ids)
            notes.sampled(student, teacher, micro.index[here])
            self._note_ends(notes, student, teacher, micro.index[here])
            rows = torch.arange(len(here), device=here.device)
            self._measure_pieces(notes, micro, rows, here, student, teacher)

    @torch.no_grad()
    def _measure_waiting(self, notes: Notes, micro: MicroBatch, waiting: _Waiting) -> None:
        """Measure what the pieces of chunks have put aside."""
        if not waiting.count:
            return
        here, student, teacher_logits, support = waiting.taken()
        size = self._measured_rows(here.device)
        for begin in range(0, len(here), size):
            some = slice(begin, begin + size)  # views: rows of a large vocabulary were copied once already
            at = here[some]
            sampled_ids = micro.sampled_ids[at]
            p = RowDist(student[some], sampled_ids=sampled_ids)
            q = (
                teacher_dist(micro.scores["teacher"], None, part=at, sampled_ids=sampled_ids)
                if teacher_logits is None
                else RowDist(teacher_logits[some], sampled_ids=sampled_ids)
            )
            self._measure(notes, micro, at, p, q, _guarded(waiting.objective, support, p, q, some))

    def _measured_rows(self, device: torch.device) -> int:
        """Positions that are measured together."""
        return max(1, MEASURED_BYTES.get(device.type, MEASURED_BYTES["cuda"]) // (4 * self.head.rows))

    def _note_ends(self, notes: Notes, student: RowDist, teacher: Dist, index: Tensor) -> None:
        """p(E) and q(E), E the student's end tokens; nothing where the teacher sends no whole rows."""
        if not (self.ends and isinstance(teacher, RowDist)):
            return
        ids = torch.tensor(self.ends, device=index.device).expand(len(index), -1)
        for noted, dist in ((notes.student_stop, student), (notes.teacher_stop, teacher)):
            noted.append(notes.keep(dist.at(ids).detach().exp().sum(-1).float()))
        notes.stop_index.append(notes.keep(index))

    def _measure_pieces(
        self,
        notes: Notes,
        micro: MicroBatch,
        rows: Tensor,
        here: Tensor,
        student: RowDist,
        teacher: Dist,
    ) -> None:
        """Measure `rows` of a chunk, which are positions `here`, a few at a time.

        Diagnostics make some twenty tensors of a piece's size.
        """
        size = self._measured_rows(here.device)
        for some, at in zip(rows.split(size), here.split(size), strict=True):
            if len(at):
                p, q = student.rows(some), _rows_of(teacher, some, micro, at)
                self._measure(notes, micro, at, p, q, {})

    def _measure(
        self,
        notes: Notes,
        micro: MicroBatch,
        here: Tensor,
        student: RowDist,
        teacher: Dist,
        guards: Measures,
    ) -> None:
        measures = dict(measure(student, teacher, k=self.k, ks=self.ks)) | guards
        measures |= _mismatch(student, micro, here)
        if micro.support is not None and micro.support.ids is not None and micro.support.source == "sampler":
            ids = micro.support.ids[here]
            missed = (~in_set(ids, student.topk(ids.shape[-1])[0])).float().mean(-1)
            measures["support_mismatch"] = (missed, torch.ones_like(missed))
        notes.extremes.append(extremes(student, teacher, k=self.k))
        notes.measured(measures, micro.index[here])

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.compute is None or self.compute == next(self.model.parameters()).dtype:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.compute)


@dataclass
class _Waiting:
    """Rows put aside to be measured together: a piece of a chunk has few of them, and measuring is many operators."""

    objective: Objective
    here: list[Tensor] = field(default_factory=list)
    student: list[Tensor] = field(default_factory=list)
    teacher: list[Tensor] = field(default_factory=list)
    ids: list[Tensor] = field(default_factory=list)
    keep: list[Tensor] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(map(len, self.here))

    def add(self, rows: Tensor, here: Tensor, student: RowDist, teacher: Dist, support: Support) -> None:
        self.here.append(here)
        self.student.append(student.logits.detach()[rows])
        if isinstance(teacher, RowDist):
            self.teacher.append(teacher.logits[rows])
        if support.ids is not None and support.keep is not None:
            self.ids.append(support.ids[rows])
            self.keep.append(support.keep[rows])

    def taken(self) -> tuple[Tensor, Tensor, Tensor | None, Support]:
        """(positions, student logits, teacher logits or None, what was compared there); nothing waits any more."""
        here, student, teacher, ids, keep = (
            (parts[0] if len(parts) == 1 else torch.cat(parts)) if parts else None
            for parts in (self.here, self.student, self.teacher, self.ids, self.keep)
        )
        assert here is not None and student is not None
        self.here, self.student, self.teacher, self.ids, self.keep = [], [], [], [], []
        return here, student, teacher, Support(ids=ids, keep=keep)


def _guarded(
    objective: Objective, support: Support, student: RowDist, teacher: Dist, some: slice
) -> Measures:
    """What the objective leaves out at `some` of the positions compared."""
    if support.ids is None or support.keep is None:
        return {}
    here = replace(support, ids=support.ids[some], keep=support.keep[some])
    return guard(objective.spec, objective.seen(student), objective.seen(teacher), here)


def _mismatch(student: Dist, micro: MicroBatch, here: Tensor) -> Measures:
    """How far the sampler's log-prob of the token is from the learner's, in nats."""
    if micro.sampler_logp is None:
        return {}
    gap = (student.sampled - micro.sampler_logp[here]).abs()
    return {"sampler_mismatch": (gap, torch.ones_like(gap))}


def _weighted(loss: Tensor, weight: Tensor) -> Tensor:
    """Σ weight · loss over positions that train; selected, not multiplied away."""
    return torch.where(weight != 0, loss * weight.to(loss.dtype), 0.0).sum()


def support_at(support: Support | None, part: slice) -> Support | None:
    """The support of some of the packed positions."""
    if support is None or support.ids is None or support.keep is None:
        return support
    return Support(
        ids=support.ids[part], keep=support.keep[part], source=support.source, version=support.version
    )


def _rows_of(teacher: Dist, rows: Tensor, micro: MicroBatch, here: Tensor) -> Dist:
    if isinstance(teacher, RowDist):
        return teacher.rows(rows)
    return teacher_dist(micro.scores["teacher"], None, part=here, sampled_ids=micro.sampled_ids[here])


def _silence_dropout(model: nn.Module) -> None:
    """Nothing draws from the global generator, and the rollout's distribution is the trained one."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010  (mypy: nn.Module attributes are tensors or modules)
