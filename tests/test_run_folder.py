"""The run folder: one writer, whole rows, names that stay inside, and going back to a step. And signals."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opdkit.run import RunFolder, Stop, environment
from opdkit.run.environment import redact
from opdkit.run.folder import MARKER
from opdkit.run.lock import hold_lock
from opdkit.run.rows import from_json, to_json
from opdkit.types import Finding, RunError, UserError

SLOW_DISK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make(tmp_path / "run")


def make(path: Path) -> RunFolder:
    return RunFolder.create(path, config_toml="steps = 3\n", env={"commit": None})


def in_child(action: Callable[[], None]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# --- creating, opening, names ----------------------------------------------------------------------------


def test_a_new_run_holds_its_configuration(tmp_path: Path) -> None:
    run = make(tmp_path / "deep" / "er" / "run")
    assert run.read_text("config.toml") == "steps = 3\n"
    assert json.loads(run.read_text("env.json")) == {"commit": None}
    assert not [name for name in os.listdir(run.path) if ".tmp-" in name]


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    made = make(tmp_path / "run")
    made.log_metrics(1, {"loss": 1.0})
    assert made.read_metrics() == [{"step": 1, "loss": 1.0}] and (tmp_path / "run" / "config.toml").is_file()


def test_the_same_name_twice_is_refused(run: RunFolder) -> None:
    run.log_metrics(1, {"loss": 1.0})
    run.close()
    with pytest.raises(UserError, match="exists and is not empty") as caught:
        make(run.path)
    assert f"opd train --resume {run.path}" in caught.value.hint and "run=" in caught.value.hint
    assert run.read_metrics() == [{"step": 1, "loss": 1.0}]


def test_somebody_elses_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "config.toml").write_text("mine")
    with pytest.raises(UserError, match="not empty") as caught:
        make(tmp_path / "thesis")
    assert "--resume" not in caught.value.hint
    assert os.listdir(tmp_path / "thesis") == ["config.toml"]
    with pytest.raises(UserError, match="is not a run folder") as caught:
        RunFolder.open(tmp_path / "thesis")
    assert "opd train CONFIG run=" in caught.value.hint
    with pytest.raises(UserError, match="is not there"):
        RunFolder.read(tmp_path / "nowhere")


BAD_NAMES = ["..", "", "a b", "a\\b", "%2e%2e", "é", "a\n", "a" * 81, "a:b", "$(x)", "a\0", "~", "a\u202eb"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name if name else Path(".")
    with pytest.raises(UserError, match="cannot name a run"):
        make(path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a", "A-Z_0.9", "a" * 80, ".hidden", "-x"])
def test_names_that_are_taken(tmp_path: Path, name: str) -> None:
    assert make(tmp_path / name).path == tmp_path / name and (tmp_path / name / "config.toml").is_file()


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENAMETOOLONG, errno.ENOLCK]
)
@pytest.mark.parametrize("call", ["mkdir", "open", "replace"])
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, number: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(UserError, match="cannot write the run folder") as caught:
            make(tmp_path / "run")
    assert os.strerror(number) in str(caught.value) and "run=" in caught.value.hint
    make(tmp_path / "run")  # what is left over is no obstacle


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="cannot write"):
            make(path)


def test_killed_at_any_operation_of_creating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards the name is either a run that opens, or free."""
    for k in range(1, 100):
        path = tmp_path / f"run-{k}"
        if not killed_at(k, lambda path=path: make(path)):  # type: ignore[misc]
            return
        if (path / MARKER).exists():
            assert RunFolder.open(path).read_text("config.toml") == "steps = 3\n"
        else:
            make(path)
    pytest.fail("never came to an end")


def killed_at(k: int, action: Callable[[], object]) -> bool:
    """Whether a child that dies before the k-th operation did die."""
    pid = os.fork()
    if pid == 0:
        calls = 0

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == k:
                    os._exit(77)
                return call(*args, **kwargs)

            return wrapped

        for name in (
            "open",
            "write",
            "fsync",
            "replace",
            "mkdir",
            "unlink",
            "scandir",
            "ftruncate",
            "pwrite",
        ):
            setattr(os, name, counted(getattr(os, name)))
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 77


# --- one writer ------------------------------------------------------------------------------------------


def test_a_run_made_while_we_waited_for_the_lock_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process comes and goes between our look at the empty folder and our lock."""
    path = tmp_path / "run"

    def late(place: Path, *, owner: object) -> Any:
        monkeypatch.setattr("opdkit.run.folder.hold_lock", hold_lock)
        in_child(lambda: make(place).log_metrics(1, {}))
        return hold_lock(place, owner=owner)

    monkeypatch.setattr("opdkit.run.folder.hold_lock", late)
    with pytest.raises(UserError, match="not empty"):
        RunFolder.create(path, config_toml="ours", env={})
    assert RunFolder.open(path).read_metrics() == [{"step": 1}]
    assert RunFolder.read(path).read_text("config.toml") == "steps = 3\n"


def test_a_second_writer_is_refused_until_the_first_is_gone(run: RunFolder) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match=rf"written to by process {os.getpid()} on ") as caught:
            RunFolder.open(run.path)
        assert f"opd train --resume {run.path}" in caught.value.hint
    RunFolder.read(run.path)
    run.close()
    with RunFolder.open(run.path) as again:
        again.log_metrics(1, {})
    with pytest.raises(AssertionError, match="closed"):
        again.log_metrics(2, {})
    with pytest.raises(AssertionError, match="for reading"):
        RunFolder.read(run.path).log_metrics(2, {})


def test_the_lock_ends_with_the_object(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    with pytest.raises(UserError):
        RunFolder.open(tmp_path / "run")
    del run
    assert RunFolder.open(tmp_path / "run").path == tmp_path / "run"


def test_a_forked_child_does_not_keep_the_lock(run: RunFolder) -> None:
    """A trainer is killed, the child it forked lives on: the run can be resumed. Until then it cannot."""
    run.close()
    ready, stay = os.pipe(), os.pipe()
    trainer = os.fork()
    if trainer == 0:
        held = RunFolder.open(run.path)
        if os.fork() == 0:
            os.close(stay[1])
            os.write(ready[1], b"x" if held.path == run.path else b"")
            os.read(stay[0], 1)
            os._exit(0)
        signal.pause()
    assert os.read(ready[0], 1) == b"x"
    with pytest.raises(UserError, match="is being written to"):
        RunFolder.open(run.path)
    os.kill(trainer, signal.SIGKILL)
    os.waitpid(trainer, 0)
    RunFolder.open(run.path)
    for end in (*ready, *stay):
        os.close(end)


@pytest.mark.parametrize("there", [False, True])
def test_many_processes_at_once_and_one_wins(tmp_path: Path, there: bool) -> None:
    path, go, stay = tmp_path / "run", os.pipe(), os.pipe()
    if there:
        path.mkdir()
    children = [os.fork() or compete(path, go, stay) for _ in range(12)]
    os.close(go[1])  # all of them start
    time.sleep(0.3)
    os.close(stay[1])  # the winner may leave
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)
    os.close(go[0])
    os.close(stay[0])
    assert codes == [0] + [2] * 11
    RunFolder.open(path)


def compete(path: Path, go: tuple[int, int], stay: tuple[int, int]) -> int:
    os.close(go[1])
    os.close(stay[1])
    os.read(go[0], 1)
    code = 1
    try:
        run = make(path)
        os.read(stay[0], 1)
        assert run.path == path
        code = 0
    except UserError:
        code = 2
    finally:
        os._exit(code)


# --- rows ------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.dictionaries(st.text(st.characters(exclude_categories=()), max_size=8), VALUES, max_size=4)


@given(st.lists(ROWS, max_size=5))
@SLOW_DISK
def test_rows_come_back_as_they_went(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    run = make(tmp_path_factory.mktemp("x") / "run")
    rows = [{key: value for key, value in row.items() if key != "step"} for row in rows]
    for step, row in enumerate(rows):
        run.log_metrics(step, row)
        run.log_eval({"step": step, **row})
    run.log_rollouts(7, rows)
    stepped = [{"step": step, **row} for step, row in enumerate(rows)]
    assert run.read_metrics() == run.read_eval() == stepped
    assert run.read_rollouts() == [{"step": 7, **row} for row in rows]


def test_numbers_that_are_not_finite_become_null(run: RunFolder) -> None:
    run.log_metrics(1, {"loss": math.nan, "deep": {"list": [math.inf, 1.5, (-math.inf,)]}, "on": True})
    run.log_finding(Finding("x", "error", "m", numbers={"loss": math.nan}))
    assert "NaN" not in (run.path / "metrics.jsonl").read_text()
    assert run.read_metrics() == [
        {"step": 1, "loss": None, "deep": {"list": [None, 1.5, [None]]}, "on": True}
    ]
    assert run.read_findings()[0]["numbers"] == {"loss": None}


def test_findings_keep_every_field(run: RunFolder) -> None:
    finding = Finding(
        "low_overlap", "warning", "a\nb", numbers={"overlap_ratio": 0.3}, remedy="opd …", step=4
    )
    run.log_finding(finding)
    assert Finding(**run.read_findings()[0]) == finding


def test_a_row_of_another_step_is_our_mistake(run: RunFolder) -> None:
    run.log_metrics(1, {"step": 1})
    with pytest.raises(AssertionError, match="another step"):
        run.log_metrics(1, {"step": 2})
    with pytest.raises(AssertionError, match="needs its step"):
        run.log_eval({"accuracy": 1.0})


def test_a_line_torn_anywhere_is_dropped_and_written_over(run: RunFolder) -> None:
    path = run.path / "metrics.jsonl"
    run.log_metrics(1, {"loss": 1.0})
    run.log_metrics(2, {"loss": 2.0})
    whole, first = path.read_bytes(), {"step": 1, "loss": 1.0}
    start = whole.index(b"\n") + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        assert run.read_metrics() == [first]
        run.log_metrics(3, {})
        assert run.read_metrics() == [first, {"step": 3}], cut
    path.write_bytes(whole[: start - 5])
    assert run.read_metrics() == []
    path.write_bytes(whole + b"\0" * 200_000)  # what a power cut may leave
    run.log_metrics(3, {})
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3]


@pytest.mark.parametrize(
    "line", [b"x", b"[]", b"1", b"\xff", b"", b"[" * 100_000, b'{"a": NaN}', b'{"a": 1} {}']
)
def test_damage_before_the_last_line_is_named(run: RunFolder, line: bytes) -> None:
    run.log_metrics(1, {})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(line + b'\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2, is not a JSON object") as caught:
        run.read_metrics()
    subprocess.run(caught.value.hint.split(": ", 1)[1], shell=True, check=True)
    assert run.read_metrics() == [{"step": 1}, {"step": 3}]


def test_missing_files_hold_no_rows(run: RunFolder) -> None:
    assert run.read_metrics() == run.read_eval() == run.read_findings() == run.read_rollouts() == []


def test_rollouts_come_in_the_order_of_steps(run: RunFolder) -> None:
    for step in (10, 9, 100):
        run.log_rollouts(step, [{"sample": 0}, {"sample": 1}])
    run.log_rollouts(9, [{"sample": 5}])
    (run.path / "rollouts" / "notes.txt").write_text("x")
    got = [(row["step"], row["sample"]) for row in run.read_rollouts()]
    assert got == [(9, 5), (10, 0), (10, 1), (100, 0), (100, 1)]


@given(ROWS)
@settings(max_examples=200, deadline=None)
def test_json_is_strict_and_on_one_line(row: dict[str, Any]) -> None:
    text = to_json(row)
    assert text.isascii() and "\n" not in text and from_json(text) == row


# --- going back ------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 20), max_size=8),
    st.lists(st.none() | st.integers(0, 20), max_size=4),
    st.integers(0, 20),
)
@SLOW_DISK
def test_rewind_keeps_exactly_what_was_before(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], found: list[int | None], back: int
) -> None:
    run = make(tmp_path_factory.mktemp("x") / "run")
    for step in steps:
        run.log_metrics(step, {"loss": 1.0})
        run.log_eval({"step": step})
        run.log_rollouts(step, [{"x": 1}])
    for step in found:
        run.log_finding(Finding("x", "info", "m", step=step))
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 0, "lo')
    for _ in range(2):
        run.rewind(back)
        kept = [step for step in steps if step <= back]
        assert [row["step"] for row in run.read_metrics()] == kept
        assert [row["step"] for row in run.read_eval()] == kept
        assert [row["step"] for row in run.read_rollouts()] == sorted(set(kept))
        assert [row["step"] for row in run.read_findings()] == [s for s in found if s is None or s <= back]
    assert b'"lo' not in (run.path / "metrics.jsonl").read_bytes().replace(b'"loss"', b"")


def test_rewind_killed_at_any_operation_can_be_done_again(tmp_path: Path) -> None:
    for k in range(1, 200):
        run = make(tmp_path / f"run-{k}")
        for step in (1, 2, 3):
            run.log_metrics(step, {})
            run.log_eval({"step": step})
            run.log_rollouts(step, [{}])
        path, _ = run.path, run.close()
        died = killed_at(k, lambda path=path: RunFolder.open(path).rewind(2))  # type: ignore[misc]
        again = RunFolder.open(path)
        metrics, evals = [row["step"] for row in again.read_metrics()], again.read_eval()
        assert metrics in ([1, 2], [1, 2, 3]) and len(evals) in (2, 3)
        again.rewind(2)
        assert [r["step"] for r in again.read_metrics() + again.read_rollouts()] == [1, 2, 1, 2]
        assert not [name for name in os.listdir(path) if ".tmp-" in name]
        if not died:
            return
    pytest.fail("never came to an end")


# --- staying inside --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", ".", "", "a\\b", "a\0", "x" * 81])
def test_texts_stay_inside(run: RunFolder, name: str) -> None:
    before = sorted(run.path.parent.rglob("*"))
    with pytest.raises(UserError, match="no file name"):
        run.write_text(name, "x")
    with pytest.raises(UserError, match="no file name"):
        run.read_text(name)
    assert sorted(run.path.parent.rglob("*")) == before


def test_symlinks_lead_nowhere(run: RunFolder, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"step": 1}\n')
    for name in ("report.html", "metrics.jsonl"):
        (run.path / name).symlink_to(secret)
    with pytest.raises(UserError, match="cannot read"):
        run.read_text("report.html")
    run.write_text("report.html", "mine")
    assert run.read_text("report.html") == "mine" and not (run.path / "report.html").is_symlink()
    with pytest.raises(RunError, match="cannot write"):
        run.log_metrics(2, {})
    with pytest.raises(UserError, match="cannot read"):
        run.rewind(0)
    (tmp_path / "elsewhere").mkdir()
    (run.path / "rollouts").symlink_to(tmp_path / "elsewhere")
    for action in (lambda: run.log_rollouts(1, []), run.read_rollouts, lambda: run.rewind(0)):
        with pytest.raises(UserError, match="is a symlink"):
            action()
    assert secret.read_text() == '{"step": 1}\n' and os.listdir(tmp_path / "elsewhere") == []


def test_a_lock_that_is_a_symlink_is_not_followed(run: RunFolder, tmp_path: Path) -> None:
    run.close()
    (tmp_path / "victim").write_text("keep me")
    (run.path / ".opd-lock").unlink()
    (run.path / ".opd-lock").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="cannot write the run folder"):
        RunFolder.open(run.path)
    assert (tmp_path / "victim").read_text() == "keep me"


# --- a full disk -----------------------------------------------------------------------------------------


def test_a_row_that_does_not_fit_leaves_no_half(run: RunFolder) -> None:
    run.log_metrics(1, {"loss": 1.0})
    run.write_text("report.html", "old")
    size = (run.path / "metrics.jsonl").stat().st_size

    def too_long() -> None:
        folder = RunFolder.open(run.path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, size + 10))
        with pytest.raises(RunError, match=r"File too large; it needs about [\d,]+ bytes") as caught:
            folder.log_metrics(2, {"loss": 2.0})
        assert f"opd train --resume {run.path}" in caught.value.hint
        with pytest.raises(RunError):
            folder.write_text("report.html", "new" * 1000)
        with pytest.raises(RunError):
            folder.log_rollouts(2, [{"text": "x" * 1000}])

    run.close()
    in_child(too_long)
    assert (run.path / "metrics.jsonl").stat().st_size == size
    assert run.read_text("report.html") == "old" and run.read_rollouts() == []
    assert not [path for path in run.path.rglob("*") if ".tmp-" in path.name]


# --- the environment -------------------------------------------------------------------------------------


def test_environment_is_json_and_names_what_matters() -> None:
    env = environment()
    assert json.loads(json.dumps(env, allow_nan=False)) == env
    assert env["versions"].keys() >= {"python", "opdkit", "torch", "transformers"}
    assert env["versions"]["torch"] and env["platform"] and env["devices"][0]


def test_environment_outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert environment()["commit"] is None
    monkeypatch.setenv("PATH", "")
    assert environment()["commit"] is None


SECRET = "canary-0123456789"


@pytest.mark.parametrize(
    "arguments",
    [
        [f"https://me:{SECRET}@host/model"],
        [f"teacher.url=http://{SECRET}@host:80/v1"],
        [f"teacher.model=https://a:p@ss{SECRET}@host"],
        [f"teacher.api_key={SECRET}"],
        ["--hf-token", SECRET],
        [f"--password={SECRET}"],
        [f"https://host/x?a=1&token={SECRET}&b=2"],
        [f"hf_{SECRET}"],
    ],
)
def test_secrets_do_not_reach_the_command_line_kept(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/opd", "train", *arguments, "steps=3"])
    env = environment()
    assert SECRET not in json.dumps(env)
    assert env["command"].startswith("opd train ") and env["command"].endswith(" steps=3")


def test_what_is_no_secret_stays() -> None:
    kept = ["opd", "train", "a.toml", "sampling.max_tokens=8", "learner.batch_tokens=9", "run=x@y"]
    assert redact(kept) == " ".join(kept)


def test_the_room_costs_no_torch() -> None:
    code = "import sys, opdkit.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- signals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_a_wish(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with Stop() as stop:
        assert not stop.requested and stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop.requested and stop.exit_code == code
    assert signal.getsignal(number) is before and stop.requested


def test_a_second_ctrl_c_interrupts_and_a_second_sigterm_does_not() -> None:
    codes: list[int] = []
    with pytest.raises(KeyboardInterrupt), Stop() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        codes.append(stop.exit_code)
        os.kill(os.getpid(), signal.SIGINT)
    assert codes == [143]  # the first press did not interrupt
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_the_parent_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGINT)
        assert not stop.requested and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_installs_nothing() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Stop() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, True)]


def test_a_whole_process_leaves_with_143() -> None:
    code = (
        "import sys, time\nfrom opdkit.run.signals import Stop\n"
        "with Stop() as stop:\n    print('ready', flush=True)\n"
        "    while not stop.requested: time.sleep(0.01)\nsys.exit(stop.exit_code)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        child.terminate()
        assert child.wait(timeout=20) == 143
