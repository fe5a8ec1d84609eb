"""Plots as data: what `page.js` hands to plotly, and the words around each plot."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opdkit.report.change import pass_at_k, scores
from opdkit.report.panels import Panel, groups, heatmaps, is_stacked, position_of
from opdkit.report.read import Run
from opdkit.report.text import number

Trace = dict[str, Any]

MAX_POINTS = 2000  # per curve: more than a plot has pixels, and ten thousand steps stay a page of a few MB
MAX_COLUMNS = 400  # of a heatmap
DASHES = ("solid", "dash", "dashdot", "longdash")


@dataclass(frozen=True)
class Key:
    """One entry of a plot's legend. `color` is None where colour means the run, not the series."""

    label: str
    dash: str
    color: int | None


@dataclass(frozen=True)
class Figure:
    """One plot. `kind` is what `page.js` switches on: lines, stack or heatmap."""

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

    def payload(self) -> dict[str, Any]:
        names = ("kind", "unit", "x", "traces", "range")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Section:
    """Figures under one heading of the page; `more` of them are folded, and drawn when they are opened."""

    key: str
    title: str
    lead: str
    figures: Sequence[Figure]
    more: Sequence[Figure] = ()


def sections(runs: Sequence[Run]) -> list[Section]:
    """Every curve in reading order: alignment, by position, optimisation, rollouts, time, other."""
    names = list(dict.fromkeys(name for run in runs for name in run.names()))
    found = [Section(g.key, g.title, g.lead, [_lines(p, runs) for p in g.panels]) for g in groups(names)]
    found.insert(1, _by_position(names, runs))
    stacked = [_with_stacks(section, runs) if section.key == "time" else section for section in found]
    return [section for section in stacked if section.figures or section.more]


def evaluation(runs: Sequence[Run]) -> list[Figure]:
    """avg@k over training with its interval, and pass@k over k before and after."""
    return [figure for figure in (_avg_at_k(runs), _pass_at_k(runs)) if figure.traces]


def _lines(panel: Panel, runs: Sequence[Run]) -> Figure:
    traces = [
        trace for index, run in enumerate(runs) for trace in _run_lines(panel, run, index, len(runs) > 1)
    ]
    values = [y for trace in traces for y in trace["y"] if y is not None]
    return Figure(
        kind="lines",
        title=panel.title or ", ".join(panel.metrics),
        caption=panel.caption + _thinning(runs, MAX_POINTS),
        unit=panel.unit,
        equation=panel.equation,
        traces=traces,
        legend=_legend(panel, len(runs) > 1),
        loggable=bool(values) and min(values) > 0 and max(values) > 3 * min(values),
    )


def _run_lines(panel: Panel, run: Run, index: int, many: bool) -> list[Trace]:
    """The panel's curves of one run.

    Alone on the page it has a colour per metric; among several, a colour per run and a dash per metric.
    """
    traces = []
    for key in _keys(panel, many):
        steps, values = run.series(key.label)
        if steps:
            color = index if key.color is None else key.color
            name = _trace_name(run.name, key.label, many, len(panel.metrics))
            traces.append(_trace(name, _thin(steps), _thin(values), color=color, dash=key.dash, run=index))
    return traces


def _keys(panel: Panel, many: bool) -> list[Key]:
    results = [metric for metric in panel.metrics if metric not in panel.dotted]
    keys = []
    for metric in panel.metrics:
        place = results.index(metric) if metric in results else 0
        dash = "dot" if metric in panel.dotted else DASHES[place % len(DASHES) if many else 0]
        keys.append(Key(metric, dash, None if many else place))
    return keys


def _legend(panel: Panel, many: bool) -> list[Key]:
    return _keys(panel, many) if len(panel.metrics) > 1 else []


def _trace_name(run: str, metric: str, many: bool, count: int) -> str:
    if not many:
        return metric
    return run if count == 1 else f"{run} · {metric}"


def _trace(
    name: str, x: Sequence[Any], y: Sequence[Any], *, color: int, run: int, dash: str = "solid", **more: Any
) -> Trace:
    return {
        "name": name,
        "x": x,
        "y": [_short(v) for v in y],
        "color": color,
        "dash": dash,
        "run": run,
        **more,
    }


def _short(value: float | None) -> float | None:
    """Six digits are more than a hover shows, and half the bytes."""
    return None if value is None else float(f"{value:.6g}")


def _thin(values: Sequence[Any], limit: int = MAX_POINTS) -> list[Any]:
    return list(values[:: -(-len(values) // limit) or 1])


def _thinning(runs: Iterable[Run], limit: int) -> str:
    every = max(-(-len(run.metrics) // limit) for run in runs)
    return f" Drawn: one of every {every} steps." if every > 1 else ""


# --- time ---------------------------------------------------------------------------------------------------


def _with_stacks(section: Section, runs: Sequence[Run]) -> Section:
    stacks = [figure for index, run in enumerate(runs) if (figure := _stack(run, index)).traces]
    return replace(section, figures=[*stacks, *section.figures])


def _stack(run: Run, index: int) -> Figure:
    names = [name for name in run.names() if is_stacked(name)]
    traces = []
    for color, name in enumerate(names):
        steps, values = run.series(name)
        traces.append(_trace(name, _thin(steps), _thin(values), color=color, run=index))
    return Figure(
        kind="stack",
        title="seconds/*",
        caption="Wall time of a step by what it was spent on, stacked." + _thinning([run], MAX_POINTS),
        unit="seconds",
        traces=traces,
        run=index,
        legend=[Key(name, "solid", color) for color, name in enumerate(names)],
    )


# --- by position --------------------------------------------------------------------------------------------


def _by_position(names: Iterable[str], runs: Sequence[Run]) -> Section:
    first, rest = heatmaps(names)
    lead = "The same quantities along the response: steps to the right, response positions upwards."
    return Section("position", "By position", lead, _maps(first, runs), _maps(rest, runs))


def _maps(panels: Iterable[Panel], runs: Sequence[Run]) -> list[Figure]:
    """One map per quantity and run; runs share the colours of a quantity, so that they can be compared."""
    figures = []
    for panel in panels:
        grids = [(index, _grid(run, panel.metrics[0])) for index, run in enumerate(runs)]
        found = [value for _, grid in grids for row in grid["z"] for value in row if value is not None]
        limits = [min(found), max(found)] if found else None
        figures += [_map(panel, grid, runs[index], index, limits) for index, grid in grids if grid["z"]]
    return figures


def _map(panel: Panel, grid: Trace, run: Run, index: int, limits: list[float] | None) -> Figure:
    return Figure(
        kind="heatmap",
        title=panel.metrics[0],
        caption=panel.caption + _thinning([run], MAX_COLUMNS),
        unit=panel.unit,
        traces=[grid],
        run=index,
        range=limits,
    )


def _grid(run: Run, quantity: str) -> Trace:
    """Rows are position bins by their first position, columns are the steps that logged any of them."""
    places = {name: place[0] for name in run.names() if (place := position_of(name)) and place[1] == quantity}
    rows = [row for row in run.metrics if any(name in row for name in places)]
    rows = _thin(rows, MAX_COLUMNS)
    ordered = sorted(places, key=lambda name: places[name])
    return {
        "name": quantity,
        "x": [row["step"] for row in rows],
        "y": _edges([places[name] for name in ordered]),
        "z": [[_short(number(row.get(name))) for row in rows] for name in ordered],
    }


def _edges(starts: list[int]) -> list[int]:
    """Bins have equal width, so the last one's end is known; a single bin stays a place.

    >>> _edges([0, 256, 512]), _edges([0])
    ([0, 256, 512, 768], [0])
    """
    return [*starts, 2 * starts[-1] - starts[-2]] if len(starts) > 1 else starts


# --- evaluation ---------------------------------------------------------------------------------------------


def _avg_at_k(runs: Sequence[Run]) -> Figure:
    traces = [
        trace
        for index, run in enumerate(runs)
        for trace in (_scores(run, index), _teacher(run, index))
        if trace
    ]
    caption = (
        "Mean correctness over problems and their responses; bars are 95 % bootstrap intervals over "
        "problems. Dotted: the teacher, where it was evaluated."
    )
    return Figure(kind="lines", title="avg_at_k", caption=caption, unit="fraction", traces=traces)


def _scores(run: Run, index: int) -> Trace | None:
    found = scores(run)
    if not found:
        return None
    plus = [_short(s.high - s.value) if s.high is not None else 0.0 for s in found]
    minus = [_short(s.value - s.low) if s.low is not None else 0.0 for s in found]
    x, y = [s.step for s in found], [s.value for s in found]
    return _trace(run.name, x, y, color=index, run=index, error={"plus": plus, "minus": minus})


def _teacher(run: Run, index: int) -> Trace | None:
    pairs = [
        (row["step"], value)
        for row in run.evals
        if (value := number(row.get("teacher_avg_at_k"))) is not None
    ]
    if not pairs:
        return None
    steps, values = [step for step, _ in pairs], [value for _, value in pairs]
    # one evaluation of the teacher holds for the whole run
    last = run.evals[-1]["step"]
    if len(pairs) == 1 and last != steps[0]:
        steps, values = [*steps, last], [*values, values[0]]
    return _trace(f"{run.name} · teacher", steps, values, color=index, dash="dot", run=index)


def _pass_at_k(runs: Sequence[Run]) -> Figure:
    traces = [trace for index, run in enumerate(runs) for trace in _passes(run, index)]
    caption = "Chance that at least one of k responses is right, before (dotted) and after training."
    return Figure(kind="lines", title="pass_at_k", caption=caption, unit="fraction", x="k", traces=traces)


def _passes(run: Run, index: int) -> list[Trace]:
    graded = [row for row in run.evals if pass_at_k(row)]
    ends = (
        [(graded[0], "dot"), (graded[-1], "solid")] if len(graded) > 1 else [(row, "solid") for row in graded]
    )
    traces = []
    for row, dash in ends:
        table = pass_at_k(row)
        name = f"{run.name} · step {row['step']}"
        traces.append(_trace(name, list(table), list(table.values()), color=index, dash=dash, run=index))
    return traces
