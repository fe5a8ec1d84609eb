"""A teacher that is told the answer or a demonstration: what it reads, where the response begins, whether the student copies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import CONFIG, build_shop, metrics, opd, write_rows
from opdkit.train.privileged import copied, copies, filled, refuse_other_beginnings
from opdkit.types import Prompt, Rollout, UserError

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


def train(capfd: Any, tmp_path: Path, shop: Path, *words: str) -> Any:
    (tmp_path / "config.toml").write_text(CONFIG.format(shop=shop))
    return opd(capfd, "train", tmp_path / "config.toml", f"run={tmp_path / 'run'}", *words)


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
