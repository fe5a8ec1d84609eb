"""First against last: the numbers every sentence and table of the report is made of."""

import math
from dataclasses import dataclass
from typing import Any

from opdkit.report.read import Row, Run
from opdkit.report.text import number, percent, shown

SMALLEST_GAP = 0.05  # below it gap recovery divides noise by noise, and is undefined (see docs/design.md)


@dataclass(frozen=True)
class Change:
    """Means of a metric over the first and the last `window` of the `count` steps that logged it."""

    first: float
    last: float
    window: int
    count: int

    @property
    def fold(self) -> float | None:
        """How many times smaller it became: 0.5 → 0.02 is 25. None where one is 0 or the sign changed."""
        return self.first / self.last if self.first * self.last > 0 else None

    @property
    def words(self) -> str:
        return f"{shown(self.first)} → {shown(self.last)}"

    @property
    def percents(self) -> str:
        return f"{percent(self.first)} → {percent(self.last)}"


def change(run: Run, name: str) -> Change | None:
    """First against last of `name`, each averaged over a tenth of its steps; None below two values.

    A tenth, because single steps are noisy; of the steps that logged it, because some log rarely.
    """
    values = run.values(name)
    if len(values) < 2:
        return None
    window = math.ceil(len(values) / 10)
    return Change(_mean(values[:window]), _mean(values[-window:]), window, len(values))


@dataclass(frozen=True)
class Score:
    """One evaluation: avg@k with its 95 % interval over problems."""

    step: int
    value: float
    low: float | None
    high: float | None

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None

    @property
    def words(self) -> str:
        interval = f" [{percent(self.low)}, {percent(self.high)}]" if self.has_interval else ""
        return f"{percent(self.value)}{interval}"


def apart(one: Score, other: Score) -> bool:
    """Whether two intervals share no point; False where one is missing."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.high < other.low or other.high < one.low


def scores(run: Run) -> list[Score]:
    """Evaluations that graded something, ascending in step."""
    return [_score(row) for row in run.evals if number(row.get("avg_at_k")) is not None]


def gap_recovery(run: Run) -> float | None:
    """(after − before) ÷ (teacher − before); None without a teacher's score or for a gap below 0.05."""
    found = scores(run)
    teacher = next((t for row in run.evals if (t := number(row.get("teacher_avg_at_k"))) is not None), None)
    if len(found) < 2 or teacher is None or teacher - found[0].value < SMALLEST_GAP:
        return None
    return (found[-1].value - found[0].value) / (teacher - found[0].value)


def pass_at_k(row: Row) -> dict[int, float]:
    """k → pass@k of an evaluation; whatever is not a number is left out."""
    table: Any = row.get("pass_at_k")
    pairs = table.items() if isinstance(table, dict) else ()
    numbers = {int(k): number(value) for k, value in pairs if k.isdecimal() and len(k) < 10}
    return {k: value for k, value in sorted(numbers.items()) if value is not None}


def response_tokens(run: Run) -> float | None:
    """Response tokens of the run: mean length × prompts × responses per prompt, added over the steps."""
    prompts, responses = (
        number(run.config.get("prompts_per_step")),
        number(run.config.get("sampling.responses")),
    )
    lengths = run.values("response_length")
    return sum(lengths) * prompts * responses if prompts and responses and lengths else None


def skipped(run: Run) -> int | None:
    """Steps left out so far, as the run counted them; None when it did not say."""
    values = run.values("skipped_steps")
    return int(values[-1]) if values else None


def _score(row: Row) -> Score:
    return Score(row["step"], float(row["avg_at_k"]), number(row.get("low")), number(row.get("high")))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
