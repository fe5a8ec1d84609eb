"""Can a reward that ranks whole responses right be useless token by token (6.2)? And the authors' hypothesis, which
they did not test:
that a failing teacher's gradients point in inconsistent directions along a response and cancel.

At step 0, and at the same step (the last) of both runs.
"""

from opdkit.studies.estimate import ahead, of
from opdkit.studies.study import Arm, Expectation, Study


def _arm(name: str, teacher: str, *, trained: bool) -> Arm:
    return Arm(name, teacher=teacher, measured="gradients", trained=trained)


LOCAL_REWARD = Study(
    name="local-reward",
    question="Does a failing teacher rank whole responses as well as a working one, and do its gradients cancel along "
    "a response?",
    section="6.2",
    figures=("14",),
    claim="mean sequence reward tells right from wrong responses with an AUROC of .73 for the teacher that works and "
    ".75 for the one that "
    "fails; hypothesis, unverified: the latter's token gradients are anisotropic and partly cancel",
    arms=(
        _arm("works", "improved", trained=False),
        _arm("fails", "bigger", trained=False),
        _arm("other pattern", "restyled", trained=False),
        _arm("works, after training", "improved", trained=True),
        _arm("fails, after training", "bigger", trained=True),
    ),
    expected=(
        Expectation(
            "informative",
            "the failing teacher's AUROC is at least .60",
            of("fails", "sequence_reward_auroc"),
            at_least=0.60,
        ),
        Expectation(
            "no worse",
            "it is no more than .05 below the working one's",
            ahead("fails", "works", "sequence_reward_auroc"),
            at_least=-0.05,
        ),
        Expectation(
            "cosine",
            "gradients of positions of one response agree less with the failing teacher: mean cosine lower by at least .02",
            ahead("works", "fails", "gradient_cosine_within"),
            at_least=0.02,
        ),
        Expectation(
            "cancelling",
            "with the failing teacher they cancel: their sum is shorter than orthogonal ones' would be",
            of("fails", "gradient_growth_within"),
            at_most=1.0,
        ),
        Expectation(
            "after training",
            "at the last step of both runs the mean cosine is lower by at least .02 as well",
            ahead("works, after training", "fails, after training", "gradient_cosine_within"),
            at_least=0.02,
        ),
        Expectation(
            "other pattern",
            "with a teacher of another pattern gradients agree less than with the working one, by at least .02",
            ahead("works", "other pattern", "gradient_cosine_within"),
            at_least=0.02,
            claim=False,
        ),
    ),
    differs="In a pilot the AUROC told the two apart (.94 and .72), and gradients of positions were nearly orthogonal "
    "with either teacher.",
)
