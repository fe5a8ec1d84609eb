"""Do prompts in the wording that the teacher was improved on help (5.2)?

`one_wording` was improved on problems in the first wording alone. On chains of these bases, at 60 steps, it had been
seen before that
the third wording, unknown to both, costs overlap and score on five of five bases, and the second one on three and two.
"""

from opdkit.studies.estimate import ahead
from opdkit.studies.study import Arm, Expectation, Study


def _wording(which: int) -> dict[str, object]:
    return {"task": {"template": which}}


TEMPLATE = Study(
    name="template",
    question="Do prompts in the template that the teacher was trained with help?",
    section="5.2",
    figures=("9", "22"),
    claim="with the teacher's own template overlap goes from .82 to .95 instead of .74 to .92, and about 85 % of its score is "
    "reached instead of 80 %",
    arms=(
        Arm("aligned", teacher="one_wording", settings=_wording(0)),
        Arm("known to the student", teacher="one_wording", settings=_wording(1)),
        Arm("unknown to both", teacher="one_wording", settings=_wording(2)),
    ),
    expected=(
        Expectation(
            "overlap",
            "aligned prompts begin with more overlap than those in the student's other wording",
            ahead("aligned", "known to the student", "overlap_ratio_first"),
            at_least=0.0,
        ),
        Expectation(
            "score",
            "and end with at least as high a score",
            ahead("aligned", "known to the student", "after"),
            at_least=0.0,
        ),
        Expectation(
            "unknown, overlap",
            "a wording that neither knows begins with less overlap than the aligned one, by at least .01",
            ahead("aligned", "unknown to both", "overlap_ratio_first"),
            at_least=0.01,
            claim=False,
        ),
        Expectation(
            "unknown, score",
            "and ends at least .02 lower",
            ahead("aligned", "unknown to both", "after"),
            at_least=0.02,
            claim=False,
        ),
    ),
    differs="Held-out problems come in both known wordings. A whole-paper reproduction has .486 and .489 for the two "
    "templates: noise. "
    "`opd prompts` chooses a wrapper for a pair: docs/prompts.md.",
)
