"""Rollouts made by anyone, one after another: files of prompts with responses in the layouts of `tasks.layouts`.

Nothing is held but the row at hand, so a file may be larger than memory, and the first rows of it are there at once.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from opdkit.tasks.layouts import LAYOUTS, Layout, Row, Said, layout_of, nearest
from opdkit.types import UserError

_SNIFFED = 8  # rows looked at before a file's layout is given up on
_BATCH = 256  # rows of a parquet file held at once
_PICKLES = (".pt", ".pth", ".pkl", ".bin")


def read_rollouts(
    path: Path, *, layout: str = "auto", start: int = 0, left_out: list[str] | None = None
) -> Iterator[Said]:
    """Every response of a file, or of the files of a folder in the order of their numbers, from number `start` on.

    A folder may be a run folder, TRL's output folder, or any folder of JSONL or parquet files. `left_out` receives
    FILE:LINE and the reason for every row that is no response: a torn last line, an empty response, another filter's
    copy. They are counted in `index`, so that `start` means the same when the file is read again.

    Raises UserError for a file that is missing, empty, of no known layout, or at the first row that is damaged; for
    the path and the layout at once, for the rest when it gets there.
    """
    chosen, files = _named(layout), _files(path)
    everything = _numbered(files, chosen, [] if left_out is None else left_out, path)
    return (said for said in everything if said.index >= start)


def _numbered(files: list[Path], layout: Layout | None, notes: list[str], path: Path) -> Iterator[Said]:
    index, rows = 0, 0
    for file in files:
        for said in _file(file, layout, notes):
            rows += 1
            if said.empty:
                notes.append(f"{said.source}: empty response")
            else:
                yield replace(said, index=index)
            index += 1
    if rows == 0:
        raise UserError(f"{path} holds no rollouts", hint=f"a row is {LAYOUTS['opdkit'].shape}")


def _file(file: Path, layout: Layout | None, notes: list[str]) -> Iterator[Said]:
    with _readable(file):
        rows = _parquet_rows(file) if file.suffix == ".parquet" else _json_rows(file, notes)
        first = list(islice(rows, _SNIFFED))
        chosen = layout or _recognised(first)
        kept = None  # lm-eval writes a response once per filter
        for where, row in chain(first, rows):
            named = row.get("filter") if chosen is not None and chosen.name == "lm_eval" else None
            kept = named if kept is None else kept
            if named != kept:
                notes.append(f"{where}: the same response under another filter")
            elif chosen is not None:
                yield from _row(chosen, row, where)


def _row(layout: Layout, row: Row, where: str) -> Iterator[Said]:
    if not layout.fits(row):
        wanted = ", ".join(" or ".join(group) for group in layout.needs)
        raise UserError(
            f"{where}: no row of the layout {layout.name}, which has {wanted}; this one has {_columns(row)}",
            hint=f"a row is {layout.shape}",
        )
    yield from layout.read(row, where)


# --- which layout -------------------------------------------------------------------------------------------


def _named(layout: str) -> Layout | None:
    if layout == "auto":
        return None
    if layout not in LAYOUTS:
        near = difflib.get_close_matches(layout, LAYOUTS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"auto, {', '.join(LAYOUTS)}"
        raise UserError(f"there is no layout {layout!r}", hint=hint)
    return LAYOUTS[layout]


def _recognised(rows: list[tuple[str, Row]]) -> Layout | None:
    """The layout of the first row that has one. Raises UserError where rows are there and none has."""
    found = next((layout for _, row in rows if (layout := layout_of(row))), None)
    if found is None and rows:
        where, row = rows[0]
        near = nearest(row)
        raise UserError(
            f"{where}: no layout of rollouts is known with the columns {_columns(row)}",
            hint=f"the nearest is {near.name}: {near.shape}",
        )
    return found


def _columns(row: Row) -> str:
    names = [name if name.isprintable() else ascii(name) for name in list(row)[:20]]
    return ", ".join(names) + (", …" if len(row) > 20 else "") or "nothing"


# --- files --------------------------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    if path.suffix in _PICKLES:
        raise UserError(f"{path} is a pickle: to open it is to run what it says", hint=_converted(path))
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no rollouts at {path}", hint=_near(path))
    for place in (path / "rollouts", path / "completions" / "train", path / "completions", path):
        found = (
            [file for end in ("*.jsonl", "*.parquet") for file in place.glob(end)] if place.is_dir() else []
        )
        if found:
            return sorted(found, key=_natural)
    pickles = sorted(file for end in _PICKLES for file in path.glob(f"*{end}"))
    hint = _converted(pickles[0]) if pickles else "name a JSONL or parquet file, or a folder of them"
    raise UserError(f"{path} holds no JSONL and no parquet file", hint=hint)


def _natural(file: Path) -> list[tuple[int, str]]:
    """step_10 after step_9."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", file.name)]


def _converted(path: Path) -> str:
    """Sample dicts of slime and miles as JSONL, by whoever trusts the file."""
    code = (
        "[print(json.dumps(s, default=str)) for s in torch.load(sys.argv[1], weights_only=False)['samples']]"
    )
    out = shlex.quote(str(path.with_suffix(".jsonl")))
    return f'if you trust it: python -c "import json, sys, torch; {code}" {shlex.quote(str(path))} > {out}'


def _near(path: Path) -> str:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    return (
        f"did you mean {path.parent / near[0]}?"
        if near
        else "name a JSONL or parquet file, or a folder of them"
    )


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}", hint=f"ls -l {file}") from error


def _json_rows(path: Path, notes: list[str]) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            where = f"{path}:{number}"
            if not raw.strip():
                continue
            try:
                yield where, _json_row(raw, where)
            except UserError:
                if raw.endswith(b"\n") or number == 1:
                    raise
                notes.append(f"{where}: torn, as by a kill")


def _json_row(raw: bytes, where: str) -> Row:
    if raw.lstrip().startswith(b"["):
        file = shlex.quote(where.rpartition(":")[0])
        raise UserError(
            f"{where}: a list, not one object per line", hint=f"jq -c '.[]' {file} > rollouts.jsonl"
        )
    try:
        row = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        why = f"{error.msg}, column {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
        raise UserError(f"{where}: not JSON: {why}", hint="one JSON object per line") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: a {type(row).__name__}, not an object", hint="one JSON object per line")
    return row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise UserError("parquet files need the extra `data`", hint="pip install 'opdkit[data]'") from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path}: not readable as parquet: {error}", hint="check the file, or use JSONL"
        ) from error
