"""Runs that are killed, resumed and compared with one left alone: for test_resume.py and kill_campaign.py.

    with Nursery(folder) as nursery:
        case = Case.make(nursery, folder, "local")           # models, prompts, the uninterrupted run
        case.trial("a-run", [Kill(at=0.7), Kill(save=2)])    # kill, resume, kill inside a save, resume

A run is a real process with the command line's `main`. It is forked from a process that has imported all
modules (5 s saved each time) and has done nothing else: one thread, no random number drawn.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
PATIENCE = 120.0  # seconds for what takes 3 on a free core
STEPS = 12
WALL_CLOCK = re.compile(r"seconds/.*|memory/.*|tokens_per_second")
_SAVING = re.compile(r"\.step_\d+\.tmp-\d+")

SETTINGS: dict[str, Any] = {
    "steps": STEPS,
    "prompts_per_step": 4,
    "seed": 5,
    "device": "cpu",
    "threads": 1,
    "sampling.responses": 2,
    "sampling.max_tokens": 12,
    "sampling.stop_ids": [3, *range(40, 60)],  # so that some responses end early
    "optim.lr": 1e-2,
    "optim.warmup_steps": 2,
    "learner.batch_tokens": 96,
    "diagnostics.positions": 24,
    "diagnostics.k": 4,
    "diagnostics.ks": [1, 4],
    "diagnostics.bins": 2,
    "eval.every": 4,
    "eval.responses": 2,
    "save.every": 3,
    "save.keep": 2,
    "save.rollouts_every": 1,
    "save.rollouts": 6,
}
VARIANTS: dict[str, dict[str, Any]] = {
    # another model as teacher, answers found by a pattern, a truncated sampling distribution, cosine schedule
    "local": {
        "teacher": "teacher",
        "task.grader.type": "regex",
        "task.grader.pattern": r"'(\d)'",
        "sampling.top_p": 0.9,
        "optim.schedule": "cosine",
    },
    # a moving copy of itself in bfloat16, which is state of its own; the objective that reads columns only
    "self": {
        "teacher.type": "self",
        "teacher.every": 4,
        "teacher.dtype": "bfloat16",
        "task.grader": "exact",
        "objective": "paper-eq5",
        "objective.k": 4,
        "sampling.temperature": 0.8,
    },
    # three models beside the student, credit for the future, a reward that takes over, demonstrations in every step
    "signals": {
        "teacher": "teacher",
        "reference": "reference",
        "task.grader.type": "regex",
        "task.grader.pattern": r"'(\d)'",
        "objective": "sampled",
        "objective.target": "difference",
        "objective.anchor": 0.1,
        "objective.signal.discount": 0.9,
        "objective.signal.select": "random",
        "objective.signal.share": 0.7,
        "objective.signal.reward": "sequential",
        "objective.signal.switch_step": 7,
        "mix.demonstrations": 3,
        "mix.path": "shown.jsonl",
    },
    # prompts of another kind, whose share a guard of entropy moves: a floor that this run's entropy crosses both ways
    "widened": {
        "teacher": "teacher",
        "task.grader": "exact",
        "optim.lr": 3e-2,
        "widen.path": "shown.jsonl",
        "widen.share": 0.15,
        "widen.window": 2,
        "widen.floor": 5.65,
        "widen.floor_of": "nats",
        "widen.clear": 1.0,
    },
    # the teacher begins some responses, fewer and fewer
    "prefix": {
        "teacher": "teacher",
        "task.grader.type": "regex",
        "task.grader.pattern": r"'(\d)'",
        "prefix.tokens": 3,
        "prefix.share": 0.8,
        "prefix.until": 10,
    },
    # looked at while they are drawn, and the teacher is told what came of them
    "pruned": {
        "teacher.type": "self",
        "teacher.every": 4,
        "teacher.context": "You read: {feedback}. Answer again.",
        "task.grader.type": "regex",
        "task.grader.pattern": r"'(\d)'",
        "prune.every": 3,
        "prune.overlap": 0.9,
    },
    # an average of itself, which moves at every step
    "ema": {
        "teacher.type": "self",
        "teacher.ema": 0.9,
        "teacher.temperature": 0.7,
        "task.grader": "exact",
        "objective": "full",
    },
    # the depth that is drawn and trained follows what was measured, and a collapse of the tail halves it
    "horizon": {
        "teacher": "teacher",
        "task.grader.type": "regex",
        "task.grader.pattern": r"'(\d)'",
        "horizon.mode": "shorten",
        "horizon.by": "entropy",
        "horizon.threshold": 2.0,
        "horizon.every": 2,
        "horizon.start": 4,
        "horizon.floor": 3,
        "horizon.growth": 1.5,
        "health.on_critical": "shorten",
        "diagnostics.bins": 4,
        "diagnostics.positions": 0,
    },
    # an adapter learns from its own base under another temperature, which is in memory once
    "lora": {
        "student.lora": {"rank": 3, "alpha": 6.0},
        "teacher.type": "self",
        "teacher.temperature": 0.5,
        "task.grader": "exact",
        "objective": "full",
    },
}


# --- processes ----------------------------------------------------------------------------------------------


class Nursery:
    """Forks `opd …` processes. They lead process groups of their own and can be killed like any other."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.count = 0
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
            },
            text=True,
        )

    def start(self, argv: list[str]) -> Child:
        """`opd` with these arguments; what it prints goes to a file."""
        self.count += 1
        log = self.folder / f"{self.count}.log"
        pid = self.ask({"argv": argv, "log": str(log)})
        return Child(self, pid, log)

    def ask(self, request: Mapping[str, Any]) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        assert ready, f"no answer to {request} in {PATIENCE} s"
        return json.loads(self.process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@dataclass
class Child:
    """One forked process."""

    nursery: Nursery
    pid: int
    log: Path
    code: int | None = None  # as a shell would say it: 128 + signal

    @property
    def alive(self) -> bool:
        if self.code is None:
            self.code = self.nursery.ask({"poll": self.pid})
        return self.code is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """To the whole process group; one that has just ended by itself is beyond reach."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def wait(self) -> int:
        ends = time.monotonic() + PATIENCE
        while self.alive and time.monotonic() < ends:
            time.sleep(0.005)
        if self.code is None:
            self.kill()
            raise AssertionError(f"still running after {PATIENCE} s:\n{self.said}")
        return self.code

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def children(self) -> list[int]:
        try:
            text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except FileNotFoundError:
            return []
        return [int(pid) for pid in text.split()]


def serve() -> None:
    """The process that forks. Requests: start {argv, log} → pid; {poll: pid} → exit code or null."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    import opdkit.cli.printer
    import opdkit.train.loop  # noqa: F401
    from opdkit.cli import main

    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            code = None if pid == 0 else os.waitstatus_to_exitcode(status)
            print(json.dumps(code if code is None or code >= 0 else 128 - code), flush=True)
            continue
        threads = len(os.listdir("/proc/self/task"))
        assert threads == 1, f"{threads} threads: a fork would not be the process that a shell starts"
        pid = os.fork()
        if pid == 0:
            _become(request)
            _finish(main)
        print(json.dumps(pid), flush=True)


def _finish(main: Callable[[], None]) -> None:
    """To the end of `main` and what is registered for exit; taking torch apart would cost another second."""
    try:
        main()
    except SystemExit as end:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(int(end.code or 0))


def _become(request: Mapping[str, Any]) -> None:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for fd, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(fd, target)
    sys.argv = ["opd", *request["argv"]]


# --- a run and its reference --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """When to send a signal: `at` seconds after the start, inside the `save`-th save, or once `when`."""

    at: float = 0.0
    save: int = 0
    delay: float = 0.0  # after the temporary folder of that save was seen
    when: Callable[[Path], bool] | None = None
    number: int = signal.SIGKILL

    def strike(self, child: Child, run: Path) -> Struck:
        """Wait, send, and tell what stood in the folder then."""
        began = time.monotonic()
        if self.save:
            _until(lambda: _saves_begun(run, seen) >= self.save, child, seen := set())
        elif self.when is not None:
            _until(lambda: self.when is not None and self.when(run), child, set())
        time.sleep(self.delay if self.save or self.when else self.at)
        graders = child.children
        hit = child.alive
        child.kill(self.number)
        seconds = time.monotonic() - began
        code = child.wait()
        return Struck(
            aim=f"inside save {self.save}" if self.save else "a moment" if self.when else f"{self.at:.2f} s",
            hit=hit,
            code=code,
            seconds=round(seconds, 3),
            took=round(time.monotonic() - began - seconds, 3),
            orphans=[pid for pid in graders if not _gone(pid)],
            **look(run),
        )


@dataclass(frozen=True)
class Struck:
    """What a kill met."""

    aim: str
    hit: bool  # False: the run had ended before
    code: int
    seconds: float  # after the start
    took: float  # from the signal to the end
    orphans: list[int]  # graders that outlived it
    is_run: bool
    rows: int  # of metrics.jsonl
    checkpoints: list[str]
    torn: list[str]  # hidden folders of a save or a rotation that was cut off


def look(run: Path) -> dict[str, Any]:
    place = run / "checkpoints"
    names = sorted(os.listdir(place), key=_number) if place.is_dir() else []
    metrics = run / "metrics.jsonl"
    return {
        "is_run": (run / ".opd-run").exists(),
        "rows": metrics.read_bytes().count(b"\n") if metrics.exists() else 0,
        "checkpoints": [n for n in names if n.startswith("step_")],
        "torn": [n for n in names if n.startswith(".")],
    }


@dataclass
class Trial:
    """One run that was killed and resumed until it ended."""

    name: str
    struck: list[Struck]
    resumed_from: list[int | None]  # None: the folder was no run yet, so the command was given again
    differences: list[str]

    @property
    def identical(self) -> bool:
        return not self.differences


@dataclass
class Case:
    """One configuration, and the run of it that nobody disturbed."""

    nursery: Nursery
    folder: Path
    settings: dict[str, Any]
    reference: Path = field(init=False)
    seconds: float = 0.0

    @classmethod
    def make(cls, nursery: Nursery, folder: Path, variant: str, **changes: Any) -> Self:
        """Writes models and prompts, and makes the reference run."""
        write_inputs(folder)
        settings = SETTINGS | VARIANTS[variant] | {key.replace("__", "."): v for key, v in changes.items()}
        for key in ("teacher", "reference", "task", "mix.path", "widen.path"):
            if key in settings:
                settings[key] = str(folder / settings[key])
        settings |= {
            "student.model": str(folder / "student"),
            "task.path": str(folder / "train.jsonl"),
            "task.eval_path": str(folder / "eval.jsonl"),
        }
        case = cls(nursery, folder, settings)
        case.reference = folder / f"{variant}-reference"
        child = nursery.start(case.arguments(case.reference))
        began = time.monotonic()
        assert child.wait() == 0, child.said
        case.seconds = time.monotonic() - began
        assert not look(case.reference)["torn"] and look(case.reference)["rows"] == case.settings["steps"]
        return case

    def arguments(self, run: Path, **changes: Any) -> list[str]:
        return ["train", *overrides(self.settings | changes | {"run": str(run)})]

    def trial(self, name: str, kills: Sequence[Kill]) -> Trial:
        """Start; kill and go on, once per kill; run to the end; compare."""
        run = self.folder / name
        struck: list[Struck] = []
        resumed_from: list[int | None] = []
        for kill in kills:
            child = self.nursery.start(self._next(run, resumed_from, first=not struck))
            struck.append(kill.strike(child, run))
        child = self.nursery.start(self._next(run, resumed_from, first=not struck))
        code = child.wait()
        differences = [] if code == 0 else [f"exit code {code}: {child.said[-500:]}"]
        differences += [f"orphan {pid}" for met in struck for pid in met.orphans]
        return Trial(name, struck, resumed_from, differences or compare(run, self.reference))

    def _next(self, run: Path, resumed_from: list[int | None], *, first: bool) -> list[str]:
        """The first command; later `--resume`, or the first again if the kill came before there was a run."""
        if first:
            return self.arguments(run)
        state = look(run)
        resumed_from.append(newest(run) if state["is_run"] else None)
        return ["train", "--resume", str(run)] if state["is_run"] else self.arguments(run)


def newest(run: Path) -> int:
    """Step of the newest complete checkpoint, 0 without one: where a resume must go on."""
    done = [p.parent for p in run.glob("checkpoints/step_*/manifest.json")]
    return max((_number(p.name) for p in done), default=0)


def overrides(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value if isinstance(value, str) else _toml(value)}" for key, value in settings.items()]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(held)}" for key, held in value.items()) + "}"
    return json.dumps(value)


def write_inputs(folder: Path) -> None:
    """A student, a wider teacher, what that was before, sums to train on, to be examined on, and with answers shown."""
    from transformers.utils import logging

    from models import tiny_model, tiny_tokenizer

    logging.disable_progress_bar()
    if (folder / "eval.jsonl").exists():
        return
    for name, seed, hidden in (("student", 1, 32), ("teacher", 2, 48), ("reference", 3, 32)):
        tiny_model("smollm", seed=seed, hidden=hidden, spread=0.15).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    for name, first, count in (("train", 2, 22), ("shown", 70, 9), ("eval", 40, 6)):
        rows = [
            {"prompt": f"Compute {a} + {a % 7}", "answer": str(a % 10), "response": str(a + a % 7)}
            for a in range(first, first + count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- comparing ----------------------------------------------------------------------------------------------


def compare(run: Path, reference: Path) -> list[str]:
    """What differs: weights, optimizer, teacher, counters (bytes of files), rows but wall-clock values."""
    pairs: dict[str, tuple[Any, Any]] = {
        "metrics.jsonl": (metrics(run), metrics(reference)),
        "eval.jsonl": (_bytes(run / "eval.jsonl"), _bytes(reference / "eval.jsonl")),
        "findings.jsonl": (findings(run), findings(reference)),
    }
    for folder in ("rollouts", f"checkpoints/step_{newest(reference)}"):
        ours, theirs = files(run / folder), files(reference / folder)
        assert theirs, folder
        for name in sorted(ours.keys() | theirs.keys()):
            pairs[f"{folder}/{name}"] = (ours.get(name), theirs.get(name))
    return [name for name, (ours, theirs) in pairs.items() if ours != theirs]


def metrics(run: Path) -> list[str]:
    """Rows of metrics.jsonl as text, wall-clock values left out."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [json.dumps({k: v for k, v in row.items() if not WALL_CLOCK.fullmatch(k)}) for row in rows]


def findings(run: Path) -> list[str]:
    """Rows of findings.jsonl as text; remedies name the run folder and are left out."""
    rows = [json.loads(line) for line in _bytes(run / "findings.jsonl").decode().splitlines()]
    return [json.dumps({k: v for k, v in row.items() if k != "remedy"}) for row in rows]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


# --- watching -----------------------------------------------------------------------------------------------


def _until(holds: Callable[[], bool], child: Child, _seen: set[str]) -> None:
    """Polled without a pause: a save of a tiny model takes a hundredth of a second."""
    ends = time.monotonic() + PATIENCE
    turn = 0
    while not holds():
        turn += 1
        if turn % 200 == 0 and not child.alive:
            return
        assert time.monotonic() < ends, f"it never happened:\n{child.said}"


def _saves_begun(run: Path, seen: set[str]) -> int:
    """How many temporary checkpoint folders were seen so far; the last one stands there now."""
    try:
        with os.scandir(run / "checkpoints") as entries:
            now = {entry.name for entry in entries if _SAVING.fullmatch(entry.name)}
    except FileNotFoundError:
        return 0
    seen |= now
    return len(seen) if now else 0


def _gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process ends (or is a zombie nobody has read yet) within some seconds."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.01)
    return False


def _number(name: str) -> int:
    found = re.search(r"\d+", name)
    return int(found[0]) if found else -1


if __name__ == "__main__":
    serve()
