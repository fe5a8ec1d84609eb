"""Prompts of another kind in every step, and the guard that sets their share by the student's entropy.

Which prompts a step has is a function of (seed, step) and of how many of either kind came before; how many that is, and
every decision of the guard, is a function of the rows of metrics.jsonl. So a resumed run goes on as one left alone would.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from opdkit.config import WidenConfig
from opdkit.tasks import walk
from opdkit.types import Finding, Prompt

SHARE, COUNT, ENTROPY = "off_share", "off_prompts", "entropy_student"
"""Metrics: the share that was planned, how many prompts of the step came from the second file, what the guard reads."""
STREAM = 1 << 32
"""Added to the seed of the second walk: with as many prompts in both files the two must not go side by side."""
SLACK = 1e-9  # shares are sums of decimal fractions


@dataclass(frozen=True)
class Change:
    """A decision after `step` steps: the share before and after, and the numbers that led to it, in nats."""

    step: int
    before: float
    after: float
    entropy: float
    floor: float

    @property
    def finding(self) -> Finding:
        raised = self.after > self.before
        side = "below" if raised else "well above"
        return Finding(
            name="off_share_raised" if raised else "off_share_lowered",
            severity="info",
            message=f"the share of other prompts goes from {self.before:.0%} to {self.after:.0%}: the student's entropy, "
            f"{self.entropy:.3f} nats, lies {side} the floor of {self.floor:.3f}",
            numbers={
                "before": self.before,
                "after": self.after,
                "entropy_student": self.entropy,
                "floor": self.floor,
            },
            step=self.step,
            rule="entropy_student < floor" if raised else "entropy_student > clear × floor",
            source="arXiv 2604.13016, 5.2",
        )


def decide(cfg: WidenConfig, entropies: Sequence[float | None]) -> list[Change]:
    """All changes of the share, from `entropy_student` of every step so far (nats; None where nothing was measured).

    After every `window` steps their mean is compared with the floor. The first window sets a relative floor and decides
    nothing by itself then.

    >>> guard = WidenConfig(share=0.1, window=2, floor=0.5, change=0.2, most=0.4)
    >>> [(c.step, round(c.after, 1)) for c in decide(guard, [2, 2, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 3, 3])]
    [(4, 0.3), (6, 0.4), (12, 0.2)]
    """
    floor = cfg.floor if cfg.floor_of == "nats" else None
    share, changes = cfg.share, []
    for end in range(cfg.window, len(entropies) + 1, cfg.window):
        known = [e for e in entropies[end - cfg.window : end] if e is not None and math.isfinite(e)]
        if not known:
            continue
        mean = sum(known) / len(known)
        if floor is None:
            floor = cfg.floor * mean
            continue
        after = share
        if mean < floor:
            after = max(share, min(cfg.most, share + cfg.change))
        elif mean > cfg.clear * floor:
            after = max(cfg.share, share - cfg.change)
        if abs(after - share) > SLACK:
            changes.append(Change(end, share, after, mean, floor))
            share = after
    return changes


class Widen:
    """Lives with the feed: what came before, and what that means for the next step. The same on every rank."""

    def __init__(self, cfg: WidenConfig, prompts: Sequence[Prompt], *, seed: int, count: int):
        self.cfg, self.prompts, self.seed, self.count = cfg, prompts, seed, count
        self._entropies: list[float | None] = []
        self._planned = 0.0  # prompts of the second file that the shares so far amount to
        self._taken = 0  # and those that were drawn
        self._share = cfg.share

    def replay(self, rows: Iterable[Mapping[str, float]]) -> None:
        """The rows of the steps before a resume."""
        for row in rows:
            self.see(row)

    def see(self, row: Mapping[str, float]) -> list[Change]:
        """The row of the step that is done. What follows from it for the next one: a change or none."""
        self._planned += self._share * self.count
        self._taken += int(row[COUNT])
        self._entropies.append(row.get(ENTROPY))
        if not self.cfg.guard:
            return []
        changes = [c for c in decide(self.cfg, self._entropies) if c.step == len(self._entropies)]
        for change in changes:
            self._share = change.after
        return changes

    @property
    def numbers(self) -> dict[str, float]:
        """Of the step at hand, for its row."""
        return {SHARE: self._share, COUNT: float(self._due())}

    def step_prompts(self, own: Sequence[Prompt], *, step: int) -> list[Prompt]:
        """`count` prompts: the task's own first, then others. Both walks go on where the step before left them."""
        due = self._due()
        begin = step * self.count - self._taken
        mine = walk(own, begin=begin, count=self.count - due, seed=self.seed)
        return [*mine, *walk(self.prompts, begin=self._taken, count=due, seed=self.seed + STREAM)]

    def _due(self) -> int:
        """Whole prompts whose sum never lags the planned share by one: .1 of 4 prompts is 2 in five steps."""
        owed = self._planned + self._share * self.count - self._taken
        return max(0, min(self.count, math.floor(owed + SLACK)))
