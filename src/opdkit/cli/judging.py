"""`opd check` and `opd diagnose`: numbers, findings and a verdict, of rollouts drawn now or of rollouts made by anyone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from opdkit.cli.checking import Json, Overrides, Prompts, Student, arguments, pair, source_of
from opdkit.cli.errors import going_on
from opdkit.types import UserError

Pair = Annotated[str | None, typer.Argument(metavar="[CONFIG]", help="A TOML file.")]


def check(
    config: Pair = None,
    overrides: Overrides = None,
    student: Student = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL", help="Over CONFIG's teacher; several are ranked on one set of rollouts."
        ),
    ] = None,
    prompts: Prompts = None,
    budget: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="TOKENS", help="Of responses drawn from the student; unset: 64 × 2 responses."
        ),
    ] = None,
    going_on_probe: Annotated[
        bool,
        typer.Option("--continue", help="Both models also go on from cut rollouts: the lead by depth."),
    ] = False,
    rehearse: Annotated[
        int | None,
        typer.Option(
            min=10, metavar="STEPS", help="Train a copy so long; unset: 30 where that is a matter of seconds."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The document; by default beside the run folder.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="CHECK.json", help="An earlier document: what changed since.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Will this pair work? Files, rollouts, both models' opinion of them: a verdict with its evidence.

    Exit code 0 go, 3 something comes first, 4 do not.
    """
    path, changes = arguments(config, overrides)
    resolved, teachers = pair(path, changes, student=student, teachers=teacher or [], prompts=prompts)
    from opdkit.cli.printer import Printer
    from opdkit.recipes.against import changes as changed
    from opdkit.recipes.against import lines as changed_lines
    from opdkit.recipes.against import read_document
    from opdkit.recipes.document import lines
    from opdkit.recipes.preflight import check as look
    from opdkit.run.folder import check_beside

    earlier = None if against is None else read_document(against)
    printer = Printer(quiet=as_json)
    with going_on():
        told = look(
            resolved,
            teachers=teachers,
            source=lambda name: source_of(
                path, changes, student=student, teacher=name if teacher else None, prompts=prompts
            ),
            budget=budget,
            continuation=going_on_probe,
            rehearsal=rehearse,
            say=printer.note,
        )
    said = lines(told)
    if earlier is not None:
        told["against"] = changed(earlier, told)
        said += ["", *changed_lines(told["against"])]
    place = out or check_beside(resolved.run)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(told) if as_json else "\n".join(said))
    printer.note(f"kept in {place}   opd report {place}")
    raise typer.Exit(told["verdict"]["exit_code"])


def diagnose(
    rollouts: Annotated[
        Path,
        typer.Option(metavar="FILE", help="JSONL, parquet or a folder: ours, TRL, verl, slime, lm-eval."),
    ],
    config: Pair = None,
    overrides: Overrides = None,
    student: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Who wrote the rollouts; over CONFIG's student.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(metavar="MODEL", help="Over CONFIG's teacher.")] = None,
    layout: Annotated[str, typer.Option(help="Of the file; told by its columns.")] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most so many rollouts.")] = None,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Pieces read so far: a stopped reading goes on from it."),
    ] = None,
    gradients: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Also the gradient of every position of the first N rollouts: do they add up or cancel?",
        ),
    ] = 0,
    depth: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Instead of a verdict: maps by position and step of a RUN's rollouts, for opd report FOLDER.",
        ),
    ] = None,
    continued: Annotated[
        int,
        typer.Option(
            "--continue",
            min=0,
            metavar="N",
            help="With --depth: both models go on from N cut rollouts of every step.",
        ),
    ] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the document here as well.")] = None,
    as_json: Json = False,
) -> None:
    """What `check` says of its own rollouts, for rollouts made by anyone: numbers, findings, a verdict.

    Exit code 0 go, 3 something comes first, 4 do not. With --depth always 0.
    """
    path, changes = arguments(config, overrides)
    named = [teacher] if teacher else []
    resolved, _ = pair(
        path, changes, student=student, teachers=named, prompts=rollouts if path is None else None
    )
    from opdkit.cli.printer import Printer
    from opdkit.recipes.diagnose import diagnose as look
    from opdkit.recipes.document import lines

    printer = Printer(quiet=as_json)
    if depth is not None and gradients:
        raise UserError(
            "--depth draws maps, and --gradients is part of a verdict", hint="one after the other"
        )
    if depth is not None:
        from opdkit.cli.deep import show_depth

        with going_on():
            show_depth(
                resolved,
                rollouts,
                out=depth,
                layout=layout,
                limit=limit,
                continued=continued,
                say=printer.note,
                as_json=as_json,
            )
        return
    source = source_of(path, changes, student=student, teacher=teacher, prompts=None if path else rollouts)
    with going_on():
        told = look(
            resolved,
            rollouts,
            layout=layout,
            limit=limit,
            keep=keep,
            source=source,
            say=printer.note,
            gradients=gradients,
        )
    if out is not None:
        out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(told) if as_json else "\n".join(lines(told)))
    raise typer.Exit(told["verdict"]["exit_code"])
