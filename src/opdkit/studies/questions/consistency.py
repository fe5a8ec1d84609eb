"""Does a teacher that thinks like the student teach it more than one of like score that does not (3.1)?

`improved` says what the student says, better; `restyled` says the same truths in other words, with another end token.
"""

from opdkit.studies.estimate import ahead
from opdkit.studies.study import Arm, Expectation, Study

CONSISTENCY = Study(
    name="consistency",
    question="Of two teachers of like score, does the one that shares the student's thinking pattern teach more?",
    section="3.1",
    figures=("2", "3", "17"),
    claim="Qwen3-1.7B-Base learns more from Qwen3-4B-Base-GRPO (overlap .63 to .66 at first, .20 after 200 steps) than from "
    "Qwen3-4B non-thinking (.55, .15), although the two score alike; early mismatch has a lasting cost",
    arms=(Arm("same pattern"), Arm("other pattern", teacher="restyled")),
    expected=(
        Expectation(
            "like score",
            "the teacher of another pattern scores no more than .05 below the other one",
            ahead("other pattern", "same pattern", "teacher"),
            at_least=-0.05,
            claim=False,
        ),
        Expectation(
            "overlap",
            "overlap begins at least .10 higher with the same pattern",
            ahead("same pattern", "other pattern", "overlap_ratio_first"),
            at_least=0.10,
        ),
        Expectation(
            "score",
            "after the same steps the student of the same pattern scores at least .05 higher",
            ahead("same pattern", "other pattern", "after"),
            at_least=0.05,
        ),
        Expectation(
            "converges",
            "in the end the two overlaps lie within .05 of each other, as the paper's do",
            ahead("same pattern", "other pattern", "overlap_ratio_last"),
            at_least=-0.05,
            at_most=0.05,
        ),
    ),
    differs="The paper's teachers differ in how they think; here they differ in words, end token and training, and the one of "
    "another pattern scores higher. No independent reproduction has both teachers at their full length.",
)
