"""A data set of problems: where its rows are, and one row as a prompt. Every complaint names file, row and columns."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opdkit.tasks.hub import hub_rows
from opdkit.tasks.math_data import ANY, Columns, DataSet, Row, cell, known
from opdkit.tasks.rows import column_names, must_be_file, read_rows, weight
from opdkit.tasks.wrappers import unwrapped, wrapped
from opdkit.types import Prompt, UserError

if TYPE_CHECKING:
    from opdkit.config import MathTask

SUFFIXES = (".parquet", ".jsonl")


@dataclass(frozen=True)
class Source:
    """A data set and its files; no files: the Hub."""

    name: str
    shapes: tuple[Columns, ...]
    files: tuple[Path, ...]
    known: DataSet | None = None

    def problems(
        self, wrapper: str, *, answered: bool, group: str | None = None, stream: bool = False
    ) -> Iterator[tuple[Prompt, str]]:
        """(prompt, the problem without any wrapper). `answered`: a row without an answer is an error.

        `stream`: not all rows will be wanted, so the Hub need not send them.
        """
        only = None if self.known is None else self.known.only
        answered = answered or (self.known is not None and self.shapes[0].answer is not None)
        for file, line, row in self._rows(stream):
            where = f"{file or (self.known and self.known.hub)}:{line}"
            if only is not None and only[0] not in row:
                raise _lacking(where, file, row, only[0])
            if only is None or row[only[0]] == only[1]:
                yield _prompt(row, self, wrapper, where=where, file=file, answered=answered, group=group)

    def _rows(self, stream: bool) -> Iterator[tuple[Path | None, int, Row]]:
        columns = {name for shape in self.shapes for name in shape.names}
        columns |= {self.known.only[0]} if self.known is not None and self.known.only else set()
        for file in self.files:
            for line, row in read_rows(file, columns=columns):
                yield file, line, row
        if not self.files and self.known is not None:
            for line, row in hub_rows(self.known, columns=columns, stream=stream):
                yield None, line, row


def open_source(name: str, cfg: MathTask, *, key: str) -> Source:
    """The file or the data set that `name` means; `key` is where it was written.

    Raises UserError for a name that is not known, and a file or folder that is not there.
    """
    path = Path(name)
    if path.suffix in SUFFIXES:
        must_be_file(path, key=key)
        return Source(path.stem, ANY, (path,))
    data_set = known(name, key=key)
    files = () if cfg.data is None else _files(data_set, cfg.data)
    return Source(data_set.name, data_set.shapes, files, data_set)


def _files(data_set: DataSet, folder: Path) -> tuple[Path, ...]:
    """NAME.parquet, NAME.jsonl, or all of that kind below NAME/, of the right split where files say theirs."""
    for name in data_set.folders:
        for suffix in SUFFIXES:
            if (file := folder / f"{name}{suffix}").is_file():
                return (file,)
            if found := sorted(f for f in (folder / name).rglob(f"*{suffix}") if f.is_file()):
                of_split = [f for f in found if f.stem.split("-")[0] == data_set.split]
                return tuple(of_split or found)
    there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    near = difflib.get_close_matches(data_set.name, there, n=1, cutoff=0.5)
    more = f" ({folder / near[0]} is there)" if near else ""
    raise UserError(
        f"no {data_set.name} in task.data: neither {folder / data_set.name}{{.parquet,.jsonl}} nor a folder "
        f"of that name with such files{more}",
        hint=f"hf download --repo-type dataset {data_set.hub} --local-dir {folder / data_set.name}",
    )


# --- one row ------------------------------------------------------------------------------------------------


def _prompt(
    row: Row,
    source: Source,
    wrapper: str,
    *,
    where: str,
    file: Path | None,
    answered: bool,
    group: str | None,
) -> tuple[Prompt, str]:
    columns = max(source.shapes, key=lambda shape: shape.fit(row))  # the first of the best
    said = cell(row, columns.question)
    if said is None:
        raise _lacking(where, file, row, " or ".join(dict.fromkeys(s.question for s in source.shapes)))
    problem = unwrapped(said) if isinstance(said, str) else ""
    if not problem:
        raise UserError(f"{where}: `{columns.question}` asks nothing", hint="fill the row or remove it")
    answer = _answer(row, columns, where)
    if answer is None and answered:
        raise _lacking(where, file, row, columns.answer or "answer")
    shown = None if columns.demonstration is None else cell(row, columns.demonstration)
    number = None if columns.id is None else cell(row, columns.id)
    prompt = Prompt(
        id=f"{source.name}:{where.rpartition(':')[2] if number is None else number}",
        text=said if wrapper == "as_is" else wrapped(problem, wrapper),
        answer=answer,
        response=shown if isinstance(shown, str) and shown else None,
        group=group,
        source=where,
        extra=weight(row, where),
    )
    return prompt, problem


def _answer(row: Row, columns: Columns, where: str) -> str | None:
    r"""Whole numbers without a fraction: AMC's files say 27.0, where everybody answers 27."""
    value = None if columns.answer is None else cell(row, columns.answer)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(
            f"{where}: the answer in `{columns.answer}` is a {type(value).__name__}, not text or a number",
            hint="write it as text",
        )
    return re.sub(r"^(-?\d+)\.0+$", r"\1", str(value).strip()) or None


def _lacking(where: str, file: Path | None, row: Row, wanted: str) -> UserError:
    there = list(row) if file is None else column_names(file, row)
    return UserError(
        f"{where}: no {wanted}; the row has the columns {', '.join(there) or 'none'}",
        hint="rename the column, or use task.type=file with task.prompt_key and task.answer_key",
    )
