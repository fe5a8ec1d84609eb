"""Trackers show what metrics.jsonl and eval.jsonl say, offline, also after a kill and a resume, and never cost a run."""

from __future__ import annotations

import importlib.util
import json
import math
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from killing import SETTINGS, VARIANTS, overrides, write_inputs
from opdkit.config import Config, load_config
from opdkit.run import RunFolder, trackers
from opdkit.run.trackers import Trackers, numbers_of, require_trackers
from opdkit.train import run_story
from opdkit.types import UserError

Seen = dict[tuple[int, str], float]
"""(step, name) → number, as a tracker kept it."""


def needs(*names: str) -> list[pytest.MarkDecorator]:
    return [
        pytest.mark.skipif(importlib.util.find_spec(n) is None, reason=f"{n} is not installed") for n in names
    ]


# --- reading back -----------------------------------------------------------------------------------------------


def in_folder(run: Path) -> Seen:
    folder = RunFolder.read(run)
    seen = {
        (row["step"], name): value for row in folder.read_metrics() for name, value in numbers_of(row).items()
    }
    for row in folder.read_eval():
        seen |= {(row["step"], name): value for name, value in numbers_of(row, prefix="eval/").items()}
    return seen


def once(pairs: list[tuple[tuple[int, str], float]]) -> Seen:
    assert len({key for key, _ in pairs}) == len(pairs), "a tracker holds a step twice"
    return dict(pairs)


def in_tensorboard(run: Path) -> Seen:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    names = events.Tags()["scalars"]
    return once([((event.step, name), event.value) for name in names for event in events.Scalars(name)])


def in_wandb(run: Path) -> Seen:
    """History records of the one offline file: a LevelDB log of protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    pairs = []
    for data in log_records(path.read_bytes()):
        record = Record.FromString(data)
        if not record.HasField("history"):
            continue
        row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        step = int(row["_step"])
        pairs += [((step, name), value) for name, value in row.items() if not name.startswith("_")]
    return once(pairs)


def log_records(data: bytes, *, block: int = 32768, header: int = 7) -> list[bytes]:
    """Blocks of 32 KiB; each piece has checksum (4 bytes), length (2), kind (1: whole 1, first 2, middle 3, last 4)."""
    records, parts, at = [], b"", header  # the file begins with a header of its own
    while at + header <= len(data):
        left = block - at % block
        if left < header:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + header])
        parts += data[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):
            records.append(parts)
            parts = b""
    return records


def in_trackio(run: Path) -> Seen:
    from trackio.sqlite_storage import SQLiteStorage

    identity = json.loads((run / "tracker.json").read_text())["id"]
    logs = SQLiteStorage.get_logs("opdkit", f"{run.name}-{identity}")
    return once(
        [((row["step"], n), v) for row in logs for n, v in row.items() if n not in ("step", "timestamp")]
    )


READERS: dict[str, Callable[[Path], Seen]] = {
    "tensorboard": in_tensorboard,
    "wandb": in_wandb,
    "trackio": in_trackio,
}
EACH = pytest.mark.parametrize("name", [pytest.param(n, marks=needs(n)) for n in READERS])
DIGITS = {"tensorboard": 1e-6}  # it keeps float32


def assert_same(name: str, run: Path) -> None:
    """W&B's service writes its file after the run has let go of it; on a busy machine that takes a moment."""
    expected, deadline = in_folder(run), time.monotonic() + 30.0
    seen = READERS[name](run)
    while seen.keys() != expected.keys() and time.monotonic() < deadline:
        time.sleep(0.5)
        seen = READERS[name](run)
    assert seen.keys() == expected.keys()
    exact = DIGITS.get(name, 0.0)
    assert all(math.isclose(seen[k], expected[k], rel_tol=exact, abs_tol=0.0) for k in expected)


# --- real runs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written outside the test's folder; trackio reads its place once, when it is imported."""
    for name in ("WANDB_MODE", "WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "TRACKIO_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    if importlib.util.find_spec("trackio") is not None:
        import trackio.fragments
        import trackio.sqlite_storage
        import trackio.utils

        for module in (trackio.utils, trackio.sqlite_storage):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "elsewhere")


def config(inputs: Path, run: Path, **changes: Any) -> Config:
    settings = SETTINGS | VARIANTS["local"] | {
        "student": str(inputs / "student"),
        "teacher": str(inputs / "teacher"),
        "task.path": str(inputs / "train.jsonl"),
        "task.eval_path": str(inputs / "eval.jsonl"),
        "run": str(run),
        "steps": 6,
        "save.every": 2,
        **changes,
    }  # fmt: skip
    return load_config(None, overrides(settings))


class Cut:
    """A talk that dies after a step: its row is written, no checkpoint holds it."""

    def __init__(self, after: int):
        self.after = after

    def note(self, text: str) -> None: ...
    def evaluation(self, row: dict[str, Any]) -> None: ...
    def step(self, row: dict[str, Any], steps: int) -> None:
        if row["step"] == self.after:
            raise ConnectionAbortedError("cut")


@EACH
def test_a_tracker_shows_what_the_folder_says_also_after_a_resume(
    name: str, inputs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(ConnectionAbortedError):
        run_story(config(inputs, run, track=[name]), talk=Cut(5))
    identity = (run / "tracker.json").read_text()
    assert_same(name, run)  # steps 1 to 5

    assert run_story(config(inputs, run, track=[name]), resume=run) == 0  # from step 4
    assert_same(name, run)
    assert {step for step, _ in READERS[name](run)} == set(
        range(7)
    )  # 0: the evaluation before the first step
    assert (run / "tracker.json").read_text() == identity


@EACH
def test_a_tracker_that_joins_late_has_everything(name: str, inputs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_story(config(inputs, run, steps=2)) == 0
    assert run_story(config(inputs, run, steps=3, track=[name]), resume=run) == 0
    assert_same(name, run)


@pytest.mark.parametrize("track", [pytest.param(list(READERS), marks=needs(*READERS))])
def test_all_three_at_once_and_nothing_on_stdout(
    track: list[str], inputs: Path, tmp_path: Path, capfd
) -> None:
    run = tmp_path / "run"
    assert run_story(config(inputs, run, steps=2, track=track)) == 0
    for name in track:
        assert_same(name, run)
    assert capfd.readouterr().out == ""
    import trackio

    assert trackio.context_vars.current_run.get() is None  # its exit handler would speak on stdout


@pytest.mark.parametrize("name", [pytest.param("wandb", marks=needs("wandb"))])
def test_wandb_holds_numbers_and_no_machine(name: str, inputs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_story(config(inputs, run, steps=1, track=[name]))
    kinds = {path.name for path in run.glob("wandb/offline-run-*/files/*")}
    assert not kinds & {"wandb-metadata.json", "output.log", "diff.patch"}


# --- without any of the packages ----------------------------------------------------------------------------------


class Fake:
    """A tracker that works for some rows."""

    anew = True

    def __init__(self, lasts: int = 1000):
        self.lasts, self.rows, self.closed = lasts, [], 0

    def log(self, step: int, numbers: Any) -> None:
        if len(self.rows) == self.lasts:
            raise OSError(28, "No space left on device")
        self.rows.append((step, dict(numbers)))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    """Stands in for the packages; the second one fails after two rows."""
    made = {"tensorboard": Fake(), "trackio": Fake(lasts=2)}
    monkeypatch.setattr(trackers, "OPENERS", {n: lambda *_, f=f: f for n, f in made.items()})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    return made


def test_a_tracker_that_fails_costs_one_finding(fakes: dict[str, Fake], inputs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_story(config(inputs, run, track=list(fakes))) == 0
    told = [row for row in RunFolder.read(run).read_findings() if row["name"] == "tracker_failed"]
    assert len(told) == 1 and told[0]["severity"] == "warning" and "trackio" in told[0]["message"]
    assert told[0]["numbers"] == {"rows_taken": 2.0} and told[0]["step"] == 2
    assert [step for step, _ in fakes["tensorboard"].rows] == [0, 1, 2, 3, 4, 4, 5, 6, 6]  # with evaluations
    assert fakes["tensorboard"].closed == 1 and fakes["trackio"].closed == 0


def test_a_tracker_that_does_not_start_is_refused_and_leaves_no_run(inputs, tmp_path, monkeypatch) -> None:
    def refuses(*_: Any) -> Any:
        raise RuntimeError("no API key\nand a long story")

    monkeypatch.setattr(trackers, "OPENERS", {"wandb": refuses})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"wandb does not start: RuntimeError: no API key$") as refused:
        run_story(config(inputs, tmp_path / "run", track=["wandb"]))
    assert "WANDB_MODE=offline" in refused.value.hint
    assert run_story(config(inputs, tmp_path / "run", steps=1)) == 0  # the name is free


def test_a_missing_package_is_refused_before_anything(inputs, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="trackio is not installed") as refused:
        run_story(config(inputs, tmp_path / "run", track=["trackio"]))
    assert refused.value.hint == "pip install 'opdkit[track]'"
    assert not (tmp_path / "run").exists()
    require_trackers([])


def test_an_unknown_tracker_is_refused(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="track"):
        config(inputs, tmp_path / "run", track=["comet"])


def test_what_is_no_finite_number_stays_behind() -> None:
    row = {
        "step": 1,
        "a": math.nan,
        "b": math.inf,
        "c": None,
        "d": "text",
        "e": [1.0],
        "f": 2,
        "g": {"h": 0.5},
    }
    assert numbers_of(row) == {"f": 2, "g/h": 0.5}


def test_no_trackers_is_the_default(inputs: Path, tmp_path: Path) -> None:
    assert config(inputs, tmp_path / "run").track == []
    with Trackers() as none:
        none.metrics({"step": 1, "loss": 0.5})
        assert none.failures() == []
