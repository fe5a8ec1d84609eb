"""Figures of a study, functions of its table alone (extra `study`): curves of every arm, scores, depth, entropy by position.

Thin lines are bases, thick ones their mean. The same table gives the same bytes.
"""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from opdkit.studies.estimate import Rows, estimate
from opdkit.studies.study import Study
from opdkit.types import UserError

COLOURS = ("#2a6fbb", "#c4561a", "#2d8a4e", "#8250a8", "#b8860b", "#0f8b8d", "#c2306f", "#656d76", "#8a5a3b")
TITLES: Mapping[str, str] = {
    "accuracy": "accuracy, T = 0.7",
    "overlap_ratio": "overlap of the top 16",
    "overlap_mass_student": "student's mass on shared tokens",
    "overlap_mass_teacher": "teacher's mass on shared tokens",
    "overlap_advantage": "Eq. 7, nats",
    "entropy_gap": "entropy gap, nats",
    "entropy_student": "student's entropy, nats",
    "entropy_teacher": "teacher's entropy, nats",
    "reverse_kl": "reverse KL, nats",
    "loss": "loss, nats",
    "grad_norm": "gradient norm",
    "probability_gap_at_max_advantage": "p − q at largest |advantage|",
    "response_length": "response length, tokens",
    "truncated_fraction": "responses cut off",
    "sequence_reward_auroc": "AUROC of the sequence reward",
    "gradient_cosine_within": "cosine of positions' gradients",
    "gradient_growth_within": "their sum ÷ an orthogonal one",
}


def figures(study: Study, rows: Rows) -> dict[str, str]:
    """File name → SVG: what the rows hold. UserError where the library that draws is not there."""
    if not rows:
        return {}
    found = {}
    if some := [row for row in rows if "step" in row.get("curves", {})]:
        found[f"{study.name}.svg"] = _curves(study, some)
        if heated := [row for row in some if row["arm"] in study.heat]:
            found[f"{study.name}-positions.svg"] = _heat(study, heated)
    if some := [row for row in rows if "depth" in row.get("curves", {})]:
        found[f"{study.name}.svg"] = _depth(study, some)
    if some := [row for row in rows if "gradient_cosine_within" in row]:
        found[f"{study.name}.svg"] = _dots(study, some)
    return found


def _curves(study: Study, rows: Rows) -> str:
    """The panels of one family after those of another, three or four beside each other."""
    families = _families(rows)
    columns = 4 if len(study.panels) > 6 else 3
    lines = -(-len(study.panels) // columns)
    figure, axes = _axes(len(families) * lines, columns)
    for i, family in enumerate(families):
        places = axes[i * lines : (i + 1) * lines].flat
        for place, name in zip(places, study.panels, strict=False):
            place.set_title(f"{family}: {TITLES[name]}", fontsize=8, loc="left")
            for arm, colour in _coloured(study):
                mine = [row for row in rows if row["family"] == family and row["arm"] == arm]
                steps = "evaluated" if name == "accuracy" else "step"
                _lines(place, [(row["curves"][steps], row["curves"].get(name)) for row in mine], colour)
    _legend(figure, _arms(study, rows))
    return _svg(figure, study.name, title=study.question)


def _depth(study: Study, rows: Rows) -> str:
    families = _families(rows)
    figure, axes = _axes(1, len(families))
    for place, family in zip(axes[0], families, strict=True):
        place.set_title(f"{family}: teacher − student, from there", fontsize=8, loc="left")
        place.axhline(0, color="#d8dee4", zorder=0)
        for arm, colour in _coloured(study):
            mine = [row for row in rows if row["family"] == family and row["arm"] == arm]
            _lines(place, [(row["curves"]["depth"], row["curves"]["advantage"]) for row in mine], colour)
        place.set_xlabel("share of the response that was kept", fontsize=8)
    _legend(figure, _arms(study, rows))
    return _svg(figure, study.name, title=study.question)


def _heat(study: Study, rows: Rows) -> str:
    """Entropy of both models by position (upwards) and step, mean over bases of a family."""
    parts = {(name, arm): [r for r in rows if (r["family"], r["arm"]) == (name, arm)]
             for name in _families(rows) for arm in study.heat}  # fmt: skip
    parts = {at: some for at, some in parts.items() if some}
    figure, axes = _axes(len(parts), 2)
    for line, ((name, arm), mine) in zip(axes, parts.items(), strict=True):
        for place, who in zip(line, ("student", "teacher"), strict=True):
            table = _mean_table([row["curves"][f"entropy_{who}_by_position"] for row in mine])
            first = mine[0]["curves"]
            image = place.pcolormesh(
                first["step"],
                first["position"],
                list(zip(*table, strict=True)),
                shading="nearest",
                cmap="viridis",
            )
            figure.colorbar(image, ax=place)
            place.set_title(f"{name}, {arm}: {who}'s entropy", fontsize=8, loc="left")
            place.set_xlabel("step", fontsize=8)
            place.set_ylabel("token of the response", fontsize=8)
    return _svg(figure, study.name, title=study.question)


def _mean_table(tables: Sequence[Sequence[Sequence[float | None]]]) -> list[list[float]]:
    """Cell by cell over those that were reached; nan where nobody was."""
    whole = []
    for parts in zip(*tables, strict=True):
        width = max(len(part) for part in parts)
        cells = [[part[i] for part in parts if i < len(part) and part[i] is not None] for i in range(width)]
        whole.append([statistics.fmean(c) if c else float("nan") for c in cells])  # type: ignore[type-var]
    width = max(len(line) for line in whole)
    return [line + [float("nan")] * (width - len(line)) for line in whole]


def _dots(study: Study, rows: Rows) -> str:
    names = ("sequence_reward_auroc", "gradient_cosine_within", "gradient_growth_within")
    families = _families(rows)
    figure, axes = _axes(len(families), len(names))
    for line, family in zip(axes, families, strict=True):
        for place, name in zip(line, names, strict=True):
            place.set_title(f"{family}: {TITLES[name]}", fontsize=8, loc="left")
            arms = [arm.name for arm in study.arms]
            place.set_yticks(range(len(arms)), arms, fontsize=7)
            place.invert_yaxis()
            for i, (arm, colour) in enumerate(_coloured(study)):
                values = [
                    r[name] for r in rows if r["family"] == family and r["arm"] == arm and r[name] is not None
                ]
                place.plot(values, [i] * len(values), "o", ms=3, color=colour, alpha=0.5)
                if (mean := estimate(values)) is not None:
                    place.plot([mean.low, mean.high], [i, i], color=colour)
    return _svg(figure, study.name, title=study.question)


def foretold(predictor: Mapping[str, Any], panels: Mapping[str, str]) -> str:
    """What came of every pair over what was foretold of it, each in the colour of its kind of teacher. `panels`: which
    scoring, and its title."""
    made = predictor["forecasts"]["rehearsed"]
    groups = {
        name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dict.fromkeys(one["group"] for one in made))
    }
    low, high = predictor["clip"]
    there = {
        where: title for where, title in panels.items() if any(one["scored_on"] == where for one in made)
    }
    figure, axes = _axes(1, len(there), height=3.0)
    for place, (where, title) in zip(axes[0], there.items(), strict=True):
        place.set_title(title, fontsize=8, loc="left")
        place.plot([low, high], [low, high], color="#d8dee4", zorder=0)
        place.axhline(predictor["success"], color="#d8dee4", lw=0.8, ls="--", zorder=0)
        for group, colour in groups.items():
            mine = [one for one in made if one["scored_on"] == where and one["group"] == group]
            came = [min(max(one["came"], low), high) for one in mine]
            place.plot([one["told"] for one in mine], came, "o", ms=3, color=colour, alpha=0.7)
        place.set_xlabel("gap recovery foretold", fontsize=8)
        place.set_ylabel("that came", fontsize=8)
    _legend(figure, groups)
    return _svg(figure, "predictor", title="Gap recovery foretold, and that came")


# --- how it is drawn ------------------------------------------------------------------------------------------


def _families(rows: Rows) -> list[str]:
    return sorted({row["family"] for row in rows})


def _coloured(study: Study) -> list[tuple[str, str]]:
    return [(arm.name, COLOURS[i % len(COLOURS)]) for i, arm in enumerate(study.arms)]


def _lines(place: Any, curves: Sequence[tuple[Sequence[float], Sequence[float] | None]], colour: str) -> None:
    """Every base thin; their mean thick where all have the same steps."""
    known = [(x, y) for x, y in curves if y is not None]
    for x, y in known:
        place.plot(x, y, color=colour, lw=0.6, alpha=0.35)
    if known and all(list(x) == list(known[0][0]) for x, _ in known):
        mean = [statistics.fmean(values) for values in zip(*(y for _, y in known), strict=True)]
        place.plot(known[0][0], mean, color=colour, lw=1.8)


def _axes(lines: int, columns: int, *, height: float = 2.2) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("figures take matplotlib", hint="pip install 'opdkit[study]'") from error
    figure = Figure(figsize=(2.8 * max(columns, 2), height * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for place in axes.flat:
        place.tick_params(labelsize=7)
        place.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _arms(study: Study, rows: Rows) -> dict[str, str]:
    """Those that ran, with their colours."""
    ran = {row["arm"] for row in rows}
    return {arm: colour for arm, colour in _coloured(study) if arm in ran}


def _legend(figure: Any, colours: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, lw=1.8, label=name) for name, colour in colours.items()]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 6), fontsize=8, frameon=False
    )


def _svg(figure: Any, name: str, *, title: str) -> str:
    """The same bytes for the same table: no date, ids from a fixed salt."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Title": title})
    return _short(out.getvalue())


def _short(svg: str) -> str:
    """Hundredths of a point (ticks have fewer than five digits), and a path on one line: half the bytes, and nobody sees it.

    >>> _short('<path d="M 1.23456 2 \\nL 3.98765 4 \\n" style="opacity: 0.35"/>')
    '<path d="M 1.23 2 L 3.99 4 " style="opacity: 0.35"/>\\n'
    """
    rounded = re.sub(r"-?\d+\.\d{5,}", lambda number: f"{float(number[0]):.2f}", svg)
    return re.sub(r" *\n(?=[LCQMz\"])", " ", rounded).rstrip() + "\n"
