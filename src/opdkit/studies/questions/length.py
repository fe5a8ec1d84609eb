"""How long may responses be before dense rewards hurt (6.1)? Chains of 20 to 22 operands and lists of as many items, answers of
some 46 tokens.

Two teachers: `improved`, which ends as the student does, and `other_end`, with another end token, with which runs lose their end.
On one base (0) it had been seen before that the plain run with `other_end` collapses, and that a window of 24 tokens does not.
Lists were made and run, under the same rules, when the chains had been seen.
"""

from collections.abc import Mapping
from typing import Any

from opdkit.studies.estimate import ahead, change, largest, minus, of
from opdkit.studies.study import Arm, Expectation, Study

MOST = 128


def _arm(name: str, teacher: str, most: int = MOST, **more: Any) -> Arm:
    settings: Mapping[str, Any] = {
        "optim": {"lr": 6e-4, "warmup_steps": 10, "weight_decay": 0.0},
        "prompts_per_step": 64,
        "sampling": {"responses": 1, "max_tokens": most},
        "diagnostics": {"bins": 16 if most >= 64 else most // 4},
        "eval": {"responses": 1, "teacher": True, "max_tokens": MOST},
        **more,
    }
    return Arm(name, teacher=teacher, settings=settings, steps=0.6, variant="long")


LENGTH = Study(
    name="length",
    question="How long may responses be: too short teaches little, and do long ones collapse from the tail?",
    section="6.1",
    figures=("11a", "12", "13", "23"),
    claim="3K and 7K tokens are best; .5K and 1K teach too little per rollout; 10K and 15K stall and then collapse "
    "near step 200, with "
    "entropy rising at the end of responses first and spreading forward, in the teacher as well",
    arms=(
        _arm("8 tokens", "improved", 8),
        _arm("16 tokens", "improved", 16),
        _arm("32 tokens", "improved", 32),
        _arm("no limit", "improved"),
        _arm("other end, 32 tokens", "other_end", 32),
        _arm("other end, no limit", "other_end"),
        _arm(
            "other end, window of 24",
            "other_end",
            objective={"preset": "paper", "signal": {"window": 24}},
        ),
    ),
    panels=(
        "accuracy",
        "response_length",
        "truncated_fraction",
        "overlap_ratio",
        "entropy_student",
        "grad_norm",
    ),
    heat=("no limit", "other end, no limit"),
    expected=(
        Expectation(
            "too short",
            "with 8 tokens a response the score ends at least .05 lower than without a limit",
            ahead("no limit", "8 tokens", "after"),
            at_least=0.05,
        ),
        Expectation(
            "in between is best",
            "16 or 32 tokens end at least as high as no limit",
            minus(largest(of("16 tokens", "after"), of("32 tokens", "after")), of("no limit", "after")),
            at_least=0.0,
        ),
        Expectation(
            "collapse",
            "with another end token and no limit most runs collapse",
            of("other end, no limit", "collapsed"),
            at_least=0.5,
        ),
        Expectation(
            "entropy",
            "in that run the student's entropy rises",
            change("other end, no limit", "entropy_student"),
            at_least=0.0,
        ),
        Expectation(
            "window",
            "a window of 24 tokens collapses less often than no limit",
            ahead("other end, no limit", "other end, window of 24", "collapsed"),
            at_least=0.5,
            claim=False,
        ),
    ),
    differs="The collapse here comes from an end token that the "
    "teacher does not use, "
    "the paper's from depth; a whole-paper reproduction with far smaller batches saw no collapse at 10K or 15K. "
    "docs/horizon.md.",
)
