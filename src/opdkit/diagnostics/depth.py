"""How deep along a response the supervision can be trusted, read from rows of metrics.jsonl.

by                 per position bin and step                                                bound
sign_reliability   ½ + ½ (reward_up_right − reward_up_wrong); ½ where right responses       more than
                   do not reach and wrong ones do: nothing tells them apart there
overlap_ratio      overlap of the bin over that of the first                                more than
entropy            H(p) / max(H(q), 0.1 nats)                                               less than

The trusted depth is where the sum of margins from the start of the response is largest: the tail behind it is, on balance,
beyond the bound. A single early bin that says nothing (all responses begin with the same word) therefore ends nothing, and a bin
has its standard error over the steps in its favour. A bin that fewer than half of the steps know anything of counts neither way:
it is trusted as far as what comes before it.

Free of torch. Letters: B position bins.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from opdkit.diagnostics.seen import bins_of

CALM = 0.1
"""Nats below which a teacher's entropy is taken to be this: the ratio of two near-certain models is noise."""
LEAST = 1e-9
"""Overlap of the first bin below which nothing is compared with it: one shared token among all measured is more."""
MOST = 1.0
"""Largest margin of a bin, either way: one bin does not outweigh all others."""

Rows = Sequence[Mapping[str, Any]]


def trusted_depth(rows: Rows, *, by: str, bound: float, max_tokens: int) -> int | None:
    """First response position (0 to `max_tokens`) behind which the supervision is not to be trusted, from these steps' rows;
    None where they know of no position.

    >>> def row(*shares):
    ...     return {f"by_position/{8 * b}/sign_reliability": share for b, share in enumerate(shares)}
    >>> trusted_depth([row(0.5, 0.7, 0.6, 0.4)], by="sign_reliability", bound=0.5, max_tokens=32)
    24
    >>> trusted_depth([row(0.49, 0.7, 0.6, 0.6)], by="sign_reliability", bound=0.5, max_tokens=32)
    32
    """
    starts = sorted({start for row in rows for name in _KEYS[by] for start in bins_of(name, row)})
    depth, best, total, known = min(starts, default=0), 0.0, 0.0, False
    for start, end in zip(starts, [*starts[1:], max_tokens][: len(starts)], strict=True):
        margin = _margin(rows, start, starts[0], by=by, bound=bound)
        if margin is None:
            depth = end if depth == start else depth
            continue
        known, total = True, total + margin
        if total > best:
            depth, best = end, total
    return depth if known else None


def bin_values(rows: Rows, start: int, first: int, *, by: str) -> list[float]:
    """What each step that knows it says of the bin from `start` on; `first` is the response's first bin."""
    found = (_value(row, start, first, by) for row in rows)
    return [value for value in found if value is not None]


_KEYS = {
    "sign_reliability": ("sign_reliability", "reward_up_wrong"),
    "overlap_ratio": ("overlap_ratio",),
    "entropy": ("entropy_student", "entropy_teacher"),
}


def _value(row: Mapping[str, Any], start: int, first: int, by: str) -> float | None:
    here = [_number(row.get(f"by_position/{start}/{name}")) for name in _KEYS[by]]
    if by == "sign_reliability":
        some_right = f"by_position/{first}/reward_up_right" in row
        return 0.5 if here[0] is None and here[1] is not None and some_right else here[0]
    if by == "overlap_ratio":
        beginning = _number(row.get(f"by_position/{first}/overlap_ratio"))
        return None if here[0] is None or beginning is None or beginning < LEAST else here[0] / beginning
    student, teacher = here[0], here[1]
    return None if student is None or teacher is None else student / max(teacher, CALM)


def _margin(rows: Rows, start: int, first: int, *, by: str, bound: float) -> float | None:
    """How far inside the bound the bin is, with its standard error in its favour; None where too little is known."""
    values = bin_values(rows, start, first, by=by)
    if not values or 2 * len(values) < len(rows):
        return None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    mean = statistics.fmean(values)
    inside = 1.0 - (mean - error) / bound if by == "entropy" else mean + error - bound
    return max(-MOST, min(MOST, inside))


def _number(value: Any) -> float | None:
    """A null in the file and a NaN in memory are both no number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
