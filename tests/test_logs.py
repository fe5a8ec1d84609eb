"""Logs of other trainers: read, put in our words only where the words mean the same, and shown by `opd report`."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import opd
from opdkit.integrations import TOOLS, import_log, read_log
from opdkit.report import words
from opdkit.report.change import change
from opdkit.report.panels import groups
from opdkit.report.read import read_run
from opdkit.types import UserError

Capture = pytest.CaptureFixture[str]
DATA = Path(__file__).parent / "data" / "logs"
FILES = {
    "trainer_state.json": "trl",
    "trl.jsonl": "trl",
    "verl.log": "verl",
    "verl_file.jsonl": "verl",
    "nemo_rl.jsonl": "nemo-rl",
    "slime.log": "slime",
    "miles.log": "miles",
}


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- whose, and what it means -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tool"), FILES.items())
def test_the_tool_is_told_by_its_names(name: str, tool: str) -> None:
    log = read_log(DATA / name)
    assert log.tool == tool and len(log.rows) == 24
    assert log.rows == read_log(DATA / name, tool=tool).rows
    ours = {m.ours for m in log.same} | {"step"}
    assert all(key in ours or key.startswith(f"{tool}/") for row in log.rows for key in row)
    assert [row["step"] for row in log.rows] == sorted(row["step"] for row in log.rows)


def test_both_files_of_trl_and_of_verl_say_the_same() -> None:
    assert read_log(DATA / "trainer_state.json").rows == read_log(DATA / "trl.jsonl").rows
    assert read_log(DATA / "verl.log").rows == read_log(DATA / "verl_file.jsonl").rows


def test_trl_numbers() -> None:
    first = read_log(DATA / "trainer_state.json").rows[0]
    named = ("loss", "grad_norm", "entropy_student", "response_length", "truncated_fraction")
    assert [first[name] for name in named] == [0.81, 2.4, 0.62, 91.0, 0.25]
    assert first["trl/step_time"] == 3.21


def test_verl_overlap_advantage_is_not_eq_7() -> None:
    """arXiv 2604.13016, Eq. 7 is weighted by the student and renormalised over the overlap; verl's is neither."""
    log = read_log(DATA / "verl.log")
    first = log.rows[0]
    assert "overlap_advantage" not in first and first["verl/distillation/overlap_token_advantage"] == -0.031
    assert "overlap_mass_teacher" not in first and first["verl/distillation/teacher_mass"] == 0.993
    assert first["overlap_ratio"] == 0.62
    told = {m.theirs: m.note for m in log.different}
    assert "not Eq. 7" in told["distillation/overlap_token_advantage"]
    assert all(told.values())


def test_signs_are_turned_where_ours_is_the_other_way(tmp_path: Path) -> None:
    slime = read_log(DATA / "slime.log").rows[0]
    assert slime["sequence_reward"] == -0.29 and slime["slime/train/opd_reverse_kl"] == 0.29
    gap = "train/on_policy_distillation/teacher_student_logprob_gap_mean"
    rows = [{"_step": 1, gap: -0.4, "train/reward": 0.0, "train/loss": 0.1, "train/global_valid_toks": 9}]
    nemo = read_log(written(tmp_path / "mopd.jsonl", rows)).rows[0]
    assert nemo["reverse_kl_sampled"] == 0.4
    assert nemo["nemo-rl/train/loss"] == 0.1 and "loss" not in nemo  # with rewards it is a surrogate


def test_miles_does_not_say_which_divergence() -> None:
    log = read_log(DATA / "miles.log")
    assert "sequence_reward" not in log.rows[0] and log.rows[0]["miles/train/opd_reverse_kl"] == 0.19
    assert any("--opd-log-prob-top-k" in m.note for m in log.different)


def test_repetition_of_others_is_another_quantity() -> None:
    for name in ("slime.log", "miles.log"):
        log = read_log(DATA / name)
        assert "repetition_fraction" not in log.rows[0]
        assert f"{log.tool}/rollout/repetition_frac" in log.rows[0]


def test_rounds_and_updates_share_an_axis() -> None:
    log = read_log(DATA / "slime.log")
    assert log.notes == ["A round of rollouts had 2 updates: its numbers stand at the first of them"]
    with_length = [row["step"] for row in log.rows if "response_length" in row]
    assert with_length == list(range(0, 24, 2))
    assert "slime/train/entropy_loss" not in log.rows[3]  # nan was logged


@pytest.mark.parametrize("tool", TOOLS.values(), ids=lambda tool: tool.name)
def test_the_table_is_sound(tool: Any) -> None:
    """Every entry has its source; another quantity says why; ours are names that the report knows or stacks."""
    known = {metric for group in groups([m.ours for m in tool.table if m.ours]) if group.key != "other"
             for panel in group.panels for metric in panel.metrics}  # fmt: skip
    for m in tool.table:
        assert m.source and (m.ours or m.note), m.theirs
        assert m.ours is None or m.ours in known or m.ours.startswith("seconds/"), m.ours
    assert len({m.theirs for m in tool.table}) == len(tool.table)


# --- as a run, and on a page --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tool"), FILES.items())
def test_the_report_shows_a_log(name: str, tool: str, tmp_path: Path, capfd: Capture) -> None:
    log = tmp_path / name
    log.write_bytes((DATA / name).read_bytes())
    said = opd(capfd, "report", log)
    page = Path(said.out.strip())
    assert (said.code, page) == (0, tmp_path / f"{log.stem}.report.html")
    assert sorted(tmp_path.iterdir()) == sorted([log, page])  # the run made of it is gone
    text = page.read_text()
    run = read_run(import_log(log, tmp_path / "run"), name=name)
    for metric in (
        "grad_norm",
        "response_length",
        "overlap_ratio",
        "sequence_reward",
        "loss",
        "entropy_student",
    ):
        found = change(run, metric)
        assert found is None or found.words in text or found.percents in text, metric
    assert f"Read from a log of {tool}" in text and "no run of opdkit" in text
    for m in read_log(log).different:
        assert m.theirs in text, m.theirs


def test_the_words_of_a_distillation_by_trl(tmp_path: Path) -> None:
    run = read_run(import_log(DATA / "trainer_state.json", tmp_path / "run"), name="trl")
    assert words.alignment(run).title == "Loss falls"  # Eq. 7 was not measured, so no more is said
    assert run.env["tool"] == "trl"
    assert [row["name"] for row in run.findings] == [
        "imported_log",
        "read_with_care",
        "step_time_differs",
        "eval_loss_differs",
    ]


def test_a_log_beside_a_run_and_a_folder_of_a_trainer(tmp_path: Path, capfd: Capture) -> None:
    folder = tmp_path / "trl" / "checkpoint-24"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_bytes((DATA / "trainer_state.json").read_bytes())
    older = tmp_path / "trl" / "checkpoint-9"
    older.mkdir()
    (older / "trainer_state.json").write_text('{"log_history": []}')
    run = import_log(DATA / "verl.log", tmp_path / "verl")
    said = opd(capfd, "report", tmp_path / "trl", run)
    assert Path(said.out.strip()) == tmp_path / "trl" / "report.html"
    text = (tmp_path / "trl" / "report.html").read_text()
    assert "Read from a log of trl" in text and "Read from a log of verl" in text


def test_out_says_where_the_page_goes(tmp_path: Path, capfd: Capture) -> None:
    said = opd(capfd, "report", DATA / "slime.log", "--out", tmp_path / "page.html")
    assert said.code == 0 and [p.name for p in tmp_path.iterdir()] == ["page.html"]


# --- refusals -----------------------------------------------------------------------------------------------


def test_what_is_no_log_is_refused(tmp_path: Path, capfd: Capture) -> None:
    rows = written(tmp_path / "rows.jsonl", [{"step": 1, "temperature": 0.5}])
    with pytest.raises(UserError, match="names with a step and a number: temperature"):
        read_log(rows)
    with pytest.raises(UserError, match="there is no reader for logs of 'x'"):
        read_log(rows, tool="x")
    assert read_log(rows, tool="verl").rows == [{"step": 1, "verl/temperature": 0.5}]
    (tmp_path / "trainer_state.json").write_text('{"log_history": 3}')
    with pytest.raises(UserError, match="holds no log_history"):
        read_log(tmp_path / "trainer_state.json")
    said = opd(capfd, "report", rows)
    assert said.code == 2 and "is no log of trl, verl" in said.error
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    assert opd(capfd, "report", nothing).code == 2 and opd(capfd, "report", tmp_path / "absent").code == 2


def test_several_logs_in_a_folder_are_not_mixed(tmp_path: Path) -> None:
    for name in ("a.log", "b.log"):
        (tmp_path / name).write_bytes((DATA / "verl.log").read_bytes())
    with pytest.raises(UserError, match=r"several logs: a\.log, b\.log") as error:
        read_log(tmp_path)
    assert error.value.hint == f"opd report {tmp_path / 'a.log'}"


def test_rollouts_are_no_log(tmp_path: Path) -> None:
    written(tmp_path / "1.jsonl", [{"input": "p", "output": "r", "score": 1.0, "step": 1}])
    with pytest.raises(UserError, match="holds no log"):
        read_log(tmp_path)


def test_a_taken_folder_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        import_log(DATA / "verl.log", tmp_path)


def test_a_torn_line_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "torn.jsonl"
    path.write_text((DATA / "verl_file.jsonl").read_text() + '{"step": 25, "da')
    assert read_log(path).notes == ["1 lines began like JSON and were not, and are left out"]


def test_tensorboard_is_optional(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"")
    try:
        import tensorboard  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(UserError) as error:
            read_log(tmp_path)
        assert error.value.hint == "pip install tensorboard"
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "run")) as writer:
        writer.add_scalar("train/loss", 0.5, 1)
        writer.add_scalar("train/mean_gen_tokens_per_sample", 7.0, 1)
    assert read_log(tmp_path / "run").rows == [{"step": 1, "loss": 0.5, "response_length": 7.0}]


# --- whatever is in the file --------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
NAMES = st.sampled_from(
    ["step", "_step", "data", "loss", "epoch", "actor/lr", "rollout/step", "rollout/x", "a"]
)
ROWS = st.dictionaries(NAMES, SCALARS | st.dictionaries(NAMES, SCALARS, max_size=3), max_size=5) | SCALARS
LINES = st.builds(
    lambda head, n, text: f"{head}{n}{text}",
    st.sampled_from(["step:", "(x) step:", "step ", "rollout ", "perf ", "] eval "]),
    st.integers(0, 99),
    st.text(max_size=20)
    | st.sampled_from([" - actor/lr:1e-6 - a:b:2", ": {'rollout/x': nan, 'y': 1.2.3, 'train/pg_loss': 2}"]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ROWS.map(json.dumps) | LINES, max_size=5))
def test_no_line_gives_a_traceback(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.log"
    path.write_text("\n".join(lines), errors="replace")
    try:
        log = read_log(path)
    except UserError as error:
        assert error.hint
        return
    assert all(math.isfinite(value) for row in log.rows for value in row.values())
    json.dumps([finding.message for finding in log.findings()])
