"""An objective of your own: candidates from both models, S^p ∪ S^q, which the configuration does not offer.

    python examples/own_objective.py

A `Support` is ids and a mask, so any set will do. What is lost against the exact gradient of either KL: each needs the
candidates of the model it is an expectation over (reverse: the student's, forward: the teacher's); the union serves both.
"""

import torch

from opdkit.config import ObjectiveConfig
from opdkit.objectives import Objective
from opdkit.support import RowDist, choose, in_set
from opdkit.types import Support

POSITIONS, VOCABULARY, K = 32, 200, 8


def union(student, teacher):
    """2k slots: both lists one after another, those of the second that the first has already not kept."""
    mine, theirs = student.topk(K)[0], teacher.topk(K)[0]
    keep = torch.cat([torch.ones_like(mine, dtype=torch.bool), ~in_set(theirs, mine)], -1)
    return Support(ids=torch.cat([mine, theirs], -1), keep=keep)


def built_in(kind):
    nothing = torch.zeros(POSITIONS, dtype=torch.long)  # sampled tokens: only kind = "sampled" looks at them
    return lambda student, teacher: choose(kind, k=K, student=student, teacher=teacher, sampled_ids=nothing)


SUPPORTS = {name: built_in(name) for name in ("student_top_k", "teacher_top_k", "full")} | {"union": union}


def gradient(student_logits, teacher_logits, *, divergence, estimator, support):
    """d Σ loss / d logits, [N, V], of Σ_S over unnormalised probabilities."""
    spec = ObjectiveConfig(support="full", divergence=divergence, normalisation="none", estimator=estimator)
    leaf = student_logits.clone().requires_grad_()
    student, teacher = RowDist(leaf), RowDist(teacher_logits)
    loss = Objective(spec).local(student, teacher, SUPPORTS[support](student, teacher))
    return torch.autograd.grad(loss.sum(), leaf)[0]


def main():
    generator = torch.Generator().manual_seed(0)
    pair = 2 * torch.randn(2, POSITIONS, VOCABULARY, generator=generator, dtype=torch.float64)
    lost = {}
    for divergence in ("reverse_kl", "forward_kl"):
        exact = gradient(*pair, divergence=divergence, estimator="exact", support="full")
        for support in SUPPORTS:
            ours = gradient(*pair, divergence=divergence, estimator="score_function", support=support)
            lost[divergence, support] = float((ours - exact).norm() / exact.norm())
            print(
                f"{divergence:10} over {support:13} off by {lost[divergence, support]:.3g} of the exact gradient"
            )
    return lost


if __name__ == "__main__":
    main()
