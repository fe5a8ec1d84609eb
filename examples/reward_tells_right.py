"""Does a teacher know right from wrong? Its mean log-ratio per response, and how well that sorts graded responses.

    python examples/reward_tells_right.py

r̄(y) = mean over t of log q(y_t) − log p(y_t) (arXiv 2604.13016, section 6.2). AUROC is the chance that a right answer
has more of it than a wrong one: 1 sorts perfectly, 0.5 is a coin. You need log-probs of sampled tokens and grades.
"""

import torch

from opdkit.diagnostics import auroc, sequence_reward

RESPONSES = 200


def responses(*, knows, generator):
    """Made-up log-probs of ragged responses: log p [N], log q [N], row [N] and right [R].

    `knows` is by how many nats per token the teacher prefers a right response to a wrong one.
    """
    lengths = torch.randint(5, 40, (RESPONSES,), generator=generator)
    right = torch.rand(RESPONSES, generator=generator) < 0.4
    row = torch.repeat_interleave(torch.arange(RESPONSES), lengths)
    student = -2 * torch.rand(len(row), generator=generator)
    noise = torch.randn(len(row), generator=generator)
    return student, student + noise + knows * (right[row].float() - 0.5), row, right


def sorts(student, teacher, row, right):
    """(AUROC, mean r̄ of right responses, mean r̄ of wrong ones)."""
    reward = sequence_reward(student, teacher, row, rows=len(right))
    return auroc(reward, right), float(reward[right].mean()), float(reward[~right].mean())


def main():
    found = {}
    for knows in (0.0, 0.2, 1.0):
        found[knows] = sorts(*responses(knows=knows, generator=torch.Generator().manual_seed(0)))
        area, good, bad = found[knows]
        print(f"a teacher that prefers right by {knows} nats per token: AUROC {area:.3f}", end="")
        print(f"  (r̄ {good:+.2f} where right, {bad:+.2f} where wrong)")
    return found


if __name__ == "__main__":
    main()
