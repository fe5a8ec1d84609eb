"""What does an improved student lose to teachers that were not improved (3.3)?"""

from opdkit.studies.estimate import PerBase, ahead, both, minus, of, size
from opdkit.studies.study import Arm, Expectation, Study

LONG = 2.0  # the paper ran 600 steps where others ran 200


def _lost(arm: str) -> PerBase:
    """The share of its gain over the student that the improved one lost."""
    return both(
        minus(of(arm, "before"), of(arm, "after")),
        minus(of(arm, "before"), of(arm, "reference")),
        lambda lost, gain: lost / gain,
    )


REVERSE = Study(
    name="reverse",
    question="Distilled from its own earlier self, or from a bigger model that was not improved, does an improved "
    "student fall back?",
    section="3.3",
    figures=("5",),
    claim="JustRL-1.5B falls to the score it had before RL (AIME24 .54 to .30-.33 in 600 steps) from R1-Distill-1.5B and from "
    "R1-Distill-7B alike, although the latter scores higher than the student; the two curves are hard to tell apart",
    arms=(
        Arm("own earlier self", student="improved", teacher="student", steps=LONG),
        Arm("bigger", student="improved", teacher="bigger", steps=LONG),
    ),
    expected=(
        Expectation(
            "no weaker",
            "the bigger teacher scores no more than .05 below the improved student",
            minus(of("bigger", "teacher"), of("bigger", "before")),
            at_least=-0.05,
            claim=False,
        ),
        Expectation(
            "own self",
            "from its earlier self it loses at least 80 % of what it had gained",
            _lost("own earlier self"),
            at_least=0.8,
        ),
        Expectation(
            "bigger",
            "from the bigger teacher it loses at least 80 % of what it had gained",
            _lost("bigger"),
            at_least=0.8,
        ),
        Expectation(
            "alike",
            "the two end within .05 of each other",
            size(ahead("own earlier self", "bigger", "after")),
            at_most=0.05,
        ),
    ),
    differs="A whole-paper reproduction ends at .412 and .399 after 600 steps, as the paper has it.",
)
