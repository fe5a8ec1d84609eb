"""What a proof leaves: a row. An objective's row says more than that it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from opdkit.config import ObjectiveConfig
from opdkit.proofs.oracle import NotCovered, beyond

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
    of: str = ""  # whom or what the error is of
    error: float | None = None
    bound: float = EXACT
    tried: int = 0
    covered: bool = True
    reason: str = ""
    left_out: tuple[str, ...] = ()  # what could not be tried

    @property
    def holds(self) -> bool | None:
        """None where nothing was proven."""
        if not self.covered:
            return None
        return not self.reason and self.error is not None and self.error <= self.bound  # a nan does not hold

    @property
    def said(self) -> str:
        """Why it does not hold, or is not covered; empty if it holds."""
        if self.holds or self.reason:
            return self.reason
        return f"off by {self.error:.1e}, at most {self.bound:.0e} is allowed ({self.of})"


def largest(errors: Iterable[float]) -> float:
    """The largest, nan above all: `max` would pass over a nan that does not come first.

    >>> largest([1e-16, math.nan, 2.0])
    nan
    """
    found = list(errors)
    return math.nan if any(map(math.isnan, found)) else max(found)


Proof = Callable[[], Iterator[Check]]
"""Another one is a function like this in one of the tuples that `opdkit.proofs.selftest` runs."""


class Worst:
    """The largest error so far and who made it; a nan is larger than any number.

    >>> worst = Worst()
    >>> worst.see(1e-16, "a"); worst.see(float("nan"), "b"); worst.see(1.0, "c")
    >>> worst.check("a statement").said
    'off by inf, at most 1e-10 is allowed (b)'
    """

    def __init__(self) -> None:
        self.error, self.who, self.tried = -1.0, "", 0
        self.left_out: dict[str, None] = {}  # a set that keeps its order

    def see(self, error: float, who: str) -> None:
        self.tried += 1
        error = math.inf if math.isnan(error) else error
        if error > self.error:
            self.error, self.who = error, who

    def attempt(self, who: str, spec: ObjectiveConfig, error: Callable[[], float]) -> None:
        """See what comes of it. A spec that needs more than is shown here may fail for that, and is left out then."""
        try:
            self.see(error(), who)
        except Exception as raised:
            if isinstance(raised, NotCovered) or beyond(spec):
                self.left_out |= {who.partition(",")[0]: None}
            else:
                self.see(math.inf, f"{who}: raised {type(raised).__name__}: {raised}")

    def check(self, name: str, *, bound: float = EXACT) -> Check:
        left_out = tuple(self.left_out)
        if not self.tried:
            return Check(name, covered=False, reason="nothing it could be tried on", left_out=left_out)
        return Check(name, self.who, self.error, bound, self.tried, left_out=left_out)
