"""Rows of a JSONL or parquet file, as prompts. Every complaint names file and line and says what to do."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdkit.types import Prompt, UserError

if TYPE_CHECKING:
    from opdkit.config import FileTask

Row = Mapping[str, Any]
OPD = "opd"
"""The column that `opd prompts` adds: reason, numbers, weight."""
_OWN = ("messages", "id", "group", "reward_model", "extra_info", OPD)
_SHAPE = 'a row is {"prompt": "text"} or {"messages": [{"role": "user", "content": "text"}]}'


def read_prompts(path: Path, cfg: FileTask) -> tuple[Prompt, ...]:
    """All rows as prompts, in file order. A row without id gets FILE:LINE, counted from 1 (parquet: row).

    verl's columns are understood: `prompt` as messages, `reward_model.ground_truth`, `extra_info.index`.
    Raises UserError for a missing, empty or unreadable file, a bad row, or an id used twice.
    """
    must_be_file(path)
    wanted = {cfg.prompt_key, cfg.answer_key, cfg.response_key, *_OWN}
    prompts = tuple(_prompt(row, cfg, path=path, line=line) for line, row in read_rows(path, columns=wanted))
    if not prompts:
        raise UserError(f"{path} holds no rows", hint=_SHAPE)
    _distinct_ids(prompts)
    return prompts


def read_rows(path: Path, *, columns: Collection[str]) -> Iterator[tuple[int, Row]]:
    """(line counted from 1, row) of a JSONL or parquet file; of parquet only `columns` are read.

    Raises UserError for what is not readable, at that row.
    """
    return _parquet_rows(path, columns) if path.suffix == ".parquet" else _json_rows(path)


def column_names(path: Path, row: Row) -> list[str]:
    """The columns that the file of `row` has, for a message: a parquet row holds only what was asked for."""
    if path.suffix != ".parquet":
        return list(row)
    import pyarrow.parquet

    names: list[str] = pyarrow.parquet.read_schema(path).names
    return names


def must_be_file(path: Path, *, key: str = "task.path") -> None:
    """UserError with the nearest name where `path` is no file; `key` is where the user wrote it."""
    if path.is_file():
        return
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file of prompts", hint=f"{key}={path}/FILE.jsonl")
    folder = path.parent
    names = [p.name for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    hint = f"did you mean {folder / near[0]}?" if near else f"set {key}; {_SHAPE}"
    raise UserError(f"no prompt file at {path}", hint=hint)


# --- files --------------------------------------------------------------------------------------------------


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if raw.strip():
                yield number, _json_row(raw, f"{path}:{number}")


def _json_row(raw: bytes, where: str) -> Row:
    try:
        row = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        # its own "line 1" or "line 2" would be taken for the file's
        why = f"{error.msg}, column {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
        raise UserError(f"{where}: not JSON: {why}", hint="one JSON object per line") from error
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: a {type(row).__name__}, not an object", hint=f"one object per line; {_SHAPE}"
        )
    return row


def _parquet_rows(path: Path, wanted: Collection[str]) -> Iterator[tuple[int, Row]]:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise UserError("parquet files need the extra `data`", hint="pip install 'opdkit[data]'") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in wanted]
            number = 0
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: not readable as parquet: {error}", hint="check the file, or use JSONL"
        ) from error


# --- rows ---------------------------------------------------------------------------------------------------


def _prompt(row: Row, cfg: FileTask, *, path: Path, line: int) -> Prompt:
    where = f"{path}:{line}"
    value = _prompt_value(row, cfg, where)
    return Prompt(
        id=_id(row) or f"{path.stem}:{line}",
        text=value if isinstance(value, str) else None,
        messages=None if isinstance(value, str) else _messages(value, where),
        answer=_answer(row, cfg, where),
        response=_response(row, cfg, where),
        group=None if row.get("group") is None else str(row["group"]),
        source=where,
        extra=weight(row, where),
    )


def _prompt_value(row: Row, cfg: FileTask, where: str) -> str | list[Any]:
    value = row.get(cfg.prompt_key)
    if value is None:
        value = row.get("messages")
    if value is None:
        raise UserError(
            f"{where}: no `{cfg.prompt_key}` and no `messages`", hint=_near_key(cfg.prompt_key, row)
        )
    if not isinstance(value, str | list):
        raise UserError(f"{where}: the prompt is a {type(value).__name__}, not text or messages", hint=_SHAPE)
    if not value or (isinstance(value, str) and not value.strip()):
        raise UserError(f"{where}: the prompt is empty", hint="fill the row or remove it")
    return value


def _messages(value: list[Any], where: str) -> tuple[Mapping[str, str], ...]:
    messages = []
    for message in value:
        parts = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not all(isinstance(part, str) for part in parts) or not parts[0]:
            raise UserError(f"{where}: a message needs `role` and `content`, both text", hint=_SHAPE)
        messages.append({"role": str(parts[0]), "content": str(parts[1])})
    if not any(m["content"].strip() for m in messages):
        raise UserError(f"{where}: the prompt is empty", hint="fill the row or remove it")
    return tuple(messages)


def _answer(row: Row, cfg: FileTask, where: str) -> str | None:
    value = row.get(cfg.answer_key)
    if value is None and isinstance(row.get("reward_model"), dict):
        value = row["reward_model"].get("ground_truth")
    if value is None:
        return None
    if not isinstance(value, str | int | float):
        raise UserError(
            f"{where}: the answer is a {type(value).__name__}, not text or a number",
            hint=f"make `{cfg.answer_key}` text, or set task.answer_key",
        )
    return str(value)


def _response(row: Row, cfg: FileTask, where: str) -> str | None:
    value = row.get(cfg.response_key)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise UserError(
            f"{where}: the demonstration in `{cfg.response_key}` is no text, or empty",
            hint="fill it, remove it, or set task.response_key",
        )
    return value


def weight(row: Row, where: str) -> dict[str, float]:
    """The row's `opd.weight`, as `weight`; {} where nobody wrote one."""
    told = row.get(OPD)
    value = told.get("weight") if isinstance(told, dict) else None
    if value is None:
        return {}
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise UserError(
            f"{where}: opd.weight is {value!r}, no weight", hint="a number from 0 on, or leave it out"
        )
    return {"weight": float(value)}


def _id(row: Row) -> str | None:
    value = row.get("id")
    if value is None and isinstance(row.get("extra_info"), dict):
        value = row["extra_info"].get("index")
    return None if value is None else str(value)


def _near_key(key: str, row: Row) -> str:
    near = difflib.get_close_matches(key, list(row), n=1, cutoff=0.5)
    if near:
        return f"task.prompt_key={near[0]}"
    return f"set task.prompt_key; the row has: {', '.join(row) or 'nothing'}"


def _distinct_ids(prompts: tuple[Prompt, ...]) -> None:
    first: dict[str, str] = {}
    for prompt in prompts:
        if prompt.id in first:
            raise UserError(
                f"{prompt.source}: id {prompt.id!r} is used at {first[prompt.id]} already",
                hint="make ids unique, or leave them out: lines are numbered",
            )
        first[prompt.id] = prompt.source
