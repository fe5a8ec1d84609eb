"""The steps so far through windows, as conditions of health ask for them. Free of torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class Unknown(Exception):
    """A number that a condition asks for was not logged, or not often enough yet."""


@dataclass(frozen=True)
class Seen:
    """The steps so far, through windows of `size` steps. Every question raises Unknown where there is no answer."""

    rows: Sequence[Mapping[str, float]]  # finite numbers only
    size: int

    def first(self, name: str) -> float:
        """Mean over the run's first window."""
        return statistics.fmean(_known(name, self._first))

    def last(self, name: str) -> float:
        """Mean over the last window."""
        return statistics.fmean(_known(name, self._last))

    def kept(self, name: str) -> float:
        """|last| ÷ |first|; 1 where both are 0."""
        first, last = abs(self.first(name)), abs(self.last(name))
        return last / first if first > 0 else (1.0 if last == 0 else math.inf)

    def now(self, name: str) -> float:
        """The last step's."""
        return _known(name, self.rows[-1:])[0]

    def usual(self, name: str) -> float:
        """Median over the window before the last step."""
        self._long(self.size + 1)
        return statistics.median(_known(name, self.rows[-self.size - 1 : -1]))

    def errors(self, name: str) -> float:
        """last − first in standard errors of that difference, taken from the scatter between steps."""
        ends = [_known(name, window) for window in (self._first, self._last)]
        if min(map(len, ends)) < 2:
            raise Unknown(name)
        error = math.sqrt(sum(statistics.variance(values) / len(values) for values in ends))
        return (statistics.fmean(ends[1]) - statistics.fmean(ends[0])) / max(error, 1e-9)

    def starts(self, name: str) -> list[int]:
        """First positions of the bins that can be compared: those of which both windows know `name`."""
        known = [
            {start for row in window for start in bins_of(name, row)} for window in (self._first, self._last)
        ]
        return sorted(known[0] & known[1])

    @property
    def _first(self) -> Sequence[Mapping[str, float]]:
        self._long(2 * self.size)  # a first window that is also the last one compares nothing
        return self.rows[: self.size]

    @property
    def _last(self) -> Sequence[Mapping[str, float]]:
        self._long(self.size)
        return self.rows[-self.size :]

    def _long(self, steps: int) -> None:
        if len(self.rows) < steps:
            raise Unknown(f"{steps} steps")


def _known(name: str, window: Sequence[Mapping[str, float]]) -> list[float]:
    """What at least half of the window's steps logged."""
    values = [row[name] for row in window if name in row]
    if not values or 2 * len(values) < len(window):
        raise Unknown(name)
    return values


def bins_of(name: str, row: Mapping[str, Any]) -> list[int]:
    """First positions of the bins of which a row tells `name`."""
    parts = [key.split("/") for key in row if key.startswith("by_position/")]
    return [int(p[1]) for p in parts if len(p) == 3 and p[2] == name and p[1].isdecimal()]
