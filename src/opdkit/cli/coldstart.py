"""`opd coldstart`: arguments, what a person sees, the exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from opdkit.cli.errors import going_on
from opdkit.cli.printer import Printer
from opdkit.config import Config, load_config, parse_overrides
from opdkit.types import UserError

FIXED = ("run", "story", "student", "teacher", "task.type")
"""What cannot change in a cold start that goes on; what else changes is made anew from the stage that reads it on."""


class Shown(Printer):
    """A run's printer, with what happens around runs."""

    def __init__(self, *, quiet: bool = False):
        super().__init__(quiet=quiet)
        self._stage: Any = None
        self._tenth = -1
        self._at = 0  # the last step that was shown

    def step(self, row: dict[str, Any], steps: int) -> None:
        if int(row["step"]) <= self._at:  # another run has begun
            self.end_stage()
        self._at = int(row["step"])
        super().step(row, steps)

    def progress(self, what: str, done: int, count: int) -> None:
        """A bar on a terminal; elsewhere a line at every tenth."""
        if self.quiet:
            return
        if sys.stderr.isatty():
            if self._stage is None:
                from opdkit.train.bar import Bar

                self._stage = Bar(what)
            self._stage.advance(done, count)
        elif (tenth := 10 * done // max(count, 1)) != self._tenth:
            self._tenth = tenth
            self.note(f"{what} {done:,} of {count:,}")
        if done >= count:
            self.end_stage()

    def end_stage(self) -> None:
        """The next stage has a bar of its own."""
        for bar in (self._stage, self._bar):
            if bar is not None:
                bar.stop()
        self._stage = self._bar = None
        self._tenth, self._headed = -1, False

    def probed(self, row: dict[str, Any]) -> None:
        low, high = row["overlap_ratio_low"], row["overlap_ratio_high"]
        interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        right = f"  accuracy {row['accuracy']:.3f}" if "accuracy" in row else ""
        self.note(
            f"probe after step {row['step']}: overlap {row['overlap_ratio']:.3f}{interval}  teacher's shared mass "
            f"{row['overlap_mass_teacher_before_end']:.3f}  reverse KL {row['reverse_kl']:.3f}{right}"
        )

    def __exit__(self, *error: object) -> None:
        self.end_stage()


def run_coldstart(
    path: Path | None, changes: list[str], *, resume: Path | None, as_json: bool
) -> tuple[int, str]:
    """The exit code, and what goes to stdout."""
    config = _configured(path, changes, resume)
    from opdkit.recipes.coldstart import coldstart
    from opdkit.recipes.coldstart_summary import lines

    with Shown(quiet=as_json) as shown, going_on():
        try:
            code, told = coldstart(config, resume=resume is not None, show=shown)
        except Exception as error:
            if (config.run / "coldstart.json").is_file():
                error.add_note(f"opd coldstart --resume {config.run}")
            raise
    return code, json.dumps(told) if as_json else "\n".join(lines(told))


def runs_in(path: Path) -> list[Path]:
    """The run folders of a cold start, the distillation first; of anything else the path itself."""
    if not (path / "coldstart.json").is_file():
        return [path]
    there = [path / name for name in ("distill", "sft") if (path / name / "metrics.jsonl").is_file()]
    if not there:
        raise UserError(f"{path} has not begun to train", hint=f"opd coldstart --resume {path}")
    return there


def _configured(path: Path | None, changes: list[str], resume: Path | None) -> Config:
    if resume is None:
        if path is None and not changes:
            raise UserError(
                "no CONFIG was given", hint="opd coldstart CONFIG.toml, or opd coldstart --resume RUN"
            )
        return load_config(path, changes)
    if path is not None:
        raise UserError(
            f"--resume takes its configuration from {resume}", hint=f"opd coldstart --resume {resume}"
        )
    for key, _ in parse_overrides(changes):
        if key.startswith(FIXED):
            raise UserError(
                f"{key} cannot change in a cold start that goes on",
                hint="begin a new one: opd coldstart CONFIG run=DIR",
            )
    if not (resume / "coldstart.json").is_file():
        what = "holds no coldstart.json" if resume.is_dir() else "is not there"
        raise UserError(
            f"{resume} is no cold start: it {what}", hint=f"a new one: opd coldstart CONFIG run={resume}"
        )
    return load_config(resume / "config.toml", [*changes, f"run={json.dumps(str(resume))}"])
