"""TOML text and key=value overrides onto a `Config`, with the source of every value and errors that help."""

import difflib
import os
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from opdkit.config.presets import PRESETS
from opdkit.config.records import Config
from opdkit.types import UserError


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The resolved configuration of `path` (None: overrides only) with `key=value` overrides laid over it.

    Raises UserError for a missing file, bad TOML, an unknown key (with the nearest name) or a wrong value.
    """
    data = read_toml(path) if path is not None else {}
    if path is not None:
        data = _resolve_paths(data, path.parent)
    changes = parse_overrides(overrides)
    for key, value in changes:
        if value == UNSET:
            _remove(data, key)
        else:
            _set(data, key, value)
    typed = [key for key, _ in changes]
    return build(data, origin=str(path) if path is not None else TYPED, typed=typed)


TYPED = "the command line"
UNSET = "unset"
"""`teacher=unset` on the command line takes a value of the file away."""


def _remove(data: dict[str, Any], key: str) -> None:
    *path, last = key.split(".")
    for part in path:
        inner = data.get(part)
        if not isinstance(inner, dict):
            return
        data = inner
    data.pop(last, None)


def build(data: Mapping[str, Any], *, origin: str, typed: Sequence[str] = ()) -> Config:
    """A Config from plain data; `origin` names the source in errors, but for keys that were `typed`."""
    try:
        return Config.model_validate(dict(data))
    except ValidationError as error:
        raise _explained(error, origin, typed) from None


def read_toml(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):  # not Path.is_file: that raises for a name too long to be one
        raise UserError(f"no config file at {path}", hint=_nearest_file(path))
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid TOML: {error}", hint='strings need quotes: student = "folder"'
        ) from None


def parse_overrides(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """`optim.lr=1e-5` → ("optim.lr", 1e-05); values are TOML, and what is not TOML is a string.

    >>> parse_overrides(["optim.lr=1e-5", "run=runs/a", "task.args={min_terms=2}"])
    [('optim.lr', 1e-05), ('run', 'runs/a'), ('task.args', {'min_terms': 2})]
    """
    pairs = []
    for item in overrides:
        key, sign, text = item.partition("=")
        if not sign or not key:
            raise UserError(f"'{item}' is not key=value", hint="write for example optim.lr=1e-5")
        pairs.append((key.strip(), _toml_value(text)))
    return pairs


def explain(config: Config, path: Path | None, overrides: Sequence[str]) -> list[tuple[str, Any, str]]:
    """(key, resolved value, source) per leaf; source is `command line`, the file, `preset …` or `default`."""
    sources = dict.fromkeys(_leaves(read_toml(path)), str(path)) if path is not None else {}
    for key, value in parse_overrides(overrides):
        for replaced in [
            old for old in sources if old.startswith(f"{key}.")
        ]:  # by a whole table given at once
            del sources[replaced]
        sources |= dict.fromkeys(_leaves({key: value}), "command line")
    for key in _leaves({"objective": PRESETS[config.objective.preset]}):
        sources.setdefault(key, f"preset {config.objective.preset}")
    return [(key, value, _source(sources, key)) for key, value in _leaf_values(config)]


def _source(sources: Mapping[str, str], leaf: str) -> str:
    """Of a leaf, or of the keys below it where its value is a table (`task.args`)."""
    below = [source for key, source in sources.items() if key == leaf or key.startswith(f"{leaf}.")]
    return "command line" if "command line" in below else below[0] if below else "default"


def dump_toml(config: Config) -> str:
    """The resolved configuration as TOML, enough to repeat the run."""
    return dump_table(dict(_leaf_values(config)))


def dump_table(values: Mapping[str, Any]) -> str:
    """Dotted key → value as TOML; None is left out."""
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


# --- errors -------------------------------------------------------------------------------------------------


def _explained(error: ValidationError, origin: str, typed: Sequence[str]) -> UserError:
    errors = error.errors(include_url=False)
    # a misspelt key also makes the right one missing; the misspelling is the better news
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    where = [part for part in first["loc"] if isinstance(part, str)]
    name = ".".join(_without_tags(where)) or "the configuration"
    if any(key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for key in typed):
        origin = TYPED
    if first["type"] == "extra_forbidden":
        return _unknown_key(where, origin)
    if first["type"] == "missing" and isinstance(first["loc"][-1], str):
        return UserError(f"{name} is missing{_in(origin)}", hint=f"give it on the command line: {name}=…")
    if first["type"] == "union_tag_invalid":
        return UserError(
            f"{name}.type = {first['ctx']['tag']!r} is unknown{_in(origin)}",
            hint=f"it may be {first['ctx']['expected_tags']}",
        )
    problem = (
        "an entry is missing" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
    )
    message, _, remedy = problem.partition(" (use ")
    hint = f"change {name} in {origin}, or override it: {name}=…"
    if origin == TYPED:
        hint = f"write another value: {name}=…"
    if remedy:  # our own validators end in it
        hint = f"use {remedy.removesuffix(')')}"
    shown = "" if isinstance(first.get("input"), dict) else f" (got {first.get('input')!r})"
    return UserError(f"{name}: {message}{shown}", hint=hint)


def _unknown_key(where: list[str], origin: str) -> UserError:
    key = where[-1]
    fields = _fields_at(where[:-1])
    place = ".".join(_without_tags(where))
    near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(fields))}"
    tag = where[-2] if len(where) == 3 and len(_without_tags(where)) == 2 else None
    if tag is not None and (having := _types_with(where[0], key)):  # what teacher.type=self leaves behind
        table = f'{where[0]}={{ type = "{tag}" }}'
        hint = f"{where[0]}.type={having[0]}, or replace the whole table: '{table}'"
        return UserError(f"'{place}' is no key of type {tag!r}", hint=hint)
    return UserError(f"unknown key '{place}'{_in(origin)}", hint=hint)


def _in(origin: str) -> str:
    return f" on {origin}" if origin == TYPED else f" in {origin}"


def _types_with(union: str, key: str) -> list[str]:
    """The `type`s of a tagged union (`teacher`, `task`, `sampling`) that have this key."""
    records = _records_in(Config.model_fields[union].annotation)
    return [r.model_fields["type"].default for r in records if key in r.model_fields]


def _tags(union: str) -> set[str]:
    """The `type`s of a tagged union."""
    return {r.model_fields["type"].default for r in _records_in(Config.model_fields[union].annotation)}


def _fields_at(where: Sequence[str]) -> list[str]:
    """Field names of the record that a pydantic location leads to; union tags in it pick the member."""
    record: type[BaseModel] = Config
    members: list[type[BaseModel]] = []
    for part in where:
        tagged = [m for m in members if m.model_fields["type"].default == part]
        if tagged:
            record, members = tagged[0], []
            continue
        if part not in record.model_fields:  # a name that the user gave: teacher.teachers.NAME
            continue
        members = [m for m in _records_in(record.model_fields[part].annotation)]
        record = members[0]
        if len(members) == 1:
            members = []
    return list(record.model_fields)


def _records_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [record for arg in typing.get_args(annotation) for record in _records_in(arg)]


def _without_tags(where: Sequence[str]) -> list[str]:
    """Drops union tags: ("teacher", "local", "modle") → teacher.modle."""
    kept: list[str] = []
    for i, part in enumerate(where):
        union = where[i - 1] if i > 0 else ""
        if i > 1 and where[i - 2] == "teachers":
            union = "teacher"
        is_tag = union in _UNIONS and part in _tags(union)
        if not is_tag:
            kept.append(part)
    return kept


_UNIONS = ("teacher", "reference", "task", "sampling")


def _nearest_file(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path(".")
    names = [p.name for p in folder.glob("*.toml")]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    return f"did you mean {folder / near[0]}?" if near else "see configs/ for files to start from"


# --- plain data ---------------------------------------------------------------------------------------------


def _resolve_paths(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths in a file are relative to the working folder, as everywhere on a command line; one that exists
    only beside the file is taken from there."""

    def near(value: Any) -> Any:
        if isinstance(value, list):
            return [near(item) for item in value]
        if isinstance(value, str) and not os.path.exists(value) and os.path.exists(folder / value):
            return str(folder / value)
        return value

    def inside(value: Any) -> Any:
        if not isinstance(value, dict):
            return near(value)
        return {k: near(v) if k in _PATHS else each(v) if k == "teachers" else v for k, v in value.items()}

    def each(teachers: Any) -> Any:
        return {k: inside(v) for k, v in teachers.items()} if isinstance(teachers, dict) else teachers

    return {k: inside(v) if k in _TABLES_WITH_PATHS else v for k, v in data.items()}


_TABLES_WITH_PATHS = ("student", "teacher", "reference", "task", "mix", "widen", "prompts")
_PATHS = (
    *("model", "path", "eval_path", "demonstrations", "against", "data", "train", "eval"),
    *("taught", "apart", "embedding"),
)


def _set(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for part in parents:
        inner = data.get(part)
        if isinstance(inner, str) and part in _SHORTHAND:  # teacher = "folder" then teacher.dtype=…
            inner = {_SHORTHAND[part]: inner}
        data[part] = dict(inner) if isinstance(inner, dict) else {}
        data = data[part]
    data[last] = value


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


_SHORTHAND = {
    "student": "model",
    "teacher": "model",
    "reference": "model",
    "task": "path",
    "grader": "type",
    "objective": "preset",
}
"""The one key that a bare string in place of a table stands for; no table of another name takes a string."""


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the values given; shorthand under the name it stands for.

    >>> list(_leaves({"task": "p.jsonl", "optim": {"lr": 1e-5}}))
    ['task.path', 'optim.lr']
    """
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{name}.")
        elif isinstance(value, str) and (last := name.rpartition(".")[2]) in _SHORTHAND:
            yield f"{name}.{_SHORTHAND[last]}"
        else:
            yield name


def _leaf_values(record: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(record).model_fields:
        value = getattr(record, name)
        if isinstance(value, BaseModel):
            yield from _leaf_values(value, f"{prefix}{name}.")
        elif isinstance(value, dict) and any(isinstance(v, BaseModel) for v in value.values()):
            for key, inner in value.items():
                yield from _leaf_values(inner, f"{prefix}{name}.{_key(key)}.")
        else:
            yield prefix + name, value


def _key(name: str) -> str:
    """A TOML key: quoted where a bare one may not have its characters."""
    return (
        name if name and all(c.isascii() and (c.isalnum() or c in "-_") for c in name) else _toml_string(name)
    )


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return _toml_string(str(value))


def _toml_string(text: str) -> str:
    escaped = "".join(_ESCAPES.get(c, c if c.isprintable() else f"\\U{ord(c):08x}") for c in text)
    return f'"{escaped}"'


_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
