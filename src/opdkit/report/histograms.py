"""Histograms of the sequence reward: right against wrong responses, at the first and the last written step."""

from collections.abc import Sequence

from opdkit.report.plots import Figure, Section, Trace, short
from opdkit.report.read import Run
from opdkit.report.sequences import BARS, Sorted, bars, ends, told

LEAD = (
    "Mean over a response's tokens of log teacher − log student. A teacher whose reward tells right from wrong "
    "is not thereby one that can be learned from: arXiv 2604.13016 (section 6.2) finds high AUROC in failures, too."
)


def section(runs: Sequence[Run]) -> Section:
    figures = [figure for index, run in enumerate(runs) if run.taught for figure in _of_run(run, index)]
    return Section("reward", "Sequence reward", LEAD, figures)


def _of_run(run: Run, index: int) -> list[Figure]:
    """Steps of one run share their bins, so that a shift between them is seen as one."""
    found = ends(run)
    values = [value for step in found for value in step.all]
    return [_figure(step, index, min(values), max(values)) for step in found]


def _figure(it: Sorted, index: int, low: float, high: float) -> Figure:
    kinds = [("right", it.right), ("wrong", it.wrong), ("not graded", it.ungraded)]
    return Figure(
        kind="bars",
        title=f"step {it.step}",
        caption="Height = share of the responses of its kind, because right and wrong are rarely equally many.",
        unit="share of its kind",
        x="sequence reward (nats per token)",
        traces=[_bars(name, values, low, high) for name, values in kinds if values],
        run=index,
        range=[low, high] if high > low else None,
        told=[(None, told(it))],
    )


def _bars(name: str, values: Sequence[float], low: float, high: float) -> Trace:
    """Centres and heights; `count` is what a hover tells beside the share."""
    if high <= low:
        low, high = low - 0.5, high + 0.5  # one value: a bar of its own in the middle
    width, counts = (high - low) / BARS, bars(values, low, high)
    return {
        "name": name,
        "x": [short(low + (place + 0.5) * width) for place in range(BARS)],
        "y": [short(count / len(values)) for count in counts],
        "count": counts,
        "width": short(width),
    }
