"""Curves, bars and strips out of characters, in Unicode or in ASCII."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opdkit.report.text import visible

FLAT = (
    0.05  # of its size: a curve that spans less is drawn as if it spanned this, or noise would look like news
)


@dataclass(frozen=True)
class Ink:
    """The characters a terminal can show."""

    levels: str  # of a curve, low to high
    shades: str  # of a strip, low to high
    full: str
    empty: str
    rest: str  # where a line was cut
    marks: Mapping[str, str]  # severity → sign, so that colour is not alone
    ascii: bool = False

    def line(self, text: str) -> str:
        """Any text as one line that this terminal can show, nothing in it invisible.

        >>> UNICODE.line("a\\x1b[2Jb\\n c"), ASCII.line("0.5 → é")
        ('a␛[2Jb⏎ c', '0.5 -> \\\\xe9')
        """
        one = visible(text.replace("\t", " ")).replace("\n", "\\n" if self.ascii else "⏎")
        if not self.ascii:
            return one
        return one.translate(_PLAIN).encode("ascii", "backslashreplace").decode()


UNICODE = Ink("▁▂▃▄▅▆▇█", "░▒▓█", "█", "░", "…", {"error": "■", "warning": "▲", "info": "●"})
ASCII = Ink("_.:-=+*#", ".:*#", "#", "-", "...", {"error": "X", "warning": "!", "info": "i"}, ascii=True)

_PLAIN = str.maketrans(
    {"→": "->", "←": "<-", "−": "-", "–": "-", "…": "...", "\u00a0": " ", "·": "|", "“": '"', "”": '"', "’": "'"}
    | {"≥": ">=", "≤": "<=", "×": "x", "÷": "/", "⏎": "\\n", "␛": "^[", "‖": "||"}
)  # fmt: skip


def ink(encoding: str | None, environment: Mapping[str, str] | None = None) -> Ink:
    """What to draw with: ASCII where the output, or the locale somebody set, is not UTF-8.

    Python writes UTF-8 even under LC_ALL=C; the terminal of somebody who asked for C need not show it.
    """
    env = os.environ if environment is None else environment
    locale = env.get("LC_ALL") or env.get("LC_CTYPE") or env.get("LANG") or "UTF-8"
    narrow = "utf" not in (encoding or "").lower() or "utf" not in locale.lower()
    return ASCII if narrow else UNICODE


def spark(
    steps: Sequence[int],
    values: Sequence[float | None],
    *,
    ink: Ink,
    width: int,
    height: int = 1,
    span: tuple[int, int] | None = None,
) -> list[str]:
    """`height` lines of a curve over `span` (first and last step; the curve's own unless given), top line first.

    A character is the mean of its steps. Between two rare values the first stays; where a run wrote no finite
    number, or nothing yet, there is a gap.

    >>> spark([1, 2, 3, 4], [0.0, 1.0, None, 2.0], ink=UNICODE, width=4)
    ['▁▅ █']
    """
    columns = _columns(steps, values, width, span or (steps[0], steps[-1])) if steps else []
    known = [value for value in columns if value is not None]
    if not known:
        return [" " * width] * height
    low, high = _limits(known)
    last = len(ink.levels) - 1
    cells = height * len(ink.levels) - 1
    heights = [None if v is None else round((v - low) / (high - low) * cells) for v in columns]
    rows = []
    for row in reversed(range(height)):
        base = row * len(ink.levels)
        rows.append("".join(_cell(ink, at, base, last, bottom=row == 0) for at in heights).ljust(width))
    return rows


def _cell(ink: Ink, at: int | None, base: int, last: int, *, bottom: bool) -> str:
    if at is None or at < base:
        return ink.levels[0] if bottom and at is not None else " "
    return ink.levels[min(at - base, last)]


def _limits(known: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest of the drawing; a flat curve lies in the middle.

    >>> _limits([1.0, 1.0])
    (0.975, 1.025)
    """
    low, high = min(known), max(known)
    least = FLAT * max(abs(low), abs(high)) or 1.0
    lacking = max(0.0, least - (high - low)) / 2
    return low - lacking, high + lacking


def _columns(
    steps: Sequence[int], values: Sequence[float | None], width: int, span: tuple[int, int]
) -> list[float | None]:
    first, last = span
    count = min(width, last - first + 1)
    sums: list[list[float] | None] = [None] * count
    for step, value in zip(steps, values, strict=True):
        place = min(count - 1, (step - first) * count // max(1, last - first + 1))
        if place >= 0:
            here = sums[place] = sums[place] or []
            here += [] if value is None else [value]
    columns: list[float | None] = []
    for found in sums:
        columns.append((columns[-1] if columns else None) if found is None else _mean(found))
    return columns


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def bar(share: float, *, ink: Ink, width: int) -> str:
    """A share of `width`, filled from the left.

    >>> bar(0.5, ink=ASCII, width=6)
    '###---'
    """
    filled = round(min(1.0, max(0.0, share)) * width)
    return ink.full * filled + ink.empty * (width - filled)


def strip(values: Sequence[float | None], *, ink: Ink, width: int) -> str:
    """One shade per value, darker for more, spread over `width`.

    >>> strip([0.0, 1.0], ink=ASCII, width=4)
    '..##'
    """
    known = [value for value in values if value is not None]
    if not known:
        return " " * width
    low, high = _limits(known)
    shades = [
        " " if v is None else ink.shades[min(3, int((v - low) / (high - low) * len(ink.shades)))]
        for v in values
    ]
    count = len(shades)
    return "".join(shades[place * count // width] for place in range(width))
