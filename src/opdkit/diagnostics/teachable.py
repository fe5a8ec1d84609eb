"""Whether the student can follow: does the disagreement lie where it goes anyway, and does it lead to success?

Two questions that overlap and KL cannot answer. A teacher may be far away on tokens the student never draws
(facts it lacks, another wording): own rollouts carry nothing of that. And it may be near and wrong.

name                unit    formula                                                    averaged over
teachable_share     1       c = Σ {q(v) : p(v) ≥ REACH}, the teacher's mass in reach   positions, weighted by KL(p‖q)
log_ratio_variance  nats²   Var_p[log q − log p]                                       positions
success_slope       1/√nat  √2 E[Σ_t (δ_t + KL_t)(R − b)] / √E[Σ_t Var_t]              rollouts

Letters: M measured positions, R rollouts. p is the student, q the teacher; nats.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike

from opdkit.diagnostics.alignment import Measures, each
from opdkit.diagnostics.candidates import ask, detached, weighted
from opdkit.support import Dist

REACH = 0.05
"""A token is in reach if the student draws it at least once in twenty."""


@torch.no_grad()
def teachable(student: Dist, teacher: Dist) -> Measures:
    """Disagreement that is compatible with the student's support (after arXiv 2605.26844; F17 takes S^p for reach).

    Each position counts as much as the two disagree there: Σ KL c / Σ KL. Needs whole rows of both; {} without.
    """
    student, teacher = detached(student), detached(teacher)
    rows = ask(lambda: (student.full, teacher.full))
    if rows is None:
        return {}
    student_logp, teacher_logp = rows
    p, ratio = student_logp.exp(), weighted_ratio(student_logp, teacher_logp)
    kl = -ratio.sum(-1).clamp(max=0.0)
    reach = torch.where(p >= REACH, teacher_logp.exp(), 0.0).sum(-1)
    square = weighted(p, (teacher_logp - student_logp + kl[:, None]) ** 2)
    return {"teachable_share": (kl * reach, kl), "log_ratio_variance": each(square.sum(-1))}


def weighted_ratio(student_logp: torch.Tensor, teacher_logp: torch.Tensor) -> torch.Tensor:
    """p (log q − log p), 0 where p is."""
    return weighted(student_logp.exp(), teacher_logp - student_logp)


def success_slope(lead: ArrayLike, variance: ArrayLike, score: ArrayLike, prompt: ArrayLike) -> float | None:
    """Success gained per unit of distribution moved, at the first step: the m of G(d) = G₀ + m d, d = √KL (F35).

    Per rollout [R]: `lead` Σ_t (δ_t + KL_t), `variance` Σ_t Var_p(log q − log p), its score, the number of its
    prompt. A step of natural gradient moves p by ε p (f − f̄), f = log q − log p; success then grows by
    ε Cov_p(f, success), of which (δ_t + KL_t)(R − b) is an unbiased estimate at every visited state, and KL by
    ε² Var_p(f) / 2 (arXiv 2609.32722 for the line, 2605.10889 for the gradient at a node). b is the mean score
    of the other responses to the same prompt, so a prompt with one response says nothing. None where none is left.
    """
    lead, variance, score = (np.asarray(x, dtype=float) for x in (lead, variance, score))
    which = np.asarray(prompt)
    size = np.bincount(which)[which]
    several = size > 1
    if not several.any():
        return None
    others = (np.bincount(which, weights=score)[which] - score)[several] / (size[several] - 1)
    gained = (lead[several] * (score[several] - others)).mean()
    moved = variance[several].mean()
    return 0.0 if moved <= 1e-9 else float(math.sqrt(2) * gained / math.sqrt(moved))
