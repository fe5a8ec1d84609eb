"""Writes docs/reference.md from the code: every config key with type, default and meaning, and the command line's help.

    python scripts/reference.py [--check]

`--check` writes nothing and fails when the page is stale.
"""

import argparse
import os
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from opdkit.config import RECIPES, Config, ObjectiveConfig
from opdkit.config.objective import STUDENT_SETS, TEACHER_SETS

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"
COMMANDS = (
    "demo",
    "train",
    "coldstart",
    "prompts",
    "eval",
    "report",
    "serve",
    "study build",
    "study list",
    "study run",
    "study report",
    "study fit",
    "selftest",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text)
    elif PAGE.read_text() != text:
        sys.exit("docs/reference.md is stale: python scripts/reference.py")


def page() -> str:
    parts = [
        "# Reference",
        "Made from the code by `python scripts/reference.py`; do not edit.",
        "## Config",
        'TOML. A bare string stands for a table with one key: `student = "folder"`, `teacher = "folder"`, '
        '`task = "prompts.jsonl"`, `objective = "sampled"`. Every key can be overridden on the command line: `optim.lr=1e-5`.',
        *tables(Config, ""),
        "### Presets of `objective`",
        preset_table(),
        "## Command line",
        *(f"```console\n$ opd {name} --help\n{help_text(name)}\n```" for name in COMMANDS),
    ]
    return "\n\n".join(parts) + "\n"


def tables(record: type[BaseModel], prefix: str, title: str = "### Top level") -> Iterator[str]:
    """One table per record, nested records after it."""
    rows, nested = ["| key | type | default | meaning |", "|---|---|---|---|"], []
    for name, field in record.model_fields.items():
        inner = list(records_in(field.annotation))
        nested += [(name, r) for r in inner]
        kind = " or ".join(f"[{r.__name__}](#{anchor(prefix + name, r)})" for r in inner) or shown_type(
            field.annotation
        )
        rows.append(
            f"| `{prefix}{name}` | {kind} | {shown_default(field.default)} | {cell(field.description or '')} |"
        )
    yield f"{title}\n\n" + "\n".join(rows)
    for name, inner_record in nested:
        yield from tables(inner_record, f"{prefix}{name}.", f"### {prefix}{name}: {inner_record.__name__}")


def anchor(path: str, record: type[BaseModel]) -> str:
    return f"{path}-{record.__name__}".lower().replace(".", "")


def records_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from records_in(argument)


def shown_type(annotation: object) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return shown_type(arguments[0])
    if origin is typing.Literal:
        return " · ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(shown_type(a) for a in arguments if a is not type(None))
    return (
        getattr(annotation, "__name__", str(annotation))
        if not arguments
        else str(annotation).replace("typing.", "")
    )


def shown_default(value: object) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "as below"
    return "unset" if value is None else cell(f"`{value}`")


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def preset_table() -> str:
    """Preset → what it is and sets, what its gradient is, what the teacher sends, where it comes from."""
    columns = ["preset", "what", *_COLUMNS, "and", "gradient", "teacher sends", "source", "not in it"]
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, recipe in RECIPES.items():
        spec = ObjectiveConfig.model_validate({"preset": name})
        named = [str(getattr(spec, column)) for column in _COLUMNS]
        if spec.support in (*STUDENT_SETS, *TEACHER_SETS):
            named[0] += f", k = {spec.k}"
        more = {k: v for k, v in recipe.keys.items() if k not in (*_COLUMNS, "k", "weights", "signal")}
        more |= {f"signal.{k}": v for k, v in recipe.keys.get("signal", {}).items()}
        also = ", ".join(f"{key} = {value}" for key, value in more.items())
        cells = (recipe.what, *named, also, recipe.gradient, recipe.cost, recipe.source, recipe.without)
        rows.append(f"| `{name}` | {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


_COLUMNS = ("support", "divergence", "normalisation", "estimator")


def help_text(command: str) -> str:
    env = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "opdkit", *command.split(), "--help"],
        capture_output=True,
        text=True,
        env=env,
        check=True,
    )
    return result.stdout.replace("python -m opdkit", "opd").strip()


if __name__ == "__main__":
    main()
