"""The set of token ids per position on which student and teacher are compared. Pure torch.

sampled               { y_t }                one slot, the token the student drew
student_top_k         S^p = TopK(p_t, k)     arXiv 2604.13016 Eq. 5; the released code's `only_stu`
teacher_top_k         S^q = TopK(q_t, k)     the released code's `only_tch`
overlap               S^p ∩ S^q              `intersection`; may be empty, and then contributes exactly nothing
union                 S^p ∪ S^q              `union`, 2k slots, a shared token in one of them
symmetric_difference  S^p ∪ S^q without ∩    `union-intersection`: the paper's "non-overlap"; may be empty
student_mass          the fewest most probable tokens of p_t that hold a share of its mass, at most k of them
full                  the vocabulary         no ids: `Support.is_full`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opdkit.config.objective import SupportKind
from opdkit.support.dist import Dist
from opdkit.types import Support


def choose(
    kind: SupportKind,
    *,
    k: int,
    student: Dist,
    teacher: Dist,
    sampled_ids: Int[Tensor, " N"],
    mass: float = 1.0,
    given: Support | None = None,
    version: int = 0,
) -> Support:
    """The support of one chunk, chosen from the distributions at hand. Ids carry no gradient.

    `given`: the student's top-k as it was known before this forward (a teacher that sends log-probs at ids was asked for
    those and no others); unset, it is read from `student`. `mass`: the share that `student_mass` holds.
    """
    if kind == "full":
        return Support(ids=None, keep=None, source="full", version=version)
    if kind == "sampled":
        return of_ids(sampled_ids[:, None], source="sampler", version=version)
    if kind == "teacher_top_k":
        return of_ids(teacher.topk(k)[0], source="teacher", version=version)
    own = student.topk(k)[0] if given is None or given.ids is None else given.ids[:, :k]
    if kind == "student_top_k":
        return of_ids(own, source="student_forward", version=version)
    ids, keep = _SETS[kind](own, teacher, student, k, mass)
    return Support(ids=ids, keep=keep, source="student_forward", version=version)


Slots = tuple[Int[Tensor, "N S"], Bool[Tensor, "N S"]]


def _overlap(own: Tensor, teacher: Dist, _student: Dist, k: int, _mass: float) -> Slots:
    """In the teacher's slots: a teacher that sends its own top-k and nothing else has said all of them."""
    theirs = teacher.topk(k)[0]
    return theirs, in_set(theirs, own)


def _union(own: Tensor, teacher: Dist, _student: Dist, k: int, _mass: float) -> Slots:
    theirs = teacher.topk(k)[0]
    return torch.cat([own, theirs], -1), torch.cat(
        [torch.ones_like(own, dtype=torch.bool), ~in_set(theirs, own)], -1
    )


def _symmetric_difference(own: Tensor, teacher: Dist, _student: Dist, k: int, _mass: float) -> Slots:
    theirs = teacher.topk(k)[0]
    return torch.cat([own, theirs], -1), torch.cat([~in_set(own, theirs), ~in_set(theirs, own)], -1)


def _student_mass(own: Tensor, _teacher: Dist, student: Dist, _k: int, mass: float) -> Slots:
    """Slots in falling probability, up to and with the one that reaches `mass`; all k where k of them do not."""
    logp = student.at(own).detach()
    order = logp.argsort(-1, descending=True)
    p = logp.gather(-1, order).exp()
    return own.gather(-1, order), p.cumsum(-1) - p < mass


_SETS: dict[str, Callable[[Tensor, Dist, Dist, int, float], Slots]] = {
    "overlap": _overlap,
    "union": _union,
    "symmetric_difference": _symmetric_difference,
    "student_mass": _student_mass,
}


def of_ids(
    ids: Int[Tensor, "N S"], *, source: Literal["sampler", "student_forward", "teacher"], version: int = 0
) -> Support:
    """Every slot counts."""
    return Support(ids=ids, keep=torch.ones_like(ids, dtype=torch.bool), source=source, version=version)


def in_set(ids: Int[Tensor, "N S"], others: Int[Tensor, "N M"]) -> Bool[Tensor, "N S"]:
    """Whether each id is among the other ids of its row.

    >>> in_set(torch.tensor([[5, 7]]), torch.tensor([[7, 9, 2]])).tolist()
    [[False, True]]
    """
    return (ids[:, :, None] == others[:, None, :]).any(-1)


def mass_of(logp: Float[Tensor, "N S"], keep: Bool[Tensor, "N S"]) -> Float[Tensor, " N"]:
    """Σ of the probabilities in the slots that are kept; 0 where none is.

    >>> logp, keep = torch.tensor([[0.5, 0.25], [0.5, 0.25]]).log(), torch.tensor([[True, True], [False, False]])
    >>> mass_of(logp, keep).tolist()
    [0.75, 0.0]
    """
    return torch.where(keep, logp, torch.finfo(logp.dtype).min).exp().sum(-1)
