"""One sampled token, or the student's top k, and how many (6.3)?"""

from opdkit.studies.estimate import ahead, size
from opdkit.studies.study import Arm, Expectation, Study


def _top(k: int) -> Arm:
    return Arm(f"k = {k}", settings={} if k == 16 else {"objective": {"preset": "paper", "k": k}})


CANDIDATES = Study(
    name="candidates",
    question="Is one sampled token as good as the student's top k, and how many candidates are enough?",
    section="6.3",
    figures=("15", "16"),
    claim="sampled tokens do as well as the top 4, 16 and 64 (AIME24 .454, .473, .458, .463); the top 1 alone is "
    "clearly worse and "
    "unstable (.446); beyond 4 there is nothing to gain",
    arms=(
        Arm("sampled", settings={"objective": {"preset": "sampled"}}),
        _top(1),
        _top(4),
        _top(16),
        _top(64),
    ),
    panels=("accuracy", "overlap_ratio", "entropy_student", "entropy_gap", "reverse_kl", "grad_norm"),
    expected=(
        Expectation(
            "top 1", "k = 1 ends at least .03 below k = 16", ahead("k = 16", "k = 1", "after"), at_least=0.03
        ),
        Expectation(
            "top 4",
            "k = 4 ends within .03 of k = 16",
            size(ahead("k = 4", "k = 16", "after")),
            at_most=0.03,
        ),
        Expectation(
            "top 64",
            "k = 64 ends within .03 of k = 16",
            size(ahead("k = 64", "k = 16", "after")),
            at_most=0.03,
        ),
        Expectation(
            "sampled",
            "the sampled token ends within .03 of k = 16",
            size(ahead("sampled", "k = 16", "after")),
            at_most=0.03,
        ),
        Expectation(
            "entropy gap of top 1",
            "k = 1 closes the entropy gap less than k = 16",
            ahead("k = 1", "k = 16", "entropy_gap_last"),
            at_least=0.0,
        ),
    ),
    differs="A whole-paper reproduction has .466 (sampled, 200 steps), .449, .496, .489 and .490 for k = 1, 4, 16 and 64.",
)
