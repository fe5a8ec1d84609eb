"""`opd watch`: what it shows at 80 and at 200 columns of runs that go on, end, resume, break and lie."""

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from opdkit.report.follow import LOCK, Following, Look
from opdkit.report.screen import lines, state
from opdkit.report.spark import ASCII, UNICODE, Ink, ink, spark
from opdkit.report.tail import Tail
from report_runs import ENV, FINDING, PAYLOADS, bare_run, hostile_run, make_chain_run, make_run, write_rows

OPD = [sys.executable, "-m", "opdkit"]


def look_at(folder: Path, *, now: float | None = None) -> Look:
    return Following(folder, folder.name).look(now=now)


def drawn(look: Look, *, width: int = 80, height: int | None = None, ink: Ink = UNICODE) -> list[str]:
    return [line.plain for line in lines(look, ink=ink, width=width, height=height)]


def append(path: Path, *rows: dict[str, Any], end: str = "\n") -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join(map(json.dumps, rows)) + end)


# --- what it shows ------------------------------------------------------------------------------------------


def test_a_finished_run_in_one_column(tmp_path: Path) -> None:
    shown = drawn(look_at(make_chain_run(tmp_path / "run", works=True)))
    text = "\n".join(shown)
    assert shown[0] == "models/student ← models/t1  distill · run"
    assert "100/100  finished · 0.15 s/step" in shown[1]
    assert shown[3].startswith("overlap_ratio      ▁") and " → " in shown[3]
    assert [line.split()[0] for line in shown[3:11]] == [
        "overlap_ratio", "overlap_advantage", "loss", "reverse_kl", "entropy_student", "grad_norm",
        "response_length", "truncated_fraction",
    ]  # fmt: skip
    assert len({line.index(" → ") for line in shown[3:12]}) == 1  # arrows below each other
    assert "seconds     sample 0.0" in text and "update 0.0" in text
    assert "step 0: 35.4 % [33.4 %, 37.4 %] → step 100: 63.7 %" in text and "gap recovery 98.6 %" in text
    assert "rollout     step 100 · score" in text and "prompt      read number" in text


def test_a_wide_terminal_has_columns_positions_and_bars(tmp_path: Path) -> None:
    folder = make_chain_run(tmp_path / "run", works=False)
    write_rows(folder / "findings.jsonl", [FINDING])
    shown = drawn(look_at(folder), width=200)
    named = next(line for line in shown if line.startswith("overlap_ratio"))
    assert "overlap_advantage" in named and "loss" in named
    left = next(line for line in shown if "▲ warning step 100 stagnation" in line)
    assert "seconds/sample" in left and "█" in left
    assert any("by place in the response: from token 0 to 9 on, step 100" in line for line in shown)


@pytest.mark.parametrize("width", [20, 40, 79, 80, 120, 149, 150, 200, 317])
@pytest.mark.parametrize("ink", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_no_line_is_wider_than_the_terminal(width: int, ink: Ink, tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "paper", success=False, steps=30)]
    folders += [hostile_run(tmp_path, PAYLOADS[0]), bare_run(tmp_path / "bare", [])]
    wide = {"prompt": "漢字" * 300, "response": "👩‍💻 é" * 200, "score": 1.0, "finish_reason": "x" * 400}
    append(folders[0] / "rollouts" / "step_30.jsonl", wide)
    append(
        folders[0] / "findings.jsonl", {"name": "n" * 300, "message": "m" * 900, "remedy": "opd " + "r" * 900}
    )
    for folder in folders:
        for height in (None, 24, 5, 50):
            shown = drawn(look_at(folder), width=width, height=height, ink=ink)
            assert max(map(cell_len, shown)) <= width
            assert height is None or len(shown) <= height
            assert ink is UNICODE or "".join(shown).isascii()


@pytest.mark.parametrize("size", [(80, 24), (200, 50), (80, 10), (200, 12)])
def test_it_fits_the_window_and_keeps_what_matters(size: tuple[int, int], tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", success=False, steps=40)
    write_rows(folder / "findings.jsonl", [FINDING | {"step": step} for step in range(9)])
    shown = drawn(look_at(folder), width=size[0], height=size[1])
    assert len(shown) <= size[1]
    assert "40/40" in shown[1] and any(line.startswith("overlap_ratio") for line in shown)
    assert any("stagnation" in line for line in shown)


def test_findings_are_newest_first_with_their_remedy(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", success=True, steps=20)
    rows = [
        FINDING | {"name": f"finding_{i}", "step": i, "severity": "error" if i == 8 else "info"}
        for i in range(9)
    ]
    write_rows(folder / "findings.jsonl", rows)
    shown = drawn(look_at(folder))
    named = [line for line in shown if "finding_" in line]
    assert [line.split()[4] for line in named] == [f"finding_{i}" for i in (8, 7, 6, 5, 4, 3)]
    assert named[0].startswith("■ error") and named[1].startswith("● info")
    assert "  $ opd train … teacher=JustRL-DeepSeek-1.5B" in shown
    assert "3 earlier findings: opd report run" in shown


def test_the_preflight_is_told_where_there_is_one(tmp_path: Path) -> None:
    folder = make_chain_run(tmp_path / "run", works=True)
    verdict = {"name": "go", "reason": "the student can follow"}
    (folder / "check.json").write_text(json.dumps({"schema": "opdkit.verdict/1", "verdict": verdict}))
    assert "preflight   go  the student can follow" in drawn(look_at(folder))


# --- runs that move -----------------------------------------------------------------------------------------


def test_a_run_from_nothing_to_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    following = Following(folder, "run")
    assert state(following.look()) == "not begun"  # not even a folder
    folder.mkdir()
    assert state(following.look()) == "not begun"
    (folder / "config.toml").write_text('student.model = "s"\nteacher.model = "t"\nsteps = 4\n')
    assert drawn(following.look())[0].startswith("s ← t")
    for step in range(1, 5):
        append(folder / "metrics.jsonl", {"step": step, "loss": 1 / step, "seconds/step": 2.0})
        look = following.look()
        assert (look.pulse.step, look.pulse.steps) == (step, 4)
        assert state(look) == ("running" if step < 4 else "finished")
        assert look.pulse.left == (2.0 * (4 - step) if step < 4 else None)
    assert look.run.series("loss") == ([1, 2, 3, 4], [1.0, 0.5, 1 / 3, 0.25])


def test_a_folder_that_fills_up_later(tmp_path: Path) -> None:
    following = Following(bare_run(tmp_path / "run", []), "run")
    assert following.look().rollout == {}
    (tmp_path / "run" / "rollouts").mkdir()
    for step in (9, 10):
        write_rows(tmp_path / "run" / "rollouts" / f"step_{step}.jsonl", [{"prompt": "a"}, {"prompt": step}])
        look = following.look()
        assert (look.sampled, look.rollout["prompt"]) == (step, step)


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.rows() == (False, [])
    append(path, {"step": 1}, end='\n{"step"')
    assert tail.rows() == (False, [{"step": 1}])
    assert tail.rows() == (False, [])
    with path.open("a") as file:
        file.write(": 2}\nno json\n[3]\n\xff\n")
    assert tail.rows() == (False, [{"step": 2}])
    assert tail.torn == 3


def test_a_rewound_run_forgets_what_was_taken_back(tmp_path: Path) -> None:
    folder = bare_run(tmp_path / "run", [{"step": s, "loss": float(s)} for s in range(1, 9)])
    write_rows(folder / "findings.jsonl", [FINDING])
    following = Following(folder, "run")
    assert following.look().pulse.step == 8
    for name, rows in (("metrics", [{"step": 1, "loss": 7.0}]), ("findings", [])):
        write_rows(folder / "draft", rows)  # as a resume does: a new file in the place of the old one
        os.replace(folder / "draft", folder / f"{name}.jsonl")
    look = following.look()
    assert look.run.series("loss") == ([1], [7.0]) and look.run.findings == []
    (folder / "metrics.jsonl").write_text('{"step": 3, "loss": 3.0}\n' * 99)  # in place, longer than before
    assert following.look().run.series("loss") == ([3], [3.0])
    (folder / "metrics.jsonl").unlink()
    assert state(following.look()) == "not begun"


def test_a_pipe_under_a_files_name_does_not_hold_it_up(tmp_path: Path) -> None:
    folder = bare_run(tmp_path / "run", [{"step": 1, "loss": 1.0}])
    os.mkfifo(folder / "eval.jsonl")
    assert look_at(folder).run.evals == []


@pytest.mark.parametrize(
    ("age", "saved", "alive", "says"),
    [
        (5, 4, None, "running"),
        (720, 4, None, "no step for 12 min"),
        (720, 6, True, "no step for 12 min"),
        (5, 6, False, "stopped at step 6 (saved)"),
        (5, 4, False, "stopped at step 6 (saved: step 4)"),
        (5, None, False, "stopped at step 6 (nothing saved)"),
    ],
)
def test_what_a_run_is_doing(
    age: float, saved: int | None, alive: bool | None, says: str, tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "run", success=True, steps=6)
    config = (folder / "config.toml").read_text().replace("steps = 6", "steps = 9")
    (folder / "config.toml").write_text(config)
    write_rows(folder / "metrics.jsonl", [{"step": s, "seconds/step": 1.0} for s in range(1, 7)])
    if saved is not None:
        (folder / "checkpoints" / f"step_{saved}").mkdir(parents=True)
        (folder / "checkpoints" / f"step_{saved}" / "manifest.json").write_text("{}")
    if alive is not None:
        (folder / LOCK).write_text(f"process {os.getpid() if alive else gone()} on {socket.gethostname()}")
    written = (folder / "metrics.jsonl").stat().st_mtime
    look = look_at(folder, now=written + age)
    assert state(look) == says
    if "stopped" in says:
        with (folder / "config.toml").open("a") as file:
            file.write('health.on_critical = "stop"\n')
        write_rows(folder / "findings.jsonl", [FINDING | {"step": 6, "severity": "error"}])
        assert state(look_at(folder)) == f"{says} by the health monitor"


def gone() -> int:
    """A process that was there and is not any more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_the_last_evaluation_is_waited_for(tmp_path: Path) -> None:
    folder = make_chain_run(tmp_path / "run", works=True)
    rows = (folder / "eval.jsonl").read_text().splitlines()
    (folder / "eval.jsonl").write_text(rows[0] + "\n")
    look = look_at(folder)
    assert not look.pulse.over and state(look) == "finished, last evaluation to come"
    append(folder / "eval.jsonl", json.loads(rows[1]))
    assert look_at(folder).pulse.over


# --- curves -------------------------------------------------------------------------------------------------


def test_curves_of_few_steps_gaps_and_flat_lines() -> None:
    assert spark([5], [1.0], ink=UNICODE, width=6) == ["▅     "]
    assert spark([], [], ink=UNICODE, width=3, height=2) == ["   ", "   "]
    assert spark([1, 2, 3], [None, None, 1.0], ink=ASCII, width=3) == ["  ="]
    assert spark([1, 9], [0.0, 1.0], ink=UNICODE, width=9, span=(1, 9)) == ["▁▁▁▁▁▁▁▁█"]  # logged rarely
    assert spark(range(1, 401), [float(i) for i in range(400)], ink=UNICODE, width=8) == ["▁▂▃▄▅▆▇█"]
    tall = spark(range(4), [0.0, 1.0, 2.0, 3.0], ink=UNICODE, width=4, height=2)
    assert tall == ["  ▃█", "▁▆██"]


def test_noise_is_not_drawn_as_news() -> None:
    shape = spark(range(8), [0.5, 0.5001] * 4, ink=UNICODE, width=8)[0]
    assert set(shape) <= set("▄▅")


@pytest.mark.parametrize(
    ("encoding", "environment", "found"),
    [
        ("utf-8", {}, UNICODE),
        ("UTF-8", {"LANG": "de_DE.UTF-8"}, UNICODE),
        ("iso8859-1", {"LANG": "de_DE"}, ASCII),
        ("utf-8", {"LC_ALL": "C"}, ASCII),
        ("utf-8", {"LC_ALL": "", "LC_CTYPE": "C.UTF-8", "LANG": "C"}, UNICODE),
        (None, {}, ASCII),
    ],
)
def test_which_characters_are_used(encoding: str | None, environment: dict[str, str], found: Ink) -> None:
    assert ink(encoding, environment) is found


# --- hostile runs -------------------------------------------------------------------------------------------

ESCAPES = (
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "[bold red]x[/]",
    "\r\nover",
    "\u202egnp",
    "a\x00b\x08",
    ":boom:",
)


@pytest.mark.parametrize("payload", [*ESCAPES, *PAYLOADS])
@pytest.mark.parametrize("width", [80, 200])
def test_what_a_model_writes_stays_text(payload: str, width: int, tmp_path: Path) -> None:
    folder = hostile_run(tmp_path, payload) if "\x00" not in payload else bare_run(tmp_path / "run", [])
    row = {"prompt": payload, "response": payload, "finish_reason": payload, "score": payload}
    (folder / "rollouts").mkdir(exist_ok=True)
    write_rows(folder / "rollouts" / "step_1.jsonl", [row])
    write_rows(
        folder / "findings.jsonl", [dict.fromkeys(("name", "message", "remedy", "step", "severity"), payload)]
    )
    shown = "\n".join(drawn(look_at(folder), width=width))
    assert all(char == "\n" or char.isprintable() or char in "\u200c\u200d" for char in shown), ascii(shown)
    if payload.isascii() and payload.isprintable() and len(payload) < 30:
        assert payload in shown  # markup is not read, nothing is swallowed


def test_a_folder_of_nonsense_is_still_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "rollouts" / "step_3.jsonl").mkdir(parents=True)
    (folder / "checkpoints" / "step_x").mkdir(parents=True)
    (folder / LOCK).write_text("process 99999999999999999999 on " + socket.gethostname())
    (folder / "config.toml").write_text("steps = true\nstory = 3\n")
    rows = [{"step": "x"}, {"step": 1, "loss": "y", "seconds/step": -1, "by_position/0/reverse_kl": None}]
    write_rows(
        folder / "metrics.jsonl", [*rows, {"step": 2, "loss": 1e308, "grad_norm": None, "accuracy": True}]
    )
    write_rows(folder / "eval.jsonl", [{"step": None}, {"step": 1, "avg_at_k": "z"}, {"avg_at_k": 0.5}])
    (folder / "check.json").write_text("[")
    for width in (80, 200):
        assert drawn(look_at(folder), width=width)


# --- the command --------------------------------------------------------------------------------------------


def opd(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LC_ALL", "LANG")} | environment
    return subprocess.run(
        [*OPD, "watch", *words],
        env=env,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def test_a_pipe_gets_one_plain_look(tmp_path: Path) -> None:
    said = opd(str(make_chain_run(tmp_path / "run", works=True)))
    assert said.returncode == 0 and said.stderr == ""
    assert "\x1b" not in said.stdout and "finished" in said.stdout
    assert max(map(cell_len, said.stdout.splitlines())) <= 80
    wide = opd(str(tmp_path / "run"), COLUMNS="200").stdout
    assert 80 < max(map(cell_len, wide.splitlines())) <= 200
    assert opd(str(tmp_path / "run"), "--once", PYTHONIOENCODING="latin-1").stdout.isascii()


def test_json_is_one_document(tmp_path: Path) -> None:
    folder = make_chain_run(tmp_path / "run", works=False)
    append(folder / "eval.jsonl", {"step": 101, "avg_at_k": float("nan")})
    said = opd(str(folder), "--json")
    told = json.loads(said.stdout, parse_constant=pytest.fail)
    assert said.stdout.count("\n") == 1 and said.stderr == ""
    assert (told["schema"], told["doing"], told["step"], told["steps"]) == (
        "opdkit.watch/1",
        "finished",
        100,
        100,
    )
    assert told["curves"]["loss"]["count"] == 100 and told["rollout"]["step"] == 100
    assert set(told["seconds"]) == {"sample", "update"}


def test_a_wrong_path_names_the_nearest_run(tmp_path: Path) -> None:
    for name in ("first", "working"):
        make_chain_run(tmp_path / name, works=True, steps=4)
    said = opd(str(tmp_path / "workin"))
    assert said.returncode == 2 and said.stdout == ""
    assert f"error: {tmp_path / 'workin'} is not there" in said.stderr
    assert f"hint:  opd watch {tmp_path / 'working'}, or if it is yet to come: " in said.stderr
    assert "holds no run" in opd(str(tmp_path)).stderr
    assert "is no folder" in opd(str(tmp_path / "first" / "config.toml")).stderr
    assert opd(str(tmp_path / "workin"), "--wait").stdout.splitlines()[1].endswith("not begun")


class Terminal:
    """A pseudo-terminal with `opd watch` in it; all it wrote so far is `said`."""

    def __init__(self, *words: str, columns: int = 80, rows: int = 24, **environment: str):
        self.said = b""
        env = os.environ | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | environment
        env = {k: v for k, v in env.items() if k not in ("COLUMNS", "LINES", "NO_COLOR") or k in environment}
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [*OPD, "watch", *words, "--every", "0.2"], env)
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, words: str, seconds: float = 40) -> None:
        deadline = time.monotonic() + seconds
        while words.encode() not in self.said:
            assert time.monotonic() < deadline, self.said[-2000:]
            self._read()

    def end(self, number: int | None = None) -> int:
        """The exit code, after a signal if one is given."""
        if number is not None:
            os.kill(self.pid, number)
        deadline = time.monotonic() + 40
        while (found := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            assert time.monotonic() < deadline
            self._read()
        self._read()
        os.close(self.fd)
        return os.waitstatus_to_exitcode(found[1])

    def _read(self) -> None:
        if select.select([self.fd], [], [], 0.1)[0]:
            try:
                self.said += os.read(self.fd, 1 << 16)
            except OSError:  # the other end is closed
                time.sleep(0.05)


@pytest.fixture
def going_on(tmp_path: Path) -> Path:
    """A run that has planned more steps than it has done."""
    folder = make_chain_run(tmp_path / "run", works=True, steps=20)
    config = (folder / "config.toml").read_text().replace("steps = 20", "steps = 40")
    (folder / "config.toml").write_text(config)
    return folder


def test_live_and_left_by_ctrl_c(going_on: Path) -> None:
    terminal = Terminal(str(going_on))
    terminal.until("20/40")
    terminal.until("Ctrl-C leaves")
    append(going_on / "metrics.jsonl", {"step": 21, "loss": 0.1})
    terminal.until("21/40")
    assert terminal.end(signal.SIGINT) == 0
    said = terminal.said
    assert said.count(b"\x1b[?1049h") == said.count(b"\x1b[?1049l") == 1  # the terminal is as it was
    after = said.partition(b"\x1b[?1049l")[2]
    assert b"21/40" in after and b"Traceback" not in said and b"\x1b[?25h" in said


def test_live_ends_with_the_run(going_on: Path) -> None:
    terminal = Terminal(str(going_on))
    terminal.until("20/40")
    append(going_on / "metrics.jsonl", {"step": 40, "loss": 0.1})
    append(going_on / "eval.jsonl", {"step": 40, "avg_at_k": 0.7})
    assert terminal.end() == 0
    assert b"40/40" in terminal.said.partition(b"\x1b[?1049l")[2]


def test_a_signal_gives_the_terminal_back(going_on: Path) -> None:
    terminal = Terminal(str(going_on))
    terminal.until("20/40")
    assert terminal.end(signal.SIGTERM) == 143
    assert b"\x1b[?1049l" in terminal.said and b"Traceback" not in terminal.said


def test_a_terminal_that_cannot_redraw_gets_one_look(going_on: Path) -> None:
    terminal = Terminal(str(going_on), TERM="dumb")
    assert terminal.end() == 0
    assert b"\x1b[?1049h" not in terminal.said and b"20/40" in terminal.said


def test_no_color_is_respected(going_on: Path) -> None:
    terminal = Terminal(str(going_on), "--once", NO_COLOR="1")
    assert terminal.end() == 0
    assert b"\x1b[3" not in terminal.said and b"20/40" in terminal.said
    coloured = Terminal(str(going_on), "--once")
    assert coloured.end() == 0
    assert b"\x1b[3" in coloured.said


def test_nothing_is_written_into_the_run(going_on: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in sorted(going_on.rglob("*"))}
    (going_on / "env.json").write_text(json.dumps(ENV))
    before[going_on / "env.json"] = (going_on / "env.json").stat().st_mtime_ns
    opd(str(going_on))
    assert {path: path.stat().st_mtime_ns for path in sorted(going_on.rglob("*"))} == before
