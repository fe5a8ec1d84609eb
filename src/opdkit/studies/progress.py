"""Progress of several stories: one bar each on a terminal, one line each elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from typing import Any

from opdkit.config import Config


class Quiet:
    """Nothing is said."""

    def note(self, text: str) -> None: ...
    def step(self, row: dict[str, Any], steps: int) -> None: ...
    def evaluation(self, row: dict[str, Any]) -> None: ...


class StoryBar:
    """`Talk` of one story, as a bar with the numbers that matter."""

    def __init__(self, config: Config, *, title: str | None = None):
        self.title = title or config.run.name
        self.score: str = ""
        self._bar: Any = None
        self._task: Any = None
        self._began = time.perf_counter()

    def note(self, text: str) -> None:
        if not text.startswith("info"):
            self._say(f"{self.title}: {text}")

    def step(self, row: dict[str, Any], steps: int) -> None:
        done = int(row["step"])
        if sys.stderr.isatty():
            self._advance(done, steps, _numbers(row))
        elif done == steps:
            self._say(f"{self.title}: {steps} steps, {_numbers(row)}, {self._seconds():.0f} s")
        if done == steps and self._bar is not None:
            self._bar.stop()
            self._bar = None

    def evaluation(self, row: dict[str, Any]) -> None:
        if row["graded"]:
            self._say(f"{self.title}: accuracy {row['avg_at_k']:.3f} after step {row['step']}")

    def _advance(self, done: int, steps: int, text: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = ("{task.description}", "{task.fields[numbers]}")
            self._bar = Progress(
                TextColumn(columns[0]),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn(columns[1], style="dim"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=steps, numbers="")
        self._bar.update(self._task, completed=done, numbers=text)

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _seconds(self) -> float:
        return time.perf_counter() - self._began


def _numbers(row: dict[str, Any]) -> str:
    """The few numbers that fit beside a bar."""
    shown = (("loss", "loss"), ("overlap_ratio", "overlap"), ("accuracy", "accuracy"))
    return "  ".join(f"{word} {row[name]:.3f}" for name, word in shown if name in row)
