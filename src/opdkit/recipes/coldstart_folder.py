"""The folder of a cold start, and its manifest: which stage is complete, made from what, with what result.

config.toml      resolved, as of a run
coldstart.json   the manifest, replaced as a whole: what each stage is made from, whether it is complete, what it says
answers.jsonl    the teacher's responses · kept.jsonl, dropped.jsonl  after the filters · probes.jsonl  one row per probe
sft/, distill/   run folders: report, watch and eval read them
before-N/        stages that were made from other inputs; nothing is deleted
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from opdkit.config import ModelConfig
from opdkit.run.disk import append_line, read_regular, write_atomic
from opdkit.run.lock import LOCK, hold_lock
from opdkit.run.rows import Row, as_lines, keep_rows, read_rows, to_json
from opdkit.types import UserError

MANIFEST = "coldstart.json"
FORMAT = 1
STAGES = ("before", "answers", "filters", "sft", "distill")
FILES: Mapping[str, tuple[str, ...]] = {
    "before": (),
    "answers": ("answers.jsonl",),
    "filters": ("kept.jsonl", "dropped.jsonl"),
    "sft": ("sft", "probes.jsonl"),
    "distill": ("distill",),
}
"""What a stage leaves."""


class ColdstartFolder:
    """A cold start on disk, locked while it lives."""

    def __init__(self, path: Path):
        self.path = path
        self._release = hold_lock(path, owner=self)
        told = _manifest(path)
        self.stages: dict[str, dict[str, Any]] = told["stages"]

    @classmethod
    def create(cls, path: Path, *, config_toml: str) -> Self:
        """A new one. UserError where the folder holds anything already."""
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
        if path.is_file() or names - {LOCK, "config.toml"}:
            again = f"opd coldstart --resume {shlex.quote(str(path))}, or " if MANIFEST in names else ""
            raise UserError(f"{path} exists and is not empty", hint=f"{again}another name: run={path}-2")
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_atomic(path / "config.toml", data=config_toml.encode())
            write_atomic(path / MANIFEST, data=_text({}))
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}", hint="choose another folder: run=PATH"
            ) from error
        return cls(path)

    @classmethod
    def open(cls, path: Path, *, config_toml: str) -> Self:
        """One to go on with, under the configuration it has from now on. UserError where it is none."""
        if not (path / MANIFEST).is_file():
            what = f"holds no {MANIFEST}" if path.is_dir() else "is not there"
            raise UserError(
                f"{path} is no cold start: it {what}",
                hint=f"a new one: opd coldstart CONFIG run={shlex.quote(str(path))}",
            )
        folder = cls(path)
        if read_regular(path / "config.toml") != config_toml.encode():
            write_atomic(path / "config.toml", data=config_toml.encode())
        return folder

    def close(self) -> None:
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- stages --------------------------------------------------------------------------------------------

    @property
    def complete(self) -> dict[str, dict[str, Any]]:
        """Stages that are whole, by name."""
        return {name: told for name, told in self.stages.items() if told["state"] == "complete"}

    def done(self, stage: str, *, inputs: str) -> dict[str, Any] | None:
        """What a stage told, if it is complete, was made from the same inputs and has its files. UserError where one changed."""
        told = self.complete.get(stage)
        if told is None or told["inputs"] != inputs:
            return None
        for name, digest in told["files"].items():
            path = self.path / name
            if not path.is_file():
                return None
            if sha256(path) != digest:
                place, run = shlex.quote(str(path)), shlex.quote(str(self.path))
                raise UserError(
                    f"{path} is not what stage `{stage}` wrote",
                    hint=f"put it back, or make it again: rm {place} && opd coldstart --resume {run}",
                )
        return told

    def begin(self, stage: str, *, inputs: str) -> None:
        """Note what a stage is being made from; what it or a later stage left of other inputs is moved aside."""
        known = self.stages.get(stage, {})
        if known.get("inputs") == inputs and known["state"] == "begun":
            return  # it was cut off, and goes on
        # The same inputs again (a file is gone) give the same files, and what was made of them stays.
        later = (stage,) if known.get("inputs") == inputs else STAGES[STAGES.index(stage) :]
        self._aside([name for each in later for name in FILES[each]])
        self.stages = {name: told for name, told in self.stages.items() if name not in later}
        self.stages[stage] = {"state": "begun", "inputs": inputs}
        self._write()

    def finish(self, stage: str, *, inputs: str, **told: Any) -> dict[str, Any]:
        """A stage is complete: what it says and the digests of its files, at once."""
        files = {name: sha256(self.path / name) for name in FILES[stage] if (self.path / name).is_file()}
        self.stages[stage] = {"state": "complete", "inputs": inputs, "files": files, **told}
        self._write()
        return self.stages[stage]

    def _aside(self, names: Sequence[str]) -> None:
        there = [name for name in names if (self.path / name).exists()]
        if not there:
            return
        number = 1 + sum(1 for _ in self.path.glob("before-*"))
        place = self.path / f"before-{number}"
        place.mkdir()
        for name in there:
            (self.path / name).rename(place / name)

    def _write(self) -> None:
        write_atomic(self.path / MANIFEST, data=_text(self.stages))

    # --- rows ----------------------------------------------------------------------------------------------

    def rows(self, name: str) -> list[Row]:
        return read_rows(self.path / name)

    def append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows in one write: a killed one leaves whole lines, and the torn one is cut off by the next."""
        append_line(self.path / name, line=b"\n".join(to_json(row).encode() for row in rows))

    def replace(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        write_atomic(self.path / name, data=as_lines(rows))

    def shorten(self, name: str, count: int) -> None:
        """Only the first `count` rows stay."""
        left = iter(range(count))
        keep_rows(self.path / name, keep=lambda _: next(left, None) is not None)


def digest(*parts: Any) -> str:
    """Of plain data: what a stage was made from."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_model(model: ModelConfig) -> dict[str, Any]:
    """What tells a model from another without reading its weights: its record, and the sizes of a folder's files."""
    place = Path(model.model)
    sizes = {p.name: p.stat().st_size for p in sorted(place.iterdir())} if place.is_dir() else {}
    return {**model.model_dump(mode="json"), "files": sizes}


def _text(stages: Mapping[str, Any]) -> bytes:
    return (json.dumps({"format": FORMAT, "stages": stages}, indent=1) + "\n").encode()


def _manifest(path: Path) -> dict[str, Any]:
    place = path / MANIFEST
    try:
        told = json.loads(read_regular(place))
        if told["format"] != FORMAT or not isinstance(told["stages"], dict):
            raise ValueError("another format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place} cannot be read: {error}", hint=f"ls -l {shlex.quote(str(path))}") from error
    return dict(told)
