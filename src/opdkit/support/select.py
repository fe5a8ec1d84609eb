"""The set of token ids per position on which student and teacher are compared. Pure torch.

sampled        { y_t }                   one slot, the token the student drew
student_top_k  S^p = TopK(p_t, k)        arXiv 2604.13016 Eq. 5; the released code's `only_stu`
teacher_top_k  S^q = TopK(q_t, k)        the released code's `only_tch`
full           the vocabulary            no ids: `Support.is_full`
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from opdkit.support.dist import Dist
from opdkit.types import Support


def choose(
    kind: Literal["sampled", "student_top_k", "teacher_top_k", "full"],
    *,
    k: int,
    student: Dist,
    teacher: Dist,
    sampled_ids: Int[Tensor, " N"],
    version: int = 0,
) -> Support:
    """The support of one chunk, chosen from the distributions at hand. Ids carry no gradient."""
    if kind == "full":
        return Support(ids=None, keep=None, source="full", version=version)
    if kind == "sampled":
        return of_ids(sampled_ids[:, None], source="sampler", version=version)
    if kind == "student_top_k":
        return of_ids(student.topk(k)[0], source="student_forward", version=version)
    return of_ids(teacher.topk(k)[0], source="teacher", version=version)


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
