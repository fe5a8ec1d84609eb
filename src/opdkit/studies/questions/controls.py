"""What does a claim of on-policy distillation have to beat? Controls, and four disputes of the literature."""

from collections.abc import Mapping
from typing import Any

from opdkit.studies.estimate import ahead, both, change, minus, of, size
from opdkit.studies.study import Arm, Expectation, Study

GROUPS: Mapping[str, Any] = {"prompts_per_step": 32, "sampling": {"responses": 4}}


def _reward(how: str, **keys: Any) -> Mapping[str, Any]:
    return {**GROUPS, "objective": {"preset": "paper", "signal": {"reward": how, **keys}}}


def _sequential(steps: int) -> Mapping[str, Any]:
    return _reward("sequential", switch_step=steps // 2)


def _control(how: str) -> Mapping[str, Any]:
    return {"objective": {"preset": "sampled", "signal": {"control": how}}}


def _sizes(words: int, variant: str | None) -> tuple[Arm, Arm]:
    return (
        Arm(f"top 16 of {words} words", variant=variant),
        Arm(f"all of {words} words", variant=variant, settings={"objective": {"preset": "full"}}),
    )


def _rise(words: int) -> Expectation:
    """Whether overlap rises as much when the loss knows no support."""
    return Expectation(
        f"overlap at {words} words",
        f"of {words} words, overlap rises at least as much under the whole vocabulary as under the top 16, less .02",
        minus(
            change(f"all of {words} words", "overlap_ratio"),
            change(f"top 16 of {words} words", "overlap_ratio"),
        ),
        at_least=-0.02,
        claim=False,
    )


CONTROLS = Study(
    name="controls",
    question="Does the teacher matter, is overlap a cause or an artefact, is a cold start good or bad, reward beside "
    "the teacher or after it?",
    section="3 to 5, and disputes",
    figures=(),
    claim="the teacher's signal is what teaches; pushing improbable tokens down without any teacher is claimed "
    "elsewhere to do as well "
    "(arXiv 2608.31046), overlap to be an artefact of losses on a support, and reward after distillation to beat both "
    "at once (2609.04108)",
    arms=(
        Arm("teacher"),
        Arm("sampled token", settings={"objective": {"preset": "sampled"}}),
        Arm("push-down", teacher=None),
        Arm("shuffled", settings=_control("shuffled")),
        Arm("random sign", settings=_control("random_sign")),
        Arm("cold start, same pattern", student="own_style_started"),
        Arm("joint", settings=_reward("additive")),
        Arm("sequential", settings=_sequential),
        Arm("groups", settings=GROUPS),
        Arm("bigger, joint", teacher="bigger", settings=_reward("additive")),
        Arm("bigger, sequential", teacher="bigger", settings=_sequential),
        *_sizes(110, "23"),
        *_sizes(284, "197"),
    ),
    expected=(
        Expectation(
            "push-down",
            "without a teacher at most a quarter of what the teacher gives is gained",
            both(of("push-down", "gain"), of("teacher", "gain"), lambda alone, taught: alone - taught / 4),
            at_most=0.0,
        ),
        Expectation(
            "shuffled",
            "with the teacher's rewards shuffled over tokens at most 20 % of the gap is recovered",
            of("shuffled", "recovery"),
            at_most=0.2,
        ),
        Expectation(
            "random sign",
            "with signs by chance at most 20 %",
            of("random sign", "recovery"),
            at_most=0.2,
        ),
        Expectation(
            "cold start before a like teacher",
            "before a teacher of the same pattern a cold start changes the final score by at most .03",
            size(ahead("cold start, same pattern", "teacher", "after")),
            at_most=0.03,
            claim=False,
        ),
        Expectation(
            "strong teacher",
            "with a teacher that knows, reward after distillation and beside it end within .03 of each other",
            size(ahead("sequential", "joint", "after")),
            at_most=0.03,
            claim=False,
        ),
        Expectation(
            "weak teacher",
            "with a teacher that does not, reward after distillation ends at least .03 higher than beside it",
            ahead("bigger, sequential", "bigger, joint", "after"),
            at_least=0.03,
            claim=False,
        ),
        _rise(110),
        _rise(284),
    ),
    differs="Overlap under both losses at 184 words is in which-tokens. Small and large vocabularies are chains of "
    "other moduli.",
)
