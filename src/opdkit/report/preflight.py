"""What `opd check` or `opd diagnose` said of a pair, for the page: words, tables, and profiles along the response.

The document's form is published (`opdkit.verdict/1`); it may still be of another version, edited or torn. Whatever
is not what it should be is left out, never a reason to fail.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opdkit.report.panels import Panel, groups
from opdkit.report.plots import Figure, Key, Trace, curve, short
from opdkit.report.read import Row, Run
from opdkit.report.tables import Table
from opdkit.report.text import common_start, duration, number, percent, shown, visible
from opdkit.report.words import Tone, Verdict

TITLES: Mapping[str, tuple[str, Tone]] = {
    "go": ("Go", "good"),
    "fix_first": ("Fix something first", "weak"),
    "cold_start": ("Cold start first", "weak"),
    "align_prompts": ("Align the prompts first", "weak"),
    "change_teacher": ("Change the teacher", "bad"),
    "nothing_to_learn": ("Nothing to learn", "bad"),
}
PROFILED = ("overlap_ratio", "reverse_kl", "entropy_student", "teachable_share")  # drawn unfolded
UNKNOWN = "–"


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[Row]:
    """The objects of a list; whatever else it holds is left out."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def name_of(check: Mapping[str, Any]) -> str:
    """The verdict's name, "" where there is none."""
    name = mapping(check.get("verdict")).get("name")
    return name if isinstance(name, str) else ""


# --- in words -----------------------------------------------------------------------------------------------


def verdict(check: Mapping[str, Any]) -> Verdict:
    """Its verdict and the reason it gave."""
    name = name_of(check)
    title, tone = TITLES.get(name, (name or "No verdict", "plain"))
    reason = mapping(check.get("verdict")).get("reason")
    said = reason if isinstance(reason, str) and reason else "It gave no reason."
    return Verdict(title, f"{said[0].upper()}{said[1:]}{'' if said[-1] in '.!?' else '.'}", tone)


def remedy(check: Mapping[str, Any]) -> str:
    found = mapping(check.get("verdict")).get("remedy")
    return found if isinstance(found, str) else ""


def command(check: Mapping[str, Any]) -> str:
    """Who said it: "opd check" or "opd diagnose"."""
    return "opd diagnose" if check.get("kind") == "diagnose" else "opd check"


def pair(check: Mapping[str, Any]) -> str:
    """ "student ← teacher" """
    return " ← ".join(str(check.get(who) or f"an unnamed {who}") for who in ("student", "teacher"))


def introduction(check: Mapping[str, Any]) -> str:
    """What was read, and what it took."""
    nouns = ("prompts", "rollouts", "positions")
    counts = [(number(check.get(noun)), noun) for noun in nouns]
    read = ", ".join(f"{shown(count)} {noun}" for count, noun in counts if count is not None)
    graded = {True: "; graded", False: "; without a grader"}.get(bool(check.get("graded")), "")
    return f"{pair(check)}: {read or 'nothing counted'}{graded if 'graded' in check else ''}.{_cost(check)}"


def _cost(check: Mapping[str, Any]) -> str:
    cost = mapping(check.get("cost"))
    took, expected = number(cost.get("seconds")), number(cost.get("seconds_expected"))
    if took is None:
        return ""
    announced = f", {duration(expected)} were announced" if expected is not None else ""
    return f" It took {duration(took)}{announced}."


# --- the evidence -------------------------------------------------------------------------------------------

_GROUPS = (
    (
        "Can the student follow?",
        r"teachable_share|rehearsed|aligned|overlap|reverse_kl|entropy|top1|first_token|advantage",
    ),
    ("Does the teacher know more?", r"accuracy|pass_at|sequence_reward|success_slope|on_failures"),
    ("How do responses end?", r"stop_|response_length|truncated|repetition"),
    ("Other numbers", r""),
)

_MEANINGS: Mapping[str, str] = {
    "teachable_share": "of the disagreement, the part on tokens the student draws at least once in twenty",
    "rehearsed_loss_ratio": "loss after a rehearsal on a copy over the loss before; the count is of steps",
    "aligned_gain": "shared mass of the teacher gained when its own template writes the prompts",
    "overlap_ratio": "of the student's likely tokens, those that are the teacher's, too (Eq. 6)",
    "overlap_mass_student": "probability the student gives to the shared tokens",
    "overlap_mass_teacher": "probability the teacher gives to them",
    "overlap_advantage": "how far apart the two are on the shared tokens (Eq. 7); 0 = not at all",
    "reverse_kl": "KL(student ‖ teacher), nats per token",
    "entropy_student": "how unsure the student is, nats",
    "entropy_teacher": "how unsure the teacher is there, nats",
    "entropy_gap": "how differently sure the two are, nats (Eq. 8)",
    "top1_agreement": "where both like the same token best",
    "first_token_agreement": "the same, at the first token of a response",
    "first_token_overlap": "overlap at the first token: low where the prompts suit only one of them",
    "accuracy": "of the student's responses, those that are right",
    "teacher_accuracy": "of the teacher's responses to the same prompts",
    "teacher_accuracy_on_failures": "of the teacher's responses where the student failed",
    "sequence_reward": "mean log teacher − log student over a response, nats per token",
    "sequence_reward_auroc": "how well that reward tells right from wrong responses",
    "success_slope": "accuracy gained per √nat of movement towards the teacher, to first order",
    "stop_student_at_end": "probability of stopping where the student stopped",
    "stop_teacher_at_end": "the teacher's probability of stopping there",
    "stop_teacher_own_at_end": "its probability of its own end token there",
    "stop_student_elsewhere": "probability of stopping anywhere before",
    "stop_teacher_elsewhere": "the teacher's, anywhere before",
    "stop_student_after_end": "probability of going on to stop after the end",
    "stop_teacher_after_end": "the teacher's, after the end",
    "response_length": "tokens per response",
    "truncated_fraction": "responses cut at the limit",
    "repetition_fraction": "of the 4-grams of a response, those that occurred before in it",
}
_SHARES = re.compile(
    r".*(_ratio|_ratio_at_\d+|_chance_at_\d+|_share|_fraction|_agreement|accuracy|_on_failures|_end|_elsewhere)"
    r"|(teacher_)?pass_at_\d+|overlap_mass_.*|first_token_overlap"
)
_AT_K = re.compile(r"overlap_ratio_at_(\d{1,9})")


def evidence(check: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """Every number with its interval and count, by the question it answers."""
    metrics = {name: mapping(it) for name, it in mapping(check.get("metrics")).items()}
    told = {name: it for name, it in metrics.items() if number(it.get("value")) is not None}
    left = [name for name in told if not name.startswith("overlap_chance_at_")]
    found = []
    for title, pattern in _GROUPS:
        mine = sorted((n for n in left if re.search(pattern, n)), key=_place)
        left = [name for name in left if name not in mine]
        lines = [_line(name, told[name], metrics) for name in mine]
        kept = without_empty(Table(["", "value", "95 % interval", "by chance", "n", ""], lines))
        found += [(title, kept)] if mine else []
    return found


def said_of(name: str, value: float | None) -> str:
    """A share as a percentage, by its name; anything else as it is."""
    return percent(value) if _SHARES.fullmatch(name) else shown(value)


def _place(name: str) -> tuple[int, str]:
    known = list(_MEANINGS)
    at_k = _AT_K.fullmatch(name)
    if at_k:
        return known.index("overlap_ratio"), f"{int(at_k[1]):09d}"
    return (known.index(name) if name in known else len(known)), name if name not in known else ""


def _line(name: str, it: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    low, high = number(it.get("low")), number(it.get("high"))
    interval = UNKNOWN if low is None or high is None else f"{said_of(name, low)} to {said_of(name, high)}"
    chance, count = said_of(name, _chance(name, metrics)), shown(number(it.get("count")))
    return [name, said_of(name, number(it.get("value"))), interval, chance, count, _MEANINGS.get(name, "")]


def _chance(name: str, metrics: Mapping[str, Mapping[str, Any]]) -> float | None:
    """What two unrelated models, or a coin, would show."""
    if name.endswith("auroc"):
        return 0.5
    at_k = _AT_K.fullmatch(name)
    if at_k is None:
        return None
    return number(mapping(metrics.get(f"overlap_chance_at_{at_k[1]}")).get("value"))


def without_empty(table: Table) -> Table:
    """Columns in which nothing is said are left out."""
    kept = [i for i in range(len(table.head)) if any(row[i] not in ("", UNKNOWN) for row in table.rows)]
    return Table([table.head[i] for i in kept], [[row[i] for i in kept] for row in table.rows])


@dataclass(frozen=True)
class Rendered:
    """A probe conversation in both templates: (who, what both write, what follows) twice."""

    title: str
    says: str
    apart: bool
    sides: Sequence[tuple[str, str, str]]


def renderings(check: Mapping[str, Any]) -> list[Rendered]:
    """Probe conversations side by side, cut at their first difference; those that differ come first."""
    found = []
    for row in rows(check.get("renderings")):
        texts = [(who, visible(str(row.get(who, "")))) for who in ("student", "teacher")]
        first = row.get("first")
        apart = isinstance(first, int)
        thinking = {True: ", thinking on", False: ", thinking off"}.get(row.get("thinking"), "")  # type: ignore[arg-type]
        at = common_start(texts[0][1], texts[1][1])
        says = f"they differ from character {first} on" if apart else "the same text"
        sides = [(who, text[:at], text[at:]) for who, text in texts]
        found.append(Rendered(f"{row.get('probe')}{thinking}", says, apart, sides))
    return sorted(found, key=lambda it: not it.apart)


def continuation(check: Mapping[str, Any]) -> Table:
    """Who finishes the student's cut rollouts better, by where they were cut."""
    lines = [
        [
            percent(number(row.get("depth"))),
            percent(number(row.get("teacher"))),
            percent(number(row.get("student"))),
            _signed(number(row.get("advantage"))),
            _points(row),
            shown(number(row.get("count"))),
        ]
        for row in rows(check.get("continuation"))
    ]
    head = ["cut at", "teacher goes on", "student goes on", "advantage", "95 % interval", "n"]
    return without_empty(Table(head, lines)) if lines else Table(head, [])


def _signed(value: float | None) -> str:
    return UNKNOWN if value is None else f"{'+' if value > 0 else ''}{percent(value)}"


def _points(row: Row) -> str:
    low, high = number(row.get("low")), number(row.get("high"))
    return UNKNOWN if low is None or high is None else f"{_signed(low)} to {_signed(high)}"


def ranking(check: Mapping[str, Any]) -> Table:
    """Teachers, the best first."""
    found = sorted(rows(check.get("ranking")), key=lambda row: _rank(row.get("rank")))
    names = list(dict.fromkeys(name for row in found for name in mapping(row.get("metrics"))))
    lines = [
        [
            shown(number(row.get("rank"))),
            str(row.get("teacher", UNKNOWN)),
            TITLES.get(str(row.get("verdict")), (str(row.get("verdict", UNKNOWN)), ""))[0],
            *(said_of(name, _value(mapping(row.get("metrics")).get(name))) for name in names),
        ]
        for row in found
    ]
    return without_empty(Table(["rank", "teacher", "verdict", *names], lines))


def between(check: Mapping[str, Any]) -> Table:
    """How far the teachers differ at the states the student visits."""
    found = rows(check.get("between"))
    names = list(dict.fromkeys(name for row in found for name in row if name not in ("a", "b")))
    lines = [
        [
            f"{row.get('a', UNKNOWN)} · {row.get('b', UNKNOWN)}",
            *(said_of(n, _value(row.get(n))) for n in names),
        ]
        for row in found
    ]
    return without_empty(Table(["teachers", *names], lines))


def _value(it: Any) -> float | None:
    """A bare number, or the value of one with an interval."""
    return number(it.get("value")) if isinstance(it, dict) else number(it)


def _rank(value: Any) -> float:
    found = number(value)
    return found if found is not None else float("inf")


# --- along the response -------------------------------------------------------------------------------------


def figures(run: Run, index: int) -> tuple[list[Figure], list[Figure]]:
    """Profiles by position and by depth: those to show, and those to fold."""
    check = run.check
    by_position = _profiles(check.get("by_position"), index, x="response position (tokens)")
    by_depth = _profiles(check.get("by_depth"), index, x="depth (position ÷ length)")
    drawn = [figure for pair in _zipped(by_position, by_depth) for figure in pair]
    shown_ones = [*_continuations(check, index), *(figure for figure in drawn if _is_profiled(figure))]
    return shown_ones, [figure for figure in drawn if not _is_profiled(figure)]


def _zipped(one: Sequence[Figure], other: Sequence[Figure]) -> Iterable[list[Figure]]:
    """Both profiles of a quantity stand beside each other."""
    titles = dict.fromkeys(figure.title for figure in (*one, *other))
    for title in titles:
        yield [figure for figure in (*one, *other) if figure.title == title]


def _is_profiled(figure: Figure) -> bool:
    return any(trace["name"] in PROFILED for trace in figure.traces)


def _profiles(table: Any, index: int, *, x: str) -> list[Figure]:
    places = sorted(
        (place, mapping(it)) for key, it in mapping(table).items() if (place := _number_in(key)) is not None
    )
    names = dict.fromkeys(name for _, it in places for name in it)
    panels = [panel for group in groups(names, taught=True) for panel in group.panels]
    first = {panel.metrics: panel for panel in reversed(panels)}  # the loss has two
    return [
        figure
        for panel in reversed(list(first.values()))
        if (figure := _profile(panel, places, index, x)).traces
    ]


def _number_in(key: str) -> float | None:
    try:
        return number(float(key))
    except ValueError:
        return None


def _profile(panel: Panel, places: Sequence[tuple[float, Mapping[str, Any]]], index: int, x: str) -> Figure:
    traces, told = [], []
    for color, name in enumerate(panel.metrics):
        points = [(place, value) for place, it in places if (value := _value(it.get(name))) is not None]
        if points:
            dash = "dot" if name in panel.dotted else ("solid", "dash", "dashdot", "longdash")[color % 4]
            traces.append(
                curve(name, [p for p, _ in points], [v for _, v in points], color=color, run=index, dash=dash)
            )
            what = f"{name} " if len(panel.metrics) > 1 else ""
            told.append((None, f"{what}{said_of(name, points[0][1])} → {said_of(name, points[-1][1])}"))
    return Figure(
        kind="lines",
        title=panel.title or ", ".join(panel.metrics),
        caption=f"First → last {x.partition(' (')[0]}. {panel.caption.partition('. ')[0].rstrip('.')}.",
        unit=panel.unit,
        equation=panel.equation,
        x=x,
        traces=traces,
        run=index,
        legend=_legend(traces),
        told=told,
    )


def _legend(traces: Sequence[Trace]) -> list[Key]:
    return [Key(t["name"], t["dash"], t["color"]) for t in traces] if len(traces) > 1 else []


def _continuations(check: Mapping[str, Any], index: int) -> list[Figure]:
    """The teacher's advantage in going on from the student's own words, by where they were cut."""
    found = [
        (depth, value, number(row.get("low")), number(row.get("high")))
        for row in rows(check.get("continuation"))
        if (depth := number(row.get("depth"))) is not None
        and (value := number(row.get("advantage"))) is not None
    ]
    if not found:
        return []
    found.sort()
    error = {
        "plus": [short(high - value) if high is not None else 0.0 for _, value, _, high in found],
        "minus": [short(value - low) if low is not None else 0.0 for _, value, low, _ in found],
    }
    trace = curve(
        "advantage", [d for d, *_ in found], [v for _, v, *_ in found], color=0, run=index, error=error
    )
    caption = (
        "Accuracy when the teacher goes on from the student's cut rollouts, less the student's own. Above 0, the "
        "teacher can still help from there; bars are 95 % intervals. Usually it falls with depth."
    )
    told = [
        (
            None,
            f"{_signed(found[0][1])} cut at {percent(found[0][0])} → {_signed(found[-1][1])} at {percent(found[-1][0])}",
        )
    ]
    return [
        Figure(
            kind="lines",
            title="continuation advantage",
            caption=caption,
            unit="fraction",
            x="depth (position ÷ length)",
            traces=[trace],
            run=index,
            told=told,
        )
    ]
