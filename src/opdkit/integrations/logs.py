"""Logs of other trainers as runs that the report can read: theirs, in our words where the words mean the same.

What is read: TRL's trainer_state.json; JSON lines with a step (verl's file logger, a tracker's exported history);
the console of verl (`step:1 - actor/entropy:0.3 - …`) and of slime and miles (`rollout 0: {…}`), other lines
between them or not; TensorBoard's event files where that package is installed. Which tool wrote it is told by the names.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from opdkit.integrations.names import TOOLS, Mapped, Tool
from opdkit.report.text import number, visible
from opdkit.run.disk import write_atomic
from opdkit.run.rows import as_lines
from opdkit.types import Finding, UserError

Row = dict[str, float]
STEPS = ("step", "global_step", "train/global_step", "train/step", "rollout/step", "_step")
_RUN_FILES = ("metrics.jsonl", "config.toml", "env.json")
_SUFFIXES = (".jsonl", ".log", ".txt", ".out")
_EVENTS = "events.out.tfevents*"
_LONGEST = 1 << 16  # bytes of a console line that may be one of numbers


@dataclass(frozen=True)
class Log:
    """What a trainer logged, one row per step, ascending: `step`, our names, and TOOL/NAME for all others."""

    tool: str
    source: Path
    rows: Sequence[Row]
    same: Sequence[Mapped]  # entries of the tool's table that became ours
    different: Sequence[Mapped]  # entries that were there and are not ours
    notes: Sequence[str] = ()

    def findings(self) -> list[Finding]:
        """What a reader of the report must know: where this came from, and what only sounds like ours."""
        ours = ", ".join(f"{m.ours} ({m.theirs})" for m in self.same) or "none"
        told = [
            f"Read from a log of {self.tool}, {self.source}: no run of opdkit.",
            f"Ours by definition: {ours}.",
        ]
        numbers = {"steps": float(len(self.rows)), "same": len(self.same), "different": len(self.different)}
        first = " ".join([*told, *(f"{note}." for note in self.notes)])
        care = " ".join(f"{m.ours}: {m.note}." for m in self.same if m.note)
        return [
            Finding("imported_log", "info", visible(first), numbers=numbers),
            *([Finding("read_with_care", "info", care)] if care else []),
            *(self._differs(m) for m in self.different),
        ]

    def _differs(self, m: Mapped) -> Finding:
        """Named after the metric, so that each has a place of its own in a timeline."""
        message = f"{self.tool}/{m.theirs} keeps its own name: {m.note}. Made in {m.source}."
        return Finding(re.sub(r"\W+", "_", m.theirs) + "_differs", "info", message)


def read_log(path: Path, *, tool: str = "auto") -> Log:
    """The log at `path`, a file or a folder that holds one.

    Raises UserError where there is none, or its tool is not told by its names.
    """
    if tool != "auto" and tool not in TOOLS:
        raise UserError(f"there is no reader for logs of {tool!r}", hint=f"one of auto, {', '.join(TOOLS)}")
    file = log_file(path)
    if file is None:
        raise UserError(f"{path} holds no log that is known", hint="name the file: opd report FILE")
    read = _read(file)
    names = {name for entry in read.entries for name in entry.numbers}
    chosen = TOOLS[tool] if tool != "auto" else _tool(names, file)
    return _translated(chosen, file, read)


def import_log(path: Path, out: Path, *, tool: str = "auto") -> Path:
    """`out` as a run folder of the log at `path`: metrics.jsonl, env.json, findings.jsonl. For the report, not to go on with.

    Raises UserError where `out` is taken or the log cannot be read.
    """
    log = read_log(path, tool=tool)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty", hint=f"another folder: {out}-2")
    out.mkdir(parents=True, exist_ok=True)
    env = {"tool": log.tool, "source": str(log.source), "imported": True}
    write_atomic(out / "findings.jsonl", data=as_lines([asdict(finding) for finding in log.findings()]))
    write_atomic(out / "env.json", data=(json.dumps(env, indent=2) + "\n").encode())
    write_atomic(out / "metrics.jsonl", data=as_lines(log.rows))
    return out


@contextmanager
def as_runs(paths: Sequence[Path]) -> Iterator[tuple[list[Path], Path | None]]:
    """The paths with every log of another tool replaced by a run folder, which is gone afterwards.

    Also where a page of them goes when nobody says: beside the log, if the first path is one.
    """
    with tempfile.TemporaryDirectory(prefix="opd-") as place:
        folders = [_as_run(path, Path(place) / str(index)) for index, path in enumerate(paths)]
        log = bool(paths) and folders[0] != paths[0]
        yield folders, _beside(paths[0]) if log else None


def _as_run(path: Path, out: Path) -> Path:
    known = any((path / name).is_file() for name in _RUN_FILES) or _is_document(path)
    return path if known or not path.exists() or log_file(path) is None else import_log(path, out)


def _beside(path: Path) -> Path:
    return path / "report.html" if path.is_dir() else path.with_name(f"{path.stem}.report.html")


def _is_document(path: Path) -> bool:
    """A JSON file without a history is the report's own, or nobody's."""
    if path.suffix != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        return b'"log_history"' not in file.read(1 << 16)


# --- files --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """Numbers that were logged together. Rollouts are counted in rounds, which may hold several updates."""

    step: int
    numbers: Row
    round: bool = False


@dataclass
class _Read:
    entries: list[_Entry] = field(default_factory=list)
    torn: int = 0  # lines that began like JSON and were not


def log_file(path: Path) -> Path | None:
    """The log that `path` is or holds; None where it holds none. Raises UserError where it holds several."""
    if not path.is_dir():
        return path if path.is_file() else None
    if (path / "trainer_state.json").is_file():
        return path / "trainer_state.json"
    states = sorted(
        path.glob("checkpoint-*/trainer_state.json"), key=lambda p: (len(p.parent.name), p.parent.name)
    )
    if states:
        return states[-1]
    found = [file for file in sorted(path.iterdir()) if file.suffix in _SUFFIXES and _looks_like_a_log(file)]
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:5])
        raise UserError(f"{path} holds several logs: {names}", hint=f"opd report {found[0]}")
    return found[0] if found else next(iter(sorted(path.glob(_EVENTS))), None)


def _looks_like_a_log(file: Path) -> bool:
    """Whether a step with numbers of a known tool stands in its first lines."""
    read = _Read()
    try:
        with file.open("rb") as lines:
            for raw in islice(lines, 2000):
                _line(raw, read)
    except OSError:  # a folder, or nothing that may be read: no log of ours to choose
        return False
    names = {name for entry in read.entries for name in entry.numbers}
    return any(tool.marks_on(name) for tool in TOOLS.values() for name in names)


def _read(file: Path) -> _Read:
    try:
        if "tfevents" in file.name:
            return _tensorboard(file)
        if file.suffix == ".json":
            return _trainer_state(file)
        read = _Read()
        with file.open("rb") as lines:
            for raw in lines:
                _line(raw, read)
        return read
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}", hint=f"ls -l {file}") from error


def _trainer_state(file: Path) -> _Read:
    try:
        state = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}", hint="trainer_state.json of a checkpoint") from error
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        raise UserError(
            f"{file} holds no log_history", hint="trainer_state.json of a checkpoint, or JSON lines"
        )
    rows = [row for row in history if isinstance(row, dict)]
    return _Read([entry for row in rows if (entry := _object(row)) is not None])


def _tensorboard(file: Path) -> _Read:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ModuleNotFoundError as error:
        raise UserError(f"{file} is TensorBoard's", hint="pip install tensorboard") from error
    events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
    return _Read(
        [
            _Entry(int(event.step), {name: value}, name.startswith(("rollout/", "perf/")))
            for name in events.Tags()["scalars"]
            for event in events.Scalars(name)
            if (value := number(event.value)) is not None
        ]
    )


_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_VERL = re.compile(r"(?<![\w/])step:(\d{1,12}) - (\S.*)")
_VALUE = r"(?:np\.\w+\()?(-?(?:\d[\d.]*(?:[eE][+-]?\d+)?|nan|inf))\)?"
_VERL_PAIR = re.compile(rf"(\S(?:.*\S)?):{_VALUE}")
_SLIME = re.compile(r"(?:^|[\s\]])(step|rollout|perf|eval|passrate|multi_turn) (\d{1,12}): (\{.*\})\s*$")
_SLIME_PAIR = re.compile(rf"'([^'\s]{{1,200}})': {_VALUE}(?=[,}}])")


def _line(raw: bytes, read: _Read) -> None:
    """The numbers of one line, if it holds any; all other talk is passed over."""
    if raw.lstrip().startswith(b"{"):
        _json_line(raw, read)
        return
    line = "" if len(raw) > _LONGEST else _ANSI.sub("", raw.decode(errors="replace")).strip()
    if found := _VERL.search(line):
        pairs = [pair for part in found[2].split(" - ") if (pair := _VERL_PAIR.fullmatch(part.strip()))]
        _add(read, _Entry(int(found[1]), _numbers({pair[1]: pair[2] for pair in pairs})))
    elif found := _SLIME.search(line):
        numbers = _numbers(dict(_SLIME_PAIR.findall(found[3])))
        _add(read, _Entry(int(found[2]), numbers, round=found[1] != "step"))


def _json_line(raw: bytes, read: _Read) -> None:
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError):
        read.torn += 1
        return
    if isinstance(row, dict) and (entry := _object(row)) is not None:
        _add(read, entry)


def _object(row: Mapping[str, Any]) -> _Entry | None:
    """{"step": 1, "data": {…}} of verl's file logger, or a row that holds its step beside its numbers."""
    name = next((name for name in STEPS if number(row.get(name)) is not None), None)
    if name is None:
        return None
    data = row["data"] if isinstance(row.get("data"), dict) else row
    told = {str(key): value for key, value in data.items() if not isinstance(value, str)}
    return _Entry(int(row[name]), _numbers(told), name == "rollout/step")


def _add(read: _Read, entry: _Entry) -> None:
    if entry.numbers:
        read.entries.append(entry)


def _numbers(values: Mapping[str, Any]) -> Row:
    """What is a finite number, and neither a step nor a tracker's own (`_timestamp`)."""
    found = {name: number(_spelt(value)) for name, value in values.items()}
    return {
        name: value
        for name, value in found.items()
        if value is not None and name not in STEPS and not name.startswith("_")
    }


def _spelt(value: Any) -> Any:
    """A number that the console spelt; 1.2.3 is a version and stays text."""
    try:
        return float(value) if isinstance(value, str) and len(value) < 40 else value
    except ValueError:
        return value


# --- whose, and in our words --------------------------------------------------------------------------------


def _tool(names: set[str], file: Path) -> Tool:
    """The tool with the most names of its own; of two with as many, the first of the table."""
    counts = {key: sum(tool.marks_on(name) for name in names) for key, tool in TOOLS.items()}
    best = max(counts, key=lambda key: counts[key])
    if counts[best] == 0:
        seen = ", ".join(visible(name) for name in sorted(names)[:8]) or "none"
        raise UserError(
            f"{file} is no log of {', '.join(TOOLS)} that is known here; names with a step and a number: {seen}",
            hint="trainer_state.json, JSON lines with a step, or the console of verl, slime or miles",
        )
    return TOOLS[best]


def _translated(tool: Tool, file: Path, read: _Read) -> Log:
    entries, notes = _aligned(read.entries)
    by_step: dict[int, Row] = {}
    for entry in entries:  # the later of two values of a step is the one after a resume
        plain = {tool.plain(name): value for name, value in entry.numbers.items()}
        by_step.setdefault(entry.step, {}).update(plain)
    names = {name for row in by_step.values() for name in row}
    table = [_in_effect(m, names) for m in tool.table if m.theirs in names]
    taken: dict[str, Mapped] = {}
    for m in table:
        if m.ours is not None:
            taken.setdefault(m.ours, m)  # of two names of one quantity the first of the table
    same = {m.theirs: m for m in taken.values()}
    rows = [{"step": step, **_row(by_step[step], same, tool)} for step in sorted(by_step)]
    if read.torn:
        notes.append(f"{read.torn} lines began like JSON and were not, and are left out")
    return Log(tool.name, file, rows, list(same.values()), [m for m in table if m.ours is None], notes)


def _in_effect(m: Mapped, names: set[str]) -> Mapped:
    return replace(m, ours=None) if m.unless and m.unless in names else m


def _row(row: Row, same: Mapping[str, Mapped], tool: Tool) -> Row:
    ours = {name: same[name] for name in row if name in same}
    return {str(m.ours): m.factor * row[name] for name, m in ours.items()} | {
        f"{tool.name}/{name}": value for name, value in row.items() if name not in same
    }


def _aligned(entries: Sequence[_Entry]) -> tuple[list[_Entry], list[str]]:
    """Rounds put at the first of their updates, where a round had several: both then share one axis."""
    rounds = [entry.step for entry in entries if entry.round]
    updates = [entry.step for entry in entries if not entry.round]
    width = (max(updates) + 1) // (max(rounds) + 1) if rounds and updates else 1
    if width < 2:
        return list(entries), []
    moved = [replace(entry, step=entry.step * width) if entry.round else entry for entry in entries]
    return moved, [f"A round of rollouts had {width} updates: its numbers stand at the first of them"]
