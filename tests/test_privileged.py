"""A teacher that is told the answer or a demonstration: what it reads, where the response begins, whether the student copies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import build_shop, metrics, train, write_rows
from opdkit.train.feedback import Feedback, told
from opdkit.train.prefixes import is_led
from opdkit.train.privileged import copied, copies, filled, refuse_other_beginnings
from opdkit.types import Grade, Prompt, Rollout, UserError

TOKENS = st.lists(st.integers(0, 3), max_size=14)
DEMONSTRATION = "First add 2, then write what comes out of it, and say so in one word."


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shop = build_shop(tmp_path_factory.mktemp("shop"))
    rows = [
        {"prompt": f"Compute {i} + 2", "answer": str(i + 2), "response": f"{DEMONSTRATION} {i + 2}"}
        for i in range(6)
    ]
    write_rows(shop / "shown.jsonl", rows)
    return shop


def test_every_row_tells_its_own() -> None:
    prompts = [Prompt("a", answer="3", response="1 + 2 is 3"), Prompt("b", answer="{response}", response="x")]
    assert filled("Ends in {answer}.", prompts[:1]) == ["Ends in 3."]
    assert filled("{response} So {answer}.", prompts[:1]) == ["1 + 2 is 3 So 3."]
    assert filled("Be brief {now}.", prompts) == ["Be brief {now}."] * 2


def test_a_row_that_has_nothing_to_tell_is_named() -> None:
    with pytest.raises(UserError, match="has none") as error:
        filled("Ends in {answer}.", [Prompt("a", answer="3"), Prompt("b", source="x.jsonl:2")])
    assert "x.jsonl:2" in str(error.value) and "task.answer_key" in error.value.hint


def test_both_prompts_end_alike_or_it_is_refused() -> None:
    own = [Prompt("a", ids=(5, 6, 8, 9)), Prompt("b", ids=(7, 8, 9))]
    refuse_other_beginnings(own, [Prompt("a", ids=(1, 5, 6, 8, 9)), Prompt("b", ids=(2, 7, 8, 9))])
    with pytest.raises(UserError, match="another beginning"):
        refuse_other_beginnings(own, [Prompt("a", ids=(1, 5, 6, 8, 9)), Prompt("b", ids=(2, 7, 3, 9))])


@settings(max_examples=200, deadline=None, database=None)
@given(TOKENS, TOKENS, TOKENS, st.integers(1, 4))
def test_copies_by_a_loop(response: list[int], told: list[int], own: list[int], length: int) -> None:
    def has(where: list[int], run: list[int]) -> bool:
        return any(where[i : i + len(run)] == run for i in range(len(where)))

    runs = [told[i : i + length] for i in range(len(told) - length + 1)]
    expected = any(has(response, run) and not has(own, run) for run in runs)
    assert copies(response, told, own, length=length) == expected


def test_only_rollouts_of_told_prompts_count() -> None:
    told = {"s1": tuple(range(10))}
    rollouts = [
        Rollout(Prompt("a", source="s1"), tuple(range(9)), "stop"),
        Rollout(Prompt("a", source="s1"), (9, 9, 9), "stop"),
        Rollout(Prompt("b", source="s2"), tuple(range(9)), "stop"),
    ]
    assert copied(rollouts, told) == {"copied_fraction": (1.0, 2.0)} and copied(rollouts, {}) == {}


@pytest.mark.parametrize("told", ["It ends in {answer}.", "Somebody wrote: {response}"])
def test_a_student_that_was_told_more_teaches_itself(
    shop: Path, tmp_path: Path, capfd: Any, told: str
) -> None:
    """Told nothing, its own copy has nothing to say; told something, it has."""
    teacher = f'teacher={{ type = "self", context = {json.dumps(told)} }}'
    said = train(capfd, tmp_path, shop, f"task={shop / 'shown.jsonl'}", teacher, "objective=full")
    assert said.code == 0, said.err
    rows = metrics(tmp_path / "run")
    assert rows[0]["reverse_kl"] > 1e-3
    assert ("copied_fraction" in rows[0]) == ("{response}" in told)


def test_a_demonstration_that_is_missing_is_refused(shop: Path, tmp_path: Path, capfd: Any) -> None:
    said = train(capfd, tmp_path, shop, 'teacher={ type = "self", context = "See {response}" }')
    assert said.code == 2 and "has none" in said.error and "task.response_key" in said.hint
    assert not (tmp_path / "run").exists()


# --- told what came of the very response --------------------------------------------------------------------

FEEDBACK = """teacher={ type = "self", every = 1, context = "You read: {feedback}. Answer again." }"""
GRADES = st.sampled_from([None, 0.0, 0.5, 1.0])


@given(st.lists(st.tuples(st.integers(0, 2), GRADES), max_size=10))
def test_feedback_by_a_loop(rows: list[tuple[int, float | None]]) -> None:
    rollouts = [
        Rollout(
            Prompt(f"p{p}"),
            (i,),
            "stop",
            text=f"t{i}",
            grade=None if score is None else Grade(score),
            sample=i,
        )
        for i, (p, score) in enumerate(rows)
    ]
    expected = []
    for i, (p, score) in enumerate(rows):
        right = [j for j, (q, other) in enumerate(rows) if q == p and j != i and other == 1.0]
        if right:
            expected.append(f"A right answer: t{right[0]}")
        else:
            expected.append(f"A wrong answer: t{i}" if score is not None and score < 1.0 else "")
    assert told(rollouts) == expected


@pytest.mark.parametrize("alone", [True, False])
def test_what_nothing_is_told_of_reads_the_bare_prompt(alone: bool) -> None:
    def read(prompts: Any, texts: Any) -> list[Prompt]:
        return [replace(p, ids=(9, len(text), *p.ids)) for p, text in zip(prompts, texts, strict=True)]

    graded = [
        Rollout(Prompt("a", ids=(1, 2)), (3, 4), "stop", text="x", grade=Grade(score)) for score in (1.0, 0.0)
    ]
    feedback = Feedback(read, room=4, rows=50, alone=alone)
    first, second = feedback.given(graded)
    assert first.teacher_prompt_ids is None and first.trained == ((False, False) if alone else None)
    assert second.teacher_prompt_ids == (9, 17, 1, 2) and second.trained is None and not is_led(first)
    assert feedback.numbers([first, second]) == {"told_fraction": (1.0, 2.0)}
    narrow = replace(feedback, room=3).given(graded)[1]
    assert narrow.teacher_prompt_ids is None and replace(feedback, rows=9).given(graded)[1] == narrow


def test_a_student_is_told_by_its_own_copy_what_was_wrong(shop: Path, tmp_path: Path, capfd: Any) -> None:
    """A copy of every step differs by the context alone; where nobody is told anything, nothing is learned."""
    words = (f"task={shop / 'shown.jsonl'}", "task.grader=exact", FEEDBACK, "objective=full")
    said = train(capfd, tmp_path, shop, *words)
    assert said.code == 0, said.err
    rows = metrics(tmp_path / "run")
    assert all(row["told_fraction"] == 1.0 and row["reverse_kl"] > 1e-3 for row in rows)
    assert all(row["grad_norm"] > 0 for row in rows)


def test_where_all_is_right_and_nobody_else_was_there_nothing_trains(
    shop: Path, tmp_path: Path, capfd: Any
) -> None:
    rows = [{"prompt": f"Compute {i} + 2", "answer": " "} for i in range(6)]
    write_rows(tmp_path / "free.jsonl", rows)
    free = (
        f"task={tmp_path / 'free.jsonl'}",
        """task.grader={ type = "regex", pattern = "()" }""",
        "sampling.responses=1",
    )
    said = train(capfd, tmp_path, shop, *free, FEEDBACK)
    assert said.code == 0, said.err
    assert all(row["told_fraction"] == 0.0 and row["grad_norm"] == 0.0 for row in metrics(tmp_path / "run"))


def test_feedback_needs_grades(shop: Path, tmp_path: Path, capfd: Any) -> None:
    said = train(capfd, tmp_path, shop, FEEDBACK)
    assert said.code == 2 and "no grader" in said.error and "task.grader" in said.hint
    assert not (tmp_path / "run").exists()
