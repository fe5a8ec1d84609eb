"""Files of a run that is being written, read as they grow: only what is new, only whole lines.

A resumed run replaces its files by shorter ones (`run.rows.keep_rows`), a killed one leaves half a line, and a
folder may be there before its files are. None of that ends a watch.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opdkit.report.read import Row, parsed

MEMORY = 64  # bytes before the offset that must still be there: another file of the same name is begun anew


@dataclass
class Tail:
    """One growing file of JSON lines. `rows` returns what came since the last call."""

    path: Path
    offset: int = 0  # bytes read, always the end of a line
    last: bytes = b""  # the bytes before the offset
    torn: int = 0  # whole lines that were no JSON object
    identity: tuple[int, int] = (0, 0)  # device and inode

    def rows(self) -> tuple[bool, list[Row]]:
        """Whether the file began anew (forget what it said before), and its new rows."""
        try:
            with open(self.path, "rb", opener=_without_waiting) as file:
                about = os.fstat(file.fileno())
                if not stat.S_ISREG(about.st_mode):
                    return False, []
                anew = self._is_another(file, about)
                if anew:
                    self._forget(about)
                file.seek(self.offset)
                new = file.read()
        except FileNotFoundError:
            gone = self.offset > 0
            self._forget(None)
            return gone, []
        except OSError:  # a network folder that blinks: the next look tells
            return False, []
        return anew, self._whole(new)

    def _is_another(self, file: Any, about: os.stat_result) -> bool:
        if self.identity == (0, 0):
            self.identity = (about.st_dev, about.st_ino)
            return False
        if self.identity != (about.st_dev, about.st_ino) or about.st_size < self.offset:
            return True
        file.seek(self.offset - len(self.last))
        return bool(file.read(len(self.last)) != self.last)  # an inode is used again sooner than one thinks

    def _forget(self, about: os.stat_result | None) -> None:
        self.offset, self.last, self.torn = 0, b"", 0
        self.identity = (about.st_dev, about.st_ino) if about else (0, 0)

    def _whole(self, new: bytes) -> list[Row]:
        whole, newline, _rest = new.rpartition(b"\n")
        read = whole + newline
        self.offset += len(read)
        self.last = (self.last + read)[-MEMORY:]
        lines = [line for line in whole.decode("utf-8", "replace").split("\n") if line.strip()]
        rows = [row for line in lines if (row := parsed(line)) is not None]
        self.torn += len(lines) - len(rows)
        return rows


@dataclass
class Newest:
    """The newest file of a folder that fills up: rollouts/step_N.jsonl."""

    folder: Path
    step: int = -1
    rows: list[Row] = field(default_factory=list)
    seen: tuple[int, int, int] = (0, 0, 0)

    def read(self) -> tuple[int, Sequence[Row]]:
        """Its step and its rows; read again only when it changed."""
        newest = max(_numbered(self.folder), default=-1)
        path = self.folder / f"step_{newest}.jsonl"
        try:
            about = path.stat()
            seen = (about.st_ino, about.st_size, about.st_mtime_ns)
            if newest >= 0 and (newest, seen) != (self.step, self.seen) and path.is_file():
                self.rows = Tail(path).rows()[1]
                self.step, self.seen = newest, seen
        except OSError:
            self.step, self.rows, self.seen = -1, [], (0, 0, 0)
        return self.step, self.rows


def newest_checkpoint(run: Path) -> int | None:
    """Step of the newest complete checkpoint: its manifest is written last."""
    try:
        found = [p.name[5:] for p in (run / "checkpoints").iterdir() if (p / "manifest.json").is_file()]
    except OSError:
        return None
    return max((int(name) for name in found if name.isdecimal()), default=None)


def _numbered(folder: Path) -> list[int]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    ends = [name[5:-6] for name in names if name.startswith("step_") and name.endswith(".jsonl")]
    return [int(end) for end in ends if end.isdecimal()]


def _without_waiting(path: str, flags: int) -> int:
    """A pipe under a file's name must not hold the watch up."""
    return os.open(path, flags | os.O_NONBLOCK)
