"""First against last: the numbers every sentence and table of the report is made of."""

import math
from dataclasses import dataclass
from typing import Any

from opdkit.report.read import Row, Run
from opdkit.report.text import number, percent, shown

SMALLEST_GAP = 0.05  # below it gap recovery divides noise by noise, and is undefined (see docs/design.md)

# A stagnating run drifts by less than a half, a success falls tenfold and more (0.455 → 0.017 in one
# reproduction): three is far from both, and the exact place does not matter.
CLEAR_FOLD = 3.0
STILL_FOLD = 1.5
HARDLY = 0.1  # a drift below a tenth is not worth a number


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
    def fell(self) -> bool:
        return self.fold is not None and self.fold >= CLEAR_FOLD

    @property
    def rose(self) -> bool:
        return self.fold is not None and self.fold <= 1 / STILL_FOLD

    @property
    def still(self) -> bool:
        return self.first == self.last or (self.fold is not None and 1 / STILL_FOLD < self.fold < STILL_FOLD)

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


def moved(it: Change) -> str:
    """What it did, as the end of a clause: "fell 25-fold (0.5 → 0.02)".

    >>> moved(Change(0.5, 0.02, 1, 9)), moved(Change(-0.2, -0.16, 1, 9)), moved(Change(3.0, 3.0, 1, 9))
    ('fell 25-fold (0.500 → 0.0200)', 'fell by 20.0\xa0% (−0.200 → −0.160)', 'hardly moved (3 → 3)')
    """
    if it.first == it.last or (it.fold and abs(1 / it.fold - 1) < HARDLY):
        return f"hardly moved ({it.words})"
    if it.fold is None:
        return f"changed ({it.words})"
    verb, times = ("fell", it.fold) if it.fold > 1 else ("rose", 1 / it.fold)
    if it.still:
        return f"{verb} by {percent(abs(1 / it.fold - 1))} ({it.words})"
    return f"{verb} {times:.{0 if times >= 10 else 1}f}-fold ({it.words})"


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
    found, teacher = scores(run), teacher_score(run)
    if len(found) < 2 or teacher is None or teacher - found[0].value < SMALLEST_GAP:
        return None
    return (found[-1].value - found[0].value) / (teacher - found[0].value)


def gain(run: Run) -> float | None:
    """avg@k after − before; None below two evaluations."""
    found = scores(run)
    return found[-1].value - found[0].value if len(found) > 1 else None


def teacher_score(run: Run) -> float | None:
    """The teacher's avg@k, where it was evaluated on the same problems."""
    return next((t for row in run.evals if (t := number(row.get("teacher_avg_at_k"))) is not None), None)


def by_group(row: Row) -> dict[str, float]:
    """Group of problems → its accuracy; whatever is not a number is left out."""
    table: Any = row.get("by_group")
    pairs = table.items() if isinstance(table, dict) else ()
    return {name: found for name, value in pairs if (found := number(value)) is not None}


def pass_at_k(row: Row) -> dict[int, float]:
    """k → pass@k of an evaluation; whatever is not a number is left out."""
    table: Any = row.get("pass_at_k")
    pairs = table.items() if isinstance(table, dict) else ()
    numbers = {int(k): number(value) for k, value in pairs if k.isdecimal() and len(k) < 10}
    return {k: value for k, value in sorted(numbers.items()) if value is not None}


def responses_per_step(run: Run) -> float | None:
    """Responses a step trains on: P × G, and P where single texts are imitated (see the config's reference)."""
    prompts, samples = (number(run.config.get(key)) for key in ("prompts_per_step", "sampling.responses"))
    if run.story in ("sft", "improve"):
        return prompts
    return prompts * samples if prompts and samples else None


def response_tokens(run: Run) -> float | None:
    """Response tokens trained on: mean length × responses per step, added over the steps."""
    responses, lengths = responses_per_step(run), run.values("response_length")
    return sum(lengths) * responses if responses and lengths else None


def skipped(run: Run) -> int | None:
    """Steps left out so far, as the run counted them; None when it did not say."""
    values = run.values("skipped_steps")
    return int(values[-1]) if values else None


def _score(row: Row) -> Score:
    return Score(row["step"], float(row["avg_at_k"]), number(row.get("low")), number(row.get("high")))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
