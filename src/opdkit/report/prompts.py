"""What `opd prompts` did, as a page of its own: no script, nothing fetched.

A prompt, a wrapper or a model card is text in it, never markup.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from opdkit.report.page import template, write_page
from opdkit.report.preflight import mapping, rows, said_of
from opdkit.report.tables import Table
from opdkit.report.text import number, percent, shown, visible

UNKNOWN = "–"
COLUMNS: Sequence[tuple[str, str]] = (
    ("overlap_ratio", "overlap"),
    ("overlap_mass_teacher_before_end", "teacher's shared mass"),
    ("overlap_mass_student", "student's shared mass"),
    ("entropy_teacher", "teacher's entropy"),
    ("entropy_student", "student's entropy"),
    ("reverse_kl", "reverse KL"),
    ("accuracy", "accuracy"),
    ("truncated_fraction", "truncated"),
)


def write_prompts_page(document: Mapping[str, Any], target: Path) -> Path:
    """The page of a document of `opd prompts`, written in one move."""
    page = template("prompts.html.j2").render(
        document=document,
        style=(files("opdkit.report") / "page.css").read_text(encoding="utf-8"),
        policy="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
        counts=counts(document),
        templates=templates(document),
        tried=rows(mapping(document.get("template")).get("tried")),
        contamination=contamination(document),
        bands=bands(document),
        coverage=coverage(document),
        examples=examples(document),
        findings=rows(document.get("findings")),
        visible=visible,
    )
    write_page(target, page)
    return target


def counts(document: Mapping[str, Any]) -> Table:
    """How many stayed, and for what reason the others did not."""
    total = number(document.get("prompts")) or 0.0
    told = [("kept", number(document.get("kept")))]
    told += [(f"dropped: {kind}", number(n)) for kind, n in mapping(document.get("reasons")).items()]
    return Table(
        ["", "prompts", "share"],
        [[name, shown(n), percent(n / total if n is not None and total else None)] for name, n in told],
    )


def templates(document: Mapping[str, Any]) -> Table:
    """Every candidate: the number, and below it what changes against prompts as they are, with its interval."""
    found = rows(mapping(document.get("template")).get("tried"))
    present = [(n, title) for n, title in COLUMNS if any(n in mapping(it.get("numbers")) for it in found)]
    chosen = mapping(document.get("template")).get("chosen")
    lines = []
    for it in found:
        name = visible(str(it.get("name")))
        cells = [_number(n, mapping(it.get("numbers")).get(n)) for n, _ in present]
        lines.append([f"{name} ← taken" if it.get("name") == chosen else name, *cells])
        gains = mapping(it.get("gains"))
        if gains:
            lines.append(["change", *(_gain(n, gains.get(n)) for n, _ in present)])
    return Table(["", *(title for _, title in present)], lines)


def _number(name: str, it: Any) -> str:
    return said_of(name, number(mapping(it).get("value")))


def _gain(name: str, it: Any) -> str:
    value, low, high = (number(mapping(it).get(part)) for part in ("value", "low", "high"))
    if value is None:
        return UNKNOWN
    sign = "+" if value > 0 else ""
    within = "" if low is None or high is None else f" [{said_of(name, low)}, {said_of(name, high)}]"
    return f"{sign}{said_of(name, value)}{within}"


def contamination(document: Mapping[str, Any], most: int = 50) -> Table:
    """Rows of evaluation and other sets that a training prompt is near to, the nearest first."""
    found = rows(document.get("contamination"))[:most]
    lines = [
        [
            f"{it.get('set')}: {visible(str(it.get('row')))}",
            visible(str(it.get("row_text"))),
            "equal" if it.get("equal") else shown(number(it.get("cosine"))),
            visible(str(it.get("prompt"))),
            visible(str(it.get("prompt_text"))),
        ]
        for it in found
    ]
    return Table(["row", "it asks", "cosine", "training prompt", "that asks"], lines)


def bands(document: Mapping[str, Any]) -> Table:
    lines = [
        [str(b.get("band")), shown(number(b.get("prompts"))), shown(number(b.get("kept")))]
        for b in rows(document.get("bands"))
    ]
    return Table(["solved", "prompts", "kept"], lines)


def coverage(document: Mapping[str, Any]) -> str:
    it = mapping(document.get("coverage"))
    share = number(it.get("share"))
    if share is None:
        return ""
    return (
        f"{shown(number(it.get('prompts')))} prompts reach {percent(share)} of the {shown(number(it.get('clusters')))} "
        f"clusters of teacher states that {shown(number(it.get('of_prompts')))} prompts reach together."
    )


def examples(document: Mapping[str, Any]) -> Mapping[str, Table]:
    """Some rows with their reasons."""
    found = rows(document.get("examples"))
    return {
        name: Table(
            ["id", "prompt", "reason"],
            [
                [visible(str(it.get(part))) for part in ("id", "text", "reason")]
                for it in found
                if bool(it.get("kept")) == wanted
            ],
        )
        for name, wanted in (("Kept, the first by rank", True), ("Dropped", False))
    }
