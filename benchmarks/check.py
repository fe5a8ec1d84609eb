"""Have we become slower? Ratios measured now against the ones stored for this machine. Pure: no clock, no torch.

The rule, per record that has a ratio in both: with at least five pairs now, the median now must not be worse than 0.9
times the worst pair that was stored (1.1 times, where lower is better). The worst stored pair, because pairs of one run
scatter by as much on a machine that is not alone; ten percent, because runs do. Seconds are not compared, ratios are: both
sides of a pair suffer alike from a slow machine. A record that was measured and fails now, or whose agreement does not
hold, is worse too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ALLOWED = 0.1
FEWEST = 5  # pairs


def judge(now: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """One line of the table: `verdict` is `ok`, `worse`, or why nothing was judged."""
    line = {"name": now["name"], "verdict": "ok", "now": None, "before": None, "bound": None}
    if now.get("checked") is False:
        return line | {"verdict": "worse", "why": "our loss is not theirs"}
    if before is None or "ratio" not in before:
        why = "nothing stored" if before is None else "refused when stored"
        return line | {"verdict": why}
    line |= {"before": before["ratio"]["median"]}
    if "failed" in now:
        return line | {"verdict": "worse", "why": now["failed"]}
    ratio = now["ratio"]
    lower = ratio["better"] == "lower"
    bound = before["ratio"]["max"] * (1 + ALLOWED) if lower else before["ratio"]["min"] * (1 - ALLOWED)
    line |= {"now": ratio["median"], "bound": bound}
    if now.get("work") != before.get("work"):
        return line | {"verdict": "another workload"}
    if ratio["pairs"] < FEWEST:
        return line | {"verdict": "too few pairs"}
    worse = ratio["median"] > bound if lower else ratio["median"] < bound
    return line | {"verdict": "worse" if worse else "ok"}


def compare(now: Sequence[dict[str, Any]], stored: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line per record measured now, in its order."""
    before = {record["name"]: record for record in stored}
    return [judge(record, before.get(record["name"])) for record in now]


def fell(lines: Sequence[dict[str, Any]]) -> bool:
    return any(line["verdict"] == "worse" for line in lines)


def shown(lines: Sequence[dict[str, Any]]) -> str:
    """The table as text.

    >>> print(shown([{"name": "equal", "verdict": "ok", "now": 1.4, "before": 1.36, "bound": 1.026}]))
    row                      now  stored   bound  verdict
    equal                   1.40    1.36    1.03  ok
    """
    told = [f"{'row':20} {'now':>7} {'stored':>7} {'bound':>7}  verdict"]
    for line in lines:
        numbers = " ".join(_number(line[key]) for key in ("now", "before", "bound"))
        why = f": {line['why']}" if "why" in line else ""
        told.append(f"{line['name']:20} {numbers}  {line['verdict']}{why}")
    return "\n".join(told)


def _number(value: float | None) -> str:
    return f"{'—':>7}" if value is None else f"{value:7.2f}"
