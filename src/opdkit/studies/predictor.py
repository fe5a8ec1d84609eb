"""The predictor of gap recovery: a ridge regression on eight features with their signs held, and what it is worth.

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
from typing import Any

import numpy as np

from opdkit.diagnostics import gap_recovery
from opdkit.recipes.features import FEATURES, SETS, Feature
from opdkit.recipes.foretell import QUANTILES, distance, foretell
from opdkit.studies.estimate import Row, Rows
from opdkit.studies.factory import DRAWS, KINDS, Kind, check_name, run_name
from opdkit.studies.scores import (
    Array,
    auroc,
    auroc_score,
    better_by,
    mean_score,
    numbered,
    plain,
    spearman_score,
)
from opdkit.types import UserError

FROZEN = "lists"
SUCCESS, FAILURE = 0.5, 0.2
"""Gap recovery of pairs that worked, at least, and that failed, at most."""
CLIP = -1.0, 1.5
"""Recovery is fitted within these: a collapsed student's may be anything, and is no more of a failure for it."""
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
LEVEL = 0.9
"""Of the interval around a prediction."""
CLEAR_LEAD, MIDDLE = 0.1, (0.25, 0.75)
"""The hard subset: the check saw such a lead, and an overlap between these quantiles of the pairs that are scored."""
BANDED = ("overlap_ratio", "overlap_mass_student", "overlap_mass_teacher", "entropy_gap", "reverse_kl", "success_slope",
          "rehearsed_loss_ratio")  # fmt: skip


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


# --- what it is worth ---------------------------------------------------------------------------------------


def scored(pairs: Sequence[Pair], told: Array, *, residuals: tuple[float, float]) -> dict[str, Any]:
    """Of predictions for pairs that were not trained on."""
    hard = hard_subset(pairs)
    came, within = target(pairs), np.zeros(len(pairs))
    within[(came >= told + residuals[0]) & (came <= told + residuals[1])] = 1.0
    whole = _ranked(pairs, told)
    return {
        "bases": len({of_base(pair) for pair in pairs}),
        **whole,
        "hard": _ranked([pairs[i] for i in hard], told[hard]) if len(hard) else None,
        "mean_absolute_error": float(np.abs(told - came).mean()),
        "run_by_run": _run_by_run(pairs),
        "in_interval": plain(mean_score(within, numbered([of_base(pair) for pair in pairs]))),
    }


def _run_by_run(pairs: Sequence[Pair]) -> dict[str, Any] | None:
    """How well the first run of a pair foretells the second, which differs by sampling alone: a measure of what can be known."""
    both = [(pair, *pair.draws) for pair in pairs if len(pair.draws) == 2 and None not in pair.draws]
    if not both:
        return None
    base = numbered([of_base(pair) for pair, *_ in both])
    first, second = (np.array([each[i] for each in both], dtype=float) for i in (1, 2))
    return {
        "pairs": len(both),
        "auroc": plain(auroc_score(first, second >= SUCCESS, base)),
        "spearman": plain(spearman_score(first, second, base)),
        "mean_absolute_error": float(np.abs(np.clip(first, *CLIP) - np.clip(second, *CLIP)).mean()),
    }


def _ranked(pairs: Sequence[Pair], told: Array) -> dict[str, Any]:
    base = numbered([of_base(pair) for pair in pairs])
    recovery = np.array([pair.recovery for pair in pairs])
    success = recovery >= SUCCESS
    singles = {name: _single(values, success) for name, values in single_features(pairs).items()}
    ahead = {name: better_by(told, values, success, base) for name, values in singles.items()}
    return {
        "pairs": len(pairs),
        "succeeded": int(success.sum()),
        "auroc": plain(auroc_score(told, success, base)),
        "spearman": plain(spearman_score(told, recovery, base)),
        "singles": {
            n: {"auroc": auroc(v, success), "better_by": plain(ahead[n])} for n, v in singles.items()
        },
        "better_than_every_single": all(
            a is not None and a.low is not None and a.low > 0 for a in ahead.values()
        ),
    }


def hard_subset(pairs: Sequence[Pair]) -> Array:
    """Places of the pairs whose teacher is clearly better and whose overlap says little."""
    overlap = np.array([pair.metrics.get("overlap_ratio", math.nan) for pair in pairs])
    lead = np.array([pair.metrics.get("teacher_lead", math.nan) for pair in pairs])
    low, high = np.nanquantile(overlap, MIDDLE)
    return np.flatnonzero((lead >= CLEAR_LEAD) & (overlap >= low) & (overlap <= high))


def single_features(pairs: Sequence[Pair]) -> dict[str, Array]:
    """Every feature alone, the score gap and the sizes; what is missing is as the median."""
    columns = dict(zip((f.name for f in FEATURES), matrix(pairs, FEATURES).T, strict=True))
    columns["teacher_lead"] = np.array([pair.metrics.get("teacher_lead", math.nan) for pair in pairs])
    columns["size"] = np.array([math.log(pair.sizes[1] / pair.sizes[0]) for pair in pairs])
    known = {name: values for name, values in columns.items() if not np.isnan(values).all()}
    return {name: np.where(np.isnan(values), np.nanmedian(values), values) for name, values in known.items()}


def _single(values: Array, success: Array) -> Array:
    """In whichever direction does it better on these very pairs: more than a feature alone would know of itself."""
    return -values if (auroc(values, success) or 0.5) < 0.5 else values


# --- the documents ------------------------------------------------------------------------------------------


def predictor_document(pairs: Sequence[Pair], *, final: bool, beyond: Sequence[Pair] = ()) -> dict[str, Any]:
    """Models and scores. Until `final` the frozen family has no part in anything; then it is scored by models of the others,
    and models are fitted on all. `beyond`: pairs of kinds outside the grid; these models foretell them, and only what is shipped
    is fitted on them too."""
    seen = [pair for pair in pairs if pair.family != FROZEN]
    frozen = [pair for pair in pairs if pair.family == FROZEN]
    _enough(seen, where="families that are not frozen")
    if final:
        _enough(frozen, where=f"the family {FROZEN}")
    grid = [*seen, *frozen] if final else seen
    shipped = [*grid, *beyond]
    models, of_grid, scores, forecasts = [], [], {}, {}
    for name, features in SETS.items():
        told = out_of_group(seen, features)
        residuals = residuals_of(seen, told)
        found = {"group_out": (seen, told), **(_of_frozen(seen, told, frozen, features) if final else {})}
        scores[name] = {
            where: scored(some, said, residuals=residuals) for where, (some, said) in found.items()
        }
        forecasts[name] = [
            one
            for where, (some, said) in found.items()
            if where != "all"
            for one in _forecasts(where, some, said)
        ]
        own = out_of_group(grid, features) if final else told
        of_grid.append(_model(name, grid, own, features))
        if beyond:
            own = out_of_group(shipped, features)
            scores[name]["shipped"] = scored(shipped, own, residuals=residuals_of(shipped, own))
        models.append(_model(name, shipped, own, features) if beyond else of_grid[-1])
    return {
        "models": models,
        "outside": [
            {"pair": pair.name, "kind": pair.kind, "came": pair.recovery, **said}
            for pair in beyond
            if (said := foretell(pair.metrics, {"models": of_grid})) is not None
        ],
        "scores": scores,
        "forecasts": forecasts,
        "verdicts": {"grid": _verdicts(grid), "outside": _verdicts(beyond)},
        "features": {f.name: {"sign": f.sign, "says": f.says, "needs": list(f.needs)} for f in FEATURES},
        "success": SUCCESS,
        "clip": list(CLIP),
        "hard": {"teacher_lead": CLEAR_LEAD, "overlap_quantiles": list(MIDDLE)},
    }


def _enough(pairs: Sequence[Pair], *, where: str) -> None:
    if len({pair.group for pair in pairs}) < 3:
        raise UserError(
            f"the table holds {len(pairs)} pairs of {where}, of fewer than three kinds of teacher",
            hint="opd study run pairs --scale full",
        )


def _of_frozen(
    seen: Sequence[Pair], told: Array, frozen: Sequence[Pair], features: Sequence[Feature]
) -> dict[str, tuple[Sequence[Pair], Array]]:
    """The frozen family's pairs, and what models of the others foretell of them; and all pairs, each without its kind."""
    both = left_out_of_both(seen, frozen, features)
    return {
        "family_out": (frozen, fitted(seen, features).predict(frozen)),
        "family_and_group_out": (frozen, both),
        "all": ([*seen, *frozen], np.concatenate([told, both])),
    }


def _verdicts(pairs: Sequence[Pair]) -> dict[str, dict[str, int]]:
    """What became of pairs by what `opd check` had said of them."""
    told = Counter((pair.verdict, pair.recovery >= SUCCESS) for pair in pairs)
    names = sorted({name for name, _ in told})
    return {name: {"worked": told[name, True], "not": told[name, False]} for name in names}


def _forecasts(where: str, pairs: Sequence[Pair], told: Array) -> list[dict[str, Any]]:
    """What the scores are of, pair by pair: anybody can compute them again."""
    return [
        {"scored_on": where, "pair": pair.name, "group": pair.group, "told": value, "came": pair.recovery}
        for pair, value in zip(pairs, told.tolist(), strict=True)
    ]


def residuals_of(pairs: Sequence[Pair], told: Array) -> tuple[float, float]:
    """Between which LEVEL of (what came − what was foretold of a kind left out) lies; for a pair like those, split-conformal:
    the ranks are those of n + 1."""
    found, n = np.sort(target(pairs) - told), len(pairs)
    low = max(math.floor((n + 1) * (1 - LEVEL) / 2), 1)
    high = min(math.ceil((n + 1) * (1 + LEVEL) / 2), n)
    return float(found[low - 1]), float(found[high - 1])


def _model(name: str, pairs: Sequence[Pair], told: Array, features: Sequence[Feature]) -> dict[str, Any]:
    """`told`: what models foretold of these pairs that saw none of their kind."""
    model = fitted(pairs, features)
    low, high = residuals_of(pairs, told)
    x, at = matrix(pairs, features), model.standard(pairs)
    columns = zip(features, model.means, model.scales, model.coefficients, x.T, strict=True)
    return {
        "name": name,
        "intercept": model.intercept,
        "penalty": model.penalty,
        "features": {
            feature.name: {"mean": mean, "scale": scale, "coefficient": weight, **_range(column)}
            for feature, mean, scale, weight, column in columns
        },
        "residuals": {"low": low, "high": high, "level": LEVEL},
        "reach": reach(pairs, at),
        "seen": [
            {"pair": pair.name, "gap_recovery": pair.recovery, "at": list(row)}
            for pair, row in zip(pairs, at.tolist(), strict=True)
        ],
    }


def _range(column: Array) -> dict[str, float]:
    """Infinite on neither side: a feature that is nowhere has the empty range at 0."""
    known = column[~np.isnan(column)]
    return (
        {"low": float(known.min()), "high": float(known.max())} if len(known) else {"low": 0.0, "high": 0.0}
    )


def reach(pairs: Sequence[Pair], at: Array) -> float:
    """95 % of the pairs have one of another base within this distance."""
    nearest = [
        min(
            (
                distance(row, other)
                for other, theirs in zip(at, pairs, strict=True)
                if of_base(theirs) != of_base(pair)
            ),
            default=0.0,
        )
        for row, pair in zip(at, pairs, strict=True)
    ]
    return float(np.quantile(nearest, 0.95))


def bands_document(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Quantiles of single numbers over pairs that worked and that failed, by family and over all."""
    families = sorted({pair.family for pair in pairs})
    parts = {"all": list(pairs), **{name: [p for p in pairs if p.family == name] for name in families}}
    return {
        "working": SUCCESS,
        "failing": FAILURE,
        "quantiles": list(QUANTILES),
        "bands": {name: _bands(some) for name, some in parts.items()},
    }


def _bands(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Numbers of which both sides are known."""
    sides = {
        "working": [pair for pair in pairs if pair.recovery >= SUCCESS],
        "failing": [pair for pair in pairs if pair.recovery <= FAILURE],
    }
    found = {}
    for name in BANDED:
        values = {side: [p.metrics[name] for p in some if name in p.metrics] for side, some in sides.items()}
        if all(values.values()):
            found[name] = {
                side: {"count": len(known), "quantiles": np.quantile(known, QUANTILES).tolist()}
                for side, known in values.items()
            }
    return found
