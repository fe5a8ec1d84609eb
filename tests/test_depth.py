"""`opd diagnose --depth`: maps by position and step of a run's rollouts, and what `opd report` draws of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commands import CONFIG, build_shop, metrics, opd
from opdkit.config import load_config
from opdkit.recipes.depth import columns

GRADED = ("task.grader.type=regex", "task.grader.pattern=(.)")
SMALL = (
    "sampling.max_tokens=8",
    "sampling.responses=4",
    "diagnostics.bins=4",
    "steps=3",
    "save.rollouts_every=1",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps, with rollouts of each and a checkpoint after the second."""
    from opdkit.train import run_story

    place = tmp_path_factory.mktemp("depth")
    shop = build_shop(place / "shop")
    (place / "config.toml").write_text(CONFIG.format(shop=shop))
    words = [f"run={place / 'run'}", "save.every=2", *SMALL, *GRADED]
    run_story(load_config(place / "config.toml", words))
    return place / "run"


def test_a_column_is_read_by_the_checkpoint_before_it(run: Path) -> None:
    config = load_config(run / "config.toml")
    found = columns(run, config)
    assert [c.step for c in found] == [1, 2, 3]
    assert [c.updates for c in found] == [None, None, 2]  # step 2 was drawn after one update
    assert found[0].student == config.student and found[2].student.model.endswith("step_2/model")
    assert columns(run / "rollouts", config) == found


def test_maps_of_a_run(run: Path, tmp_path: Path, capfd: Any) -> None:
    said = opd(capfd, "diagnose", run / "config.toml", "--rollouts", run, "--depth", tmp_path / "maps")
    assert said.code == 0, said.err
    rows = metrics(tmp_path / "maps")
    assert [row["step"] for row in rows] == [1, 2, 3] and rows[2]["read_by_student_of"] == 2
    for name in ("entropy_student", "entropy_teacher", "overlap_ratio", "advantage_size"):
        assert all(f"by_position/{start}/{name}" in row for row in rows for start in (0, 2, 4, 6))
    assert "advantage_size" in said.out and "opd report" in said.out
    again = opd(capfd, "diagnose", run / "config.toml", "--rollouts", run, "--depth", tmp_path / "maps")
    assert again.code == 2 and "holds maps" in again.error

    page = opd(capfd, "report", tmp_path / "maps")
    assert page.code == 0, page.err
    html = (tmp_path / "maps" / "report.html").read_text()
    assert "By position" in html and "advantage_size" in html


def test_what_was_measured_in_the_run_is_what_is_read_again(run: Path, tmp_path: Path, capfd: Any) -> None:
    """Step 3's rollouts, read by the weights that drew them: the run told the same of all its positions."""
    words = ("--rollouts", run, "--depth", tmp_path / "maps", "--json")
    said = opd(capfd, "diagnose", run / "config.toml", *words)
    last, own = json.loads(said.out)["columns"][-1], metrics(run)[-1]
    assert last["rollouts"] == 8  # all of the step's
    for start in (0, 2, 4, 6):
        key = f"by_position/{start}/advantage_size"
        assert last[key] == pytest.approx(own[key], rel=1e-3)


def test_both_go_on_from_where_bins_begin(run: Path, tmp_path: Path, capfd: Any) -> None:
    words = ("--rollouts", run, "--depth", tmp_path / "maps", "--continue", 4, "--json")
    said = opd(capfd, "diagnose", run / "config.toml", *words)
    assert said.code == 0, said.err
    row = json.loads(said.out)["columns"][0]
    told = [key for key in row if key.endswith("continuation_advantage")]
    assert told and "by_position/0/continuation_advantage" not in told
    assert all(-1.0 <= row[key] <= 1.0 for key in told)


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("--continue", 4, "task.grader=unset"), "takes a grader", "--continue 0"),
        (("--rollouts", "EMPTY"), "no rollouts/step_N.jsonl", "save.rollouts_every"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    run: Path, tmp_path: Path, capfd: Any, words: tuple, message: str, hint: str
) -> None:
    (tmp_path / "empty").mkdir()
    words = tuple(tmp_path / "empty" if word == "EMPTY" else word for word in words)
    given = words if "--rollouts" in words else ("--rollouts", run, *words)
    said = opd(capfd, "diagnose", run / "config.toml", *given, "--depth", tmp_path / "maps")
    assert said.code == 2 and message in said.error and hint in said.hint
