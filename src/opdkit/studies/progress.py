"""Progress of several stories: one bar each on a terminal, one line each elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from typing import Any

from opdkit.config import Config
from opdkit.train import Silent
from opdkit.train.bar import Bar


class StoryBar:
    """`Talk` of one story, as a bar with the numbers that matter."""

    def __init__(self, config: Config, *, title: str | None = None):
        self.title = title or config.run.name
        self._bar = Bar(self.title, width=24)
        self._began = time.perf_counter()

    def note(self, text: str) -> None:
        if not text.startswith("info"):
            self._bar.say(f"{self.title}: {text}")

    def step(self, row: dict[str, Any], steps: int) -> None:
        done = int(row["step"])
        self._bar.advance(done, steps, numbers=_numbers(row))
        if done < steps:
            return
        self._bar.stop()
        if not sys.stderr.isatty():
            seconds = time.perf_counter() - self._began
            self._bar.say(f"{self.title}: {steps} steps, {_numbers(row)}, {seconds:.0f} s")

    def evaluation(self, row: dict[str, Any]) -> None:
        if row["graded"]:
            self._bar.say(f"{self.title}: accuracy {row['avg_at_k']:.3f} after step {row['step']}")

    def progress(self, what: str, done: int, count: int) -> None:
        if done >= count:
            self.note(f"{what}: {count}")

    def probed(self, row: dict[str, Any]) -> None:
        self.note(f"probe after step {row['step']}: overlap {row['overlap_ratio']:.3f}")


class SilentShow(Silent):
    """Nowhere, of a cold start too."""

    def __init__(self, config: Config):
        del config

    def progress(self, what: str, done: int, count: int) -> None: ...
    def probed(self, row: dict[str, Any]) -> None: ...


def _numbers(row: dict[str, Any]) -> str:
    """The few numbers that fit beside a bar."""
    shown = (("loss", "loss"), ("overlap_ratio", "overlap"), ("accuracy", "accuracy"))
    return "  ".join(f"{word} {row[name]:.3f}" for name, word in shown if name in row)
