"""The sequence reward of right and of wrong responses: histograms, and how well it tells them apart.

Sequence reward = mean over a response's tokens of log q(teacher) − log p(student), nats per token
(arXiv 2604.13016, section 6.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opdkit.report.read import Row, Run
from opdkit.report.text import number, percent, shown

BARS = 24
FEWEST = 10  # right or wrong ones; below it an AUROC is a matter of single responses


@dataclass(frozen=True)
class Sorted:
    """Rewards of one step by what the grader said."""

    step: int
    right: Sequence[float]
    wrong: Sequence[float]
    ungraded: Sequence[float]
    cut: int  # of all of them, responses that ended at the limit

    @property
    def all(self) -> list[float]:
        return [*self.right, *self.wrong, *self.ungraded]

    @property
    def graded(self) -> bool:
        return bool(self.right or self.wrong)


def ends(run: Run) -> list[Sorted]:
    """The first and the last step that wrote a reward; one where there is but one."""
    found = [row for row in map(_sorted, run.sequences) if row.all]
    return found[:1] + found[1:][-1:]


def auroc(right: Sequence[float], wrong: Sequence[float]) -> float | None:
    """Chance that a right response is rewarded more than a wrong one, a tie counting half; None without both.

    The number of `opdkit.diagnostics.auroc` (a test holds them together), without loading torch to draw a page.

    Mann–Whitney: (sum of the right ones' ranks − least possible) ÷ pairs, tied values sharing their mean rank.

    >>> auroc([2.0, 3.0], [1.0, 2.0])
    0.875
    """
    if not right or not wrong:
        return None
    ranks = _ranks([*right, *wrong])
    least = len(right) * (len(right) + 1) / 2
    return (sum(ranks[: len(right)]) - least) / (len(right) * len(wrong))


def bars(values: Sequence[float], low: float, high: float) -> list[int]:
    """Counts in `BARS` equal bins from low to high, both ends included."""
    counts = [0] * BARS
    for value in values:
        share = (value - low) / (high - low) if high > low else 0.5
        counts[min(int(share * BARS), BARS - 1)] += 1
    return counts


def told(it: Sorted) -> str:
    """The histogram in a sentence or two."""
    if not it.graded:
        return f"{len(it.all)} responses, none graded: there is no right and wrong to tell apart."
    area, counts = auroc(it.right, it.wrong), f"{len(it.right)} right, {len(it.wrong)} wrong"
    cut = f", {it.cut} cut at the limit" if it.cut else ""
    if area is None:
        return f"{counts}{cut}: with one kind only, nothing is to be told apart."
    reading = f"a right response is rewarded more than a wrong one in {percent(area)} of pairs"
    few = " Too few of one kind to rely on." if min(len(it.right), len(it.wrong)) < FEWEST else ""
    return f"AUROC {shown(area)} (n = {counts}{cut}): {reading}.{few}"


def _sorted(row: Row) -> Sorted:
    rewards, scores = (_list(row.get(key)) for key in ("sequence_reward", "score"))
    right: list[float] = []
    wrong: list[float] = []
    ungraded: list[float] = []
    for place, value in enumerate(rewards):
        reward, score = number(value), number(scores[place]) if place < len(scores) else None
        if reward is not None:
            (ungraded if score is None else right if score >= 0.5 else wrong).append(reward)
    cut = sum(flag is True for flag in _list(row.get("truncated")))
    return Sorted(row["step"], right, wrong, ungraded, cut)


def _ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equal values share the mean of their places."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    ranks, first = [0.0] * len(values), 0
    while first < len(order):
        last = first
        while last + 1 < len(order) and values[order[last + 1]] == values[order[first]]:
            last += 1
        for place in order[first : last + 1]:
            ranks[place] = (first + last) / 2 + 1
        first = last + 1
    return ranks


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
