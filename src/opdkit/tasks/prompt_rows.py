"""Rows of a prompt file beside the prompts they are: so that a file can be written again with every column it had."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdkit.tasks.rows import Row, column_names, read_prompts, read_rows
from opdkit.tasks.wrappers import unwrapped
from opdkit.types import Prompt, UserError

if TYPE_CHECKING:
    from opdkit.config import FileTask


@dataclass(frozen=True)
class Written:
    """A prompt, the row it came from, and the column of it that holds the prompt."""

    prompt: Prompt
    row: Row
    column: str


def read_written(path: Path, cfg: FileTask) -> list[Written]:
    """All rows of a file in its order. Raises UserError as `read_prompts` does."""
    prompts = read_prompts(path, cfg)
    columns = column_names(path, {}) if path.suffix == ".parquet" else []
    rows = (row for _, row in read_rows(path, columns=columns))
    return [
        Written(p, row, cfg.prompt_key if row.get(cfg.prompt_key) is not None else "messages")
        for p, row in zip(prompts, rows, strict=True)
    ]


def written(prompts: Iterable[Prompt]) -> list[Written]:
    """Prompts of a generator or a data set as the rows of a file that they could have come from."""
    found = []
    for p in prompts:
        column = "prompt" if p.text is not None else "messages"
        more = {"answer": p.answer, "response": p.response, "group": p.group}
        row = {"id": p.id, column: p.given, **{k: v for k, v in more.items() if v is not None}}
        found.append(Written(p, row, column))
    return found


def question(prompt: Prompt) -> str:
    """What is asked, without the wrappers of the paper's data sets: the text, or the last thing that the user says.

    >>> question(Prompt("a", text="1 + 1? Please reason step by step, and put your final answer within \\\\boxed{}."))
    '1 + 1?'
    """
    return unwrapped(prompt.text if prompt.text is not None else _last_said(prompt))


def _last_said(prompt: Prompt) -> str:
    said = [m["content"] for m in prompt.messages or () if m["role"] == "user"]
    return said[-1] if said else (prompt.messages or ({"content": ""},))[-1]["content"]


def rewritten(prompt: Prompt, text: str) -> str | list[dict[str, str]]:
    """The value of the prompt's column with `text` in place of its question: a text, or messages whose last user turn it is."""
    if prompt.messages is None:
        return text
    messages = [dict(m) for m in prompt.messages]
    users = [i for i, m in enumerate(messages) if m["role"] == "user"]
    messages[users[-1] if users else -1]["content"] = text
    return messages


def numbered(found: Written) -> Row:
    """The row with its prompt's id: where lines were numbered they are other ones in another file, and ids decide draws."""
    extra = found.row.get("extra_info")
    has = found.row.get("id") is not None or (isinstance(extra, dict) and extra.get("index") is not None)
    return found.row if has else {"id": found.prompt.id, **found.row}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """JSONL in one move; how many. What JSON has no type for (a date of a parquet file) is written as its text.

    Raises UserError where the place cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8", newline="\n") as lines:
            for row in rows:
                lines.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
                count += 1
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror}", hint="give another place: --out FILE.jsonl"
        ) from error
    return count
