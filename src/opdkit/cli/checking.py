"""What commands on a pair are told: a config, options over it, and how to name the pair again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opdkit.types import UserError

if TYPE_CHECKING:
    from opdkit.config import Config, LocalTeacher

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value]...", help="Override a config value: optim.lr=1e-5.")
]
Student = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Hub id or folder; over CONFIG's student.")
]
Prompts = Annotated[
    Path | None, typer.Option("--prompts", metavar="FILE", help="JSONL or parquet; over CONFIG's task.")
]


def arguments(config: str | None, overrides: list[str] | None) -> tuple[Path | None, list[str]]:
    """`opd train key=value` without a CONFIG: the first argument is an override then."""
    changes = list(overrides or [])
    if config is not None and "=" in config and not Path(config).exists():
        return None, [config, *changes]
    return (None if config is None else Path(config)), changes


def pair(
    path: Path | None,
    changes: Sequence[str],
    *,
    student: str | None,
    teachers: Sequence[str],
    prompts: Path | None,
) -> tuple[Config, list[LocalTeacher]]:
    """The configuration with the first teacher, and all teachers: the config's, or those of the options.

    Raises UserError where a student, teacher or prompts are missing.
    """
    from opdkit.config import load_config

    options = []
    if student is not None:
        options.append(f"student={json.dumps(student)}")
    if teachers:
        options.append(f"teacher={json.dumps(teachers[0])}")
    if prompts is not None:
        options.append(f"task={json.dumps(str(prompts))}")
    if path is None and not changes and not (student and teachers and prompts):
        raise UserError(
            "no pair was given",
            hint="opd check CONFIG.toml, or opd check --student S --teacher T --prompts FILE",
        )
    config = load_config(path, [*options, *changes])
    first = config.teacher
    if first is None:
        raise UserError("there is no teacher to check", hint="--teacher MODEL, or teacher=MODEL")
    if first.type != "local":
        what = {
            "self": "a teacher that is the student's own copy has nothing to be checked against",
            "server": "the check reads a teacher's files and weights, and a served one's are elsewhere",
            "router": "the check looks at one teacher at a time, and a router has several",
        }
        raise UserError(what[first.type], hint="--teacher MODEL, the folder or Hub id of the teacher")
    return config, [first, *(first.model_copy(update={"model": name}) for name in teachers[1:])]


def source_of(
    path: Path | None,
    changes: Sequence[str],
    *,
    student: str | None,
    teacher: str | None,
    prompts: Path | None,
) -> str:
    """How the user named the pair, to be typed again."""
    named = (("--student", student), ("--teacher", teacher), ("--prompts", prompts))
    options = [part for key, value in named if value is not None for part in (key, str(value))]
    return shlex.join([*([str(path)] if path is not None else []), *options, *changes])
