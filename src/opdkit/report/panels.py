"""Which curves stand together (`panels.toml`), narrowed to what the runs logged."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Panel:
    """One plot: metrics that share an axis. A metric in `dotted` is a reference line, not a result."""

    metrics: tuple[str, ...]
    unit: str
    caption: str
    equation: str = ""
    title: str = ""
    dotted: tuple[str, ...] = ()
    when: str = ""  # "taught" or "alone": only on a page where some run has a teacher, or none has


@dataclass(frozen=True)
class Group:
    key: str
    title: str
    lead: str
    panels: tuple[Panel, ...]


TEACHERS = Group(
    "teachers", "By teacher", "The same quantities on the rollouts of each of several teachers.", ()
)
OTHER = Group("other", "Other metrics", "Logged by the run and not known to this report.", ())

_AT_K = re.compile(r"overlap_ratio_at_([1-9][0-9]{0,8})")
_BY_TEACHER = re.compile(r"by_teacher/(.+)/([a-z_]+)", re.DOTALL)
_TEACHERS = {"share": "Share of the step's rollouts that this teacher scored: a skew shows here."}
_BY_POSITION = re.compile(r"by_position/([0-9]{1,9})/(.+)", re.DOTALL)


def groups(names: Iterable[str], *, taught: bool = True) -> list[Group]:
    """The groups with what `names` can fill; a metric no group knows is shown under "other".

    Without a teacher the same loss and entropy have another meaning, and so other panels.
    """
    present = [name for name in names if not is_stacked(name) and position_of(name) is None]
    known = [
        _with_at_k(group, present) if group.key == "alignment" else group for group in _catalogue(taught)
    ]
    kept = [replace(group, panels=_present(group.panels, present)) for group in known]
    kept += _by_teacher(present)
    claimed = {metric for group in kept for panel in group.panels for metric in panel.metrics}
    rest = tuple(_plain(name) for name in present if name not in claimed)
    return [*kept, *([replace(OTHER, panels=rest)] if rest else [])]


def is_stacked(name: str) -> bool:
    """`seconds/…` other than the whole step: parts that add up, drawn as one stack per run."""
    return name.startswith("seconds/") and name != "seconds/step"


def position_of(name: str) -> tuple[int, str] | None:
    """The bin's first position and the quantity of a `by_position/START/NAME`, else None.

    >>> position_of("by_position/64/reverse_kl"), position_of("loss")
    ((64, 'reverse_kl'), None)
    """
    found = _BY_POSITION.fullmatch(name)
    return (int(found[1]), found[2]) if found else None


def heatmaps(names: Iterable[str]) -> tuple[list[Panel], list[Panel]]:
    """Quantities logged by position: those with a reading of their own, and all others."""
    known = _contents()["heatmap"]
    logged = list(dict.fromkeys(place[1] for name in names if (place := position_of(name))))
    first = [Panel(metrics=(name,), **known[name]) for name in known if name in logged]
    return first, [_by_position(name) for name in logged if name not in known]


@cache
def _contents() -> Mapping[str, Any]:
    return tomllib.loads((files("opdkit.report") / "panels.toml").read_text(encoding="utf-8"))


def _catalogue(taught: bool) -> list[Group]:
    unwanted = "alone" if taught else "taught"
    return [
        Group(**(group | {"panels": tuple(p for p in map(_panel, group["panels"]) if p.when != unwanted)}))
        for group in _contents()["group"]
    ]


def _panel(table: Mapping[str, Any]) -> Panel:
    return Panel(**{**table, "metrics": tuple(table["metrics"])})


def _present(panels: Iterable[Panel], names: list[str]) -> tuple[Panel, ...]:
    kept = (replace(panel, metrics=tuple(m for m in panel.metrics if m in names)) for panel in panels)
    return tuple(panel for panel in kept if panel.metrics)


def _by_teacher(names: list[str]) -> list[Group]:
    """One panel per quantity that several teachers have, a line for each; no group where there is one teacher."""
    found: dict[str, list[str]] = {}
    for name in names:
        if match := _BY_TEACHER.fullmatch(name):
            found.setdefault(match[2], []).append(name)
    units = {
        metric: panel.unit for group in _catalogue(True) for panel in group.panels for metric in panel.metrics
    }
    panels = tuple(
        Panel(tuple(metrics), units.get(quantity, "fraction"), _TEACHERS.get(quantity, ""), title=quantity)
        for quantity, metrics in found.items()
    )
    return [replace(TEACHERS, panels=panels)] if panels else []


def _with_at_k(group: Group, names: list[str]) -> Group:
    widths = sorted(int(found[1]) for name in names if (found := _AT_K.fullmatch(name)))
    place = 1 + next((i for i, panel in enumerate(group.panels) if "overlap_ratio" in panel.metrics), -1)
    return replace(group, panels=(*group.panels[:place], *map(_at_k, widths), *group.panels[place:]))


def _at_k(k: int) -> Panel:
    ratio, chance = f"overlap_ratio_at_{k}", f"overlap_chance_at_{k}"
    what = "the most probable token" if k == 1 else f"the {k} most probable tokens"
    caption = f"Overlap of {what}, beside what two unrelated models would share by chance (k ÷ V, dotted)."
    return Panel((ratio, chance), "fraction", caption, "Eq. 6", title=ratio, dotted=(chance,))


def _by_position(name: str) -> Panel:
    panels = [_panel(table) for group in _contents()["group"] for table in group["panels"]]
    unit = next((panel.unit for panel in panels if name in panel.metrics), "")
    return Panel((name,), unit, "By place in the response.")


def _plain(name: str) -> Panel:
    return Panel((name,), "", "Logged by the run; its meaning is not known to this report.")
