"""The monitor: reads metrics.jsonl row by row and says once what it finds (diagnostics/conditions.py).

It keeps numbers, no clock and no randomness: the same rows give the same findings, so a resumed run is replayed from its
own rows and goes on as if it had not been cut. Free of torch; rows may come from any trainer that uses our names.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard

from opdkit.config import Config
from opdkit.diagnostics.conditions import CONDITIONS, Condition, Numbers
from opdkit.diagnostics.seen import Seen, Unknown
from opdkit.types import Finding

WATCHED = frozenset(
    (
        "loss",
        "overlap_ratio",
        "overlap_advantage",
        "overlap_mass_student",
        "overlap_mass_teacher",
        "entropy_student",
        "entropy_teacher",
        "response_length",
        "truncated_fraction",
        "repetition_fraction",
        "grad_norm",
        "sampler_mismatch",
        "mass_left_out",
        "clipped_fraction",
        "skipped_steps",
        "accuracy",
        "copied_fraction",
    )
)
"""Names that conditions ask for, beside by_position/START/entropy_student. Others may hold anything."""
OF_WHOLE_RESPONSES = frozenset(("response_length", "truncated_fraction"))
"""What says nothing of the student where the horizon cuts its responses."""
CUT = 0.05
"""Share of cut responses above which that is so."""
LARGEST = 1e30
"""Beyond it a number is an accident, and its square no number any more."""


class Monitor:
    """Watches one run of `steps` steps. `see` every row in order; each condition is told once, however it goes on.

    `patience`: share of the steps before a trend is judged. `ignore`: names never told. The rest fills remedies.
    """

    def __init__(
        self,
        *,
        steps: int,
        story: str = "distill",
        run: str = "RUN",
        lr: float = 1e-6,
        max_tokens: int = 256,
        patience: float = 0.3,
        ignore: Iterable[str] = (),
    ):
        self.steps, self.patience = steps, patience
        self.told: set[str] = set()
        self._conditions = [c for c in CONDITIONS if story in c.stories and c.name not in set(ignore)]
        self._rows: list[dict[str, float]] = []
        self._count, self._horizon = 0, 0.0
        self._places = _places(run, lr=lr, max_tokens=max_tokens)

    @classmethod
    def of(cls, config: Config) -> Monitor:
        """The monitor of a run of ours."""
        return cls(
            steps=config.steps,
            story=config.story,
            run=str(config.run),
            lr=config.optim.lr,
            max_tokens=config.sampling.max_tokens,
            patience=config.health.patience,
            ignore=config.health.ignore,
        )

    def see(self, row: Mapping[str, Any]) -> list[Finding]:
        """What this step's row brings to light for the first time."""
        self._forget(row)
        self._rows.append(_numbers(row))
        self._count += 1
        step = _step(row, default=self._count)
        found = [f for c in self._conditions if c.name not in self.told and (f := self._judge(c, step))]
        self.told |= {finding.name for finding in found}
        return found

    def lasting(self) -> list[str]:
        """Names of conditions that were told and hold after the last row as well."""
        told = [c for c in self._conditions if c.name in self.told]
        return [c.name for c in told if self._rows and self._judge(c, self._count) is not None]

    def _forget(self, row: Mapping[str, Any]) -> None:
        """Once the horizon grows, rows before are of other tokens: where it is a mask, as to what is trained; where tokens beyond
        are not drawn (rows then tell `cut_fraction`), as to everything."""
        now = row.get("horizon", 0.0)
        if not _is_number(now):
            return
        if now > self._horizon > 0:
            self._rows = (
                []
                if "cut_fraction" in row
                else [{n: v for n, v in old.items() if n != "loss"} for old in self._rows]
            )
        self._horizon = float(now)

    def replay(
        self,
        rows: Iterable[Mapping[str, Any]],
        findings: Iterable[Mapping[str, Any]],
        *,
        heard: Callable[[Mapping[str, Any], list[Finding]], object] | None = None,
    ) -> list[Finding]:
        """Take up a run where its `rows` end; `findings` were told. Returns what they left out: nothing, unless the
        run was not watched, or not like this, so far. `heard` is told every row with what it brought to light."""
        found = []
        for row in rows:
            here = self.see(row)
            found += here
            if heard is not None:
                heard(row, here)
        written = {str(finding.get("name")) for finding in findings}
        self.told |= written
        return [finding for finding in found if finding.name not in written]

    def _judge(self, condition: Condition, step: int) -> Finding | None:
        if condition.settles and self._count < self.patience * self.steps:
            return None
        try:
            numbers = condition.holds(Seen(self._rows, condition.window.size(self.steps)), condition.limits)
        except Unknown:
            return None
        return None if numbers is None else self._finding(condition, numbers, step)

    def _finding(self, condition: Condition, numbers: Numbers, step: int) -> Finding:
        return Finding(
            name=condition.name,
            severity=condition.severity,
            message=condition.message.format_map(numbers),
            numbers=numbers,
            remedy=condition.remedy.format_map(self._places),
            step=step,
            rule=condition.told_rule,
            source=condition.source,
        )


def _places(run: str, *, lr: float, max_tokens: int) -> dict[str, str]:
    """What the places in a remedy stand for."""
    return {
        "run": shlex.quote(run),
        "config": shlex.quote(f"{run}/config.toml"),
        "again": shlex.quote(f"{run}-2"),
        "lr": f"{lr / 3:.2g}",
        "tokens": str(2 * max_tokens),
    }


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among what is watched: a null in the file and a NaN in memory are both no number."""
    cut = _is_number(row.get("cut_fraction")) and row["cut_fraction"] > CUT
    return {
        name: float(value)
        for name, value in row.items()
        if not (cut and name in OF_WHOLE_RESPONSES)
        and (name in WATCHED or (name.startswith("by_position/") and name.endswith("/entropy_student")))
        and _is_number(value)
    }


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _step(row: Mapping[str, Any], *, default: int) -> int:
    step = row.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) else default
