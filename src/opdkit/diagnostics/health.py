"""Health during training: the monitor, its conditions, and each of them shown on a few made-up steps.

    python -m opdkit.diagnostics.health

prints every condition with a tiny series that triggers it. Conditions are records in diagnostics/conditions.py, the one
who watches is in diagnostics/monitor.py; docs/health.md says how both did on real runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from opdkit.diagnostics.conditions import CONDITIONS, Condition
from opdkit.diagnostics.monitor import Monitor
from opdkit.types import Finding

__all__ = ["CONDITIONS", "EXAMPLES", "Condition", "Monitor", "conditions_table", "example_rows", "show"]

STEPS = 100

Row = dict[str, Any]
Course = Callable[[float], float]
"""A number as a function of how far the run is, 0 to 1."""


def _ramp(start: float, end: float, *, by: float = 0.3) -> Course:
    return lambda share: start + (end - start) * min(share / by, 1.0)


def _still(value: float) -> Course:
    return lambda share: value


HEALTHY: Mapping[str, Course] = {
    "loss": lambda share: 0.2 * math.exp(-6 * share),
    "overlap_ratio": _ramp(0.85, 0.92, by=1.0),
    "overlap_advantage": lambda share: -0.015 * math.exp(-6 * share),
    "overlap_mass_student": _still(0.97),
    "overlap_mass_teacher": _still(0.98),
    "entropy_student": _still(0.8),
    "entropy_teacher": _still(0.75),
    "by_position/0/entropy_student": _still(1.1),
    "by_position/8/entropy_student": _still(0.8),
    "by_position/16/entropy_student": _still(0.5),
    "grad_norm": lambda share: math.exp(-3 * share),
    "response_length": _still(20.0),
    "truncated_fraction": _still(0.02),
    "repetition_fraction": _still(0.01),
    "sampler_mismatch": _still(2e-7),
    "mass_left_out": _still(0.02),
    "clipped_fraction": _still(0.01),
    "skipped_steps": _still(0.0),
    "accuracy": lambda share: 0.3 + 0.3 * share + 0.01 * math.sin(1000 * share),
}
"""A run that works; an example replaces some of it."""

EXAMPLES: Mapping[str, Mapping[str, Course]] = {
    "overlap_stagnation": {
        "loss": _still(0.2),
        "overlap_advantage": _still(-0.015),
        "overlap_ratio": _still(0.35),
    },
    "overlap_fall": {"overlap_ratio": _ramp(0.75, 0.5), "loss": _still(0.4)},
    "loss_rise": {"loss": _ramp(0.2, 0.6)},
    "low_mass_good_advantage": {
        "loss": _still(1.4),
        "overlap_mass_student": _still(0.86),
        "overlap_mass_teacher": _still(0.88),
    },
    "entropy_blow_up": {"entropy_student": _ramp(0.8, 1.8)},
    "entropy_collapse": {"entropy_student": _ramp(0.8, 0.05)},
    "length_inflation": {"response_length": _ramp(20.0, 60.0)},
    "truncation": {"truncated_fraction": _still(0.9)},
    "repetition": {"repetition_fraction": _ramp(0.01, 0.5)},
    "lost_stopping": {"truncated_fraction": _ramp(0.02, 0.9)},
    "tail_first_decay": {"by_position/16/entropy_student": _ramp(0.5, 1.5)},
    "gradient_spike": {"grad_norm": lambda share: 30.0 if 0.29 < share < 0.31 else 1.0},
    "flat_small_loss": {"loss": _still(0.03)},
    "sampler_mismatch": {"sampler_mismatch": _still(0.12)},
    "mass_left_out": {"mass_left_out": _still(0.3)},
    "clipped_signal": {"clipped_fraction": _still(0.2)},
    "skipped_steps": {"skipped_steps": lambda share: float(share > 0.2)},
    "accuracy_fall": {"accuracy": lambda share: 0.6 - 0.5 * share + 0.01 * math.sin(1000 * share)},
    "privileged_leak": {"copied_fraction": _ramp(0.1, 0.7)},
}
"""What differs from a healthy run, by condition."""


def example_rows(name: str | None = None, *, steps: int = STEPS) -> list[Row]:
    """Rows of a made-up run that has the condition `name`, or of a healthy one."""
    courses = {**HEALTHY, **(EXAMPLES[name] if name else {})}
    return [
        {"step": step, **{key: course(step / steps) for key, course in courses.items()}}
        for step in range(1, steps + 1)
    ]


def first_finding(name: str, *, steps: int = STEPS) -> Finding:
    monitor = Monitor(steps=steps)
    return next(f for row in example_rows(name, steps=steps) for f in monitor.see(row) if f.name == name)


def conditions_table() -> Iterator[str]:
    """All conditions as a Markdown table, from their records."""
    yield "| condition | severity | window | judged from | stories | fires when | source | remedy |"
    yield "|---|---|---|---|---|---|---|---|"
    for c in CONDITIONS:
        window = f"{c.window.share:.0%} of the steps, {c.window.least} to {c.window.most}"
        since = "`health.patience`" if c.settles else "two windows on"
        cells = (
            f"`{c.name}`",
            c.severity,
            window,
            since,
            ", ".join(c.stories),
            _code(c.told_rule),
            c.source,
            _code(c.remedy),
        )
        yield f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    """
    >>> _code("|a| < 1")
    '`\\\\|a\\\\| < 1`'
    """
    return f"`{text}`".replace("|", "\\|")


def show() -> Iterator[str]:
    """Every condition with the numbers that trigger it, on 100 made-up steps."""
    for c in CONDITIONS:
        found = first_finding(c.name)
        yield f"{c.name}  ({c.severity}, windows of {c.window.size(STEPS)} steps)"
        yield f"  series   {'; '.join(_course(n, course) for n, course in EXAMPLES[c.name].items())}"
        yield f"  fires    after step {found.step} of {STEPS}: {found.rule}"
        yield f"  numbers  {', '.join(f'{n} {v:.3g}' for n, v in found.numbers.items())}"
        yield f"  says     {found.message}"
        yield f"  remedy   {found.remedy}"
        yield f"  source   {found.source}"
        yield ""


def _course(name: str, course: Course) -> str:
    """A number at some steps.

    >>> _course("loss", lambda share: share)
    'loss 0.01 0.1 0.2 0.3 0.4 … 1'
    """
    points = [f"{course(step / STEPS):.3g}" for step in (1, 10, 20, 30, 40, 100)]
    return f"{name} {' '.join(points[:-1])} … {points[-1]}"


if __name__ == "__main__":
    print("\n".join(show()))
