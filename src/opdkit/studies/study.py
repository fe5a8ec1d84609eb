"""A question put to small models: its arms, what the paper claims of them, and the rule that decides, written before any run.

An arm is a change to one and the same run of `distill`, or something measured on a pair. A claim is a number per base with
bounds: it holds where the whole interval over bases lies within them, and does not where all of it lies outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from opdkit.studies.estimate import Estimate, PerBase, Rows, estimate
from opdkit.studies.recipes import FAMILIES, VARIANTS

Verdict = Literal["holds", "does not hold", "undecided", "not run"]
Outcome = Literal["holds", "does not hold", "partly", "undecided", "not run"]
Settings = Mapping[str, Any]
Measured = Literal["run", "continuation", "gradients", "check"]


@dataclass(frozen=True)
class Arm:
    """`student` and `teacher` are models of the family (no teacher: the push-down control); `settings` lie over its usual run,
    a function of its steps where they depend on them.

    `steps` multiplies the scale's. `variant`: of families that have it (`recipes.VARIANTS`); others have no part in the arm.
    `measured`: a run, or numbers of a pair (`opdkit.studies.pairwise`), after a run of `settings` where `trained`.
    `draw`: which of several samplings of one and the same configuration; 0 is the one that other questions share.
    """

    name: str
    student: str = "student"
    teacher: str | None = "improved"
    settings: Settings | Callable[[int], Settings] = field(default_factory=dict)
    steps: float = 1.0
    variant: str | None = None
    measured: Measured = "run"
    trained: bool = False
    draw: int = 0

    def over(self, steps: int) -> Settings:
        """The settings of a run of so many steps."""
        return self.settings(steps) if callable(self.settings) else self.settings

    def within(self, family: str) -> str | None:
        """The family, or the variant of it, whose models the arm takes; None where it has no part."""
        if self.variant is None:
            return family
        name = f"{family}-{self.variant}"
        return name if name in VARIANTS else None


@dataclass(frozen=True)
class Expectation:
    """A number per base and its bounds, written before the runs. `claim`: of the paper; else a premise or a question beside."""

    name: str
    text: str
    number: PerBase
    at_least: float = -math.inf
    at_most: float = math.inf
    claim: bool = True

    def decide(self, rows: Rows) -> Decision:
        """Of rows of one family, or of all."""
        found = estimate(list(self.number(rows).values()))
        if found is None:
            return Decision("not run", None)
        if found.low >= self.at_least and found.high <= self.at_most:
            return Decision("holds", found)
        outside = found.high < self.at_least or found.low > self.at_most
        return Decision("does not hold" if outside else "undecided", found)


@dataclass(frozen=True)
class Decision:
    verdict: Verdict
    estimate: Estimate | None


@dataclass(frozen=True)
class Study:
    """`claim`, `section` and `figures` are the paper's (arXiv 2604.13016); `differs` says where we do, and where others did."""

    name: str
    question: str
    section: str
    figures: tuple[str, ...]
    claim: str
    arms: tuple[Arm, ...]
    expected: tuple[Expectation, ...]
    differs: str = ""
    panels: tuple[str, ...] = (
        "accuracy",
        "overlap_ratio",
        "overlap_advantage",
        "entropy_gap",
        "loss",
        "grad_norm",
    )
    """Curves that are drawn, by step."""
    heat: tuple[str, ...] = ()
    """Arms whose entropy is drawn by position and step."""
    curves: bool = True
    """Whether rows keep their curves and what else only figures and single questions read (`reading.brief`)."""


@dataclass(frozen=True)
class Scale:
    """How much is run: `seeds` are bases of every family, `problems` held-out ones of every evaluation."""

    name: str
    seeds: tuple[int, ...]
    steps: int
    problems: int
    families: tuple[str, ...] = FAMILIES


SCALES: Mapping[str, Scale] = {
    "quick": Scale("quick", seeds=(14,), steps=30, problems=256),
    "full": Scale("full", seeds=(14, 15, 16, 17, 18), steps=100, problems=512),
}


REAL, PAPER = "smollm2", "paper"
"""Families of rows that come from the small real model and from the paper's own; testbed verdicts do without them."""


def of_testbed(rows: Rows) -> Rows:
    return [row for row in rows if row["family"] not in (REAL, PAPER)]


def decisions(study: Study, rows: Rows) -> dict[str, dict[str, Decision]]:
    """Expectation → family → what came, and over all families as `all`."""
    families = sorted({row["family"] for row in rows})
    return {
        e.name: {
            **{name: e.decide([row for row in rows if row["family"] == name]) for name in families},
            "all": e.decide(of_testbed(rows)),
        }
        for e in study.expected
    }


def outcome(study: Study, rows: Rows, family: str) -> Outcome:
    """What came of the paper's claims in one family."""
    here = [row for row in rows if row["family"] == family]
    return _together(e.decide(here).verdict for e in study.expected if e.claim)


def reproduced(study: Study, rows: Rows) -> Outcome:
    """Over the testbed's families: a claim counts as reproduced in small only if it holds in all that were run."""
    families = {row["family"] for row in of_testbed(rows)}
    found = {outcome(study, rows, family) for family in families} - {"not run"}
    if len(found) <= 1:
        return next(iter(found), "not run")
    return "undecided" if found <= {"holds", "undecided"} else "partly"


def _together(verdicts: Iterable[Verdict]) -> Outcome:
    found = set(verdicts) - {"not run"}
    if not found:
        return "not run"
    if found == {"undecided"} or found == {"holds", "undecided"}:
        return "undecided"
    if len(found) == 1:
        return next(iter(found))
    return "partly"
