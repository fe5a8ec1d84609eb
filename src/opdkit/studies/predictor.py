"""The predictor of gap recovery: a ridge regression on eight features with their signs held.

    recovery ≈ b + Σ w z,   z a standardised feature, w with the sign that was written down before (`recipes.features`)

Fitted on the pair factory's table (`opdkit.studies.factory`). The penalty is chosen by leaving kinds of teacher out of the
training pairs, so that a kind that is scored had no part in it. One testbed family, FROZEN, is left out of everything until
`final`. scikit-learn (extra `study`) is needed to fit, not to foretell: `opdkit.recipes.foretell`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np

from opdkit.diagnostics import gap_recovery
from opdkit.recipes.features import FEATURES, Feature
from opdkit.studies.estimate import Row, Rows
from opdkit.studies.factory import DRAWS, KINDS, Kind, check_name, run_name
from opdkit.studies.scores import Array
from opdkit.types import UserError

FROZEN = "lists"
CLIP = -1.0, 1.5
"""Recovery is fitted within these: a collapsed student's may be anything, and is no more of a failure for it."""
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class Pair:
    """What was checked of a pair, and what became of it: gap recovery of mean scores over both draws, and of each alone
    (None where its teacher had no lead). `verdict`: of the same check, which has no part in any forecast."""

    family: str
    seed: int
    kind: str
    group: str
    recovery: float
    metrics: Mapping[str, float]
    sizes: tuple[int, int]
    draws: tuple[float | None, ...] = ()
    verdict: str = ""

    @property
    def name(self) -> str:
        return f"{self.family} {self.seed} · {self.kind}"

    @cached_property
    def features(self) -> Mapping[str, float]:
        """nan where a number is missing."""
        read = {feature.name: feature.read(self.metrics) for feature in FEATURES}
        return {name: math.nan if value is None else value for name, value in read.items()}


Key = Callable[[Pair], Hashable]


def of_group(pair: Pair) -> str:
    return pair.group


def of_base(pair: Pair) -> tuple[str, int]:
    return pair.family, pair.seed


# --- the table ----------------------------------------------------------------------------------------------


def pairs_of(rows: Rows, *, kinds: Sequence[Kind] = KINDS) -> tuple[list[Pair], dict[str, int]]:
    """(pairs of these kinds whose teacher has a lead, how many others there are and why)."""
    found, others = list[Pair](), Counter[str]()
    places = sorted({(row["family"], row["seed"]) for row in rows})
    at = {(row["family"], row["seed"], row["arm"]): row for row in rows}
    for family, seed in places:
        for kind in kinds:
            names = check_name(kind), *(run_name(kind, draw) for draw in DRAWS)
            parts = [at[family, seed, name] for name in names if (family, seed, name) in at]
            if len(parts) < len(names):
                others["not run"] += 1
                continue
            check, *runs = parts
            recovery = gap_recovery(
                *(fmean(run[name] for run in runs) for name in ("before", "after", "teacher"))
            )
            if recovery is None:
                others["no lead"] += 1
            elif not check["metrics"]:
                others["refused by files"] += 1
            else:
                found.append(_pair(kind, check, recovery, draws=tuple(run["recovery"] for run in runs)))
    return found, dict(others)


def _pair(kind: Kind, check: Row, recovery: float, *, draws: tuple[float | None, ...]) -> Pair:
    metrics = {name: value for name, value in check["metrics"].items() if value is not None}
    sizes = check["sizes"][0], check["sizes"][1]
    place = check["family"], check["seed"], kind.name, kind.group
    return Pair(*place, recovery, metrics, sizes, draws, check["verdict"])


def matrix(pairs: Sequence[Pair], features: Sequence[Feature]) -> Array:
    """[pairs, features], nan where a number is missing."""
    read = [[pair.features[feature.name] for feature in features] for pair in pairs]
    return np.array(read, dtype=float).reshape(len(pairs), len(features))


def target(pairs: Sequence[Pair]) -> Array:
    return np.clip([pair.recovery for pair in pairs], *CLIP)


# --- fitting ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    features: tuple[Feature, ...]
    means: Array
    scales: Array
    coefficients: Array
    intercept: float
    penalty: float

    def standard(self, pairs: Sequence[Pair]) -> Array:
        """Features in standard deviations from their mean, which a missing one is taken to be."""
        return np.nan_to_num((matrix(pairs, self.features) - self.means) / self.scales)

    def predict(self, pairs: Sequence[Pair]) -> Array:
        return self.intercept + self.standard(pairs) @ self.coefficients


def fit(pairs: Sequence[Pair], features: Sequence[Feature], penalty: float) -> Fitted:
    """Least squares with `penalty` times the sum of squared weights, each weight 0 or of its feature's sign.

    Raises UserError where scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import Ridge
    except ImportError as error:
        raise UserError("fitting needs scikit-learn", hint="pip install 'opdkit[study]'") from error
    x = matrix(pairs, features)
    means, scales = _moments(x)
    signs = np.array([feature.sign for feature in features])
    turned = np.nan_to_num((x - means) / scales) * signs
    ridge = Ridge(alpha=penalty, positive=True, tol=1e-10, max_iter=10_000).fit(turned, target(pairs))
    return Fitted(tuple(features), means, scales, ridge.coef_ * signs, float(ridge.intercept_), penalty)


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of what is there; 0 and 1 of a feature that is nowhere, 1 of a constant."""
    there = ~np.isnan(x)
    count = np.maximum(there.sum(0), 1)
    means = np.where(there, x, 0.0).sum(0) / count
    scales = np.sqrt((np.where(there, x - means, 0.0) ** 2).sum(0) / count)
    return means, np.where(scales > 1e-9, scales, 1.0)


def fitted(pairs: Sequence[Pair], features: Sequence[Feature]) -> Fitted:
    """With the penalty that foretells kinds of teacher best when each is left out in its turn."""

    def error(penalty: float) -> float:
        told = left_out(pairs, of_group, lambda train: fit(train, features, penalty))
        return float(((told - target(pairs)) ** 2).sum())

    return fit(pairs, features, min(PENALTIES, key=error))


def left_out(pairs: Sequence[Pair], key: Key, fitting: Callable[[Sequence[Pair]], Fitted]) -> Array:
    """What is foretold of every pair by a model that saw no pair of its `key`."""
    told = np.full(len(pairs), math.nan)
    for left in dict.fromkeys(map(key, pairs)):
        inside = [i for i, pair in enumerate(pairs) if key(pair) == left]
        train = [pair for pair in pairs if key(pair) != left]
        told[inside] = fitting(train).predict([pairs[i] for i in inside])
    return told


def out_of_group(pairs: Sequence[Pair], features: Sequence[Feature]) -> Array:
    """Every kind of teacher left out in its turn, penalty and all.

    Pessimistic where features say little: without a kind that did well, the mean of the others is lower, so that what is
    foretold of it is too. Pure noise comes out below an AUROC of .5.
    """
    return left_out(pairs, of_group, lambda train: fitted(train, features))


def left_out_of_both(train: Sequence[Pair], pairs: Sequence[Pair], features: Sequence[Feature]) -> Array:
    """What pairs of another family are told by models that saw neither their family nor their kind of teacher."""
    told = np.full(len(pairs), math.nan)
    for group in dict.fromkeys(map(of_group, pairs)):
        inside = [i for i, pair in enumerate(pairs) if pair.group == group]
        without = fitted([pair for pair in train if pair.group != group], features)
        told[inside] = without.predict([pairs[i] for i in inside])
    return told
