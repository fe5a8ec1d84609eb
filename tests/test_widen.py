"""Prompts of another kind in every step, and the guard of the student's entropy: its function, the walks, whole runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import CONFIG, Said, build_shop, findings, metrics, opd, write_rows
from killing import Case, Kill, Nursery, look
from opdkit.config import WidenConfig
from opdkit.train.widen import COUNT, SHARE, Widen, decide
from opdkit.types import Prompt
from ranks import torchrun

ENTROPIES = st.lists(st.none() | st.floats(0, 8), max_size=60)


@st.composite
def guards(draw: st.DrawFn) -> WidenConfig:
    share = draw(st.floats(0, 0.5))
    return WidenConfig(
        share=share,
        most=draw(st.floats(share, 0.99)),
        floor=draw(st.floats(0.01, 4)),
        floor_of=draw(st.sampled_from(["nats", "first_window"])),
        window=draw(st.integers(1, 6)),
        change=draw(st.floats(0.01, 0.9)),
        clear=draw(st.floats(1, 3)),
    )


# --- the guard's function ---------------------------------------------------------------------------------------


@given(guards(), ENTROPIES)
def test_a_share_stays_between_its_ends_and_changes_after_whole_windows_only(
    cfg: WidenConfig, entropies: list[float | None]
) -> None:
    before = cfg.share
    for change in decide(cfg, entropies):
        assert change.step % cfg.window == 0 and change.before == before != change.after
        assert cfg.share <= change.after <= cfg.most
        if change.after > change.before:
            assert change.entropy < change.floor
        else:
            assert change.entropy > cfg.clear * change.floor
        before = change.after


@given(guards(), ENTROPIES, st.integers(0, 60))
def test_what_was_decided_does_not_depend_on_what_comes_later(
    cfg: WidenConfig, entropies: list[float | None], cut: int
) -> None:
    whole = decide(cfg, entropies)
    assert decide(cfg, entropies[:cut]) == [c for c in whole if c.step <= min(cut, len(entropies))]


def test_the_first_window_sets_a_relative_floor_and_an_absolute_one_counts_at_once() -> None:
    fallen = [1.0, 1.0, 0.4, 0.4]
    relative = decide(WidenConfig(window=2, floor=0.5), fallen)
    assert [(c.step, c.floor) for c in relative] == [(4, 0.5)]
    absolute = decide(WidenConfig(window=2, floor=1.5, floor_of="nats"), fallen)
    assert [c.step for c in absolute] == [2, 4]


def test_between_the_floor_and_clear_of_it_nothing_changes() -> None:
    cfg = WidenConfig(window=1, floor=1.0, floor_of="nats", share=0.1, change=0.2, clear=1.5)
    changes = decide(cfg, [0.9, 1.2, 1.4, 1.6])
    assert [(c.step, round(c.after, 3)) for c in changes] == [(1, 0.3), (4, 0.1)]


# --- the walks ---------------------------------------------------------------------------------------------------


def prompts(name: str, count: int) -> list[Prompt]:
    return [Prompt(id=f"{name}{i}", text=name) for i in range(count)]


def lived(cfg: WidenConfig, entropies: list[float | None], *, count: int = 4) -> tuple[Widen, list[Any]]:
    """As the loop lives it: prompts, then the row, then the decision."""
    own, others = prompts("own", 7), prompts("off", 5)
    widen = Widen(cfg, others, seed=3, count=count)
    steps = []
    for step, entropy in enumerate(entropies):
        drawn = widen.step_prompts(own, step=step)
        row = widen.numbers | ({} if entropy is None else {"entropy_student": entropy})
        steps.append((drawn, row))
        widen.see(row)
    return widen, steps


@settings(max_examples=60)
@given(guards(), ENTROPIES, st.integers(1, 9))
def test_shares_are_kept_and_no_prompt_comes_twice_before_all_came_once(
    cfg: WidenConfig, entropies: list[float | None], count: int
) -> None:
    _, steps = lived(cfg, entropies, count=count)
    taken = planned = 0.0
    for drawn, row in steps:
        assert len(drawn) == count and sum(p.text == "off" for p in drawn) == row[COUNT]
        taken, planned = taken + row[COUNT], planned + row[SHARE] * count
        assert -1 < taken - planned < 1e-6
    for name, size in (("own", 7), ("off", 5)):
        walked = [p.id for drawn, _ in steps for p in drawn if p.text == name]
        for begin in range(0, len(walked) - size + 1, size):
            assert set(Counter(walked[begin : begin + size]).values()) == {1}


@settings(max_examples=60)
@given(guards(), ENTROPIES, st.integers(0, 60))
def test_a_replay_of_the_rows_goes_on_as_the_run_did(
    cfg: WidenConfig, entropies: list[float | None], cut: int
) -> None:
    _, steps = lived(cfg, entropies)
    again = Widen(cfg, prompts("off", 5), seed=3, count=4)
    again.replay(json.loads(json.dumps(row)) for _, row in steps[:cut])
    for step, (drawn, row) in list(enumerate(steps))[cut:]:
        assert again.step_prompts(prompts("own", 7), step=step) == drawn
        assert again.numbers == {name: row[name] for name in (SHARE, COUNT)}
        again.see(row)


# --- runs --------------------------------------------------------------------------------------------------------


def test_a_killed_run_with_the_guard_on_goes_on_bit_for_bit(tmp_path: Path) -> None:
    with Nursery(tmp_path) as nursery:
        case = Case.make(nursery, tmp_path, "widened")
        shares = [row[SHARE] for row in metrics(case.reference)]
        assert len(set(shares)) > 1, "the guard has to act, or this shows nothing"
        trial = case.trial("killed", [Kill(when=lambda run: look(run)["rows"] >= 7), Kill(save=1)])
        ranks = tmp_path / "ranks"
        torchrun("-m", "opdkit", *case.arguments(ranks, steps=6))
        torchrun("-m", "opdkit", "train", "--resume", str(ranks), "steps=12")
    assert trial.identical, trial
    kept = [[(row[SHARE], row[COUNT]) for row in metrics(run)] for run in (ranks, case.reference)]
    assert kept[0] == kept[1], "two ranks decide alike, after a resume as well"
    told = findings(case.reference)["off_share_raised"]
    assert told["numbers"]["entropy_student"] < told["numbers"]["floor"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shop = build_shop(tmp_path_factory.mktemp("shop"))
    write_rows(shop / "other.jsonl", [{"prompt": f"Name {i} things"} for i in range(4)])
    return shop


def run(shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], *words: str) -> tuple[Said, Path]:
    (tmp_path / "config.toml").write_text(CONFIG.format(shop=shop))
    folder = tmp_path / "run"
    return opd(capfd, "train", tmp_path / "config.toml", f"run={folder}", *words), folder


def test_others_without_answers_run_beside_a_grader(
    shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = shop / "other.jsonl"
    said, folder = run(
        shop, tmp_path, capfd, f"widen.path={other}", "widen.share=0.5", "task.grader=exact",
        "save.rollouts_every=1",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert [row[COUNT] for row in metrics(folder)] == [1, 1]
    kept = [json.loads(line) for line in (folder / "rollouts" / "step_1.jsonl").read_text().splitlines()]
    scores = {row["id"].startswith("off/"): row["score"] for row in kept}
    assert scores == {False: 0.0, True: None}


def test_a_teacher_with_a_context_reads_it_before_others_too(
    shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said, folder = run(
        shop, tmp_path, capfd, f"widen.path={shop / 'other.jsonl'}", "widen.share=0.5", "teacher.context=be brief"
    )  # fmt: skip
    assert said.code == 0, said.err
    assert len(metrics(folder)) == 2


@pytest.mark.parametrize(
    ("words", "part", "hint"),
    [
        (["widen.path=PLACE/othr.jsonl"], "no prompt file", "other.jsonl"),
        (["widen.path=PLACE/other.jsonl", "story=sft", "teacher=unset"], "no steps of own rollouts", "widen.path=unset"),
        (
            ["widen.path=PLACE/other.jsonl", "story=grpo", "teacher=unset", "task.grader=exact"],
            "has no answer", "widen.path=unset",
        ),
        (["widen.share=0.6"], "most = 0.5 lies below share", "most = 0.6"),
    ],
    ids=["missing", "sft", "grpo", "ends"],
)  # fmt: skip
def test_what_cannot_be_widened_is_refused(
    shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], part: str, hint: str
) -> None:
    said, folder = run(shop, tmp_path, capfd, *(word.replace("PLACE", str(shop)) for word in words))
    assert said.code == 2 and part in said.error and hint in said.hint, said
    assert not folder.exists()
