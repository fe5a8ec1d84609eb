"""What is the teacher's opinion worth, the further into the student's own response it is asked (6.1)?"""

from opdkit.studies.estimate import ahead, minus, of
from opdkit.studies.study import Arm, Expectation, Study


def _arm(name: str, teacher: str) -> Arm:
    return Arm(name, teacher=teacher, measured="continuation", steps=0.3)


CONTINUATION = Study(
    name="continuation",
    question="Does the teacher's advantage from the student's own prefix shrink with its depth?",
    section="6.1",
    figures=("11b",),
    claim="going on from student prefixes, the teacher ends right more often by .37 after 1,000 tokens, .27 at 4K, "
    ".15 at 8K, .02 at 16K",
    arms=(_arm("improved", "improved"), _arm("bigger", "bigger"), _arm("other pattern", "restyled")),
    expected=(
        Expectation(
            "shallow",
            "after a tenth of the response the improved teacher ends right at least .10 more often than the student",
            of("improved", "advantage_at_10"),
            at_least=0.10,
        ),
        Expectation(
            "deep",
            "after nine tenths at most .05 more often",
            of("improved", "advantage_at_90"),
            at_most=0.05,
        ),
        Expectation(
            "falls",
            "from a tenth to a half it loses at least .05",
            minus(of("improved", "advantage_at_10"), of("improved", "advantage_at_50")),
            at_least=0.05,
        ),
        Expectation(
            "bigger",
            "the bigger teacher, from which nothing is learnt, has an advantage of at least .10 after a tenth as well",
            of("bigger", "advantage_at_10"),
            at_least=0.10,
            claim=False,
        ),
        Expectation(
            "pattern",
            "after a tenth the teacher of another pattern is ahead by less than the improved one",
            ahead("improved", "other pattern", "advantage_at_10"),
            at_least=0.0,
            claim=False,
        ),
    ),
    differs="Both models write the rest once from every cut; responses are 7 to 13 tokens long. In lists no item "
    "depends on the one before.",
)
