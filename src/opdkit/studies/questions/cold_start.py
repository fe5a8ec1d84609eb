"""Does imitating the teacher first rescue a pair of different patterns (5.1)? At the same budget of student tokens."""

from opdkit.studies.estimate import ahead, of
from opdkit.studies.study import Arm, Expectation, Study

COLD_START = Study(
    name="cold-start",
    question="Does an off-policy cold start rescue a pair whose thinking patterns differ?",
    section="5.1",
    figures=("8", "21"),
    claim="after SFT on the teacher's responses overlap begins higher, the run is smooth and ends higher (AMC23 .40 "
    "against .26); "
    "without it the student starts lower, is unstable at first and recovers slowly",
    arms=(
        Arm("direct", teacher="restyled"),
        Arm("direct, same tokens", teacher="restyled", steps=2.5),
        Arm("cold start", student="cold_started", teacher="restyled"),
        Arm("short cold start", student="barely_started", teacher="restyled"),
    ),
    panels=(
        "accuracy",
        "overlap_ratio",
        "overlap_mass_student",
        "overlap_advantage",
        "entropy_gap",
        "truncated_fraction",
    ),
    expected=(
        Expectation(
            "overlap",
            "with the cold start overlap begins at least .10 higher",
            ahead("cold start", "direct", "overlap_ratio_first"),
            at_least=0.10,
        ),
        Expectation(
            "higher end",
            "it ends at least .10 higher than distillation alone that has drawn as many tokens",
            ahead("cold start", "direct, same tokens", "after"),
            at_least=0.10,
        ),
        Expectation(
            "entropy gap",
            "its entropy gap is the smaller one at first",
            ahead("cold start", "direct", "entropy_gap_first"),
            at_most=0.0,
        ),
        Expectation(
            "unstable",
            "without it at least half of the runs collapse (more than half of the responses open-ended in some five "
            "steps, or a "
            "score below half of what it was)",
            of("direct", "collapsed"),
            at_least=0.5,
        ),
        Expectation(
            "adds",
            "distillation adds to what the cold start alone gave",
            of("cold start", "gain"),
            at_least=0.0,
            claim=False,
        ),
        Expectation(
            "too short",
            "a quarter of the cold start ends at least .05 lower",
            ahead("cold start", "short cold start", "after"),
            at_least=0.05,
            claim=False,
        ),
    ),
    differs="The cold start of 400 × 48 texts stands against 150 more steps of 128 responses. A follow-up saw no gain "
    "from SFT before OPD "
    "(40.2 against 42.7), a whole-paper reproduction did (.184 against .117). `opd coldstart` chooses the length "
    "itself: docs/coldstart.md.",
)
