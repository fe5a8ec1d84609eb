"""Do prompts like those the teacher was improved on help, and what do they cost in entropy (5.2)? And a mixture of both.

`short_only` was improved on problems of two and three steps. On chains of these bases, at 60 steps, short prompts
had ended higher
than those of four steps on two of five bases; mixtures were not run before.
"""

from opdkit.studies.estimate import ahead
from opdkit.studies.study import Arm, Expectation, Study


def _arm(name: str, lengths: tuple[int, ...]) -> Arm:
    return Arm(name, teacher="short_only", settings={"task": {"lengths": lengths}})


CONTENT = Study(
    name="content",
    question="Do prompts from the teacher's own training help, what do they cost in entropy, and what share of others "
    "repairs that?",
    section="5.2",
    figures=("10",),
    claim="with the teacher's RL prompts (DAPO instead of DeepMath) the score is higher, overlap slightly lower, the "
    "student's mass on "
    "shared tokens much higher (.85 to .9 against .3 to .8) and its entropy much lower (1.5 against 3 to 6)",
    arms=(
        _arm("aligned", (2, 3)),
        _arm("a quarter of others", (2, 3, 2, 3, 2, 3, 4, 4)),
        _arm("half of others", (2, 3, 4, 4)),
        _arm("others", (4,)),
    ),
    panels=("accuracy", "overlap_ratio", "overlap_mass_student", "entropy_student", "entropy_gap", "loss"),
    expected=(
        Expectation(
            "score",
            "aligned prompts end with a higher score",
            ahead("aligned", "others", "after"),
            at_least=0.0,
        ),
        Expectation(
            "entropy",
            "and with a lower entropy of the student",
            ahead("aligned", "others", "entropy_student_last"),
            at_most=0.0,
        ),
        Expectation(
            "mass",
            "and with more of the student's mass on shared tokens",
            ahead("aligned", "others", "overlap_mass_student_last"),
            at_least=0.0,
        ),
        Expectation(
            "overlap",
            "and with no more overlap",
            ahead("aligned", "others", "overlap_ratio_last"),
            at_most=0.0,
        ),
        Expectation(
            "a quarter keeps the score",
            "with a quarter of other prompts the score is at most .02 lower than aligned",
            ahead("a quarter of others", "aligned", "after"),
            at_least=-0.02,
            claim=False,
        ),
        Expectation(
            "a quarter keeps entropy",
            "and the student's entropy is higher than aligned",
            ahead("a quarter of others", "aligned", "entropy_student_last"),
            at_least=0.0,
            claim=False,
        ),
    ),
    differs="Content is the number of steps of a problem here; held-out problems have all of them. The paper tests no mixture.",
)
