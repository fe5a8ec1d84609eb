"""A study's table on disk: what is asked, its rows, what came. One row a line, so that a change can be read.

OUT/NAME.json    rows of every scale that was run; verdicts of the widest
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opdkit.run.disk import write_atomic
from opdkit.studies.estimate import Row, Rows
from opdkit.studies.study import PAPER, REAL, SCALES, Decision, Study, decisions, outcome, reproduced

Place = tuple[str, str, int, str]
"""Scale, family, seed and arm."""


def table_of(study: Study, out: Path) -> Path:
    """Where the study's table is kept."""
    return out / f"{study.name}.json"


def rows_in(study: Study, out: Path) -> Rows:
    """The rows kept there, of all scales; none where it was not run."""
    path = table_of(study, out)
    rows: Rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    return rows


def kept_at(at: Place, study: Study, out: Path) -> Row | None:
    """The row in that place."""
    return next((row for row in rows_in(study, out) if place(row) == at), None)


def keep(study: Study, row: Row, out: Path) -> None:
    """Put a row in its place, instead of what was there."""
    others = [old for old in rows_in(study, out) if place(old) != place(row)]
    order = {arm.name: i for i, arm in enumerate(study.arms)}
    known = [old for old in others if old["arm"] in order or old["family"] == PAPER]
    rows = sorted(
        [*known, row], key=lambda r: (r["scale"], r["family"], r["seed"], order.get(r["arm"], len(order)))
    )
    write_atomic(table_of(study, out), data=_text(told(study, rows)).encode())


def place(row: Row) -> Place:
    return row["scale"], row["family"], row["seed"], row["arm"]


def widest(rows: Rows) -> Rows:
    """The rows of the testbed's largest scale that has any, and those of real models."""
    real = [row for row in rows if row["family"] in (REAL, PAPER)]
    for scale in reversed(list(SCALES)):
        if some := [row for row in rows if row["scale"] == scale]:
            return [*some, *real]
    return real


def about(study: Study) -> dict[str, Any]:
    """What is known before any run."""
    return {
        "name": study.name,
        "question": study.question,
        "section": study.section,
        "figures": list(study.figures),
        "claim": study.claim,
        "arms": {
            arm.name: {
                "pair": [arm.student, arm.teacher],
                "steps": arm.steps,
                "variant": arm.variant,
                "measured": arm.measured,
                **({"draw": arm.draw} if arm.draw else {}),
                "settings": dict(arm.over(SCALES["full"].steps)),
            }
            for arm in study.arms
        },
        "expectation": {e.name: e.text for e in study.expected},
    }


def told(study: Study, rows: Rows) -> dict[str, Any]:
    """The study with its table and what came, for machines."""
    seen = widest(rows)
    families = sorted({row["family"] for row in seen})
    return {
        **about(study),
        "scale": seen[0]["scale"] if seen else None,
        "outcome": {name: outcome(study, seen, name) for name in families} | {"all": reproduced(study, seen)},
        "decisions": {
            name: {family: _plain(decision) for family, decision in found.items()}
            for name, found in decisions(study, seen).items()
        },
        "rows": rows,
    }


def _plain(decision: Decision) -> dict[str, Any]:
    numbers = {} if decision.estimate is None else asdict(decision.estimate)
    return {"verdict": decision.verdict, **numbers}


def _text(document: Mapping[str, Any]) -> str:
    head = {key: value for key, value in document.items() if key != "rows"}
    start = json.dumps(short(head), indent=1).removesuffix("\n}")
    rows = ",\n".join(json.dumps(short(row)) for row in document["rows"])
    return f'{start},\n "rows": [\n{rows}\n ]\n}}\n'


def short(value: Any) -> Any:
    """Floats to six digits: more is noise, and tables are read by people too."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: short(each) for key, each in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [short(each) for each in value]
    return value
