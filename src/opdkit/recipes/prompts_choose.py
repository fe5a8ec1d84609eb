"""Which of the prompts that are left stay: a band of pass rates, the best ranked, or few that reach many teacher states."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from opdkit.config import PromptsConfig
from opdkit.diagnostics.coverage import reached, widest
from opdkit.recipes.prompts_measure import Measured
from opdkit.recipes.prompts_row import Judged, kept

NUMBER = {
    "closeness": ("closeness", -1),
    "teacher_logp": ("teacher_logp", -1),
    "teacher_entropy": ("entropy_teacher", 1),
}
"""What a rank goes by: a number of the row, and the sign under which small is good."""


def in_band(rows: Sequence[Judged], band: tuple[float, float]) -> list[Judged]:
    """Without prompts that the student solves more or less often than `band`; one that could not be graded stays."""
    low, high = band
    told = []
    for row in rows:
        rate = row.numbers.get("pass_rate")
        if row.kept and rate is not None and not low <= rate <= high:
            side = "above" if rate > high else "below"
            row = row.drop(f"pass rate {rate:g}, {side} the band of {low:g} to {high:g}")
        told.append(row)
    return told


def ranked(rows: Sequence[Judged], by: str, *, keep: int) -> list[Judged]:
    """Kept rows get a `rank` from 1, rows without the number the last ones; with `keep` the others are dropped. Order stays."""
    if by == "none":
        return _first(rows, keep) if keep else list(rows)
    name, sign = NUMBER[by]

    def place(row: Judged) -> tuple[float, int]:
        value = row.numbers.get(name)
        return (math.inf if value is None else sign * value, numbers[id(row)])

    numbers = {id(row): i for i, row in enumerate(rows)}
    order = {id(row): i for i, row in enumerate(sorted(kept(rows), key=place), start=1)}
    told = []
    for row in rows:
        rank = order.get(id(row))
        if rank is not None and keep and rank > keep:
            row = row.drop(f"rank {rank} of {len(order)} by {by}, and {keep} are kept", rank=rank)
        elif rank is not None:
            row = row.told(f"rank {rank} of {len(order)} by {by}", rank=rank)
        told.append(row)
    return told


def _first(rows: Sequence[Judged], keep: int) -> list[Judged]:
    left, told = keep, []
    for row in rows:
        if row.kept and left == 0:
            row = row.drop(f"the first {keep} are kept, and nothing ranks them")
        elif row.kept:
            left -= 1
        told.append(row)
    return told


def few(measured: Measured, count: int) -> list[Judged]:
    """`count` prompts whose responses lead the teacher through the most clusters of its states (F37)."""
    mine = kept(measured.rows)
    chosen = widest([measured.labels.get(row.prompt.id, []) for row in mine], count=count)
    place = {id(mine[i]): n for n, i in enumerate(chosen, start=1)}
    there: set[int] = set()
    notes = {}
    for i in chosen:
        new = set(measured.labels.get(mine[i].prompt.id, [])) - there
        there |= new
        notes[id(mine[i])] = (
            f"teacher states: {len(new)} more clusters than the prompts chosen before it reach"
        )
    told = []
    for row in measured.rows:
        if row.kept and id(row) not in place:
            row = row.drop(f"not one of the {count} prompts that reach the most teacher states")
        elif row.kept:
            row = row.told(notes[id(row)], rank=place[id(row)])
        told.append(row)
    return told


def coverage(measured: Measured, rows: Sequence[Judged]) -> Mapping[str, Any] | None:
    """The share of clusters that the kept prompts' responses reach; None where nobody asked."""
    if not measured.num_clusters:
        return None
    mine = kept(rows)
    there = reached(measured.labels.get(row.prompt.id, []) for row in mine)
    return {
        "clusters": measured.num_clusters,
        "reached": len(there),
        "share": len(there) / measured.num_clusters,
        "prompts": len(mine),
        "of_prompts": len(measured.labels),
    }


def bands(
    rows: Sequence[Judged], edges: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
) -> list[dict[str, Any]]:
    """How many measured prompts lie in which band of pass rates, kept and dropped; 0 and 1 for themselves."""
    rates = [(row.numbers["pass_rate"], row.kept) for row in rows if "pass_rate" in row.numbers]
    if not rates:
        return []
    parts: list[tuple[str, Any]] = [("never", lambda p: p == 0.0)]
    for low, high in pairwise(edges):
        parts.append((f"{low:g} to {high:g}", lambda p, a=low, b=high: 0.0 < p < 1.0 and a <= p < b))
    parts.append(("always", lambda p: p == 1.0))
    return [
        {
            "band": name,
            "prompts": sum(holds(rate) for rate, _ in rates),
            "kept": sum(holds(rate) and stays for rate, stays in rates),
        }
        for name, holds in parts
    ]


def refuse_ungraded(cfg: PromptsConfig, *, graded: bool) -> str:
    """Why a band cannot be asked for; "" where it can."""
    return (
        ""
        if graded or cfg.band == (0.0, 1.0)
        else "prompts.band is about pass rates, and the task has no grader"
    )
