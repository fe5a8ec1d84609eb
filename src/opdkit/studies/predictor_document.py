"""What the predictor is worth, and the two documents that `opd study fit` writes: models with their scores, and bands.

A pair is scored by models that saw no teacher of its kind, or nothing of its family. The frozen family has no part in anything
until the end; pairs of kinds outside the grid are foretold first and learnt from last.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from opdkit.recipes.features import FEATURES, SETS, Feature
from opdkit.recipes.foretell import QUANTILES, distance, foretell
from opdkit.studies.predictor import (
    CLIP,
    FROZEN,
    Pair,
    fitted,
    left_out_of_both,
    matrix,
    of_base,
    out_of_group,
    target,
)
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

SUCCESS, FAILURE = 0.5, 0.2
"""Gap recovery of pairs that worked, at least, and that failed, at most."""
LEVEL = 0.9
"""Of the interval around a prediction."""
CLEAR_LEAD, MIDDLE = 0.1, (0.25, 0.75)
"""The hard subset: the check saw such a lead, and an overlap between these quantiles of the pairs that are scored."""
BANDED = ("overlap_ratio", "overlap_mass_student", "overlap_mass_teacher", "entropy_gap", "reverse_kl", "success_slope",
          "rehearsed_loss_ratio")  # fmt: skip


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
        "in_interval": plain(mean_score(within, numbered([of_base(pair) for pair in pairs]))),
    }


def run_by_run(pairs: Sequence[Pair]) -> dict[str, Any] | None:
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
        found = {"group_out": (seen, told), **(_of_frozen(seen, frozen, features) if final else {})}
        scores[name] = {
            where: scored(some, said, residuals=residuals) for where, (some, said) in found.items()
        }
        forecasts[name] = [
            one for where, (some, said) in found.items() for one in _forecasts(where, some, said)
        ]
        if final:
            _, both = found["family_and_group_out"]
            scores[name]["all"] = scored(grid, np.concatenate([told, both]), residuals=residuals)
        own = out_of_group(grid, features) if final else told
        of_grid.append(_model(name, grid, own, features))
        if beyond:
            own = out_of_group(shipped, features)
            scores[name]["shipped"] = scored(shipped, own, residuals=residuals_of(shipped, own))
        models.append(_model(name, shipped, own, features) if beyond else of_grid[-1])
    return {
        "models": models,
        "outside": [
            {"pair": pair.name, "came": pair.recovery, **said}
            for pair in beyond
            if (said := foretell(pair.metrics, {"models": of_grid})) is not None
        ],
        "scores": scores,
        "forecasts": forecasts,
        "run_by_run": {
            name: run_by_run([pair for pair in grid if pair.family == name])
            for name in dict.fromkeys(pair.family for pair in grid)
        },
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
    seen: Sequence[Pair], frozen: Sequence[Pair], features: Sequence[Feature]
) -> dict[str, tuple[Sequence[Pair], Array]]:
    """The frozen family's pairs, and what models of the others foretell of them."""
    return {
        "family_out": (frozen, fitted(seen, features).predict(frozen)),
        "family_and_group_out": (frozen, left_out_of_both(seen, frozen, features)),
    }


def _verdicts(pairs: Sequence[Pair]) -> dict[str, dict[str, int]]:
    """What became of pairs by what `opd check` had said of them."""
    told = Counter((pair.verdict, pair.recovery >= SUCCESS) for pair in pairs)
    names = sorted({name for name, _ in told})
    return {name: {"worked": told[name, True], "not": told[name, False]} for name in names}


def _forecasts(where: str, pairs: Sequence[Pair], told: Array) -> list[dict[str, Any]]:
    """What the scores are of, pair by pair: anybody can compute them again."""
    return [
        {
            "scored_on": where,
            "pair": pair.name,
            "kind": pair.kind,
            "group": pair.group,
            "told": value,
            "came": pair.recovery,
        }
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
