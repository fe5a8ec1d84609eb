"""What was foretold of a pair and why, where its numbers lie among pairs of the testbed, and what came of it.

Read from the document of `opd check`, which may be torn or of another version: what is not what it should be is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from opdkit.report.change import gap_recovery, scores, teacher_score
from opdkit.report.preflight import UNKNOWN, mapping, rows, said_of, without_empty
from opdkit.report.read import Run
from opdkit.report.tables import Table
from opdkit.report.text import number, percent, shown

SPEAKS = 0.05
"""Of gap recovery: parts below are not worth a word."""
MIDDLE = 1, 3
"""Places of the tenth and the ninetieth percentile among a band's quantiles."""


def predicted(run: Run) -> tuple[float, float] | None:
    """The gap recovery it predicted, from and to."""
    it = mapping(mapping(run.check.get("prediction")).get("gap_recovery"))
    low, high = number(it.get("low")), number(it.get("high"))
    return None if low is None or high is None else (low, high)


def prediction(run: Run) -> Table:
    """Predicted beside measured, as far as either is known."""
    it, head = mapping(run.check.get("prediction")), ["", "predicted", "came out"]
    expected, teacher, found = predicted(run), teacher_score(run), scores(run)
    gap = teacher - found[0].value if teacher is not None and found else None
    slope, low, high = (number(it.get(name)) for name in ("slope", "slope_low", "slope_high"))
    within = "" if low is None or high is None else f" [{shown(low)}, {shown(high)}]"
    lines = [
        ["teacher − student, accuracy", percent(number(it.get("gap"))), percent(gap)],
        [
            "gap recovery",
            _expected(it, expected),
            percent(gap_recovery(run)),
        ],
        ["accuracy per √nat, at first", f"{shown(slope)}{within}" if slope is not None else UNKNOWN, UNKNOWN],
    ]
    kept = [row for row in lines if row[1] != UNKNOWN]
    return without_empty(Table(head, kept)) if it and kept else Table(head, [])


def _expected(it: Mapping[str, Any], expected: tuple[float, float] | None) -> str:
    if expected is None:
        return UNKNOWN
    value = number(mapping(it.get("gap_recovery")).get("value"))
    whole = f"{percent(expected[0])} to {percent(expected[1])}"
    return whole if value is None else f"{percent(value)} ({whole})"


def reasons(check: Mapping[str, Any]) -> list[str]:
    """What speaks for and against, the pair seen that is most like it, and what lies outside; [] of a range by verdict."""
    it = mapping(check.get("prediction"))
    parts = {
        name: part for name, value in mapping(it.get("parts")).items() if (part := number(value)) is not None
    }
    said = [
        f"{word}: {', '.join(names)}"
        for word, sign in (("For it", 1), ("Against it", -1))
        if (names := _heard(parts, sign))
    ]
    near = mapping(it.get("nearest"))
    recovered, distance, reach = (number(near.get(name)) for name in ("gap_recovery", "distance", "reach"))
    if isinstance(near.get("pair"), str) and recovered is not None:
        like = f"Most like {near['pair']}, which recovered {percent(recovered)}"
        far = distance is not None and reach is not None and distance > reach
        said.append(
            f"{like}, and yet unlike any pair seen: the interval vouches for nothing" if far else like
        )
    if beyond := [_beyond(row) for row in rows(it.get("outside"))]:
        said.append(f"Outside what was seen: {', '.join(beyond)}")
    return said


def _heard(parts: Mapping[str, float], sign: int) -> list[str]:
    """The loudest first."""
    heard = [name for name, part in parts.items() if sign * part >= SPEAKS]
    return [f"{name} {shown(parts[name])}" for name in sorted(heard, key=lambda name: -abs(parts[name]))]


def _beyond(row: Mapping[str, Any]) -> str:
    value, low, high = (number(row.get(name)) for name in ("value", "low", "high"))
    return f"{row.get('feature', UNKNOWN)} {shown(value)} (seen {shown(low)} to {shown(high)})"


def among(check: Mapping[str, Any]) -> Table:
    """Single numbers beside the middle 80 % of pairs that worked and that failed."""
    lines = []
    for row in rows(check.get("bands")):
        name, value = row.get("name"), number(row.get("value"))
        if isinstance(name, str) and value is not None:
            lines.append(
                [
                    name,
                    said_of(name, value),
                    *(_middle(name, row.get(side)) for side in ("working", "failing")),
                ]
            )
    return Table(["", "this pair", "pairs that worked", "pairs that failed"], lines)


def _middle(name: str, side: Any) -> str:
    quantiles = mapping(side).get("quantiles")
    known: Sequence[Any] = quantiles if isinstance(quantiles, list) else []
    ends = [number(known[place]) if place < len(known) else None for place in MIDDLE]
    return UNKNOWN if None in ends else " to ".join(said_of(name, end) for end in ends)


def basis(check: Mapping[str, Any]) -> str:
    found = mapping(check.get("prediction")).get("basis")
    return found if isinstance(found, str) else ""


def kept_promise(run: Run) -> str:
    """Whether the gap recovery came out as predicted, as a sentence; "" where either is not known."""
    expected, came = predicted(run), gap_recovery(run)
    if expected is None or came is None:
        return ""
    low, high = expected
    reading = (
        "as predicted"
        if low <= came <= high
        else "less than predicted"
        if came < low
        else "more than predicted"
    )
    return f"It recovered {percent(came)} of its gap to the teacher; predicted were {percent(low)} to {percent(high)}: {reading}."
