"""A run as it stands at this moment: its rows so far, whether it moves, and how long it will take.

`Following` keeps what it has read, so that a look costs what came since the last one. What it gives is a `Run`
like the report's: a number means the same on the terminal and on the page.
"""

import os
import socket
import statistics
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from opdkit.report.read import CHECK, Row, Run, read_check, read_table
from opdkit.report.tail import Newest, Tail, newest_checkpoint
from opdkit.report.text import number

CURVES = (
    "overlap_ratio",
    "overlap_advantage",
    "loss",
    "reverse_kl",
    "entropy_student",
    "grad_norm",
    "response_length",
    "truncated_fraction",
    "accuracy",
)
RECENT = 20  # steps that speed and the times of the phases are read from
LOCK = ".opd-lock"  # "process 4711 on host": who writes or wrote the run (run/lock.py)
QUIET_SECONDS = 60.0  # without a step for so long, and for so many usual steps, a run is called quiet
QUIET_STEPS = 5

Doing = Literal["not begun", "running", "quiet", "stopped", "finished"]


@dataclass(frozen=True)
class Pulse:
    """Whether a run moves. Times in seconds; None where nothing tells."""

    doing: Doing
    step: int
    steps: int | None  # planned
    saved: int | None  # step of the newest whole checkpoint
    age: float | None  # since the last row
    each: float | None  # a usual step
    left: float | None
    over: bool  # nothing more will come, unless somebody resumes it


@dataclass(frozen=True)
class Look:
    """All a watch shows. `last` is the newest row whole; the rows of `run` hold the curves and times only."""

    run: Run
    pulse: Pulse
    last: Row
    sampled: int  # step of `rollout`, -1 without one
    rollout: Row


@dataclass
class Following:
    """Reads a run folder again and again."""

    path: Path
    name: str
    rows: dict[int, Row] = field(default_factory=dict)
    last: Row = field(default_factory=dict)
    evals: list[Row] = field(default_factory=list)
    findings: list[Row] = field(default_factory=list)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("metrics", "eval", "findings")
        self._tails = {name: Tail(self.path / f"{name}.jsonl") for name in names}
        self._rollouts = Newest(self.path / "rollouts")

    def look(self, *, now: float | None = None) -> Look:
        self._read_metrics()
        self.evals = _grown(self.evals, self._tails["eval"])
        self.findings = _grown(self.findings, self._tails["findings"])
        self.config = read_table(self.path / "config.toml", tomllib.loads, []) or self.config
        sampled, rollouts = self._rollouts.read()
        run = self._run()
        pulse = _pulse(self.path, run, now=time.time() if now is None else now)
        return Look(run, pulse, self.last, sampled if rollouts else -1, rollouts[-1] if rollouts else {})

    def _read_metrics(self) -> None:
        anew, new = self._tails["metrics"].rows()
        if anew:
            self.rows, self.last = {}, {}
        for row in new:
            step = number(row.get("step"))
            if step is not None:
                kept = {name: row[name] for name in row if name in CURVES or name.startswith("seconds/")}
                self.rows[int(step)] = kept | {"step": int(step)}
                self.last = row | {"step": int(step)}

    def _run(self) -> Run:
        graded = [
            row | {"step": int(at)} for row in self.evals if (at := number(row.get("step"))) is not None
        ]
        by_step = {row["step"]: row for row in graded}
        run = Run(
            name=self.name,
            config=self.config,
            env={},
            metrics=[self.rows[step] for step in sorted(self.rows)],
            evals=[by_step[step] for step in sorted(by_step)],
            findings=self.findings,
            rollouts={},
            gaps=(),
        )
        return replace(run, check=read_check(self.path / CHECK, []))


def _grown(rows: list[Row], tail: Tail) -> list[Row]:
    anew, new = tail.rows()
    return new if anew else [*rows, *new]


# --- whether it moves ---------------------------------------------------------------------------------------


def _pulse(path: Path, run: Run, *, now: float) -> Pulse:
    step = int(run.metrics[-1]["step"]) if run.metrics else 0
    planned = run.config.get("steps")
    steps = planned if isinstance(planned, int) and not isinstance(planned, bool) and planned > 0 else None
    saved, age, each, writer = newest_checkpoint(path), _age(path, now), _usual_step(run), _writer(path)
    doing = _doing(run, step=step, steps=steps, age=age, each=each, writer=writer)
    moving = doing in ("running", "quiet") and steps is not None and each is not None
    left = (steps - step) * each if moving and steps is not None and each is not None else None
    over = doing == "finished" and (writer is False or not _awaits_evaluation(run, step))
    return Pulse(doing, step, steps, saved, age, each, left, over)


def _doing(
    run: Run, *, step: int, steps: int | None, age: float | None, each: float | None, writer: bool | None
) -> Doing:
    if steps is not None and step >= steps and run.metrics:
        return "finished"
    if writer is False and run.config:
        return "stopped"
    if not run.metrics:
        return "not begun"
    patience = max(QUIET_SECONDS, QUIET_STEPS * (each or 0.0))
    return "quiet" if age is not None and age > patience else "running"


def _usual_step(run: Run) -> float | None:
    recent = [number(row.get("seconds/step")) for row in run.metrics[-RECENT:]]
    known = [seconds for seconds in recent if seconds is not None and seconds >= 0]
    return statistics.median(known) if known else None


def _age(path: Path, now: float) -> float | None:
    try:
        return max(0.0, now - (path / "metrics.jsonl").stat().st_mtime)
    except OSError:
        return None


def _awaits_evaluation(run: Run, step: int) -> bool:
    """A run that was examined before its first step is examined after its last one, too."""
    examined = [row["step"] for row in run.evals]
    return 0 in examined and step not in examined


def _writer(path: Path) -> bool | None:
    """Whether the process that wrote last is still there; None where that cannot be known from this machine.

    The lock itself is not tried: holding it for a moment could refuse a resume.
    """
    try:
        words = (path / LOCK).read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return None
    if len(words) != 4 or words[3] != socket.gethostname() or not words[1].isdecimal():
        return None
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def phases(rows: Sequence[Row]) -> dict[str, float]:
    """Mean seconds of each part of a step over the recent ones, the longest first; the whole step apart."""
    recent = rows[-RECENT:]
    names = dict.fromkeys(
        n for row in recent for n in row if n.startswith("seconds/") and n != "seconds/step"
    )
    means = {}
    for name in names:
        known = [value for row in recent if (value := number(row.get(name))) is not None]
        if known:
            means[name.removeprefix("seconds/")] = sum(known) / len(known)
    return dict(sorted(means.items(), key=lambda item: -item[1]))
