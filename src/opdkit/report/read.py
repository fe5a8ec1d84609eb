"""A run folder, or what `opd check` said, as plain data. Files may be missing, short or torn; what is there is read."""

import difflib
import json
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opdkit.report.text import number, redacted, visible
from opdkit.types import UserError

Row = dict[str, Any]
ALONE = ("sft", "grpo", "improve", "push_down")  # stories without a teacher
SCHEMA = "opdkit.verdict/1"  # of what `opd check` and `opd diagnose` say
CHECK = "check.json"
RUN_FILES = ("metrics.jsonl", "config.toml", "env.json")


@dataclass(frozen=True)
class Run:
    """What a run folder says, its strings free of invisible characters. `gaps` names what is missing."""

    name: str
    config: Mapping[str, Any]  # dotted key → value
    env: Mapping[str, Any]  # dotted key → value
    metrics: Sequence[Row]  # one per step, ascending
    evals: Sequence[Row]
    findings: Sequence[Row]
    rollouts: Mapping[int, Sequence[Row]]  # sampled step → rows
    gaps: Sequence[str]
    sequences: Sequence[Row] = ()  # one per written step, ascending: arrays over the step's rollouts
    check: Mapping[str, Any] = field(
        default_factory=dict
    )  # what `opd check` said of it; {} where it was not asked
    ran: bool = True  # False for a preflight alone: nothing was trained

    @property
    def story(self) -> str:
        """Which loop wrote the run; folders from before there were several hold a distillation."""
        story = self.config.get("story")
        return story if isinstance(story, str) and story else "distill"

    @property
    def taught(self) -> bool:
        """Whether there was a teacher: without one, nothing about alignment is to be expected."""
        return self.story not in ALONE

    def names(self) -> list[str]:
        """Metric names in order of first appearance."""
        return list(dict.fromkeys(key for row in self.metrics for key in row if key != "step"))

    def series(self, name: str) -> tuple[list[int], list[float | None]]:
        """Steps that logged `name`, and its values; None where the value was not a finite number."""
        rows = [row for row in self.metrics if name in row]
        return [row["step"] for row in rows], [number(row[name]) for row in rows]

    def values(self, name: str) -> list[float]:
        return [value for value in self.series(name)[1] if value is not None]


def read_run(path: Path, *, name: str) -> Run:
    """Everything the report shows of `path`, a run folder or a document of `opd check`.

    Raises UserError when it is neither.
    """
    if (document := _document(path)) is not None:
        return _read_document(document, name=name)
    _refuse_other_folders(path)
    gaps: list[str] = []
    config = read_table(path / "config.toml", tomllib.loads, gaps)
    return Run(
        name=visible(name),
        config=config,
        env=read_table(path / "env.json", json.loads, gaps),
        metrics=_steps(_read_rows(path / "metrics.jsonl", gaps)),
        evals=_steps(_read_rows(path / "eval.jsonl", gaps)),
        findings=_read_rows(path / "findings.jsonl", gaps, optional=True),
        rollouts=_read_rollouts(path / "rollouts", gaps, optional=config.get("story") == "sft"),
        gaps=gaps,
        sequences=_steps(_read_rows(path / "sequences.jsonl", gaps, optional=True)),
        check=read_check(path / CHECK, gaps),
    )


def read_check(path: Path, gaps: list[str]) -> dict[str, Any]:
    """What `opd check` said of a pair; {} where there is no such file, or it holds something else."""
    try:
        if not path.is_file():
            return {}
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and found.get("schema") == SCHEMA:
        return dict(_clean(found))
    gaps.append(f"{path.name} cannot be read: it is not whole, or of another version")
    return {}


def _document(path: Path) -> Path | None:
    """The file to read where `path` is a document alone, or a folder with nothing else in it."""
    if path.is_file():
        return path
    alone = (path / CHECK).is_file() and not any((path / file).is_file() for file in RUN_FILES)
    return path / CHECK if alone else None


def _read_document(path: Path, *, name: str) -> Run:
    check = read_check(path, [])
    if not check:
        raise UserError(
            f"{path} is no run folder, and no document of opd check (schema {SCHEMA})",
            hint=f"opd check CONFIG --json > {CHECK}",
        )
    return Run(visible(name), {}, {}, (), (), (), {}, (), check=check, ran=False)


def run_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart.

    >>> run_names([Path("a/run"), Path("b/run"), Path("b/run")])
    ['a/run', 'b/run', 'b/run (2)']
    """
    parts = [path.resolve().parts for path in paths]
    distinct = len(set(parts))
    depth = next((d for d in range(1, 20) if len({p[-d:] for p in parts}) == distinct), 20)
    names: list[str] = []
    for part in parts:
        name, copy = "/".join(part[-depth:]), 1
        while name in names:
            copy += 1
            name = f"{'/'.join(part[-depth:])} ({copy})"
        names.append(name)
    return names


def _refuse_other_folders(path: Path) -> None:
    if any((path / file).is_file() for file in RUN_FILES):
        return
    what = "holds no run" if path.is_dir() else "is no folder"
    raise UserError(f"{path} {what}: no metrics.jsonl, config.toml or env.json", hint=nearest_run(path))


def nearest_run(path: Path, *, command: str = "opd report") -> str:
    """What to type instead: the run beside or inside `path` whose name is most like it."""
    place = path if path.is_dir() else path.parent
    near = sorted(place.glob("*/metrics.jsonl")) if place.is_dir() else []
    if not near:
        return f"{command} RUN, the folder `run = …` in the run's config"
    alike = difflib.get_close_matches(path.name, [file.parent.name for file in near], n=1, cutoff=0.0)
    found = next((file.parent for file in near if file.parent.name in alike), near[0].parent)
    return f"{command} {shlex.quote(str(found))}"


def read_table(path: Path, parse: Any, gaps: list[str]) -> dict[str, Any]:
    """Dotted key → value of a TOML or JSON file, secrets hidden; {} where it is missing or not whole."""
    text = _read_text(path, gaps)
    if text is None:
        return {}
    try:
        data = parse(text)
        return dict(_leaves(data)) if isinstance(data, dict) else {}
    except (ValueError, RecursionError):
        gaps.append(f"{path.name} cannot be read: it is not whole")
        return {}


def _leaves(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """{"a": {"b": 1}} → [("a.b", 1)]"""
    found: list[tuple[str, Any]] = []
    for key, value in data.items():
        name = prefix + visible(str(key))
        if isinstance(value, dict) and value:
            found += _leaves(value, f"{name}.")
        else:
            found.append((name, redacted(name, _clean(value))))
    return found


def _read_rows(path: Path, gaps: list[str], *, optional: bool = False) -> list[Row]:
    """Objects of a JSONL file. A torn or foreign line is left out and said so, never a reason to fail."""
    if optional and not path.is_file():
        return []
    lines = [line for line in (_read_text(path, gaps) or "").split("\n") if line.strip()]
    rows = [row for row in map(parsed, lines) if row is not None]
    if len(rows) < len(lines):
        torn = len(lines) - len(rows)
        gaps.append(
            f"{path.name}: {torn} line{'s' * (torn > 1)} could not be read (torn by a kill?) and left out"
        )
    return rows


def parsed(line: str) -> Row | None:
    """The object a line holds, its strings visible; None for anything else."""
    try:
        row = json.loads(line)
        return _clean(row) if isinstance(row, dict) else None
    except (ValueError, RecursionError):
        return None


def _clean(value: Any) -> Any:
    """`value` with every string made visible, keys too."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(str(key)): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list) else value


def _read_text(path: Path, gaps: list[str]) -> str | None:
    if not path.is_file():
        gaps.append(f"no {path.name}")
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.strip():
        gaps.append(f"{path.name} is empty")
    return text


def _steps(rows: Sequence[Row]) -> list[Row]:
    """One row per step, ascending: after a resume the later row of a step is the one that counts."""
    by_step = {
        int(step): row | {"step": int(step)} for row in rows if (step := number(row.get("step"))) is not None
    }
    return [by_step[step] for step in sorted(by_step)]


def _read_rollouts(folder: Path, gaps: list[str], *, optional: bool) -> dict[int, list[Row]]:
    """The first and the last sampled step; what lies between stays in the folder. Demonstrations have none."""
    files = {int(end): file for file in folder.glob("step_*.jsonl") if (end := file.stem[5:]).isdecimal()}
    if not files:
        gaps += [] if optional else ["no sampled rollouts"]
        return {}
    return {step: _read_rows(files[step], gaps) for step in sorted({min(files), max(files)})}
