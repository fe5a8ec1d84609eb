"""Findings along the steps of a run: where they stand on the axis, and everything they say."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opdkit.report.notes import facts, text
from opdkit.report.read import Row, Run
from opdkit.report.text import number, shown

SIGNS: Mapping[str, str] = {"error": "■", "warning": "▲", "info": "●"}  # told apart without colour
APART = 9.0  # percent of the axis that a sign and its number need on a narrow page
LEVELS = 6  # of signs above each other


@dataclass(frozen=True)
class Told:
    """A finding as the page shows it. `number` is its place in the list, `at` its place on the axis in percent."""

    number: int
    key: str  # of the element on the page
    name: str
    severity: str  # error, warning or info, however it was spelt
    step: float | None  # None: before the first step
    at: float
    message: str
    rule: str
    source: str
    remedy: str
    facts: Sequence[tuple[str, str]]

    @property
    def sign(self) -> str:
        return SIGNS[self.severity]

    @property
    def when(self) -> str:
        return "before the first step" if self.step is None else f"step {shown(self.step)}"


@dataclass(frozen=True)
class Lane:
    """The findings of one severity, each with its level above the axis of the lane."""

    severity: str
    marks: Sequence[tuple[Told, int]]

    @property
    def sign(self) -> str:
        return SIGNS[self.severity]

    @property
    def levels(self) -> int:
        return 1 + max(level for _, level in self.marks)


def told(rows: Sequence[Row], *, key: str, end: float = 0.0) -> list[Told]:
    """Findings in the order of steps, those from before the first one first; `end` is the last step of the axis."""
    ordered = sorted(rows, key=lambda row: _step(row) or 0.0)
    return [_told(row, i, key, end) for i, row in enumerate(ordered, start=1)]


def of_run(run: Run, index: int) -> list[Told]:
    return told(run.findings, key=f"finding-{index}", end=last_step(run))


def of_check(run: Run, index: int) -> list[Told]:
    found = run.check.get("findings")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    return told(rows, key=f"preflight-{index}")


def lanes(found: Sequence[Told]) -> list[Lane]:
    """One lane per severity that occurs, the worst first; signs that would cover each other are stacked."""
    kinds = [(severity, [it for it in found if it.severity == severity]) for severity in SIGNS]
    return [Lane(severity, _stacked(mine)) for severity, mine in kinds if mine]


def ticks(run: Run) -> list[tuple[float, str]]:
    """(percent, step) along the axis: five places at most."""
    end = last_step(run)
    return [(25.0 * quarter, shown(round(end * quarter / 4))) for quarter in range(5 if end >= 4 else 1)]


def last_step(run: Run) -> float:
    """The last step of the axis: planned, done or found, whichever is later."""
    steps = [_step(row) or 0.0 for row in run.findings]
    done = float(run.metrics[-1]["step"]) if run.metrics else 0.0
    return max([1.0, number(run.config.get("steps")) or 0.0, done, *steps])


def marks(runs: Sequence[Run], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Findings that speak of one of `metrics`, in their numbers or in the rule that fired."""
    return [
        {"run": index, "x": it.step, "sign": f"{it.sign}{it.number}", "severity": it.severity}
        for index, run in enumerate(runs)
        for it in of_run(run, index)
        if it.step is not None and _speaks_of(it, metrics)
    ]


def _speaks_of(it: Told, metrics: Sequence[str]) -> bool:
    named = {name for name, _ in it.facts} | set(re.findall(r"[\w/]+", it.rule))
    return not named.isdisjoint(metrics)


def severity_of(row: Row) -> str:
    """error, warning or info; whatever else a file says is an info."""
    found = row.get("severity")
    return found if isinstance(found, str) and found in SIGNS else "info"


def _told(row: Row, place: int, key: str, end: float) -> Told:
    numbers, step = row.get("numbers"), _step(row)
    return Told(
        number=place,
        key=f"{key}-{place}",
        name=str(row.get("name") or "finding"),
        severity=severity_of(row),
        step=step,
        at=round(100 * min(1.0, (step or 0.0) / end), 2) if end > 0 else 0.0,
        message=text(row.get("message") or ""),
        rule=text(row.get("rule") or ""),
        source=text(row.get("source") or ""),
        remedy=text(row.get("remedy") or ""),
        facts=facts(numbers) if isinstance(numbers, dict) else [],
    )


def _step(row: Row) -> float | None:
    found = number(row.get("step"))
    return None if found is None else max(0.0, found)


def _stacked(found: Sequence[Told]) -> list[tuple[Told, int]]:
    ends = [-APART] * LEVELS
    placed = []
    for it in found:
        level = next((i for i, end in enumerate(ends) if it.at - end >= APART), LEVELS - 1)
        ends[level] = it.at
        placed.append((it, level))
    return placed
