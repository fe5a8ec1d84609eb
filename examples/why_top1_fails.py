"""Losses that look right and teach nothing: Eq. 5 at k = 1, and one number per position times ∇log p(y).

    python examples/why_top1_fails.py

Means over the sampled token y are exact here: every token of a small vocabulary weighted by p, instead of draws.
"""

import torch

from opdkit.config import ObjectiveConfig
from opdkit.objectives import Objective
from opdkit.support import RowDist, choose


def eq5(student, teacher, *, k):
    """KL(p̄‖q̄), both renormalised over the student's top k. At k = 1 both are 1, whatever the models say."""
    ids = student.topk(k).indices
    p, q = student.gather(-1, ids).log_softmax(-1), teacher.gather(-1, ids).log_softmax(-1)
    return (p.exp() * (p - q)).sum()


def sampled(student, teacher, y):
    """Eq. 3, preset sampled: (log p(y) − log q(y)) held fixed, times log p(y)."""
    p, q = (RowDist(x[None], sampled_ids=torch.tensor([y])) for x in (student, teacher))
    support = choose("sampled", k=1, student=p, teacher=q, sampled_ids=torch.tensor([y]))
    return Objective(ObjectiveConfig(preset="sampled")).local(p, q, support).sum()


def main():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    student.requires_grad_()

    def gradient(loss):
        return torch.autograd.grad(loss, student)[0]

    def mean(loss_at):
        return sum(p * gradient(loss_at(y)) for y, p in enumerate(student.detach().softmax(-1)))

    p, q = student.log_softmax(-1), teacher.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum()
    truth = gradient(kl)
    norms = {f"Eq. 5 at k = {k}": gradient(eq5(student, teacher, k=k)).norm() for k in (1, 2, 8)}
    constant = mean(lambda y: kl.detach() * student.log_softmax(-1)[y])
    norms["KL of the position × ∇log p(y), mean over y"] = constant.norm()
    norms["∇[log p(y) − log q(y)], mean over y"] = mean(lambda y: student.log_softmax(-1)[y] - q[y]).norm()
    unbiased = mean(lambda y: sampled(student, teacher, y))
    norms["[log p(y) − log q(y)] ∇log p(y), mean over y"] = unbiased.norm()
    norms["the truth, ∇KL(p‖q)"] = truth.norm()
    norms["the last two differ by"] = (unbiased - truth).norm()
    for words, norm in norms.items():
        print(f"norm of the gradient {norm:8.1e}  {words}")
    return {words: float(norm) for words, norm in norms.items()}


if __name__ == "__main__":
    main()
