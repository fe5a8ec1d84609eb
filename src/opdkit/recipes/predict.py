"""What a verdict foretells: the range of gap recovery that pairs of the testbed with the same verdict had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    """`gap` teacher − student, the range of recovery, the slope with its interval; None without scores.

    Small models of two families, one recipe: what was seen there, no law.
    """
    if "teacher_lead" not in metrics:
        return None
    gap, slope = metrics["teacher_lead"], metrics.get("success_slope")
    seen = RECOVERED.get(verdict.name) if gap.value >= LEAD else None
    return {
        "gap": gap.value,
        "gap_recovery": None if seen is None else {"low": seen[0], "high": seen[1]},
        "slope": None if slope is None else slope.value,
        "slope_low": None if slope is None else slope.low,
        "slope_high": None if slope is None else slope.high,
        "basis": "pairs of the testbed with this verdict (docs/check.md); small models, one recipe",
    }
