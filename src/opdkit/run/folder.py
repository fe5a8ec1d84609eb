"""The run folder: the only interface between training and everything after it. Layout in docs/design.md.

One process writes to a run at a time; anyone may read. Every row is one write and one fsync (0.2 ms on a
local disk), so that no power cut leaves a checkpoint of step N without the rows up to N.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from opdkit.run.disk import (
    TEMPORARY,
    append_line,
    disk_error,
    erase,
    read_regular,
    sync_directory,
    write_atomic,
)
from opdkit.run.environment import environment
from opdkit.run.lock import LOCK, hold_lock
from opdkit.run.rows import Row, as_lines, keep_rows, read_rows, to_json
from opdkit.types import Finding, UserError

__all__ = ["MARKER", "RunFolder", "check_beside", "environment"]

MARKER = ".opd-run"
_MARKER_TEXT = "A run folder of opdkit. Nothing is ever deleted in a folder without this file.\n"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,80}")
_ROLLOUTS = re.compile(r"step_(\d+)\.jsonl")
_STREAMS = ("metrics.jsonl", "eval.jsonl", "findings.jsonl", "sequences.jsonl")
_UNFINISHED = {LOCK, "config.toml", "env.json"}  # what a creation that was killed may leave: no marker yet


def check_beside(run: Path) -> Path:
    """Where `opd check` leaves its document: beside the folder of a run that is not there yet.

    >>> check_beside(Path("runs/first")).as_posix()
    'runs/first.check.json'
    """
    return run.with_name(f"{run.name}.check.json")


class RunFolder:
    """A run on disk. `create` and `open` lock it until `close`, the end of a `with` or of the object."""

    def __init__(self, path: Path, *, writes: bool):
        self.path = path
        self._release = hold_lock(path, owner=self) if writes else None

    @classmethod
    def create(cls, path: Path, *, config_toml: str, env: Mapping[str, Any]) -> Self:
        """A new run, locked. Raises UserError for a bad name or a folder not empty or not writable."""
        _refuse_name(path)
        with _user_errors(path):
            _refuse_taken(path)
            path.mkdir(parents=True, exist_ok=True)
            folder = cls(path, writes=True)
            try:
                _refuse_taken(path)  # again: another process may have come and gone before we had the lock
                write_atomic(path / "config.toml", data=config_toml.encode())
                write_atomic(path / "env.json", data=(json.dumps(env, indent=2) + "\n").encode())
                write_atomic(path / MARKER, data=_MARKER_TEXT.encode())  # last: from here on it is a run
                sync_directory(path.parent)
            except BaseException:
                folder.close()
                raise
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing run, locked, to go on with. Raises UserError if it is none or has another writer."""
        _refuse_other(path)
        with _user_errors(path):
            folder = cls(path, writes=True)
            for place in (path, path / "rollouts"):
                _erase_temporary(place)
        return folder

    @classmethod
    def read(cls, path: Path) -> Self:
        """An existing run, to look at: no lock, nothing is written. Raises UserError when it is none."""
        _refuse_other(path)
        return cls(path, writes=False)

    def close(self) -> None:
        """Give the lock back; from here on the folder can only be read."""
        if self._release is not None:
            self._release()

    def abandon(self) -> None:
        """Take back a creation that led nowhere: the name is free again, and the folder is no run."""
        assert self._release is not None and self._release.alive, "opened for reading, or closed"
        for name in (MARKER, "check.json", "env.json", "config.toml"):
            (self.path / name).unlink(missing_ok=True)
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    # --- writing -------------------------------------------------------------------------------------------

    def bring_check(self, *, student: str, teacher: str) -> None:
        """check.json: a copy of what `opd check` said before the run, if it lies beside it and is of this pair."""
        try:
            text = check_beside(self.path).read_text(encoding="utf-8")
            told = json.loads(text)
        except (OSError, ValueError, RecursionError):
            return
        if isinstance(told, dict) and (told.get("student"), told.get("teacher")) == (student, teacher):
            self.write_text("check.json", text)

    def log_metrics(self, step: int, row: Mapping[str, Any]) -> None:
        self._append("metrics.jsonl", _stepped(step, row))

    def log_eval(self, row: Mapping[str, Any]) -> None:
        """`row` carries its `step`: evaluations also happen before the first one."""
        assert isinstance(row.get("step"), int), "an evaluation row needs its step"
        self._append("eval.jsonl", row)

    def log_finding(self, finding: Finding) -> None:
        names = [field.name for field in dataclasses.fields(finding)]
        self._append("findings.jsonl", {name: getattr(finding, name) for name in names})

    def log_sequences(self, step: int, row: Mapping[str, Any]) -> None:
        """Of every rollout of the step one number under each name: reward, score, length, truncated."""
        self._append("sequences.jsonl", _stepped(step, row))

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        data = as_lines([_stepped(step, row) for row in rows])
        path = self.path / "rollouts" / f"step_{step}.jsonl"
        with self._writing(path.name, needed=len(data)):
            if not path.parent.exists():
                path.parent.mkdir()
                sync_directory(self.path)
            write_atomic(path, data=data)

    def write_text(self, name: str, text: str) -> None:
        """A file beside the others, replaced as a whole. `name` has no slashes; a symlink is replaced."""
        _refuse_component(name)
        data = text.encode()
        with self._writing(name, needed=len(data)):
            write_atomic(self.path / name, data=data)

    def rewind(self, step: int) -> None:
        """Forget what came after `step`: later rows, torn lines, later samples. Safe to interrupt and repeat.

        Rows without a step (findings from before the first one) stay.
        """
        with self._writing("the rewound rows", needed=0):
            for name in _STREAMS:
                keep_rows(self.path / name, keep=lambda row: _step_of(row) <= step)
            for number, path in self._samples():
                if number > step:
                    path.unlink()
                    sync_directory(path.parent)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        line = to_json(row).encode()
        with self._writing(name, needed=len(line)):
            append_line(self.path / name, line=line)

    @contextmanager
    def _writing(self, what: str, *, needed: int) -> Iterator[None]:
        """Raises RunError, with bytes needed and free, when the disk refuses."""
        assert self._release is not None and self._release.alive, "opened for reading, or closed"
        _refuse_link(self.path / "rollouts")
        try:
            yield
        except OSError as error:
            failed = disk_error(error, what=f"{what} of {self.path}", run=self.path, needed=needed)
            if failed is None:
                raise
            raise failed from error

    # --- reading -------------------------------------------------------------------------------------------

    def read_text(self, name: str) -> str:
        """A file of the run, e.g. `config.toml`. Raises UserError if it is missing, no text, or a symlink."""
        _refuse_component(name)
        try:
            return read_regular(self.path / name).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"cannot read {name} of {self.path}: {_reason(error)}", hint=f"ls -l {_quoted(self.path)}"
            ) from error

    def read_lines(self, name: str) -> list[Row]:
        """The rows of a file that `write_text` wrote. Raises UserError where it is missing or no JSON lines."""
        self.read_text(name)
        return read_rows(self.path / name)

    def read_metrics(self) -> list[Row]:
        return read_rows(self.path / "metrics.jsonl")

    def read_eval(self) -> list[Row]:
        return read_rows(self.path / "eval.jsonl")

    def read_findings(self) -> list[Row]:
        return read_rows(self.path / "findings.jsonl")

    def read_rollouts(self) -> list[Row]:
        """Every sampled rollout, with its `step`, in the order of steps."""
        _refuse_link(self.path / "rollouts")
        return [row for _, path in self._samples() for row in read_rows(path)]

    def _samples(self) -> list[tuple[int, Path]]:
        """(step, file), ascending."""
        place = self.path / "rollouts"
        found = [(_ROLLOUTS.fullmatch(p.name), p) for p in place.iterdir()] if place.is_dir() else []
        return sorted((int(match[1]), path) for match, path in found if match)


def _stepped(step: int, row: Mapping[str, Any]) -> Row:
    assert row.get("step", step) == step, "the row belongs to another step"
    return {"step": step, **row}


def _step_of(row: Row) -> int:
    step = row.get("step")
    return step if isinstance(step, int) else 0


# --- refusals ----------------------------------------------------------------------------------------------


def _refuse_name(path: Path) -> None:
    if _NAME.fullmatch(path.name) is None or path.name == ".." or "\0" in str(path):
        raise UserError(
            f"{str(path)!r} cannot name a run: its last part is 1 to 80 of the characters A-Z a-z 0-9 . _ -",
            hint="run=runs/my-run",
        )


def _refuse_component(name: str) -> None:
    if _NAME.fullmatch(name) is None or name in (".", ".."):
        raise UserError(
            f"{name!r} is no file name of a run folder", hint="use letters, digits, '.', '_' and '-'"
        )


def _refuse_taken(path: Path) -> None:
    names = {entry.name for entry in os.scandir(path)} if path.exists() else set()
    if not names or (LOCK in names and all(n in _UNFINISHED or TEMPORARY.fullmatch(n) for n in names)):
        return
    again = f"opd train --resume {_quoted(path)}, or " if MARKER in names else ""
    raise UserError(f"{path} exists and is not empty", hint=f"{again}another name: run={_quoted(path)}-2")


def _refuse_other(path: Path) -> None:
    if "\0" not in str(path) and (path / MARKER).is_file():
        return
    what = f"is not a run folder: it holds no {MARKER}" if path.is_dir() else "is not there"
    raise UserError(f"{path} {what}", hint=f"a new run: opd train CONFIG run={_quoted(path)}")


def _refuse_link(place: Path) -> None:
    if place.is_symlink():
        raise UserError(
            f"{place} is a symlink; a run stays inside its folder",
            hint=f"replace it by what it points to: rm {_quoted(place)}",
        )


@contextmanager
def _user_errors(path: Path) -> Iterator[None]:
    """Nothing has begun yet: a folder that cannot be written is a wrong choice of folder."""
    try:
        yield
    except (OSError, UnicodeEncodeError) as error:
        raise UserError(
            f"cannot write the run folder {path}: {_reason(error)}", hint="choose another folder: run=PATH"
        ) from error


def _reason(error: OSError | UnicodeError) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


def _erase_temporary(place: Path) -> None:
    """What a killed writer left; with the lock held, nobody is writing it now."""
    if place.is_dir() and not place.is_symlink():
        for path in place.iterdir():
            if TEMPORARY.fullmatch(path.name):
                erase(path)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
