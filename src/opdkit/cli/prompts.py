"""`opd prompts`: the file that a run should be given, and a page that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from opdkit.cli.checking import Json, Prompts, Student, arguments, source_of
from opdkit.cli.errors import going_on
from opdkit.types import UserError


def prompts(
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE.jsonl",
            help="The prompts that are kept; beside it FILE.dropped.jsonl, FILE.json and FILE.html.",
        ),
    ],
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="A TOML file; its [prompts] says what is done.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key=value]...", help="Override a config value: prompts.taught=FILE."),
    ] = None,
    student: Student = None,
    teacher: Annotated[str | None, typer.Option(metavar="MODEL", help="Over CONFIG's teacher.")] = None,
    file: Prompts = None,
    as_json: Json = False,
) -> None:
    """Prompts that suit the teacher: wrapper, content, duplicates, difficulty, breadth; a reason for every row."""
    from opdkit.cli.printer import Printer
    from opdkit.config import load_config

    path, changes = arguments(config, overrides)
    named = (("student", student), ("teacher", teacher), ("task", None if file is None else str(file)))
    options = [f"{key}={json.dumps(value)}" for key, value in named if value is not None]
    if path is None and not changes and not options:
        raise UserError(
            "no prompts were given",
            hint="opd prompts CONFIG.toml --out OUT.jsonl, or opd prompts --student S --teacher T --prompts FILE --out OUT.jsonl",
        )
    resolved = load_config(path, [*options, *changes])
    printer = Printer(quiet=as_json)
    from opdkit.recipes.prompts import align, lines
    from opdkit.report.prompts import write_prompts_page

    source = source_of(path, changes, student=student, teacher=teacher, prompts=file)
    with going_on():
        told = align(resolved, out=out, source=source, say=printer.note)
    out.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    page = write_prompts_page(told, out.with_suffix(".html"))
    print(json.dumps(told) if as_json else "\n".join(lines(told)))
    printer.note(f"why, row by row and in numbers: {page}")
