"""What the released objective (preset paper) does that Eq. 5 does not: it moves mass into or out of the support.

    python examples/truncated_support_bias.py

With S the student's top k, P_S = Σ_S p, Q_S = Σ_S q, and p̄, q̄ renormalised on S:

    ∇paper = ∇KL(p̄‖q̄) + [KL(p̄‖q̄) + log(P_S / Q_S)] · ∇log P_S

Where the bracket is positive P_S falls: the student leaves S. Both come near ∇KL(p‖q) as k grows.
"""

import torch

from opdkit.config import ObjectiveConfig
from opdkit.objectives import Objective
from opdkit.support import RowDist

POSITIONS, VOCABULARY = 64, 200


def gradient(loss_of, logits):
    """(loss [N], d Σ loss / d logits [N, V])."""
    leaf = logits.clone().requires_grad_()
    loss = loss_of(RowDist(leaf))
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def parts(student_logits, teacher_logits, *, k):
    """Gradients: the released code's, Eq. 5's, the term on the support's mass, and the exact one of KL(p‖q)."""
    teacher, any_token = RowDist(teacher_logits), torch.zeros(POSITIONS, dtype=torch.long)

    def by(preset):
        objective = Objective(ObjectiveConfig(preset=preset, k=k))
        support = objective.support(RowDist(student_logits), teacher, sampled_ids=any_token)
        return gradient(lambda student: objective.local(student, teacher, support), student_logits)

    (_, released), (kl, eq5), (_, exact) = by("paper"), by("paper-eq5"), by("full")
    top = student_logits.topk(k).indices
    log_P, of_log_P = gradient(lambda student: student.at(top).logsumexp(-1), student_logits)
    return released, eq5, (kl + log_P - teacher.at(top).logsumexp(-1))[:, None] * of_log_P, exact


def main():
    generator = torch.Generator().manual_seed(0)
    pair = 2 * torch.randn(2, POSITIONS, VOCABULARY, generator=generator, dtype=torch.float64)
    found = {}
    print("  k  |Eq. 5|  |mass term|  identity off by  cosine with ∇KL: paper, Eq. 5")
    for k in (2, 4, 16, 64, VOCABULARY):
        released, eq5, mass, exact = parts(*pair, k=k)
        off = float((released - eq5 - mass).norm() / released.norm())
        paper, alone = (float((g * exact).sum() / g.norm() / exact.norm()) for g in (released, eq5))
        found[k] = {"mass": float(mass.norm()), "off": off, "paper": paper, "eq5": alone}
        print(f"{k:3} {eq5.norm():8.3f} {mass.norm():12.3f} {off:16.0e} {paper:23.3f}, {alone:.3f}")
    return found


if __name__ == "__main__":
    main()
