"""Studies as Markdown: a page per question, and the front page of all. What stands between the blocks is people's, and stays.

DIR/NAME.md            claim, command, figures, what was expected and came, scores
DIR/figures/NAME.svg
DIR/README.md          questions × {paper, chain, lists, real model}; the paper's figures and where they are
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from opdkit.run.disk import write_atomic
from opdkit.studies.at_scale import AT_SCALE
from opdkit.studies.blocks import skeleton, write_blocks
from opdkit.studies.estimate import Rows, estimate
from opdkit.studies.figures import figures
from opdkit.studies.study import PAPER, REAL, Decision, Expectation, Study, decisions, outcome, reproduced
from opdkit.studies.tables import table_of, widest
from opdkit.studies.testbed import table

Ran = Sequence[tuple[Study, Rows]]
FIGURES = "figures"


def write_pages(ran: Ran, place: Path, *, tables: Path, front: Ran) -> None:
    """Pages and figures of the questions in `ran`, the front page of all in `front`. What people wrote on them stays."""
    (place / FIGURES).mkdir(parents=True, exist_ok=True)
    for study, rows in ran:
        drawn = figures(study, widest(rows))
        for name, svg in drawn.items():
            write_atomic(place / FIGURES / name, data=svg.encode())
        link = Path(os.path.relpath(table_of(study, tables), place)).as_posix()
        found = [*came(study, rows), *_made_of(rows, link)]
        blocks = {"about": _about(study), "figure": _figures(study, drawn), "came": iter(found)}
        write_blocks(place / f"{study.name}.md", blocks, new=skeleton(study.question, blocks))
    write_blocks(place / "README.md", {"front": front_lines(front), "map": _map(front)}, new=FRONT)


FRONT = "# The study\n\n<!-- front -->\n<!-- /front -->\n\n## The paper's figures\n\n<!-- map -->\n<!-- /map -->\n"


def _about(study: Study) -> Iterator[str]:
    figures = (
        f", Fig{'s' if len(study.figures) > 1 else ''}. {', '.join(study.figures)}" if study.figures else ""
    )
    yield f"**The paper** (arXiv 2604.13016, {study.section}{figures}): {study.claim}."
    yield ""
    yield "```console"
    yield f"$ opd study run {study.name} --scale full --jobs 2"
    yield f"$ opd study report {study.name}"
    if study.name in AT_SCALE:
        yield f"$ opd study run {study.name} --scale gpu                # the paper's models and data: at-scale.md"
    yield "```"


def _figures(study: Study, drawn: Sequence[str] | dict[str, str]) -> Iterator[str]:
    for name in drawn:
        yield f"![{study.question}]({FIGURES}/{name})"
        yield ""
    if drawn:
        yield "Thin lines are bases, thick ones their mean."


def came(study: Study, rows: Rows) -> Iterator[str]:
    """What was expected, what came, and the scores, as Markdown."""
    seen = widest(rows)
    families = sorted({row["family"] for row in seen} - {PAPER})
    found = decisions(study, seen)
    head = ["expected before the runs", *families, "verdict"]
    body = []
    for expectation in study.expected:
        cells = [_cell(found[expectation.name][family]) for family in families]
        body.append(
            [_worded(expectation), *cells, f"**{_verdict(expectation, found[expectation.name], families)}**"]
        )
    yield from table(head, body)
    yield ""
    yield from _scores(study, seen)
    if study.differs:
        yield ""
        yield f"**Where this differs.** {study.differs}"


def _worded(expectation: Expectation) -> str:
    """Claims of the paper are marked; the others are premises and questions beside."""
    return f"{expectation.text}{' (claim)' if expectation.claim else ''}"


def _cell(decision: Decision) -> str:
    if decision.estimate is None:
        return "–"
    e = decision.estimate
    interval = f" [{e.low:.3g}, {e.high:.3g}]" if e.count > 1 else ""
    return f"{e.value:.3g}{interval}: {decision.verdict}".replace("-", "−")


def _verdict(expectation: Expectation, found: dict[str, Decision], families: Sequence[str]) -> str:
    """In both families, or what there is."""
    verdicts = {found[family].verdict for family in families if family != REAL} - {"not run"}
    if len(verdicts) == 1:
        return next(iter(verdicts))
    return (
        "not run"
        if not verdicts
        else "differs by family"
        if verdicts >= {"holds", "does not hold"}
        else "undecided"
    )


def _scores(study: Study, rows: Rows) -> Iterator[str]:
    """Arms of runs: accuracy, recovery, overlap; means over bases, the interval of what came."""
    head = [
        "family",
        "arm",
        "bases",
        "before",
        "teacher",
        "after",
        "gap recovery",
        "collapsed",
        "overlap@16",
        "tokens",
    ]
    body = []
    for family in sorted({row["family"] for row in rows}):
        here = [row for row in rows if row["family"] == family and "after" in row]
        for arm in dict.fromkeys(row["arm"] for row in here):
            mine = [row for row in here if row["arm"] == arm]
            body.append([family, arm, str(len(mine)), *_numbers(mine)])
    if body:
        yield from table(head, body)


def _numbers(mine: Rows) -> list[str]:
    recovered = [row["recovery"] for row in mine if row["recovery"] is not None]
    overlap = [_mean(mine, f"overlap_ratio_{end}") for end in ("first", "last")]
    return [
        _three(_mean(mine, "before")),
        _three(_mean(mine, "teacher")),
        _interval([row["after"] for row in mine], "{:.3f}"),
        _interval(recovered, "{:.0%}"),
        f"{sum(row['collapsed'] for row in mine):.0f} of {len(mine)}",
        " → ".join(map(_three, overlap)) if None not in overlap else "–",
        f"{_mean(mine, 'tokens') or 0:,.0f}",
    ]


def _mean(rows: Rows, name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return statistics.fmean(values) if values else None


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(values: Sequence[float], form: str) -> str:
    found = estimate(values)
    if found is None:
        return "–"
    ends = f" [{form.format(found.low)}, {form.format(found.high)}]" if found.count > 1 else ""
    return (form.format(found.value) + ends).replace("-", "−")


def _made_of(rows: Rows, link: str) -> Iterator[str]:
    seen = widest(rows)
    scales = sorted({row["scale"] for row in seen})
    commits = sorted({row["commit"][:9] for row in seen})
    yield ""
    yield (
        f"Every run, with the hash of its configuration: [{Path(link).name}]({link}) "
        f"(scale {', '.join(scales)}; code of {', '.join(commits)})."
    )


# --- the front page ------------------------------------------------------------------------------------------


def front_lines(ran: Ran) -> Iterator[str]:
    """Questions × {paper, testbed A, testbed B, real model}."""
    head = ["", "question", "paper", "chain", "lists", "real model", "in small"]
    body = []
    for i, (study, rows) in enumerate(ran, start=1):
        seen = widest(rows)
        here = [_mark(study, seen, family) for family in ("chain", "lists", REAL)]
        body.append(
            [
                str(i),
                f"[{study.question}]({study.name}.md)",
                study.section,
                *here,
                f"**{reproduced(study, seen)}**",
            ]
        )
    yield from table(head, body)


def _mark(study: Study, rows: Rows, family: str) -> str:
    """The outcome, and how many of the claims hold."""
    here = [row for row in rows if row["family"] == family]
    if not here:
        return "–"
    found = [e.decide(here).verdict for e in study.expected if e.claim]
    ran = [verdict for verdict in found if verdict != "not run"]
    if not ran:
        return "–"
    return f"{outcome(study, rows, family)} ({ran.count('holds')} of {len(ran)})"


def _map(ran: Ran) -> Iterator[str]:
    """The paper's figures in their order, and where each is rerun."""
    places = [(name, study) for study, _ in ran for name in study.figures]
    rows = [
        [f"Fig. {name}", f"[{study.question}]({study.name}.md)"] for name, study in sorted(places, key=_order)
    ]
    yield from table(["paper", "here"], rows)


def _order(place: tuple[str, Study]) -> tuple[int, str]:
    digits = "".join(c for c in place[0] if c.isdigit())
    return int(digits), place[0]
