"""Where both models would end: the probability of end tokens at natural ends, after them, and elsewhere (F24).

A teacher that ends with another token, or not at all on what the student wrote, costs the student its ability
to stop; no score shows it before training (arXiv 2609.20511, 2609.37326).

name                        mean over                                    what
stop_student_at_end         ends the student drew                        p(E), E the student's end tokens
stop_teacher_at_end         the same                                     q(E)
stop_teacher_own_at_end     the same                                     q(E ∪ F), F the teacher's own end tokens
stop_student_same_at_end    the same                                     p(y), y the end token drawn
stop_teacher_same_at_end    the same                                     q(y): ≪ q(E ∪ F) where another token ends
stop_WHO_at_end/ID          the same                                     probability of the end token ID
stop_student_after_end      the position after an end                    p(E)
stop_teacher_after_end      the same                                     q(E)
stop_student_elsewhere      all other response positions                 p(E)
stop_teacher_elsewhere      the same                                     q(E)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Bool
from torch import Tensor

from opdkit.diagnostics.alignment import Measures, where_defined
from opdkit.diagnostics.candidates import ask, detached, sampled_logp
from opdkit.support import Dist


@torch.no_grad()
def stopping(
    student: Dist,
    teacher: Dist,
    *,
    ends: Sequence[int],
    teacher_ends: Sequence[int],
    at_end: Bool[Tensor, " M"],
    after_end: Bool[Tensor, " M"],
) -> Measures:
    """The table above. `at_end`: positions whose sampled token ended the response; `after_end`: those that follow."""
    if not ends:
        return {}
    student, teacher = detached(student), detached(teacher)
    own = ask(lambda: _mass(student, ends))
    theirs = ask(lambda: _mass(teacher, ends))
    either = ask(lambda: _mass(teacher, sorted({*ends, *teacher_ends})))
    elsewhere = ~(at_end | after_end)
    measures: Measures = {}
    for who, mass in (("student", own), ("teacher", theirs)):
        if mass is not None:
            for where, keep in (("at_end", at_end), ("after_end", after_end), ("elsewhere", elsewhere)):
                measures[f"stop_{who}_{where}"] = where_defined(mass, keep)
    if either is not None:
        measures["stop_teacher_own_at_end"] = where_defined(either, at_end)
    for who, dist in (("student", student), ("teacher", teacher)):
        if (drawn := sampled_logp(dist)) is not None:
            measures[f"stop_{who}_same_at_end"] = where_defined(drawn.exp(), at_end)
        for i in sorted({*ends, *teacher_ends}):
            if (one := ask(partial(_mass, dist, [i]))) is not None:
                measures[f"stop_{who}_at_end/{i}"] = where_defined(one, at_end)
    return measures


def _mass(dist: Dist, ids: Sequence[int]) -> Tensor:
    """Probability of any of these tokens."""
    return dist.full[:, list(ids)].exp().sum(-1)
