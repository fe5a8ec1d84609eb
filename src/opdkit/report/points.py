"""Two runs line by line: both runs' numbers, and a sentence that weighs them with what they can and cannot show."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from opdkit.report.change import (
    CLEAR_FOLD,
    Change,
    Score,
    apart,
    by_group,
    change,
    gain,
    gap_recovery,
    moved,
    scores,
)
from opdkit.report.read import Run
from opdkit.report.stories import progress
from opdkit.report.text import NBSP, percent
from opdkit.report.words import eq7

SMALLER = 1.25  # two losses or gradients closer than this are told as equal
NOTABLE_POINTS = 0.02  # of an overlap, a mass, a score
LEVELS_APART = 0.1  # of the first overlap: another lineage rather than another seed


@dataclass(frozen=True)
class Point:
    """One line of the comparison: both runs' numbers, and the sentence that weighs them."""

    name: str
    sides: Sequence[str]
    sentence: str


@dataclass(frozen=True)
class Side:
    """A run and its change of the quantity at hand."""

    name: str
    it: Change
    worked: bool  # aligned, or whatever its story was for

    @property
    def told(self) -> str:
        return f"{whose(self.name)} {moved(self.it)}"


def points(runs: Sequence[Run]) -> list[Point]:
    """All lines of the comparison that both runs have numbers for; accuracy also where one has."""
    parts: Sequence[Callable[[Sequence[Run]], Point | None]] = (
        _accuracy, _groups, _recovery, _loss, _advantage, _overlap, _mass, _entropy_gap, _gradient, _length,
    )  # fmt: skip
    found = [point for part in parts if (point := part(runs))]
    return [replace(point, sentence=capitalised(point.sentence, runs)) for point in found]


def said(name: str) -> str:
    """A run's name as part of a sentence: quoted where it would fall apart in one.

    >>> said("working pair"), said("runs/a"), said("bigger, scores higher")
    ('working pair', 'runs/a', '“bigger, scores higher”')
    """
    return name if re.fullmatch(r"\S+|[\w-]+( [\w-]+)+", name) else f"“{name}”"


def whose(name: str) -> str:
    """A run's name as the owner of something.

    >>> whose("working pair"), whose("a/runs")
    ('working pair’s', 'a/runs’')
    """
    return f"{name}’" if name.endswith("s") else f"{name}’s"


def capitalised(text: str, runs: Sequence[Run]) -> str:
    """A capital where a sentence begins with a run's name that is plain words; a path stays as it is typed."""
    for name in (run.name for run in runs):
        if re.fullmatch(r"[a-z]+( [a-z]+)+", name):
            text = re.sub(rf"(^|\. ){name}", rf"\1{name.capitalize()}", text)
    return text


def gained(by: float) -> str:
    """A difference of percentages: "gained 28.3 points"."""
    size = f"{abs(100 * by):.1f}{NBSP}points"
    return "did not change" if round(abs(by), 3) == 0 else f"{'gained' if by > 0 else 'lost'} {size}"


def _accuracy(runs: Sequence[Run]) -> Point | None:
    found = [scores(run) for run in runs]
    if not any(found):
        return None
    sides = [f"{ends[0].words} → {ends[-1].words}" if len(ends) > 1 else _once(ends) for ends in found]
    if not all(len(ends) > 1 for ends in found):
        return Point(
            "avg_at_k", sides, "Not both were evaluated before and after: the gains cannot be compared."
        )
    gains = [f"{said(run.name)} {gained(gain(run) or 0.0)}" for run in runs]
    return Point("avg_at_k", sides, f"{' and '.join(gains)}. {_chance(runs, [ends[-1] for ends in found])}")


def _once(ends: Sequence[Score]) -> str:
    return ends[0].words if ends else "not evaluated"


def _chance(runs: Sequence[Run], last: Sequence[Score]) -> str:
    if not all(score.has_interval for score in last):
        return "Without intervals, how much of this is chance is not known."
    if not apart(*last):
        return "The last 95 % intervals overlap: by their accuracy the two cannot be told apart."
    higher = runs[0] if last[0].value > last[1].value else runs[1]
    return f"{said(higher.name)} ends higher, and the last 95 % intervals do not overlap."


def _groups(runs: Sequence[Run]) -> Point | None:
    """The kind of problem on which the two part ways most."""
    tables = [[table for row in run.evals if (table := by_group(row))] for run in runs]
    if not all(len(found) > 1 for found in tables):
        return None
    gains = [{g: t[-1][g] - t[0][g] for g in t[-1] if g in t[0]} for t in tables]
    shared = [group for group in gains[0] if group in gains[1]]
    if not shared:
        return None
    sides = ["\n".join(f"{g} {percent(t[0][g])} → {percent(t[-1][g])}" for g in shared) for t in tables]
    widest = max(shared, key=lambda group: abs(gains[0][group] - gains[1][group]))
    each = " and ".join(f"{said(run.name)} {gained(by[widest])}" for run, by in zip(runs, gains, strict=True))
    return Point("by kind of problem", sides, f"They part most on “{widest}”: {each}.")


def _recovery(runs: Sequence[Run]) -> Point | None:
    found = [gap_recovery(run) for run in runs]
    if all(value is None for value in found):
        return None
    sides = [percent(value) if value is not None else "not known" for value in found]
    return Point(
        "gap recovery", sides, "How much of the way from the student before to its teacher was covered."
    )


def _loss(runs: Sequence[Run]) -> Point | None:
    sides = _sides(runs, "loss")
    if not sides:
        return None
    caution = "" if _same_objective(runs) else " The objectives differ: compare the falls, not the sizes."
    return _point("loss", sides, f"{_read_loss(sides)}{caution}")


def _read_loss(sides: Sequence[Side]) -> str:
    if all(side.it.fell for side in sides):
        lower = min(sides, key=lambda side: abs(side.it.last))
        return f"Both fell clearly; {whose(lower.name)} ends lower."
    for side, other in (sides, sides[::-1]):
        if side.it.still and other.it.fell:
            return _read_still(side, other)
    if all(side.it.still for side in sides):
        return "Neither moved much: whichever is smaller, a loss that stays where it was teaches nothing."
    return "Not a clear fall against a clear standstill: read Eq. 7 and accuracy beside it."


def _read_still(side: Side, other: Side) -> str:
    start, start_other = abs(side.it.first), abs(other.it.first)
    if start * SMALLER < start_other:
        return (
            f"{whose(side.name)} is smaller at the start and flat: it looks calm, but it moved by a factor of "
            f"{_factor(side.it)} only, while {whose(other.name)} fell {_factor(other.it)}-fold."
        )
    beside = "higher" if start > start_other * SMALLER else "about as high"
    return f"{whose(side.name)} starts {beside} and stays there: there was something to learn, and it was not learnt."


def _advantage(runs: Sequence[Run]) -> Point | None:
    found = [eq7(run) for run in runs]
    sides = _sides(runs, "overlap_advantage", found)
    if not sides:
        return None
    falls = [side.it.fell for side in sides]
    if all(falls):
        reading = "Fell clearly in both: on the tokens they share, both came to agree with their teachers."
    elif any(falls):
        did, did_not = sides if falls[0] else sides[::-1]
        reading = (
            f"{whose(did.name)} fell {_factor(did.it)}-fold; {whose(did_not.name)} "
            f"{'rose' if did_not.it.rose else f'moved by a factor of {_factor(did_not.it)} only'}. "
            "This is the clearest sign of which run learns."
        )
    else:
        reading = "Fell clearly in neither: on the tokens they share, neither came to agree with its teacher."
    return _point("|Eq. 7|", sides, reading)


def _overlap(runs: Sequence[Run]) -> Point | None:
    sides = _sides(runs, "overlap_ratio")
    if not sides:
        return None
    told = [side.it.percents for side in sides]
    return Point("overlap_ratio", told, f"{_read_overlap(sides)}{_lineages(sides)}")


def _read_overlap(sides: Sequence[Side]) -> str:
    gains = [side.it.last - side.it.first for side in sides]
    each = " and ".join(f"{side.name} {gained(value)}" for side, value in zip(sides, gains, strict=True))
    if abs(gains[0] - gains[1]) < NOTABLE_POINTS:
        return f"{each}: the rise of overlap alone does not tell the two apart."
    more, less = sides if gains[0] > gains[1] else sides[::-1]
    if less.worked and not more.worked:
        return f"{each}: {more.name} gained more overlap and yet did not align. A rise alone is not success."
    if more.worked and not less.worked:
        return f"{each}: here overlap agrees with the loss, which it need not."
    return f"{each}."


def _lineages(sides: Sequence[Side]) -> str:
    if abs(sides[0].it.first - sides[1].it.first) < LEVELS_APART:
        return ""
    low = min(sides, key=lambda side: side.it.first)
    return (
        f" The levels differ from the first step: in {low.name}, student and teacher have fewer likely tokens "
        "in common."
    )


def _mass(runs: Sequence[Run]) -> Point | None:
    sides = _sides(runs, "overlap_mass_student")
    if not sides:
        return None
    told = [side.it.percents for side in sides]
    if abs(sides[0].it.last - sides[1].it.last) < 2 * NOTABLE_POINTS:
        return Point("overlap_mass_student", told, "Alike at the end: the mass does not tell the two apart.")
    low = min(sides, key=lambda side: side.it.last)
    outside = percent(1 - low.it.last)
    reading = f"{low.name} ends with {outside} of its student’s probability outside the shared tokens."
    return Point("overlap_mass_student", told, reading)


def _entropy_gap(runs: Sequence[Run]) -> Point | None:
    sides = _sides(runs, "entropy_gap")
    if not sides:
        return None
    narrowed = [side.it.fold is not None and side.it.fold >= SMALLER for side in sides]
    if all(narrowed):
        more = max(sides, key=lambda side: side.it.fold or 0.0)
        reading = f"Both come to be as sure as their teachers where they are; {more.name} more so."
    elif any(narrowed):
        did, did_not = sides if narrowed[0] else sides[::-1]
        reading = f"It narrowed for {did.name}; {did_not.name} stays as differently sure from its teacher as it was."
    else:
        reading = "It narrowed for neither."
    return _point("entropy_gap", sides, reading)


def _gradient(runs: Sequence[Run]) -> Point | None:
    sides = _sides(runs, "grad_norm")
    if not sides:
        return None
    starts = [side.it.first for side in sides]
    if not min(starts) > 0:
        return _point("grad_norm", sides, "")
    ratio = max(starts) / min(starts)
    if ratio < SMALLER:
        return _point("grad_norm", sides, "Both start with gradients of the same size.")
    large, small = sides if starts[0] > starts[1] else sides[::-1]
    reading = f"{whose(large.name)} starts {ratio:.1f}{NBSP}times as large as {whose(small.name)}."
    if large.worked and not small.worked:
        reading += f" {small.name} is {'hardly pushed' if ratio >= CLEAR_FOLD else 'pushed less'}."
    if small.worked and not large.worked:
        reading += f" {large.name} is pushed harder and gets less far."
    return _point("grad_norm", sides, reading)


def _length(runs: Sequence[Run]) -> Point | None:
    """Told only where it drifted: longer or shorter responses change what every mean is taken over."""
    sides = _sides(runs, "response_length")
    if not sides or all(side.it.fold and abs(1 / side.it.fold - 1) < 0.1 for side in sides):
        return None
    return _point(
        "response_length", sides, "Means are over tokens: a drift of the length shifts what they are over."
    )


def _sides(runs: Sequence[Run], name: str, found: Sequence[Change | None] | None = None) -> list[Side]:
    """Both runs' changes; none unless both logged it."""
    changes = found or [change(run, name) for run in runs]
    told = [
        Side(said(run.name), it, progress(run).tone == "good")
        for run, it in zip(runs, changes, strict=True)
        if it
    ]
    return told if len(told) == len(runs) else []


def _point(name: str, sides: Sequence[Side], sentence: str) -> Point:
    return Point(name, [side.it.words for side in sides], sentence)


def _factor(it: Change) -> str:
    """The factor of a fall, or of a rise; "1.2" rather than "1"."""
    fold = it.fold or 1.0
    size = max(fold, 1 / fold)
    return f"{size:.{0 if size >= 10 else 1}f}"


def _same_objective(runs: Sequence[Run]) -> bool:
    first, second = (
        {k: v for k, v in run.config.items() if k == "story" or k.startswith("objective.")} for run in runs
    )
    return first == second
