"""How close student p and teacher q are where the student goes. Definitions of arXiv 2604.13016, section 3.

`measure` returns name → (sum [M], count [M]) per position; `diagnostics.tally` adds them up. A mean is
Σ sum / Σ count; where a position has nothing to say its count is 0. No quantity depends on the objective.

name                             unit  formula at one position                              mean over    needs
reverse_kl                       nats  Eq. 4: Σ_V p (log p − log q)                         positions    rows
reverse_kl_sampled               nats  Eq. 3: log p(y) − log q(y), y the sampled token      positions    y
entropy_student, _teacher        nats  H(p), H(q) over the full vocabulary                  positions    H
entropy_gap                      nats  Eq. 8: |H(q) − H(p)|                                 positions    H
overlap_ratio, _at_K             1     Eq. 6: |O| / k, O = S^p ∩ S^q                        positions    top-k
overlap_mass_student, _teacher   1     Eq. 9, 10: Σ_O p, Σ_O q, raw; 0 where O is empty     positions    top-k
overlap_mass_*_nonempty          1     the same, averaged as the released code does         O not empty  top-k
overlap_advantage                nats  Eq. 7: Σ_O p̄ (log q̄ − log p̄) / |O|, bars over O      O not empty  top-k
overlap_empty_fraction           1     [O is empty]                                         positions    top-k
training_advantage_overlap       nats  w (log q − log p), w = p / Σ_{S^p} p                 entries      top-k
training_advantage_student_only  nats  the same, over S^p without S^q                       entries      both
training_advantage_teacher_only  nats  over S^q without S^p, w = p / Σ_{S^q} p              entries      top-k
top1_student_p, _teacher_p       1     p and q at argmax p                                  positions    S^p
top1_student_advantage           nats  w (log q − log p) there, w as over S^p               positions    S^p
top1_teacher_p, _student_p       1     q and p at argmax q                                  positions    top-k
top1_teacher_advantage           nats  w (log q − log p) there, w as over S^q               positions    top-k
top1_agreement                   1     [argmax p = argmax q]                                positions    top-k
probability_gap_at_max_advantage 1     Fig. 19: p − q at argmax_{S^p} |w (log q − log p)|   positions    S^p

"Needs" is what a teacher must send: whole rows (which answer everything), log q(y), its entropy H, its own
top-k, its log-probs at the student's top-k S^p, or both of these. What was not sent is left out of the
result, never approximated under the same name; so are widths above the vocabulary.

`top1_student_teacher_p` is q at argmax p, `top1_teacher_student_p` is p at argmax q. `training_advantage_*`
are the released code's pooled numbers, not comparable with Eq. 7: weights over S^p instead of O, log-ratio
raw, pooled over entries.

Letters: M measured positions, K top-k width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opdkit.diagnostics.candidates import (
    Candidates,
    Overlap,
    Top,
    TopPair,
    ask,
    candidates,
    detached,
    pair,
    sampled_logp,
    slots,
    training_advantage,
    vocabulary,
    weighted,
    widest_top,
)
from opdkit.support import Dist, RowDist

Measure = tuple[Tensor, Tensor]
Measures = dict[str, Measure]
"""name → (sum [M], count [M]) per position."""


@torch.no_grad()
def measure(student: Dist, teacher: Dist, *, k: int, ks: Sequence[int]) -> Measures:
    """Every quantity of the table above that the two allow. Reads whole rows: call it on one chunk."""
    student, teacher = detached(student), detached(teacher)
    size = vocabulary(student, teacher)
    student_top, teacher_top = (widest_top(dist, {1, k, *ks}, size=size) for dist in (student, teacher))
    tops = pair(student_top, teacher_top)
    on_student, student_best = (candidates(student, teacher, _first_ids(student_top, n)) for n in (k, 1))
    on_teacher, teacher_best = (candidates(student, teacher, _first_ids(teacher_top, n)) for n in (k, 1))
    return (
        divergence(student, teacher)
        | entropies(student, teacher)
        | overlap_ratios(tops, k=k, ks=ks)
        | overlap_masses(tops, k=k)
        | training_advantages(tops, on_student, on_teacher, k=k)
        | top1("student", "teacher", own=student_top, both=student_best, top_k=on_student)
        | top1("teacher", "student", own=teacher_top, both=teacher_best, top_k=on_teacher)
        | top1_agreement(tops)
        | gap_at_max_advantage(on_student)
    )


@torch.no_grad()
def measure_alone(student: Dist) -> Measures:
    """What can be said of a student without a teacher: its entropy and what it gives the token taken, in nats."""
    student = detached(student)
    return {"entropy_student": each(student.entropy), "logp_sampled": each(student.sampled)}


def divergence(student: Dist, teacher: Dist) -> Measures:
    """KL(p‖q) at each position (Eq. 4) where both rows are whole, and its one-sample estimate (Eq. 3)."""
    measures: Measures = {}
    p, q = ask(lambda: student.full), ask(lambda: teacher.full)
    if p is not None and q is not None:
        chance = student.probability if isinstance(student, RowDist) else p.exp()
        measures["reverse_kl"] = each(weighted(chance, p - q).sum(-1))
    p_y, q_y = sampled_logp(student), sampled_logp(teacher)
    if p_y is not None and q_y is not None:
        measures["reverse_kl_sampled"] = each(p_y - q_y)
    return measures


def entropies(student: Dist, teacher: Dist) -> Measures:
    """H(p), H(q) over the full vocabulary, and |H(q) − H(p)| per position (Eq. 8)."""
    values = {"student": ask(lambda: student.entropy), "teacher": ask(lambda: teacher.entropy)}
    measures = {f"entropy_{who}": each(value) for who, value in values.items() if value is not None}
    if values["student"] is not None and values["teacher"] is not None:
        measures["entropy_gap"] = each((values["teacher"] - values["student"]).abs())
    return measures


def overlap_ratios(tops: TopPair | None, *, k: int, ks: Sequence[int]) -> Measures:
    """|S^p ∩ S^q| / k (Eq. 6), for k and for every width of ks that both lists reach."""
    if tops is None:
        return {}
    shared_below, dtype = tops.shared_below, tops.student.logp.dtype
    names = {"overlap_ratio": k} | {f"overlap_ratio_at_{width}": width for width in ks}
    return {
        name: each((shared_below < width).sum(-1).to(dtype) / width)
        for name, width in names.items()
        if width <= tops.width
    }


def overlap_chance(*, k: int, size: int) -> float:
    """Expected overlap ratio of two unrelated top-k lists over `size` tokens: k / V."""
    return min(k / size, 1.0)


def overlap_masses(tops: TopPair | None, *, k: int) -> Measures:
    """What shared tokens hold (Eq. 9, 10), how far both differ on them (Eq. 7), how often there are none."""
    if tops is None or k > tops.width:
        return {}
    overlap = tops.overlap(k)
    present = overlap.keep.any(-1)
    student_mass = _sum_kept(overlap.student_logp.exp(), overlap.keep)
    teacher_mass = _sum_kept(overlap.teacher_logp.exp(), overlap.keep)
    return {
        "overlap_mass_student": each(student_mass),
        "overlap_mass_teacher": each(teacher_mass),
        "overlap_mass_student_nonempty": where_defined(student_mass, present),
        "overlap_mass_teacher_nonempty": where_defined(teacher_mass, present),
        "overlap_advantage": where_defined(overlap_advantage(overlap), present),
        "overlap_empty_fraction": each((~present).to(student_mass.dtype)),
    }


def overlap_advantage(overlap: Overlap) -> Float[Tensor, " M"]:
    """Eq. 7: (1/|O|) Σ_O p̄ (log q̄ − log p̄) = −KL(p̄‖q̄) / |O| ≤ 0, renormalised over O, which is not empty."""
    student_logp = _renormalised(overlap.student_logp, overlap.keep)
    teacher_logp = _renormalised(overlap.teacher_logp, overlap.keep)
    terms = weighted(student_logp.exp(), teacher_logp - student_logp)
    return _sum_kept(terms, overlap.keep) / overlap.keep.sum(-1).clamp(min=1)


def training_advantages(
    tops: TopPair | None, on_student: Candidates | None, on_teacher: Candidates | None, *, k: int
) -> Measures:
    """A(v) = w(v) (log q(v) − log p(v)) pooled over entries of O, S^p \\ S^q, S^q \\ S^p, as released."""
    if tops is None or k > tops.width:
        return {}
    overlap = tops.overlap(k)
    advantage = training_advantage(overlap.student_logp, overlap.teacher_logp)
    measures = {"training_advantage_overlap": pooled(advantage, overlap.keep)}
    if on_student is not None:
        keep = ~overlap.keep & on_student.sent[:, None]
        measures["training_advantage_student_only"] = pooled(on_student.advantage, keep)
    if on_teacher is not None:
        absent = slots(on_teacher.ids, tops.student.ids[:, :k]) == k
        measures["training_advantage_teacher_only"] = pooled(
            on_teacher.advantage, absent & on_teacher.sent[:, None]
        )
    return measures


def top1(
    who: str, other: str, *, own: Top | None, both: Candidates | None, top_k: Candidates | None
) -> Measures:
    """The token one model likes best: its probability under both, the training advantage in that top-k."""
    measures: Measures = {}
    if own is not None:
        measures[f"top1_{who}_p"] = each(own.logp[:, 0].exp())
    if both is not None:
        logp = both.teacher_logp if other == "teacher" else both.student_logp
        measures[f"top1_{who}_{other}_p"] = where_defined(logp[:, 0].exp(), both.sent)
    if top_k is not None:
        measures[f"top1_{who}_advantage"] = where_defined(top_k.advantage[:, 0], top_k.sent)
    return measures


def top1_agreement(tops: TopPair | None) -> Measures:
    """[argmax p = argmax q]: whether greedy decoding would take the same token."""
    if tops is None:
        return {}
    return {"top1_agreement": each((tops.rank[:, 0] == 0).to(tops.student.logp.dtype))}


def gap_at_max_advantage(on_student: Candidates | None) -> Measures:
    """p − q at the token of the largest |advantage| inside the student's top-k (Fig. 19)."""
    if on_student is None:
        return {}
    _, student_p, teacher_p = on_student.pick(on_student.advantage.abs().argmax(-1))
    return {"probability_gap_at_max_advantage": where_defined(student_p - teacher_p, on_student.sent)}


def each(value: Float[Tensor, " M"]) -> Measure:
    """One thing per position."""
    return value.detach(), torch.ones_like(value)


def where_defined(value: Float[Tensor, " M"], defined: Bool[Tensor, " M"]) -> Measure:
    """One thing per position where there is one, nothing elsewhere."""
    return torch.where(defined, value.detach(), 0.0), defined.to(value.dtype)


def pooled(values: Float[Tensor, "M K"], keep: Bool[Tensor, "M K"]) -> Measure:
    """Every kept entry counts, so a position with many of them weighs more."""
    return _sum_kept(values.detach(), keep), keep.sum(-1).to(values.dtype)


def _sum_kept(values: Float[Tensor, "M K"], keep: Bool[Tensor, "M K"]) -> Float[Tensor, " M"]:
    return torch.where(keep, values, 0.0).sum(-1)


def _renormalised(logp: Float[Tensor, "M K"], keep: Bool[Tensor, "M K"]) -> Float[Tensor, "M K"]:
    return logp - torch.where(keep, logp, -torch.inf).logsumexp(-1, keepdim=True)


def _first_ids(top: Top | None, k: int) -> Tensor | None:
    first = None if top is None else top.first(k)
    return None if first is None else first.ids
