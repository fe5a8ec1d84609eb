"""What is foretold of a pair: a gap recovery with an interval by the fitted predictor, where it is there and has all it needs;
else the range that pairs of the testbed with the same verdict had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opdkit.diagnostics.sequence import MIN_GAP
from opdkit.recipes.foretell import BANDS, PREDICTOR, bands, foretell, shipped
from opdkit.recipes.probe import Number
from opdkit.types import Verdict

RECOVERED: Mapping[str, tuple[float, float]] = {
    "go": (0.7, 1.05),
    "change_teacher": (-0.35, -0.05),
    "cold_start": (-1.6, 0.6),
    "fix_first": (-1.45, 1.0),
}
"""Verdict → gap recovery when distilled all the same: the middle 90 % of what was measured (docs/check.md; a test
compares). The last two are wide because the outcomes are: such a student may gain in its own words, or lose its end.
"""
LEAD = 0.1
"""Below such a lead nothing is foretold: a share of little is anything."""


def predict(verdict: Verdict, metrics: Mapping[str, Number]) -> dict[str, Any] | None:
    """`gap` teacher − student, gap recovery and what it rests on, the slope with its interval; None without scores.

    Small models of two families, one recipe: what was seen there, no law.
    """
    if "teacher_lead" not in metrics:
        return None
    gap, slope = metrics["teacher_lead"], metrics.get("success_slope")
    return {
        "gap": gap.value,
        "slope": None if slope is None else slope.value,
        "slope_low": None if slope is None else slope.low,
        "slope_high": None if slope is None else slope.high,
        **(_fitted(metrics) or _by_verdict(verdict, gap.value)),
    }


def _fitted(metrics: Mapping[str, Number]) -> dict[str, Any] | None:
    document = shipped(PREDICTOR)
    if document is None or metrics["teacher_lead"].value < MIN_GAP:
        return None
    told = foretell({name: number.value for name, number in metrics.items()}, document)
    if told is None:
        return None
    made, read = document["made"], "" if told["model"] == "rehearsed" else ", without a rehearsal"
    return {
        "gap_recovery": {name: told[name] for name in ("value", "low", "high")},
        **{name: told[name] for name in ("parts", "outside", "nearest")},
        "basis": f"fitted on {made['pairs']} pairs of the testbed{read}; 90 % of pairs of a kind left out lay within "
        "(docs/studies/predictor.md); small models, one recipe",
    }


def _by_verdict(verdict: Verdict, gap: float) -> dict[str, Any]:
    seen = RECOVERED.get(verdict.name) if gap >= LEAD else None
    return {
        "gap_recovery": None if seen is None else {"low": seen[0], "high": seen[1]},
        "basis": "pairs of the testbed with this verdict (docs/check.md); small models, one recipe",
    }


def among(metrics: Mapping[str, Number]) -> list[dict[str, Any]]:
    """Where single numbers lie among pairs of the testbed that worked and that failed; nothing without bands."""
    document = shipped(BANDS)
    return (
        [] if document is None else bands({name: number.value for name, number in metrics.items()}, document)
    )
