"""Does the released code's extra term, which moves mass out of the candidates, blow up students of high entropy
(paper's Eq. 5)?

∇code = ∇Eq. 5 + [KL_S + log(P_S / Q_S)] ∇log P_S. `base` is a student after a quarter of its training.
"""

from opdkit.studies.estimate import ahead, both, of, ratio
from opdkit.studies.study import Arm, Expectation, Study


def _arm(name: str, preset: str) -> Arm:
    return Arm(name, student="base", settings={"objective": {"preset": preset}})


CODE_OR_EQUATION = Study(
    name="code-or-equation",
    question="Does the released code's extra term explain the blow-up of students of high entropy?",
    section="2, and 4 of base students",
    figures=(),
    claim="Eq. 5 is the objective of the text; the released code's gradient has a further term on the candidates' "
    "mass. Independent runs of "
    "the code on Qwen3-1.7B-Base saw entropy rise from 1.1 to 3.2, or to 8.8",
    arms=(
        _arm("code", "paper"),
        _arm("Eq. 5", "paper-eq5"),
        _arm("vocabulary", "full"),
        _arm("tail", "tt-opd"),
    ),
    panels=("accuracy", "entropy_student", "overlap_mass_student", "overlap_ratio", "loss", "grad_norm"),
    expected=(
        Expectation(
            "blow-up",
            "under the code's objective the student's entropy rises to at least 1.2 times what it was, in some five steps",
            both(of("code", "entropy_student_most"), of("code", "entropy_student_first"), lambda a, b: a / b),
            at_least=1.2,
        ),
        Expectation(
            "not under Eq. 5",
            "its highest entropy is above that under Eq. 5 by at least .1 nats",
            ahead("code", "Eq. 5", "entropy_student_most"),
            at_least=0.1,
        ),
        Expectation(
            "mass",
            "and in the end its candidates share less of the student's mass than under Eq. 5",
            ahead("code", "Eq. 5", "overlap_mass_student_last"),
            at_most=0.0,
        ),
        Expectation(
            "score",
            "Eq. 5 ends at least as high as the code",
            ahead("Eq. 5", "code", "after"),
            at_least=0.0,
            claim=False,
        ),
        Expectation(
            "vocabulary",
            "under the whole vocabulary entropy does not end higher than it began",
            ratio("vocabulary", "entropy_student"),
            at_most=1.0,
            claim=False,
        ),
    ),
    differs="The paper shows no run of Eq. 5 beside the code's. Whether the term is at fault is our question, not its claim.",
)
