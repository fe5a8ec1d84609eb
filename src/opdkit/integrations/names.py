"""What others call the numbers of a run, and which of them are ours: `names.toml`, as records."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Mapped:
    """`theirs` → `ours` = factor × theirs, or None where it is another quantity; then `note` says which.

    Where `unless` is logged as well, theirs is another quantity, too. `source` is a file of the tool's repository.
    """

    theirs: str
    ours: str | None = None
    note: str = ""
    factor: float = 1.0
    source: str = ""
    unless: str = ""


@dataclass(frozen=True)
class Tool:
    """A trainer's table. `marks`: patterns of names that it logs; the tool with the most of them wrote a log."""

    name: str
    table: tuple[Mapped, ...]
    marks: tuple[str, ...]
    strip: str = ""  # a prefix that a tracker may have put in front of the names

    def plain(self, name: str) -> str:
        return name.removeprefix(self.strip)

    def marks_on(self, name: str) -> int:
        return sum(re.fullmatch(mark, name) is not None for mark in self.marks)


def _tools() -> dict[str, Tool]:
    tools: dict[str, Tool] = {}
    for entry in tomllib.loads((files(__package__) / "names.toml").read_text(encoding="utf-8"))["tool"]:
        tools[entry["name"]] = _tool(entry, tools.get(entry.get("like", "")))
    return tools


def _tool(entry: Mapping[str, Any], like: Tool | None) -> Tool:
    own = tuple(Mapped(**row) for row in entry["names"])
    told = {m.theirs for m in own}
    rest = tuple(m for m in like.table if m.theirs not in told) if like else ()
    marks = (*entry["marks"], *(like.marks if like else ()))
    return Tool(entry["name"], (*own, *rest), marks, entry.get("strip", ""))


TOOLS: Mapping[str, Tool] = _tools()
