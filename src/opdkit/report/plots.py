"""A plot as data: what `page.js` hands to plotly, and the words that stand around it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from opdkit.report.read import Run

Trace = dict[str, Any]

MAX_POINTS = 2000  # per curve: more than a plot has pixels, and ten thousand steps stay a page of a few MB
MAX_COLUMNS = 400  # of a heatmap


@dataclass(frozen=True)
class Key:
    """One entry of a plot's legend. `color` is None where colour means the run, not the series."""

    label: str
    dash: str
    color: int | None


@dataclass(frozen=True)
class Figure:
    """One plot. `kind` is what `page.js` switches on: lines, stack, heatmap or bars."""

    kind: str
    title: str
    caption: str
    unit: str
    traces: Sequence[Trace]
    x: str = "step"
    equation: str = ""
    run: int | None = None  # a plot of one run only
    legend: Sequence[Key] = ()
    range: Sequence[float] | None = None  # of the colours of a heatmap, or of the y axis
    loggable: bool = False
    told: Sequence[
        tuple[int | None, str]
    ] = ()  # the plot in words, each of one run or of no one in particular
    marks: Sequence[dict[str, Any]] = ()  # findings that speak of what is drawn: run, x, sign, severity

    def spoken(self, names: Sequence[str]) -> str:
        """All of it in one text, for those who do not see the plot."""
        said = [text if run is None or len(names) < 2 else f"{names[run]}: {text}" for run, text in self.told]
        return "; ".join(said)

    def payload(self) -> dict[str, Any]:
        names = ("kind", "unit", "x", "traces", "range", "marks")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Section:
    """Figures under one heading of the page; `more` of them are folded, and drawn when they are opened."""

    key: str
    title: str
    lead: str
    figures: Sequence[Figure]
    more: Sequence[Figure] = ()


def curve(
    name: str, x: Sequence[Any], y: Sequence[Any], *, color: int, run: int, dash: str = "solid", **more: Any
) -> Trace:
    return {
        "name": name,
        "x": x,
        "y": [short(v) for v in y],
        "color": color,
        "dash": dash,
        "run": run,
        **more,
    }


def short(value: float | None) -> float | None:
    """Six digits are more than a hover shows, and half the bytes."""
    return None if value is None else float(f"{value:.6g}")


def thin(values: Sequence[Any], limit: int = MAX_POINTS) -> list[Any]:
    return list(values[:: -(-len(values) // limit) or 1])


def thinning(runs: Iterable[Run], limit: int) -> str:
    every = max(-(-len(run.metrics) // limit) for run in runs)
    return f" Drawn: one of every {every} steps." if every > 1 else ""
