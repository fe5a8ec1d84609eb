"""What tells a run that works from one that does not, while it runs (4.1)? The two families are the two pairs."""

from opdkit.studies.estimate import ahead, change, of, ratio, size
from opdkit.studies.study import Arm, Expectation, Study

WORKS, FAILS = "works", "fails"

DYNAMICS = Study(
    name="dynamics",
    question="What tells a run that works from one that does not, while it runs?",
    section="4.1",
    figures=("6", "18", "19", "20"),
    claim="where it works, overlap rises from 72 to 91 %, Eq. 7 goes to 0, the entropy gap closes and the loss, large "
    "at first, falls; "
    "where it fails all of them stand still, with a small loss and a small gradient; shared tokens hold 97 to 99 % in both",
    arms=(Arm(WORKS), Arm(FAILS, teacher="bigger")),
    panels=(
        "accuracy",
        "overlap_ratio",
        "overlap_mass_student",
        "overlap_advantage",
        "entropy_gap",
        "loss",
        "grad_norm",
        "probability_gap_at_max_advantage",
    ),
    expected=(
        Expectation(
            "overlap rises",
            "working: overlap rises by at least .03",
            change(WORKS, "overlap_ratio"),
            at_least=0.03,
        ),
        Expectation(
            "overlap stands",
            "failing: overlap moves by at most .02",
            size(change(FAILS, "overlap_ratio")),
            at_most=0.02,
        ),
        Expectation(
            "mass of a success",
            "working: shared tokens hold at least 97 % of the student's mass in the end",
            of(WORKS, "overlap_mass_student_last"),
            at_least=0.97,
        ),
        Expectation(
            "mass of a failure",
            "failing: they do so as well",
            of(FAILS, "overlap_mass_student_last"),
            at_least=0.97,
        ),
        Expectation(
            "Eq. 7 falls",
            "working: |Eq. 7| falls to at most three tenths",
            ratio(WORKS, "overlap_advantage"),
            at_most=0.3,
        ),
        Expectation(
            "Eq. 7 stands",
            "failing: at least half of it stays",
            ratio(FAILS, "overlap_advantage"),
            at_least=0.5,
        ),
        Expectation(
            "entropy gap closes",
            "working: the entropy gap falls to at most a half",
            ratio(WORKS, "entropy_gap"),
            at_most=0.5,
        ),
        Expectation(
            "entropy gap stands",
            "failing: at least seven tenths of it stay",
            ratio(FAILS, "entropy_gap"),
            at_least=0.7,
        ),
        Expectation(
            "loss falls", "working: the loss falls to at most a fifth", ratio(WORKS, "loss"), at_most=0.2
        ),
        Expectation("loss stands", "failing: at least half of it stays", ratio(FAILS, "loss"), at_least=0.5),
        Expectation(
            "small loss",
            "the failing run's loss is the smaller one at first",
            ahead(FAILS, WORKS, "loss_first"),
            at_most=0.0,
        ),
        Expectation(
            "small gradient",
            "the failing run's gradient is the smaller one at first",
            ahead(FAILS, WORKS, "grad_norm_first"),
            at_most=0.0,
        ),
        Expectation(
            "largest difference",
            "working: p − q at the token of the largest advantage shrinks to at most a half",
            ratio(WORKS, "probability_gap_at_max_advantage"),
            at_most=0.5,
        ),
    ),
    differs="The paper's second pair is a 7B student with a teacher after RL and a bigger one; here it is the second "
    "family. On the demo's "
    "bases it was known before that overlap, Eq. 7 and the loss fall or stand as the rules have it, and that the "
    "failing loss is not the smaller one.",
)
