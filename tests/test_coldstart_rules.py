"""What a cold start decides: which answers are imitated, when the student is handed over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import tiny_loaded
from opdkit.config import ColdstartConfig, FileTask, FilterConfig, Grader, MathTask, WorldTask
from opdkit.recipes.answering import _row
from opdkit.recipes.filters import REASONS, answer_test, reason_against, repeats_text, sort_rows
from opdkit.recipes.handover import MASS, OVERLAP, handover
from opdkit.types import Prompt, Rollout

# --- filters --------------------------------------------------------------------------------------------------

SOUND = {
    "response": r"so it is \boxed{4}",
    "text": r"so it is \boxed{4}",
    "response_ids": [1, 2, 3, 4, 5, 6],
    "finish_reason": "stop",
    "score": 1.0,
}


def boxed(text: str) -> bool:
    return "boxed" in text


@pytest.mark.parametrize(
    ("changes", "settings", "reason"),
    [
        ({}, {}, None),
        ({"finish_reason": "length"}, {}, "truncated"),
        ({"finish_reason": "length"}, {"truncated": False}, None),
        ({"text": " \n"}, {}, "empty"),
        ({"text": "<end>", "response_ids": [3]}, {}, "empty"),  # nothing but its end
        ({"text": "so it is 4"}, {}, "no_answer"),
        ({"text": "so it is 4"}, {"no_answer": False}, None),
        ({"text": "let me think about it\n" * 5 + r"\boxed{4}"}, {}, "repeated_text"),
        ({"text": "let me think about it\n" * 4 + r"\boxed{4}"}, {}, None),
        ({"text": "wait, no\n" * 9 + r"\boxed{4}"}, {}, None),  # short lines, and less than three windows alike
        ({"response_ids": [7, 8] * 6}, {}, "repeated_ngrams"),
        ({"response_ids": [7, 8] * 6}, {"ngram_share": 1.0}, None),
        ({"response_ids": [7, 8] * 6}, {"ngram": 12}, None),
        ({"score": 0.0}, {}, None),
        ({"score": 0.0}, {"wrong": True}, "wrong"),
        ({"score": None}, {"wrong": True}, "wrong"),  # a grader that failed has not said that it is right
        ({"score": 0.5}, {"wrong": True}, None),
    ],
)  # fmt: skip
def test_each_rule_drops_what_it_names(changes: dict, settings: dict, reason: str | None) -> None:
    assert reason_against(SOUND | changes, FilterConfig(**settings), answered=boxed) == reason


def test_every_row_is_kept_or_dropped_with_a_counted_reason() -> None:
    rows = [SOUND, SOUND | {"finish_reason": "length", "text": ""}, SOUND | {"text": "4"}, SOUND]
    kept, dropped, counts = sort_rows(rows, FilterConfig(), answered=boxed)
    assert kept == [SOUND, SOUND] and [row["reason"] for row in dropped] == ["truncated", "no_answer"]
    assert counts == {"truncated": 1, "no_answer": 1} and set(counts) <= set(REASONS)


def test_an_answer_at_the_very_end_is_seen_before_the_end_token() -> None:
    """A pattern anchored at the end met `<|im_end|>` and dropped every answer of a real run."""
    task = FileTask(path="x.jsonl", grader=Grader(type="regex", pattern=r"(\d+)\.?\s*$"))
    row = SOUND | {"response": "1 + 3 = 4<|im_end|>", "text": "1 + 3 = 4"}
    assert reason_against(row, FilterConfig(), answered=answer_test(FilterConfig(), task)) is None
    tokenizer = tiny_loaded("llama", seed=1).tokenizer
    rollout = Rollout(Prompt("a", text="1 + 3 ="), (5, 6), "stop", text="as the grader reads it")
    assert _row(rollout, tokenizer)["text"] == rollout.text


def text_of(period: int, count: int) -> str:
    """One line of different characters, again and again."""
    return "".join(chr(0x4E00 + i) for i in range(period)) * count


def test_windows_of_text_that_come_again() -> None:
    """100 characters at every tenth place: a period of 100 shows at its third turn, one of 95 when windows meet again."""
    assert not repeats_text(text_of(100, 2)) and not repeats_text(text_of(4000, 1))
    assert repeats_text(text_of(100, 4))


def test_blocks_are_looked_at_in_long_texts_only() -> None:
    """A period of 50 is seen by windows at once, so the block rule is asked alone."""
    from opdkit.recipes.filters import _repeated_block

    distinct = "".join(chr(0x4E00 + i) for i in range(5000))
    assert _repeated_block(distinct + text_of(50, 3)) and not _repeated_block(distinct + text_of(50, 2))
    assert not _repeated_block(text_of(50, 90))


@given(st.lists(st.sampled_from("ab\n "), max_size=300))
def test_the_block_rule_is_what_its_pattern_says(letters: list[str]) -> None:
    import re

    from opdkit.recipes import filters

    text = "".join(letters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filters, "LONG", 0)
        patch.setattr(filters, "BLOCK", 5)
        patch.setattr(filters, "BLOCKS", 3)
        assert filters._repeated_block(text) == bool(re.search(r"(.{5})\1\1", text, re.DOTALL))


def test_an_answer_is_what_the_tasks_grader_reads() -> None:
    def test_of(task: Any, **settings: Any) -> Any:
        return answer_test(FilterConfig(**settings), task)

    math = test_of(MathTask())
    assert math(r"\boxed{3}") and math("Answer: 3") and not math("that makes 3")
    assert test_of(FileTask(path="p", grader={"type": "math"}))("Answer: 3")
    regex = test_of(FileTask(path="p", grader={"type": "regex", "pattern": r"#### (\d+)"}))
    assert regex("#### 3") and not regex("3")
    assert test_of(FileTask(path="p")) is None and test_of(WorldTask()) is None
    assert test_of(WorldTask(), answer=r"answer \d+")("then answer 24") and not test_of(
        WorldTask(), answer="x"
    )("y")


# --- hand-over ------------------------------------------------------------------------------------------------


def curve(*overlaps: float, mass: float = 0.9) -> list[dict[str, float]]:
    """Probes every 10 steps; the first is the student before."""
    return [{"step": 10 * i, OVERLAP: overlap, MASS: mass} for i, overlap in enumerate(overlaps)]


def rule(**settings: Any) -> ColdstartConfig:
    return ColdstartConfig(
        **{"probe_every": 10, "least": 20, "steps": 100, "until": {"patience": 3}, **settings}
    )


@pytest.mark.parametrize(
    ("overlaps", "settings", "over"),
    [
        ((0.3, 0.5, 0.6, 0.7, 0.8), {}, None),  # still rising
        ((0.3, 0.5, 0.7, 0.70, 0.705), {}, None),  # two probes without a rise are not three
        ((0.3, 0.5, 0.7, 0.70, 0.705, 0.704), {}, (40, "stopped_rising")),
        ((0.3, 0.5, 0.7, 0.69, 0.68, 0.67), {}, (20, "stopped_rising")),  # falling: the best is handed over, not the last
        ((0.3, 0.5, 0.7, 0.70, 0.72, 0.70), {}, None),  # one of the three did rise
        ((0.9, 0.5, 0.6, 0.7, 0.8), {}, None),  # the overlap before belongs to the old style
        ((0.3, 0.5, 0.4, 0.4, 0.4), {"least": 50}, None),  # a dip before the floor
        ((0.3, 0.5, 0.4, 0.4, 0.4, 0.45), {"least": 50}, (50, "stopped_rising")),
        ((0.3, 0.5, 0.7, 0.7), {"until": {"patience": 1}}, (20, "stopped_rising")),
        ((0.3, 0.5, 0.85), {"until": {"overlap": 0.8}}, (20, "target")),
        ((0.3, 0.85), {"until": {"overlap": 0.8}}, None),  # never before the floor
        ((0.3, 0.5, 0.85), {"until": {"overlap": 0.8, "mass": 0.95}}, None),  # both
        ((0.3, 0.5, 0.55), {"until": {"mass": 0.9}}, (20, "target")),
        ((0.3, 0.5, 0.7, 0.70, 0.70, 0.70), {"until": {"overlap": 0.8, "patience": 3}}, (20, "stopped_rising")),  # out of reach
        ((0.3, 0.5, 0.6), {"until": {"steps": 30}}, None),
        ((0.3, 0.9, 0.9, 0.9), {"until": {"steps": 30}}, (30, "steps")),
        ((0.3, 0.4, 0.5, 0.6), {"steps": 30}, (30, "limit")),
        ((0.3,), {}, None),
        ((0.3,), {"least": 0, "until": {"overlap": 0.1}}, None),  # a cold start of no step is none
    ],
)  # fmt: skip
def test_when_the_student_is_handed_over(overlaps: tuple, settings: dict, over: tuple | None) -> None:
    found = handover(curve(*overlaps), rule(**settings))
    assert (None if found is None else (found.step, found.why)) == over


@pytest.mark.parametrize(
    ("accuracies", "over"),
    [
        ((0.35, 0.0, 0.1, 0.2, 0.2, 0.2), None),  # overlap rests, and the student answers worse than it did
        ((0.35, 0.0, 0.1, 0.3, 0.3, 0.35), 40),
        ((None, None, None, None, None, None), 40),  # nobody grades
        ((0.0, 0.0, 0.0, 0.0, 0.0, 0.0), 40),  # nothing was lost
    ],
)
def test_a_student_that_answers_worse_than_before_goes_on(accuracies: tuple, over: int | None) -> None:
    probes = [
        probe | {"accuracy": accuracy}
        for probe, accuracy in zip(curve(0.3, 0.5, 0.7, 0.70, 0.705, 0.704), accuracies, strict=True)
    ]
    found = handover(probes, rule())
    assert (None if found is None else found.step) == over
    at_last = handover(probes, rule(steps=50))
    assert at_last is not None and at_last.why == ("stopped_rising" if over else "limit")


@given(
    st.lists(st.floats(0.01, 1.0), min_size=12, max_size=12),
    st.lists(st.sampled_from([None, 0.0, 0.3, 0.6]), min_size=12, max_size=12),
    st.integers(0, 100),
    st.integers(1, 5),
)
def test_it_ends_never_before_the_floor_and_hands_over_what_was_probed(
    overlaps: list[float], accuracies: list[float | None], least: int, patience: int
) -> None:
    cfg = rule(least=least, until={"patience": patience})
    probes = [probe | {"accuracy": a} for probe, a in zip(curve(*overlaps), accuracies, strict=True)]
    for count in range(1, 12):
        if (found := handover(probes[:count], cfg)) is not None:
            last = probes[count - 1]["step"]
            assert max(least, 1) <= last <= 100 and least <= found.step <= last
            # a checkpoint that is still there: patience + 2 are kept
            assert last - found.step <= 10 * (patience + 1)
            return
    raise AssertionError("it never ended, though the most steps were passed")
