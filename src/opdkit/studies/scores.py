"""How good predictions are, pooled over bases, with intervals from bases drawn with replacement.

Pairs of one base share a world and a student, so whole bases are drawn. Free of scikit-learn: tests compare.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES, LEVEL = 2000, 0.95
Array = np.ndarray


@dataclass(frozen=True)
class Score:
    """`low` and `high` hold 95 % of what resampled bases give; None where no resample has one."""

    value: float
    low: float | None
    high: float | None


def numbered(names: Sequence[Hashable]) -> Array:
    """
    >>> numbered(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([place[name] for name in names])


def auroc(scores: Array, positive: Array) -> float | None:
    """P(score of a success > score of a failure), ties counting half; None when a class is empty."""
    won, pairs = _won(scores, positive, np.zeros(len(scores), dtype=int))
    return float(won.sum() / pairs.sum()) if pairs.sum() else None


def auroc_score(scores: Array, positive: Array, base: Array) -> Score | None:
    value = auroc(scores, positive)
    return None if value is None else _scored(value, auroc_drawn(scores, positive, base))


def better_by(scores: Array, other: Array, positive: Array, base: Array) -> Score | None:
    """How much higher one AUROC is than another on the same pairs, both on the same resamples."""
    values = auroc(scores, positive), auroc(other, positive)
    if values[0] is None or values[1] is None:
        return None
    drawn = auroc_drawn(scores, positive, base) - auroc_drawn(other, positive, base)
    return _scored(values[0] - values[1], drawn)


def auroc_drawn(scores: Array, positive: Array, base: Array) -> Array:
    """One AUROC per resample [RESAMPLES], nan where a class is empty. A base drawn twice is there twice: with w its counts
    and S, N sums over (success of base a, failure of base b), AUROC = wᵀSw ÷ wᵀNw."""
    won, pairs = _won(scores, positive, base)
    drawn = _counts(base)
    total = np.einsum("ra,ab,rb->r", drawn, pairs, drawn)
    with np.errstate(invalid="ignore"):
        return np.einsum("ra,ab,rb->r", drawn, won, drawn) / np.where(total > 0, total, np.nan)


def _won(scores: Array, positive: Array, base: Array) -> tuple[Array, Array]:
    """Comparisons won, and all, by (base of the success, base of the failure)."""
    size = int(base.max()) + 1 if len(base) else 0
    above = scores[positive][:, None] - scores[~positive][None, :]
    won, pairs = np.zeros((size, size)), np.zeros((size, size))
    at = np.ix_(base[positive], base[~positive])
    index = np.broadcast_arrays(*at)
    np.add.at(won, tuple(index), (above > 0) + 0.5 * (above == 0))
    np.add.at(pairs, tuple(index), 1.0)
    return won, pairs


def spearman(a: Array, b: Array) -> float | None:
    """Correlation of ranks, ties sharing theirs; None where one side is constant."""
    first, second = ranks(a), ranks(b)
    if len(a) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def spearman_score(a: Array, b: Array, base: Array) -> Score | None:
    value = spearman(a, b)
    if value is None:
        return None
    members = [np.flatnonzero(base == i) for i in range(int(base.max()) + 1)]
    again = []
    for counts in _counts(base).astype(int):
        index = np.concatenate([np.repeat(mine, n) for mine, n in zip(members, counts, strict=True)])
        again.append(spearman(a[index], b[index]))
    return _scored(value, np.array([np.nan if x is None else x for x in again]))


def ranks(values: Array) -> Array:
    """From 1; equal values share the mean of theirs.

    >>> ranks(np.array([5.0, 1.0, 5.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def mean_score(values: Array, base: Array) -> Score:
    """Of a mean over pairs."""
    size = int(base.max()) + 1
    sums, counts = np.bincount(base, weights=values, minlength=size), np.bincount(base, minlength=size)
    drawn = _counts(base)
    return _scored(float(values.mean()), (drawn @ sums) / (drawn @ counts))


def _counts(base: Array) -> Array:
    """How often each base is drawn [RESAMPLES, bases]; the same draws for everything that is compared."""
    size = int(base.max()) + 1
    generator = np.random.Generator(np.random.Philox(0))
    return generator.multinomial(size, np.full(size, 1 / size), size=RESAMPLES).astype(float)


def _scored(value: float, drawn: Array) -> Score:
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return Score(value, None, None)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Score(value, float(low), float(high))


def plain(score: Score | None) -> Mapping[str, float | None] | None:
    return None if score is None else {"value": score.value, "low": score.low, "high": score.high}
