"""The data sets of arXiv 2604.13016 and where each says what: names on the Hub, splits, columns."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opdkit.types import UserError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """Where a row says what: names of columns, `a.b` for what lies inside (see `cell`). None: it does not."""

    question: str
    answer: str | None = None
    demonstration: str | None = None
    id: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are read, without what lies inside."""
        given = (self.question, self.answer, self.demonstration, self.id)
        return tuple(name.partition(".")[0] for name in given if name is not None)

    def fit(self, row: Row) -> int:
        """How much of question and answer this row has in these columns: 2 both, 1 the question, 0 not even
        that."""
        if cell(row, self.question) is None:
            return 0
        return 1 if self.answer is not None and cell(row, self.answer) is None else 2


VERL = Columns("prompt.user", "reward_model.ground_truth", id="extra_info.index")
_QUESTION = Columns("question", "answer", id="id")
_PROBLEM = Columns("problem", "answer", id="id")
_CAPITALS = Columns("Problem", "Answer", id="ID")
_DEEPMATH = Columns("question", "final_answer", "r1_solution_1")
_CONVERSATION = Columns("conversations.human", demonstration="conversations.gpt")
_PLAIN = Columns("prompt", "answer", "response", "id")  # as `opd eval --out` writes them
ANY = (VERL, _PLAIN, _QUESTION, _PROBLEM, _CAPITALS, _DEEPMATH, _CONVERSATION)
"""What a file of no known name may look like."""


@dataclass(frozen=True)
class DataSet:
    """One data set. `only`: the rows that count, by a column's value; `problems`: how many a benchmark has."""

    name: str
    hub: str
    shapes: tuple[Columns, ...]
    split: str = "train"
    only: tuple[str, str] | None = None
    problems: int | None = None

    @property
    def folders(self) -> tuple[str, str]:
        """What its folder or file may be called: our name, or the Hub's."""
        return self.name, self.hub.partition("/")[2]


KNOWN = (
    DataSet("dapo-math-17k", "BytedTsinghua-SIA/DAPO-Math-17k", (VERL,)),
    DataSet("deepmath", "zwhe99/DeepMath-103K", (_DEEPMATH, VERL)),
    DataSet("openthoughts3", "open-thoughts/OpenThoughts3-1.2M", (_CONVERSATION,), only=("domain", "math")),
    DataSet("aime24", "HuggingFaceH4/aime_2024", (_PROBLEM, _CAPITALS, VERL), problems=30),
    DataSet("aime25", "math-ai/aime25", (_PROBLEM, _QUESTION, VERL), split="test", problems=30),
    DataSet("amc23", "math-ai/amc23", (_QUESTION, VERL), split="test", problems=40),
    DataSet("amc23-83", "AI-MO/aimo-validation-amc", (_PROBLEM, VERL), problems=83),
)


def known(name: str, *, key: str) -> DataSet:
    """The data set of that name, ours or the Hub's. UserError with the nearest; `key` is where it was
    written."""
    for one in KNOWN:
        if name in (one.name, one.hub):
            return one
    names = [one.name for one in KNOWN]
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.4)
    value = near[0] if near else "FILE.jsonl"
    raise UserError(
        f"{key}: no data set {name!r}; known are {', '.join(names)}, and files that end in .jsonl or .parquet",
        hint=f'{key}=["{value}"]' if key == "task.eval" else f"{key}={value}",
    )


def cell(row: Row, name: str) -> Any:
    """What stands in `row` under a dotted name; None where nothing does.

    In a list of messages the name inside is a role, and there must be one message of that role only, for
    nothing may be left out unseen.

    >>> cell({"reward_model": {"ground_truth": "7"}}, "reward_model.ground_truth")
    '7'
    >>> cell({"prompt": [{"role": "user", "content": "1 + 1?"}]}, "prompt.user")
    '1 + 1?'
    """
    column, _, inside = name.partition(".")
    value = row.get(column)
    if not inside or value is None:
        return value
    if isinstance(value, Mapping):
        return value.get(inside)
    return _message(value, inside)


_ROLES = ("user", "assistant", "human", "gpt")


def _message(messages: Any, role: str) -> Any:
    """The one message of `role`: `role`/`content`, or `from`/`value`. A system message would be lost: None."""
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        return None
    said = [(m.get("role", m.get("from")), m.get("content", m.get("value"))) for m in messages]
    mine = [text for who, text in said if who == role]
    return mine[0] if len(mine) == 1 and all(who in _ROLES for who, _ in said) else None
