"""Is a higher score new knowledge (3.2)? A bigger model of the same pipeline, and the same after it was improved."""

from opdkit.studies.estimate import ahead, minus, of
from opdkit.studies.study import Arm, Expectation, Study

NEW_KNOWLEDGE = Study(
    name="new-knowledge",
    question="Does a teacher with a higher score teach more, or one that knows what the student's training did not hold?",
    section="3.2",
    figures=("4",),
    claim="gap recovery 5.3 % from R1-Distill-7B and 16.9 % from Skywork-OR1-7B, which is the former after RL; 15.6 % "
    "from Qwen3-4B "
    "and 58.6 % from the same after RL, in both families with a lower overlap at first",
    arms=(
        Arm("improved"),
        Arm("bigger", teacher="bigger"),
        Arm("bigger, improved", teacher="bigger_improved"),
    ),
    expected=(
        Expectation(
            "scores higher",
            "the bigger teacher scores at least .10 above the student",
            minus(of("bigger", "teacher"), of("bigger", "before")),
            at_least=0.10,
            claim=False,
        ),
        Expectation(
            "same pipeline", "it gives at most 20 % of its gap", of("bigger", "recovery"), at_most=0.20
        ),
        Expectation(
            "after improvement",
            "improved, the bigger teacher gives at least 10 points more of its gap",
            ahead("bigger, improved", "bigger", "recovery"),
            at_least=0.10,
        ),
        Expectation(
            "lower overlap",
            "and its overlap begins no higher",
            ahead("bigger, improved", "bigger", "overlap_ratio_first"),
            at_most=0.0,
        ),
        Expectation(
            "improved student",
            "the student's own improved copy gives at least 30 points more of its gap than the bigger teacher",
            ahead("improved", "bigger", "recovery"),
            at_least=0.30,
            claim=False,
        ),
    ),
    differs="The bigger teacher's lead is facts that the student cannot hold: one way to score higher without teaching, by "
    "construction. Whether R1-Distill-7B's lead is of that kind is not known. A whole-paper reproduction has the same order "
    "of teachers (.387, .421, .487); a follow-up has 15.6, 20.2 and 70.7 % of the gap.",
)
