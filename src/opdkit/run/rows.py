"""JSON lines: one object per line, strict JSON. A line counts once its newline is there."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from opdkit.run.disk import read_regular, write_atomic
from opdkit.types import UserError

Row = dict[str, Any]


def to_json(value: Any) -> str:
    """Strict JSON on one line, pure ASCII; numbers that are not finite become null.

    >>> to_json({"loss": float("nan"), "step": 3})
    '{"loss": null, "step": 3}'
    """
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def from_json(text: str | bytes) -> Any:
    """Strict JSON. Raises ValueError for anything else, NaN, Infinity and bottomless nesting included."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def as_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(to_json(row).encode() + b"\n" for row in rows)


def read_rows(path: Path) -> list[Row]:
    """Rows in the order written; [] without a file. The torn last line of a killed run is left out.

    Raises UserError for a line before it that is no JSON object: that is damage from outside, not a kill.
    """
    try:
        data = read_regular(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {os.strerror(error.errno or 0)}", hint=f"ls -l {path}"
        ) from error
    whole, _, _torn = data.rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    return [_row(line, path=path, number=number) for number, line in enumerate(lines, start=1)]


def _row(line: bytes, *, path: Path, number: int) -> Row:
    try:
        row = from_json(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise UserError(
            f"{path}, line {number}, is not a JSON object",
            hint=f"take the line out: sed -i {number}d {shlex.quote(str(path))}",
        )
    return row


def keep_rows(path: Path, *, keep: Callable[[Row], bool]) -> None:
    """Drop the other rows and a torn last line, atomically."""
    if path.exists():
        write_atomic(path, data=as_lines([row for row in read_rows(path) if keep(row)]))
