"""Evaluates what `opd study fit` wrote, without scikit-learn: a predicted gap recovery, and where a pair lies among those seen.

    predictor.json    two linear models over `opdkit.recipes.features`, ranges, the pairs they were fitted on
    bands.json        quantiles of single numbers over pairs that worked and that failed

Either file may be absent; then nothing is said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from opdkit.recipes.features import SETS, Feature, Metrics

PREDICTOR, BANDS = "predictor.json", "bands.json"
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
"""Of which a band is made."""
Fitted = Mapping[str, Any]


@cache
def shipped(name: str) -> Mapping[str, Any] | None:
    """What `opd study fit` left in this package; None where it was not run."""
    place = files("opdkit.recipes") / name
    return json.loads(place.read_text(encoding="utf-8")) if place.is_file() else None


# --- one number for the pair ---------------------------------------------------------------------------------


def foretell(metrics: Metrics, document: Fitted) -> dict[str, Any] | None:
    """By the first model that has all it needs; None where none has."""
    for model in document["models"]:
        features = SETS[model["name"]]
        values = [feature.read(metrics) for feature in features]
        known = [value for value in values if value is not None]
        if len(known) == len(features):
            return _foretold(features, known, model)
    return None


def _foretold(features: Sequence[Feature], values: Sequence[float], model: Fitted) -> dict[str, Any]:
    """`parts`: what each feature adds to the mean over pairs seen; value = mean + Σ parts."""
    told = [model["features"][feature.name] for feature in features]
    at = [(value - own["mean"]) / own["scale"] for value, own in zip(values, told, strict=True)]
    parts = {f.name: own["coefficient"] * z for f, own, z in zip(features, told, at, strict=True)}
    value = model["intercept"] + sum(parts.values())
    return {
        "value": value,
        "low": value + model["residuals"]["low"],
        "high": value + model["residuals"]["high"],
        "model": model["name"],
        "parts": parts,
        "outside": [
            {"feature": f.name, "value": value, "low": own["low"], "high": own["high"]}
            for f, value, own in zip(features, values, told, strict=True)
            if not own["low"] <= value <= own["high"]
        ],
        "nearest": nearest(at, model),
    }


def nearest(at: Sequence[float], model: Fitted) -> dict[str, Any]:
    """The pair seen that is most like this one. `distance`: root mean square over features, in standard deviations;
    `reach`: 95 % of the pairs seen have one of another base within it."""
    by = {i: distance(at, pair["at"]) for i, pair in enumerate(model["seen"])}
    best = min(by, key=by.__getitem__)
    pair = model["seen"][best]
    return {
        "pair": pair["pair"],
        "gap_recovery": pair["gap_recovery"],
        "distance": by[best],
        "reach": model["reach"],
    }


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """
    >>> distance([0.0, 0.0], [3.0, 3.0])
    3.0
    """
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a))


# --- single numbers among those of the testbed ---------------------------------------------------------------


def bands(metrics: Metrics, document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every banded number of the pair with the quantiles of pairs that worked and failed, over all families."""
    return [
        {"name": name, "value": metrics[name], "working": band["working"], "failing": band["failing"]}
        for name, band in document["bands"]["all"].items()
        if name in metrics
    ]


def lies(value: float, quantiles: Sequence[float]) -> str:
    """Where a number is among quantiles as in QUANTILES.

    >>> [lies(x, [0.3, 0.4, 0.5, 0.6, 0.7]) for x in (0.2, 0.35, 0.5, 0.65, 0.8)]
    ['below all', 'below most', 'inside', 'above most', 'above all']
    """
    least, low, _, high, most = quantiles
    if low <= value <= high:
        return "inside"
    if value < low:
        return "below all" if value < least else "below most"
    return "above all" if value > most else "above most"
