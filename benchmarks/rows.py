"""The rows of `make bench`: what each measures, in which direction it counts, what it should reach. Plain data.

A row is measured by a script in a process of its own; some scripts give several records (`loss` gives one per preset).
Records are what record.py says; their names start with the row's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Row:
    name: str
    script: str
    pairs: int  # timed pairs in the full form
    short: int = 0  # in `make bench-check`; 0 = not in it


@dataclass(frozen=True)
class Aim:
    """What a record should reach: first target and goal for the median of its ratio or for another of its numbers."""

    target: float
    goal: float
    better: Better = "higher"
    number: str = "ratio"

    def reached(self, value: float) -> str:
        """`goal`, `target` or `no`.

        >>> Aim(1.2, 1.5).reached(1.36), Aim(1.05, 1.02, better="lower").reached(1.01)
        ('target', 'goal')
        """
        beats = (lambda x: value >= x) if self.better == "higher" else (lambda x: value <= x)
        return "goal" if beats(self.goal) else "target" if beats(self.target) else "no"


TRL = "against_trl.py"
ROWS = [
    Row("equal", TRL, pairs=12, short=6),
    Row("ragged", TRL, pairs=8, short=5),
    Row("bf16", TRL, pairs=10, short=5),
    Row("four", TRL, pairs=10, short=5),
    Row("vocabulary", TRL, pairs=4),
    Row("vocabulary-full", TRL, pairs=3),
    Row("gkd", TRL, pairs=6, short=5),
    Row("gold", TRL, pairs=6),
    Row("iw_opd", TRL, pairs=6),
    Row("sdft", TRL, pairs=6),
    Row("sdpo", TRL, pairs=6),
    Row("server_distillation", TRL, pairs=1),
    Row("async_distillation", TRL, pairs=1),
    Row("two-cores", "two_cores.py", pairs=5),
    Row("diagnostics", "diagnostics_cost.py", pairs=9, short=7),
    Row("loss", "loss_stage.py", pairs=2),
    Row("columns", "loss_stage.py", pairs=3),
    Row("memory", "loss_stage.py", pairs=1),
]

AIMS = {
    "equal": Aim(1.2, 1.5),
    "bf16": Aim(1.5, 1.8),
    "ragged": Aim(4.0, 6.0),
    "four": Aim(1.5, 2.0),
    "vocabulary": Aim(2.0, 4.0),
    "columns": Aim(10.0, 40.0, number="ratio_at_8192"),
    "memory": Aim(20.0, 30.0, number="naive_over_columns"),
    "two-cores": Aim(1.6, 1.8),
    "diagnostics/small": Aim(1.05, 1.02, better="lower"),
    "diagnostics/large": Aim(1.05, 1.02, better="lower"),
}
"""By the record's name. Only these have a target."""


def chosen(words: str | None, *, short: bool = False) -> list[Row]:
    """The rows of `--rows equal,ragged`, or all; with `short` those that the short form has. ValueError for a name unknown."""
    known = {row.name: row for row in ROWS}
    names = [name for name in (words or "").split(",") if name]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no row is called {unknown[0]!r}; there are: {', '.join(known)}")
    if names:
        return [known[name] for name in names]
    return [row for row in ROWS if row.short or not short]
