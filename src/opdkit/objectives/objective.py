"""The objective: which tokens are compared, by which divergence, through which estimator, with which weight.

Two halves. `prepare(batch)` sees the whole step and returns only what couples positions (`Signal`, objectives/signal.py).
`local(…)` is pure and positionwise; it runs inside the head's chunks: nothing it needs is larger than one.

The target Q that p is compared with is the teacher q, or made of several models, detached (ref: the teacher before its RL,
p₀: the student's start), log Q = Σ c log m − log Z:

    extrapolated  λ log q + (1 − λ) log ref     F6, arXiv 2602.12125        difference    log p₀ + s (log q − log ref)   F29
    bridge        log q + b log p               F15, arXiv 2601.07155       sign_flipped  2 log p − log q                control

With support S_t, P_S = Σ_S p and Q_S = Σ_S q, the ways to weigh are (p, q over the whole vocabulary)

    normalisation   weights w(v)   log-ratio inside the advantage   log-prob that is pushed
    none            p(v)           log q − log p                    log p
    weights         p(v) / P_S     log q − log p                    log p    the released code, preset paper
    both            p(v) / P_S     log q̄ − log p̄                    log p̄    Eq. 5: p̄, q̄ sum to 1 over S
    tail_bucket     p(v)           log q − log p                    log p    and one slot more, all that is outside S
    tail_sampled    p(v)           log q − log p                    log p    and y where it is outside S, weight 1

`score_function` has the gradient −Σ_S w(v)·advantage(v)·∇log p(v), weight and advantage detached, K terms per
position (one scalar per position times ∇log p(y_t) would have zero mean). `exact` differentiates the value.

Known relation (arXiv 2604.13016, tested): with normalisation "weights" the score function's gradient is
∇KL(p̄‖q̄) + [KL(p̄‖q̄) + log(P_S/Q_S)]·∇log P_S: Eq. 5 plus a term on the mass inside S. On the full
vocabulary all agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from opdkit.config.objective import ObjectiveConfig
from opdkit.objectives.divergence import DIVERGENCES
from opdkit.objectives.selection import Moment
from opdkit.objectives.shaping import shaped
from opdkit.objectives.signal import prepare
from opdkit.support import ColumnDist, Dist, RowDist, blend, choose, mass_of, with_one_end
from opdkit.types import Batch, Needs, Signal, Support

Whole = TypeVar("Whole", bound=Dist)
_STUDENTS = ("sampler", "student_forward")
_SOURCES: dict[str, tuple[str, ...]] = {"student_top_k": _STUDENTS, "teacher_top_k": ("teacher",)}
"""Where ids that came with the batch must be from to be this kind of support as they are."""


@dataclass(frozen=True)
class Objective:
    """A record of choices plus the maths they name, with the ids that a tokenizer gives their words."""

    spec: ObjectiveConfig
    ends: tuple[int, ...] = ()  # what `merge_ends` makes one, where the record asks for it
    special: tuple[int, ...] = ()  # what `mask_special` leaves out, likewise
    scale: float | None = None  # of the target, where it is no longer the record's

    def at(self, step: int) -> Objective:
        """The objective of a step: a bridge may decay."""
        if not self.spec.target_decay:
            return self
        return replace(self, scale=self.spec.scale * max(0.0, 1.0 - step / self.spec.target_decay))

    @property
    def parts(self) -> dict[str, float]:
        """Model → its weight in the log of the target; "student" is p."""
        scale = self.spec.scale if self.scale is None else self.scale
        return {
            "teacher": {"teacher": 1.0},
            "extrapolated": {"teacher": scale, "reference": 1.0 - scale},
            "difference": {"start": 1.0, "teacher": scale, "reference": -scale},
            "bridge": {"teacher": 1.0, "student": scale},
            "sign_flipped": {"student": 2.0, "teacher": -1.0},
        }[self.spec.target]

    @property
    def _left_out(self) -> tuple[int, ...]:
        return self.special if self.spec.mask_special else ()

    @property
    def columns_only(self) -> bool:
        """Both sides renormalised on a set: the normaliser over V cancels, log p̄ = z − logsumexp_S z."""
        spec = self.spec
        sets = spec.support in ("student_top_k", "teacher_top_k")
        alone = spec.target == "teacher" and not (spec.anchor or spec.forward_gate or spec.merge_ends)
        return spec.normalisation == "both" and sets and alone and not spec.signal.pushes

    @property
    def _sampled(self) -> bool:
        spec = self.spec
        return spec.support == "sampled" or spec.normalisation == "tail_sampled" or spec.signal.pushes

    @property
    def student_needs(self) -> Needs:
        return Needs(
            sampled=self._sampled,
            top_k=self.spec.k if self.spec.of_student else 0,
            at_ids=self.spec.of_teacher or self.spec.forward_gate > 0.0,
            full=self.spec.whole_rows,
        )

    @property
    def teacher_needs(self) -> Needs:
        kind = self.spec.support
        gated = self.spec.forward_gate > 0.0
        return Needs(
            sampled=self._sampled,
            top_k=max(self.spec.k if self.spec.of_teacher else 0, self.spec.gate_k if gated else 0),
            entropy=gated,
            at_ids=self.spec.of_student and kind != "overlap",  # shared tokens are in its own list
            full=self.spec.whole_rows,
        )

    @property
    def other_needs(self) -> Needs:
        """What each of `spec.others` is asked for: as the teacher, less what only the teacher is read for."""
        return replace(self.teacher_needs, entropy=False)

    @property
    def early_needs(self) -> tuple[Needs, Needs]:
        """What `prepare` reads of student and teacher before the learner's forward, beside what that needs."""
        signal = self.spec.signal
        candidates = signal.reads_candidates
        student = Needs(
            sampled=signal.reads_log_ratios,
            top_k=self.spec.k if candidates else 0,
            entropy=signal.select == "uncertain_or_wrong",
        )
        return student, Needs(sampled=signal.reads_log_ratios, at_ids=candidates)

    def prepare(self, batch: Batch, moment: Moment | None = None) -> Signal:
        """One weight per packed response position, 0 where the token does not train; an advantage where one is asked for."""
        masked = torch.isin(batch.sampled_ids, torch.tensor(self._left_out, dtype=torch.long))
        return prepare(self.spec, batch, parts=self.parts, masked=masked, moment=moment or Moment())

    def seen(self, dist: Whole) -> Whole:
        """The distribution as the objective reads it: all end tokens as one, where that is asked for."""
        if not (self.spec.merge_ends and len(self.ends) > 1):
            return dist
        assert isinstance(dist, RowDist), "the plan asked for whole rows"
        return cast(Whole, with_one_end(dist, self.ends))

    def support(
        self, student: Dist, teacher: Dist, *, sampled_ids: Tensor, given: Support | None = None
    ) -> Support:
        """The support of a chunk: the one that came with the batch if it is of this kind, else chosen from
        what is at hand. Masked special tokens are in none."""
        if given is not None and given.source in _SOURCES.get(self.spec.support, ()):
            return self._without_special(given)
        chosen = choose(
            self.spec.support,
            k=self.spec.k,
            student=student,
            teacher=teacher,
            sampled_ids=sampled_ids,
            mass=self.spec.mass,
            given=given if given is not None and given.source in _STUDENTS else None,
        )
        return self._without_special(chosen)

    def _without_special(self, support: Support) -> Support:
        if not self._left_out or support.ids is None or support.keep is None:
            return support
        special = torch.tensor(self._left_out, device=support.ids.device)
        return replace(support, keep=support.keep & ~torch.isin(support.ids, special))

    def local(
        self, student: Dist, teacher: Dist, support: Support, others: Mapping[str, Dist] | None = None
    ) -> Float[Tensor, " N"]:
        """Loss per position, in nats: the divergence's value over the support, the estimator's gradient.

        `others`: models by name, those of `spec.others` among them.
        """
        others = others or {}
        loss = self._set_loss(student, self._target(student, teacher, others), support)
        if self.spec.anchor > 0.0:
            loss = loss + self.spec.anchor * self._set_loss(student, others["start"], support)
        return loss if self.spec.forward_gate == 0.0 else loss + self._gated_forward(student, teacher)

    def _target(self, student: Dist, teacher: Dist, others: Mapping[str, Dist]) -> Dist:
        if self.spec.target == "teacher":
            return teacher
        models = {**others, "student": student, "teacher": teacher}
        taken = None if isinstance(student, ColumnDist) else student.sampled_ids
        return blend([(share, models[name]) for name, share in self.parts.items()], sampled_ids=taken)

    def _gated_forward(self, student: Dist, teacher: Dist) -> Float[Tensor, " N"]:
        """EOPD: α Σ_{TopK(q)} q̄ (log q̄ − log p) where H(q) > τ, 0 elsewhere; its gradient is exact."""
        ids, logq = teacher.topk(self.spec.gate_k)
        target = logq.log_softmax(-1).detach()
        forward = (target.exp() * (target - student.at(ids))).sum(-1)
        return torch.where(teacher.entropy > self.spec.gate_entropy, self.spec.forward_gate * forward, 0.0)

    def _set_loss(self, student: Dist, teacher: Dist, support: Support) -> Float[Tensor, " N"]:
        """The part on the support."""
        p, q, keep = self._columns(student, teacher, support)
        if self.spec.support == "sampled":
            return self._one_sample(p, q, student, teacher)
        if self.spec.normalisation == "tail_sampled":
            return self._score_function(p, q, keep) + self._outside(student, teacher, support)
        if self.spec.estimator == "exact":
            return self._value(p, q, keep)
        return self._score_function(p, q, keep)

    def _columns(
        self, student: Dist, teacher: Dist, support: Support
    ) -> tuple[Float[Tensor, "N S"], Float[Tensor, "N S"], Tensor | None]:
        """Student and teacher log-probs on the support, renormalised there if the objective says so.

        Slots not kept become 0 at once, before any product: a nan there would come back in the backward.
        """
        if support.is_full:
            return student.full, teacher.full, None
        assert support.ids is not None
        assert self.columns_only or (student.normalised and teacher.normalised), "columns serve Eq. 5 only"
        keep = support.keep
        p, q = _select(student.at(support.ids), keep), _select(teacher.at(support.ids), keep)
        if self.spec.normalisation == "both":
            return _renormalise(p, keep), _renormalise(q, keep), keep
        if self.spec.normalisation == "tail_bucket" and keep is not None:
            return _with_tail(p, keep), _with_tail(q, keep), torch.nn.functional.pad(keep, (0, 1), value=True)
        return p, q, keep

    def _outside(self, student: Dist, teacher: Dist, support: Support) -> Float[Tensor, " N"]:
        """The sampled token where S does not hold it, drawn from p: value g/p, gradient −advantage·∇log p, 0 elsewhere.

        Its mean over y is the sum over what S leaves out, so that S and this together are the whole vocabulary's.
        """
        assert support.ids is not None and support.keep is not None and not isinstance(student, ColumnDist)
        taken = student.sampled_ids
        assert taken is not None, "the sampled token stands for what the set leaves out"
        held = ((support.ids == taken[:, None]) & support.keep).any(-1)
        # selected before any product: a nan in a slot that does not count would come back in the backward
        p, q = torch.where(held, 0.0, student.sampled), torch.where(held, 0.0, teacher.sampled)
        terms, old, theirs = DIVERGENCES[self.spec.divergence], p.detach(), q.detach()
        value = terms.value(old, theirs, self.spec.shape) / old.exp()
        surrogate = -self._shaped(terms.advantage(old, theirs, self.spec.shape), old, theirs) * p
        return torch.where(held, 0.0, value + surrogate - surrogate.detach())

    def _value(self, p: Tensor, q: Tensor, keep: Tensor | None) -> Float[Tensor, " N"]:
        """Σ_S g(p, q), divided by P_S where only the weights are normalised."""
        terms = _kept_sum(DIVERGENCES[self.spec.divergence].value(p, q, self.spec.shape), keep)
        if self.spec.normalisation == "weights" and keep is not None:
            return terms / _mass(p, keep)
        return terms

    def _score_function(self, p: Tensor, q: Tensor, keep: Tensor | None) -> Float[Tensor, " N"]:
        """Value of the weighted divergence, gradient −Σ w·advantage·∇log p with w and advantage detached."""
        old, teacher = p.detach(), q.detach()
        advantage = self._shaped(
            DIVERGENCES[self.spec.divergence].advantage(old, teacher, self.spec.shape), old, teacher
        )
        weight = self._weights(old, teacher, keep)
        surrogate = _kept_sum(-weight * advantage * p, keep)
        if self.spec.weights == "student":
            value = self._value(old, teacher, keep)
        else:
            value = _kept_sum(-weight * (teacher - old), keep)
        return value + surrogate - surrogate.detach()

    def _one_sample(
        self, p: Float[Tensor, "N 1"], q: Float[Tensor, "N 1"], student: Dist, teacher: Dist
    ) -> Float[Tensor, " N"]:
        """Eq. 3: value log p(y) − log q(y), gradient −(log q − log p)·∇log p(y); its mean over y is ∇KL(p‖q).

        A baseline b adds b·∇log p(y) of mean 0.
        """
        old, theirs = p.detach(), q.detach()
        advantage = self._shaped(theirs - old, old, theirs)[:, 0] + self._baseline(student, teacher)
        surrogate = -advantage * p[:, 0]
        return (old - theirs)[:, 0] + surrogate - surrogate.detach()

    def _baseline(self, student: Dist, teacher: Dist) -> Float[Tensor, " N"] | float:
        """KL(p‖q) of the position, detached: the mean of what the sampled token's advantage is the negative of (vOPD)."""
        if self.spec.baseline == "none":
            return 0.0
        if self.spec.baseline == "kl":
            p, q = student.full.detach(), teacher.full.detach()
        else:
            ids = student.topk(self.spec.k)[0]
            p, q = student.at(ids).detach(), teacher.at(ids).detach()
        return (p.exp() * (p - q)).sum(-1)

    def _shaped(self, advantage: Tensor, p: Tensor, q: Tensor) -> Tensor:
        return shaped(self.spec.shaping, advantage, p, q, self.spec.shaping_value)

    def _weights(self, p: Tensor, q: Tensor, keep: Tensor | None) -> Float[Tensor, "N S"]:
        """Candidate weights: student p, teacher q or uniform; over kept slots they sum to 1 unless `none`."""
        logits = {"student": p, "teacher": q, "uniform": torch.zeros_like(p)}[self.spec.weights]
        if self.spec.normalisation in ("none", "tail_bucket", "tail_sampled"):
            return logits.exp()
        return _renormalise(logits, keep).exp()


def pushed(student: Dist, advantage: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Value 0, gradient −A·∇log p(y): credit to the sampled token, selected so that a nan beside 0 is not met."""
    p = torch.where(advantage != 0.0, student.sampled, 0.0)
    surrogate = -advantage.to(p.dtype) * p
    return surrogate - surrogate.detach()


def _renormalise(logp: Float[Tensor, "N S"], keep: Tensor | None) -> Float[Tensor, "N S"]:
    """log p̄ = log p − logsumexp over kept slots; 0 in the others."""
    if keep is None:
        return logp.log_softmax(-1)
    lowest = torch.finfo(logp.dtype).min
    kept = torch.where(keep, logp, lowest)
    return torch.where(keep, logp - kept.logsumexp(-1, keepdim=True), 0.0)


def _with_tail(logp: Float[Tensor, "N S"], keep: Tensor) -> Float[Tensor, "N S+1"]:
    """One slot more: log of the mass that no kept slot holds."""
    held = mass_of(logp, keep)[:, None]
    outside = torch.log1p(-held.clamp(max=1.0 - torch.finfo(logp.dtype).eps))
    return torch.cat([logp, outside], -1)


def _kept_sum(terms: Float[Tensor, "N S"], keep: Tensor | None) -> Float[Tensor, " N"]:
    return _select(terms, keep).sum(-1)


def _select(terms: Float[Tensor, "N S"], keep: Tensor | None) -> Float[Tensor, "N S"]:
    return terms if keep is None else torch.where(keep, terms, 0.0)


def _mass(logp: Float[Tensor, "N S"], keep: Tensor) -> Float[Tensor, " N"]:
    """P_S; 1 where nothing is kept, so that an empty set contributes exactly 0."""
    return torch.where(keep.any(-1), mass_of(logp, keep), 1.0)
