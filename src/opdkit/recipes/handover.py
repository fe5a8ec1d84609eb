"""When a cold start is over: a rule on what probes of the student's own rollouts said, and on nothing else.

Too short a start has lost the old style and not learned the new one; too long a one forgets, and overlap falls again
(docs/coldstart.md has the curves). Shared mass is high long before the new way of working is learned, overlap is not:
so without a target the rule waits until `overlap_ratio` stops rising.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from opdkit.config import ColdstartConfig

OVERLAP, MASS, ACCURACY = "overlap_ratio", "overlap_mass_teacher_before_end", "accuracy"
Why = Literal["steps", "target", "stopped_rising", "limit"]


@dataclass(frozen=True)
class Handover:
    """The step whose student is handed over, and why it is that one."""

    step: int
    why: Why
    says: str


def handover(probes: Sequence[Mapping[str, Any]], cfg: ColdstartConfig) -> Handover | None:
    """The hand-over that these probes call for, None while the student goes on imitating.

    `probes`: rows with `step` and the two numbers, ascending; step 0 is the student before. A fixed number of steps; else the
    target, at the first probe from `least` on that has it; else a plateau: none of the last `patience` probes is `rise` above
    the best before them (step 0 aside, which is of the old style), and, where probes are graded, the student is not worse than it
    was before: overlap may rest while the old style is lost and the new one not learned. Of a plateau the first best
    probe is handed over: what came after it taught nothing. At the most steps it is what there is.
    """
    until, here = cfg.until, probes[-1]
    step = int(here["step"])
    if until.steps is not None:
        return Handover(step, "steps", f"step {step}, as configured") if step >= until.steps else None
    if step >= max(cfg.least, 1):
        wanted = {OVERLAP: until.overlap, MASS: until.mass}
        asked = {name: target for name, target in wanted.items() if target is not None}
        if asked and all(here[name] >= target for name, target in asked.items()):
            reached = ", ".join(f"{name} {here[name]:.3f} ≥ {target:g}" for name, target in asked.items())
            return Handover(step, "target", f"step {step}: {reached}")
        if (best := _plateau(probes, cfg)) is not None:
            said = f"{OVERLAP} has not risen by {until.rise:g} in {until.patience} probes: step {best} of {step} is handed over"
            return Handover(best, "stopped_rising", said)
    if step >= cfg.steps:
        return Handover(step, "limit", f"step {step}, the most, with {OVERLAP} {here[OVERLAP]:.3f}")
    return None


def _plateau(probes: Sequence[Mapping[str, Any]], cfg: ColdstartConfig) -> int | None:
    """Step of the first best probe from the floor on, if none of the last `patience` rose above the best before them."""
    seen = [probe for probe in probes if probe["step"] > 0]
    before, last = seen[: -cfg.until.patience], seen[-cfg.until.patience :]
    if not before or any(
        probe[OVERLAP] >= max(p[OVERLAP] for p in before) + cfg.until.rise for probe in last
    ):
        return None
    if _worse_than_before(probes):
        return None
    kept = seen[-cfg.until.patience - 1 :]  # their checkpoints are there
    return int(max((p for p in kept if p["step"] >= cfg.least), key=lambda p: p[OVERLAP])["step"])


def _worse_than_before(probes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the latest probe is graded, and lower than the student was at step 0."""
    before, here = (probe.get(ACCURACY) for probe in (probes[0], probes[-1]))
    return before is not None and here is not None and here < before
