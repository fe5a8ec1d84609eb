"""A progress bar on a terminal, on stderr, and lines above it: what the talks of a run draw with."""

from __future__ import annotations

import sys
from typing import Any


class Bar:
    """One bar; without a terminal only lines. It appears with the first `advance`."""

    def __init__(self, title: str, *, width: int = 40):
        self.title, self.width = title, width
        self._progress: Any = None
        self._task: Any = None

    def advance(self, done: int, steps: int, *, numbers: str = "") -> None:
        if not sys.stderr.isatty():
            return
        if self._progress is None:
            self._begin(steps)
        self._progress.update(self._task, completed=done, numbers=numbers)

    def _begin(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=self.width),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}", style="dim"),
            console=Console(stderr=True),
        )
        self._progress.start()
        self._task = self._progress.add_task(self.title, total=steps, numbers="")

    def say(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
