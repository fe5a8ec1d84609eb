"""A look at a run as lines of a terminal: at 80 columns one below the other, at 200 side by side.

Every line is a rich `Text` no wider than asked. Nothing a run wrote is read as markup or reaches the terminal as a
control character: it all goes through `Ink.line`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opdkit.report import stories
from opdkit.report.change import change, gap_recovery, scores, teacher_score
from opdkit.report.follow import CURVES, Look, Pulse, phases
from opdkit.report.notes import text
from opdkit.report.panels import position_of
from opdkit.report.read import Row
from opdkit.report.spark import Ink, bar, spark, strip
from opdkit.report.text import NBSP, duration, number, percent, shown

if TYPE_CHECKING:
    from rich.text import Text

WIDE = 150  # columns from which the wide form is used
CELL = 64  # columns of a curve in it
GAP = 3  # columns between two of them
NAME = 19  # columns of a name
ENDS = 18  # columns of "first → last"
PRINTED, TALLEST = 3, 5  # lines of a curve there: on paper, and at most, where the window has room
FINDINGS = 6  # shown
STRIPS = ("overlap_ratio", "reverse_kl")  # by position
SEVERITIES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
DOING = {
    "running": "green",
    "finished": "bold green",
    "quiet": "yellow",
    "stopped": "yellow",
    "not begun": "dim",
}


@dataclass(frozen=True)
class Block:
    """Lines that belong together. Where they do not all fit, the last ones go first, down to `least` of them."""

    lines: Sequence[Text]
    least: int = 0


@dataclass(frozen=True)
class Pen:
    """What a look is drawn with."""

    ink: Ink
    width: int
    tall: int = 1  # lines per curve, in the wide form

    @property
    def wide(self) -> bool:
        return self.width >= WIDE

    def text(self, *parts: tuple[str, str] | str) -> Text:
        from rich.text import Text

        pairs = [(part, "") if isinstance(part, str) else part for part in parts]
        return self.fitted(Text.assemble(*((self.ink.line(words), style) for words, style in pairs)))

    def fitted(self, line: Text, width: int | None = None) -> Text:
        """Cut to the width, and said so."""
        limit = self.width if width is None else width
        if line.cell_len > limit:
            line.truncate(max(0, limit - len(self.ink.rest)), overflow="crop")
            line.append(self.ink.rest[: max(0, limit)], style="dim")
        return line

    def wrapped(self, line: Text, *, indent: int, most: int) -> list[Text]:
        """A long line as several, the later ones indented; the last says where it was cut."""
        from rich.console import Console
        from rich.text import Text

        room = max(8, self.width - indent)
        parts = list(line.wrap(Console(width=self.width), room, no_wrap=False))
        for part in parts:
            part.rstrip()
        if len(parts) > most:
            kept = parts[most - 1]
            kept.append(self.ink.rest, style="dim")
            parts = [*parts[: most - 1], self.fitted(kept, room)]
        return [part if i == 0 else Text(" " * indent).append_text(part) for i, part in enumerate(parts)]


def lines(look: Look, *, ink: Ink, width: int, height: int | None = None) -> list[Text]:
    """The whole look; with a `height`, what fits into it."""
    if height is None:
        found = _joined(_blocks(look, Pen(ink, width, tall=PRINTED)))
    else:
        tried = (_blocks(look, Pen(ink, width, tall)) for tall in range(TALLEST, 0, -1))
        found = next((whole for blocks in tried if len(whole := _joined(blocks)) <= height), [])
        found = found or _fit(_blocks(look, Pen(ink, width)), height)
    for line in found:
        line.rstrip()
        line.plain = line.plain.replace(NBSP, " ")  # it has kept numbers and units together till here
    return found


def _blocks(look: Look, pen: Pen) -> list[Block]:
    blocks = _wide(look, pen) if pen.wide else _narrow(look, pen)
    return [block for block in blocks if block.lines]


def _narrow(look: Look, pen: Pen) -> list[Block]:
    return [
        Block(_head(look, pen), least=2),
        Block(_curves(look, pen), least=1),
        Block(_findings(look, pen), least=2),
        Block([*_seconds(look, pen), *_evaluation(look, pen), *_preflight(look, pen)], least=1),
        Block(_rollout(look, pen), least=0),
    ]


def _wide(look: Look, pen: Pen) -> list[Block]:
    left = Pen(pen.ink, pen.width * 3 // 5 - GAP, pen.tall)
    right = Pen(pen.ink, pen.width - left.width - GAP, pen.tall)
    told = [*_findings(look, left)] or [left.text(("findings    ", "dim"), "none so far")]
    times = [*_bars(look, right), *_strips(look, right)]
    return [
        Block(_head(look, pen), least=2),
        Block(_grid(look, pen), least=pen.tall + 1),
        Block(_beside([told, times], widths=[left.width, right.width]), least=2),
        Block([*_evaluation(look, pen), *_preflight(look, pen)], least=1),
        Block(_rollout(look, pen), least=0),
    ]


# --- layout -------------------------------------------------------------------------------------------------


def _joined(blocks: Sequence[Block]) -> list[Text]:
    from rich.text import Text

    joined: list[Text] = []
    for block in blocks:
        joined += [Text(), *block.lines] if joined else [*block.lines]
    return joined


def _fit(blocks: Sequence[Block], height: int) -> list[Text]:
    """Blank lines go first, then the ends of blocks from the last block upwards."""
    whole = _joined(blocks)
    if len(whole) <= height:
        return whole
    kept = [list(block.lines) for block in blocks]
    for place in reversed(range(len(blocks))):
        over = sum(map(len, kept)) - height
        if over > 0:
            kept[place] = kept[place][: max(blocks[place].least, len(kept[place]) - over)]
    return [line for part in kept for line in part][:height]


def _beside(columns: Sequence[Sequence[Text]], *, widths: Sequence[int]) -> list[Text]:
    """Columns of lines as lines, `GAP` between them."""
    from rich.text import Text

    rows = []
    for place in range(max(map(len, columns), default=0)):
        row = Text()
        for lines_of, width in zip(columns, widths, strict=True):
            part = lines_of[place].copy() if place < len(lines_of) else Text()
            part.pad_right(max(0, width - part.cell_len))
            row.append_text(part).append(" " * GAP)
        row.rstrip()
        rows.append(row)
    return rows


def _labelled(pen: Pen, label: str, *parts: tuple[str, str] | str, most: int = 2) -> list[Text]:
    """A line with a word before it, wrapped below itself."""
    indent = 12
    body = Pen(pen.ink, 10_000).text(*parts)
    first, *rest = pen.wrapped(body, indent=indent, most=most) or [body]
    return [pen.text((label.ljust(indent), "dim")).append_text(first), *rest]


# --- parts --------------------------------------------------------------------------------------------------


def _head(look: Look, pen: Pen) -> list[Text]:
    run = look.run
    who = stories.student(run).strip("“”")
    pair = f"{who} ← {stories.teacher(run).strip('“”')}" if run.taught else who
    title = pen.text((pair, "bold"), (f"  {run.story} · {run.name}", "dim"))
    return [title, _progress(look, pen)]


def _progress(look: Look, pen: Pen) -> Text:
    pulse = look.pulse
    told = [
        (state(look), DOING[pulse.doing]),
        *((f" · {words}", "") for words in _pace(look)),
    ]
    count = f" {pulse.step:,}/{pulse.steps:,}" if pulse.steps else f" step {pulse.step:,}"
    room = pen.width - len(count) - 2 - sum(len(pen.ink.line(words)) for words, _ in told)
    width = max(10, min(60, room))
    drawn = bar(pulse.step / pulse.steps if pulse.steps else 0.0, ink=pen.ink, width=width)
    return pen.text((drawn, "green"), (count, "bold"), "  ", *told)


def state(look: Look) -> str:
    """What the run is doing, in words."""
    pulse = look.pulse
    if pulse.doing == "quiet":
        return f"no step for {duration(pulse.age)}".replace(NBSP, " ")
    if pulse.doing == "stopped":
        return f"stopped at step {pulse.step} ({_saved(pulse)}){_by_whom(look)}"
    if pulse.doing == "finished" and not pulse.over:
        return "finished, last evaluation to come"
    return pulse.doing


def _saved(pulse: Pulse) -> str:
    if pulse.saved is None:
        return "nothing saved"
    return "saved" if pulse.saved >= pulse.step else f"saved: step {pulse.saved}"


def _by_whom(look: Look) -> str:
    """`health.on_critical = "stop"` and a finding that was critical, at this very step."""
    asked = look.run.config.get("health.on_critical") == "stop"
    errors = [number(row.get("step")) for row in look.run.findings if row.get("severity") == "error"]
    return " by the health monitor" if asked and look.pulse.step in errors else ""


def _pace(look: Look) -> Iterator[str]:
    pulse = look.pulse
    if pulse.each is not None and pulse.doing != "not begun":
        yield f"{duration(pulse.each)}/step"
    if pulse.left is not None:
        yield f"{duration(pulse.left)} left"
    speed = number(look.last.get("tokens_per_second"))
    if speed is not None and pulse.doing == "running":
        yield f"{shown(speed)} tok/s"


def _present(look: Look) -> list[str]:
    """Curves the run has, in the order of reading."""
    logged = {name for row in look.run.metrics for name in row}
    return [name for name in CURVES if name in logged]


def _ends(look: Look, name: str) -> tuple[str, str]:
    """First and last, as everywhere in the report: means over a tenth of the steps."""
    it, values = change(look.run, name), look.run.values(name)
    if it is None:
        return "", shown(values[-1]) if values else "–"
    return shown(it.first), shown(it.last)


def _curves(look: Look, pen: Pen) -> list[Text]:
    """One line per curve: name, shape, first → last."""
    width = pen.width - NAME - ENDS - 3
    drawn = []
    for name in _present(look):
        shape = spark(*look.run.series(name), ink=pen.ink, width=width, span=_span(look))[0]
        drawn.append(pen.text(name.ljust(NAME), (shape, "cyan"), "  ", *_arrow(look, name, pen)))
    return drawn


def _arrow(look: Look, name: str, pen: Pen) -> list[tuple[str, str]]:
    """Arrows below each other: the first value ends before it, the last begins behind it."""
    first, last = _ends(look, name)
    arrow = " → " if first else "   "
    side = (ENDS - len(pen.ink.line(arrow))) // 2
    return [(first.rjust(side), ""), (arrow, "dim"), (last.ljust(side), "bold")]


def _grid(look: Look, pen: Pen) -> list[Text]:
    """Curves in columns, each some lines tall under its name."""
    count = max(1, (pen.width + GAP) // (CELL + GAP))
    width = (pen.width - GAP * (count - 1)) // count
    cell = Pen(pen.ink, width, pen.tall)
    cells = [_cell(look, name, cell) for name in _present(look)]
    rows = []
    for first in range(0, len(cells), count):
        rows += _beside(cells[first : first + count], widths=[width] * len(cells[first : first + count]))
    return rows


def _cell(look: Look, name: str, pen: Pen) -> list[Text]:
    first, last = _ends(look, name)
    ends = [(first, ""), (" → " if first else "", "dim"), (last, "bold")]
    room = pen.width - sum(len(pen.ink.line(words)) for words, _ in ends)
    shape = spark(*look.run.series(name), ink=pen.ink, width=pen.width, height=pen.tall, span=_span(look))
    return [pen.text(name.ljust(room), *ends), *(pen.text((row, "cyan")) for row in shape)]


def _span(look: Look) -> tuple[int, int] | None:
    """All curves have one axis of steps, so that what happens at one time stands in one column."""
    rows = look.run.metrics
    return (rows[0]["step"], rows[-1]["step"]) if rows else None


def _findings(look: Look, pen: Pen) -> list[Text]:
    """Newest first: sign, name and step; the message; what to type."""
    found = list(reversed(look.run.findings))
    drawn: list[Text] = []
    for row in found[:FINDINGS]:
        drawn += _finding(row, pen)
    rest = len(found) - FINDINGS
    return [
        *drawn,
        *([pen.text((f"{rest} earlier findings: opd report {look.run.name}", "dim"))] if rest > 0 else []),
    ]


def _finding(row: Row, pen: Pen) -> list[Text]:
    severity = row.get("severity") if row.get("severity") in SEVERITIES else "info"
    style = SEVERITIES[str(severity)]
    step = number(row.get("step"))
    when = f" step {shown(step)}" if step is not None else ""
    name, message, remedy = (str(row.get(key) or "") for key in ("name", "message", "remedy"))
    long = Pen(pen.ink, 10_000)
    told = long.text(
        (f"{pen.ink.marks[str(severity)]} {severity}", style),
        (f"{when} ", "dim"),
        (name, "bold"),
        f"  {message}",
    )
    drawn = pen.wrapped(told, indent=2, most=3)
    if remedy:
        command = long.text("  ", ("$ ", "dim"), (remedy, "green"))
        drawn += pen.wrapped(command, indent=4, most=3)
    return drawn


def _seconds(look: Look, pen: Pen) -> list[Text]:
    """Where the time of a step goes, in one line."""
    parts = phases(look.run.metrics)
    if not parts:
        return []
    told = " · ".join(f"{name} {duration(value)}" for name, value in parts.items())
    return _labelled(pen, "seconds", told)


def _bars(look: Look, pen: Pen) -> list[Text]:
    """The same with bars: shares of the whole step."""
    parts = phases(look.run.metrics)
    total = max(sum(parts.values()), look.pulse.each or 0.0) or 1.0
    drawn = []
    for name, value in list(parts.items())[:6]:
        cells = bar(value / total, ink=pen.ink, width=max(8, pen.width - 40))
        time, share = pen.ink.line(duration(value)), pen.ink.line(percent(value / total))
        drawn.append(
            pen.text(
                ("seconds/", "dim"), name.ljust(NAME - 8), time.rjust(9), share.rjust(9), " ", (cells, "blue")
            )
        )
    return drawn


def _strips(look: Look, pen: Pen) -> list[Text]:
    """The newest step by place in the response, darker for more."""
    drawn = []
    for quantity in STRIPS:
        pairs = sorted(
            (place[0], number(value))
            for name, value in look.last.items()
            if (place := position_of(name)) and place[1] == quantity
        )
        if pairs:
            ends = f"{shown(pairs[0][1])} → {shown(pairs[-1][1])}"
            cells = strip([value for _, value in pairs], ink=pen.ink, width=max(8, pen.width - NAME - 22))
            drawn.append(pen.text(quantity.ljust(NAME), (cells, "magenta"), f"  {ends}"))
    places = [place[0] for name in look.last if (place := position_of(name)) and place[1] in STRIPS]
    note = (
        f"by place in the response: from token {min(places)} to {max(places)} on, step {look.last['step']}"
        if places
        else ""
    )
    return [*drawn, pen.text((note, "dim"))] if drawn else []


def _evaluation(look: Look, pen: Pen) -> list[Text]:
    """Accuracy before and now, with its interval."""
    found = scores(look.run)
    if not found:
        return (
            _labelled(pen, "evaluation", "without a grader: nothing about accuracy") if look.run.evals else []
        )
    ends = dict.fromkeys((found[0], found[-1]))
    told = " → ".join(f"step {score.step}: {score.words}" for score in ends)
    teacher, recovered = teacher_score(look.run), gap_recovery(look.run)
    more = f" · teacher {percent(teacher)}" if teacher is not None else ""
    more += f" · gap recovery {percent(recovered)}" if recovered is not None else ""
    return _labelled(pen, "evaluation", told, more)


def _preflight(look: Look, pen: Pen) -> list[Text]:
    verdict = look.run.check.get("verdict")
    if not isinstance(verdict, dict) or not verdict.get("name"):
        return []
    return _labelled(pen, "preflight", (str(verdict["name"]), "bold"), f"  {verdict.get('reason') or ''}")


def _rollout(look: Look, pen: Pen) -> list[Text]:
    """The last rollout kept: what was asked, what came, what it was worth."""
    row = look.rollout
    if not row:
        return []
    score, length = number(row.get("score")), number(row.get("length"))
    style = "" if score is None else "green" if score >= 0.5 else "red"
    facts = [(f"score {shown(score)}" if score is not None else "not graded", style)]
    facts += [(f" · {shown(length)} tokens", "")] if length is not None else []
    facts += [(f" · ends by {row['finish_reason']}", "")] if row.get("finish_reason") else []
    head = pen.text(("rollout".ljust(12), "dim"), f"step {look.sampled} · ", *facts)
    prompt = _labelled(pen, "prompt", text(row.get("prompt", "")), most=2)
    return [head, *prompt, *_labelled(pen, "response", text(row.get("response", "")), most=4)]
