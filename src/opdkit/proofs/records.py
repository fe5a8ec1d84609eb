"""What a proof leaves: a row. An objective's row says more than that it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

EXACT = 1e-10
"""Largest relative error of what is said to be equal: float64 on sums of some dozen terms leaves 1e-13."""


@dataclass(frozen=True)
class ObjectiveRow:
    """One objective: is its gradient the stated one, what is it the gradient of, and how far from that if it is not.

    `formula_error` is against the oracle, `relative_error` of an unbiased one's mean against the target's gradient, `bias`
    the relative size of a biased one's distance from it and `cosine` their direction; errors are ‖difference‖ / ‖exact‖.
    """

    name: str
    kind: str  # "preset" or "combination"
    group: str
    unbiased: bool | None = None  # as stated
    formula_error: float | None = None
    relative_error: float | None = None
    bias: float | None = None
    cosine: float | None = None
    target: str = ""
    source: str = ""
    covered: bool = True
    reason: str = ""  # why it does not hold, or is not covered

    @property
    def holds(self) -> bool | None:
        """None where nothing was proven."""
        return None if not self.covered else not self.reason


@dataclass(frozen=True)
class Check:
    """One statement: an error and the largest that is allowed, or the reason why there is none."""

    name: str
    of: str = ""  # whom or what it was tried on
    error: float | None = None
    bound: float = EXACT
    tried: int = 1
    covered: bool = True
    reason: str = ""

    @property
    def holds(self) -> bool | None:
        if not self.covered:
            return None
        return not self.reason and self.error is not None and self.error <= self.bound  # a nan does not hold


Proof = Callable[[], Iterator[Check]]


class Worst:
    """The largest error so far and who made it; a nan is larger than any number.

    >>> worst = Worst()
    >>> worst.see(1e-16, "a"); worst.see(float("nan"), "b"); worst.see(1.0, "c")
    >>> worst.check("a statement")
    Check(name='a statement', of='worst: b', error=inf, bound=1e-10, tried=3, covered=True, reason='')
    """

    def __init__(self) -> None:
        self.error, self.who, self.tried = -1.0, "", 0

    def see(self, error: float, who: str) -> None:
        self.tried += 1
        error = math.inf if math.isnan(error) else error
        if error > self.error:
            self.error, self.who = error, who

    def check(self, name: str, *, bound: float = EXACT) -> Check:
        if not self.tried:
            return Check(name, covered=False, reason="nothing to try it on", tried=0)
        of = f"worst: {self.who}" if self.tried > 1 else self.who
        return Check(name, of=of, error=self.error, bound=bound, tried=self.tried)
