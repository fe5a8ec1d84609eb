"""A mean over bases with a bootstrap interval, and numbers per base read off a study's table.

A base is a family of the testbed and a seed: another world, other first weights, another training, its own prompts and
sampling. Arms of one base share all of that, so differences between arms are taken within a base first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

Row = Mapping[str, Any]
Rows = Sequence[Row]
Base = tuple[str, int]
PerBase = Callable[[Rows], Mapping[Base, float]]
"""One number per base; bases without what it needs are left out."""
RESAMPLES, LEVEL = 10_000, 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` bases and the interval in which 95 % of resampled means lie. Of one base, a point."""

    value: float
    low: float
    high: float
    count: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """None of nothing. Percentile bootstrap over bases; with five of them it is on the narrow side.

    >>> estimate([0.5])
    Estimate(value=0.5, low=0.5, high=0.5, count=1)
    """
    return _estimate(tuple(values)) if values else None


@cache  # a table asks for the same numbers by rule, by family and for its outcomes, after every row
def _estimate(values: tuple[float, ...]) -> Estimate:
    given = np.asarray(values, dtype=float)
    generator = np.random.Generator(np.random.Philox(0))
    again = given[generator.integers(0, len(given), (RESAMPLES, len(given)))].mean(1)
    low, high = np.quantile(again, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(given.mean()), float(low), float(high), len(given))


# --- numbers per base ----------------------------------------------------------------------------------------


def of(arm: str, name: str) -> PerBase:
    """The number `name` of an arm's row."""

    def read(rows: Rows) -> Mapping[Base, float]:
        return {
            (row["family"], row["seed"]): row[name]
            for row in rows
            if row["arm"] == arm and row.get(name) is not None
        }

    return read


def both(one: PerBase, other: PerBase, join: Callable[[float, float], float]) -> PerBase:
    """Of the bases that have both."""

    def read(rows: Rows) -> Mapping[Base, float]:
        ours, theirs = one(rows), other(rows)
        return {base: join(ours[base], theirs[base]) for base in ours if base in theirs}

    return read


def minus(one: PerBase, other: PerBase) -> PerBase:
    return both(one, other, lambda a, b: a - b)


def ahead(arm: str, other: str, name: str) -> PerBase:
    """By how much the number `name` of one arm is above another arm's, base by base."""
    return minus(of(arm, name), of(other, name))


def change(arm: str, name: str) -> PerBase:
    """From the first steps of a run to its last ones."""
    return minus(of(arm, f"{name}_last"), of(arm, f"{name}_first"))


def ratio(arm: str, name: str) -> PerBase:
    """Of the last steps to the first ones; 1 where nothing changed."""
    return both(of(arm, f"{name}_last"), of(arm, f"{name}_first"), lambda a, b: a / b if b else 1.0)


def largest(*parts: PerBase) -> PerBase:
    """Of the bases that have all."""
    first, *others = parts
    for part in others:
        first = both(first, part, max)
    return first


def size(part: PerBase) -> PerBase:
    return lambda rows: {base: abs(value) for base, value in part(rows).items()}
