"""Which plots a page holds, in reading order, and the curves in them."""

from collections.abc import Sequence
from dataclasses import replace

from opdkit.report import histograms, maps
from opdkit.report.change import change, pass_at_k, scores
from opdkit.report.panels import Panel, groups, is_stacked
from opdkit.report.plots import MAX_POINTS, Figure, Key, Section, Trace, curve, short, thin, thinning
from opdkit.report.read import Run
from opdkit.report.text import number
from opdkit.report.timeline import marks

DASHES = ("solid", "dash", "dashdot", "longdash")
EVIDENCE = ("loss", "overlap_advantage", "overlap_ratio")  # what a comparison shows first, beside avg_at_k


def sections(runs: Sequence[Run]) -> list[Section]:
    """Every curve in reading order: alignment, by position, sequence reward, …, time, other."""
    names = list(dict.fromkeys(name for run in runs for name in run.names()))
    found = [
        Section(group.key, group.title, group.lead, [_lines(panel, runs) for panel in group.panels])
        for group in groups(names, taught=_taught(runs))
    ]
    found[1:1] = [maps.by_position(names, runs), histograms.section(runs)]
    stacked = [_with_stacks(section, runs) if section.key == "time" else section for section in found]
    return [section for section in stacked if section.figures or section.more]


def evidence(runs: Sequence[Run]) -> list[Figure]:
    """The plots a comparison begins with: loss, Eq. 7 and overlap, and accuracy where it was evaluated."""
    names = list(dict.fromkeys(name for run in runs for name in run.names()))
    panels: dict[tuple[str, ...], Panel] = {}
    for group in groups(names, taught=_taught(runs)):
        for panel in group.panels:
            panels.setdefault(panel.metrics, panel)  # the loss has a second one, beside the gradient
    shown = [_lines(panels[(name,)], runs) for name in EVIDENCE if (name,) in panels]
    return [*shown, *(figure for figure in (_avg_at_k(runs),) if figure.traces)]


def _taught(runs: Sequence[Run]) -> bool:
    return any(run.taught for run in runs)


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
        caption=panel.caption + thinning(runs, MAX_POINTS),
        unit=panel.unit,
        equation=panel.equation,
        traces=traces,
        legend=_legend(panel, len(runs) > 1),
        loggable=bool(values) and min(values) > 0 and max(values) > 3 * min(values),
        told=_told(panel, runs),
        marks=marks(runs, panel.metrics),
    )


def _told(panel: Panel, runs: Sequence[Run]) -> list[tuple[int | None, str]]:
    """First → last of every result in the plot, by the same means as the words of the summary."""
    results = [metric for metric in panel.metrics if metric not in panel.dotted]
    told: list[tuple[int | None, str]] = []
    for index, run in enumerate(runs):
        for metric in results:
            it = change(run, metric)
            what = f"{metric} " if len(results) > 1 else ""
            told += [(index, f"{what}{it.percents if panel.unit == 'fraction' else it.words}")] if it else []
    return told


def _run_lines(panel: Panel, run: Run, index: int, many: bool) -> list[Trace]:
    """The panel's curves of one run.

    Alone on the page it has a colour per metric; among several, a colour and a marker per run. The dash tells
    metrics apart either way, for those who do not see the colours.
    """
    traces = []
    for key in _keys(panel, many):
        steps, values = run.series(key.label)
        if steps:
            color = index if key.color is None else key.color
            name = _trace_name(run.name, key.label, many, len(panel.metrics))
            traces.append(curve(name, thin(steps), thin(values), color=color, dash=key.dash, run=index))
    return traces


def _keys(panel: Panel, many: bool) -> list[Key]:
    results = [metric for metric in panel.metrics if metric not in panel.dotted]
    keys = []
    for metric in panel.metrics:
        place = results.index(metric) if metric in results else 0
        dash = "dot" if metric in panel.dotted else DASHES[place % len(DASHES)]
        keys.append(Key(metric, dash, None if many else place))
    return keys


def _legend(panel: Panel, many: bool) -> list[Key]:
    return _keys(panel, many) if len(panel.metrics) > 1 else []


def _trace_name(run: str, metric: str, many: bool, count: int) -> str:
    if not many:
        return metric
    return run if count == 1 else f"{run} · {metric}"


# --- time ---------------------------------------------------------------------------------------------------


def _with_stacks(section: Section, runs: Sequence[Run]) -> Section:
    stacks = [figure for index, run in enumerate(runs) if (figure := _stack(run, index)).traces]
    return replace(section, figures=[*stacks, *section.figures])


def _stack(run: Run, index: int) -> Figure:
    names = [name for name in run.names() if is_stacked(name)]
    traces = []
    for color, name in enumerate(names):
        steps, values = run.series(name)
        traces.append(curve(name, thin(steps), thin(values), color=color, run=index))
    return Figure(
        kind="stack",
        title="seconds/*",
        caption="Wall time of a step by what it was spent on, stacked: the first of the legend is at the bottom."
        + thinning([run], MAX_POINTS),
        unit="seconds",
        traces=traces,
        run=index,
        legend=[Key(name, "solid", color) for color, name in enumerate(names)],
    )


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
    ends = [(index, found) for index, run in enumerate(runs) if (found := scores(run))]
    told = [(index, " → ".join(score.words for score in dict.fromkeys((e[0], e[-1])))) for index, e in ends]
    return Figure(kind="lines", title="avg_at_k", caption=caption, unit="fraction", traces=traces, told=told)


def _scores(run: Run, index: int) -> Trace | None:
    found = scores(run)
    if not found:
        return None
    plus = [short(s.high - s.value) if s.high is not None else 0.0 for s in found]
    minus = [short(s.value - s.low) if s.low is not None else 0.0 for s in found]
    x, y = [s.step for s in found], [s.value for s in found]
    return curve(run.name, x, y, color=index, run=index, error={"plus": plus, "minus": minus})


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
    return curve(f"{run.name} · teacher", steps, values, color=index, dash="dot", run=index)


def _pass_at_k(runs: Sequence[Run]) -> Figure:
    widths = {k for run in runs for row in run.evals for k in pass_at_k(row)}
    traces = (
        [trace for index, run in enumerate(runs) for trace in _passes(run, index)] if widths != {1} else []
    )
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
        traces.append(curve(name, list(table), list(table.values()), color=index, dash=dash, run=index))
    return traces
