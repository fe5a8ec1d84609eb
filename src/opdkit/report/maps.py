"""Heat maps: a quantity by place in the response (upwards) and step (to the right)."""

from collections.abc import Iterable, Sequence

from opdkit.report.panels import Panel, heatmaps, position_of
from opdkit.report.plots import MAX_COLUMNS, Figure, Section, Trace, short, thin, thinning
from opdkit.report.read import Run
from opdkit.report.text import number, percent, shown


def by_position(names: Iterable[str], runs: Sequence[Run]) -> Section:
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
        caption=panel.caption + thinning([run], MAX_COLUMNS),
        unit=panel.unit,
        traces=[grid],
        run=index,
        range=limits,
        told=[(None, _told(panel, grid))],
    )


def _grid(run: Run, quantity: str) -> Trace:
    """Rows are position bins by their first position, columns are the steps that logged any of them."""
    places = {name: place[0] for name in run.names() if (place := position_of(name)) and place[1] == quantity}
    rows = [row for row in run.metrics if any(name in row for name in places)]
    rows = thin(rows, MAX_COLUMNS)
    ordered = sorted(places, key=lambda name: places[name])
    return {
        "name": quantity,
        "x": [row["step"] for row in rows],
        "y": _edges([places[name] for name in ordered]),
        "z": [[short(number(row.get(name))) for row in rows] for name in ordered],
    }


def _told(panel: Panel, grid: Trace) -> str:
    """The map's four corners, roughly: its first and its last bin, at the first and the last step."""
    say = percent if panel.unit == "fraction" else shown
    bins = []
    for row in dict.fromkeys((0, len(grid["z"]) - 1)):
        values = [value for value in grid["z"][row] if value is not None]
        if values:
            place = _bin(grid["y"], row)
            bins.append(f"{place}: {say(values[0])} → {say(values[-1])}")
    return f"First → last step, {'; '.join(bins)}." if bins else ""


def _bin(edges: Sequence[int], row: int) -> str:
    return (
        f"positions {edges[row]}–{edges[row + 1] - 1}"
        if row + 1 < len(edges)
        else f"positions from {edges[row]}"
    )


def _edges(starts: list[int]) -> list[int]:
    """Bins have equal width, so the last one's end is known; a single bin stays a place.

    >>> _edges([0, 256, 512]), _edges([0])
    ([0, 256, 512, 768], [0])
    """
    return [*starts, 2 * starts[-1] - starts[-2]] if len(starts) > 1 else starts
