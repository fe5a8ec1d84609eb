"""Tables and curves of the real run.

python scripts/real_tables.py RUNS docs/real      # read run folders, write tables, draw
python scripts/real_tables.py docs/real           # draw again from the tables alone

scores.csv    who answers how well: as asked, with the answer begun, at T = 0.7
steps.csv     what was measured at every step of the four distillations
seconds.csv   seconds of wall clock and CPU per command
"""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ARMS = ("from-a-0", "from-a-1", "from-b-0", "from-b-1")
WHO = ("student", "teacher-a", "teacher-b", *ARMS)
PARTS = ("sample", "score", "update")
MEASURES = {
    "accuracy": "right, training sums, T = 1",
    "truncated_fraction": "without an end of its own",
    "reverse_kl": "reverse KL, nats",
    "overlap_mass_student": "student's mass on shared top 16",
    "overlap_ratio_at_1": "overlap at k = 1",
    "overlap_ratio": "overlap at k = 16",
    "entropy_student": "student's entropy, nats",
    "entropy_gap": "entropy gap, nats",
}
"""Columns of steps.csv that are drawn."""


def main() -> None:
    *runs, docs = [Path(name) for name in sys.argv[1:]]
    if runs:
        docs.mkdir(parents=True, exist_ok=True)
        write_tables(runs[0], docs)
    for name, text in drawings(docs).items():
        (docs / name).write_text(text)


def drawings(docs: Path) -> dict[str, str]:
    """File name → SVG, a function of the tables."""
    return {
        "scores.svg": draw_scores(read(docs / "scores.csv")),
        "curves.svg": draw_curves(read(docs / "steps.csv")),
    }


# --- tables -----------------------------------------------------------------------------------------------------


def write_tables(runs: Path, docs: Path) -> None:
    write(docs / "scores.csv", [score(runs, who) for who in WHO])
    write(docs / "steps.csv", [row for arm in ARMS for row in steps(runs / arm)])
    write(docs / "seconds.csv", [rounded(row) for row in json_lines(runs / "times.jsonl")])


def score(runs: Path, who: str) -> Row:
    """One model. `plain` needs an end of its own; `prefilled` counts the first number, ended or not."""
    plain, prefilled = (
        json.loads((runs / "exams" / f"{who}.{kind}.json").read_text()) for kind in ("plain", "prefilled")
    )
    known = prefilled["avg_at_k"] + prefilled["truncated_correct_fraction"]
    known_low, known_high = interval(known, prefilled["problems"])
    row = {
        "who": who,
        "problems": plain["problems"],
        "plain": plain["avg_at_k"],
        "plain_low": plain["low"],
        "plain_high": plain["high"],
        "ended": 1 - plain["truncated_fraction"],
        "right_of_ended": plain["avg_of_finished"] or 0.0,
        "prefilled": known,
        "prefilled_low": known_low,
        "prefilled_high": known_high,
    }
    groups = {"plain_" + name.replace(" ", "_"): value for name, value in plain["by_group"].items()}
    return rounded(row | groups | sampled(runs, who))


def interval(share: float, problems: int) -> tuple[float, float]:
    """`opd eval`'s own interval for answers that are right or wrong."""
    from opdkit.train.evaluate import bootstrap_interval

    right = round(share * problems)
    return bootstrap_interval([1.0] * right + [0.0] * (problems - right), seed=0)


def sampled(runs: Path, who: str) -> Row:
    """T = 0.7, top-p 0.95, on the first problems, as the distillations' own examinations say; together where several do."""
    side_of = who.replace("teacher", "from")
    arms = [arm for arm in ARMS if who == "student" or arm.startswith(side_of)]
    if who == "student":
        arms = [
            arm for arm in arms if side(arm) == "a"
        ]  # b's students are the same before, and draw the same
    prefix = "teacher_" if who.startswith("teacher") else ""
    exams = [json_lines(runs / arm / "eval.jsonl")[-1 if who.startswith("from") else 0] for arm in arms]
    return {
        "sampled": sum(exam[prefix + "avg_at_k"] for exam in exams) / len(exams),
        "sampled_answers": sum(exam["problems"] * exam["responses"] for exam in exams),
    }


def steps(run: Path) -> list[Row]:
    names = [
        *MEASURES,
        "entropy_teacher",
        "grad_norm",
        "response_length",
        *(f"seconds/{p}" for p in (*PARTS, "step")),
    ]
    rows = json_lines(run / "metrics.jsonl")
    return [rounded({"run": run.name, "step": row["step"]} | {n: row[n] for n in names}) for row in rows]


def rounded(row: Mapping[str, Any]) -> Row:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def json_lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- drawings ---------------------------------------------------------------------------------------------------

INK, GREY, RULE = "#1f2328", "#656d76", "#d8dee4"
COLOURS = {"a": "#2a6fbb", "b": "#c4561a"}
NAMES = {"student": "student before", "teacher-a": "teacher A", "teacher-b": "teacher B"}
NAMES |= {arm: f"after {arm[5].upper()}, seed {arm[7]}" for arm in ARMS}
Scale = Callable[[float], float]


def draw_scores(rows: Sequence[Mapping[str, str]]) -> str:
    """One line per model: filled dot as asked, ring with the answer begun, whiskers 95 %."""
    x, pitch = scale(0, 1, 130, 610), 30
    marks = [
        text(
            130,
            18,
            "● as asked   ○ answer begun   (greedy, 300 held-out sums, 95%)",
            GREY,
        )
    ]
    bottom = 44 + pitch * len(rows)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        marks += [
            line([(x(tick), 32), (x(tick), bottom)], RULE),
            text(x(tick), bottom + 14, f"{tick:g}", GREY, "middle"),
        ]
    for i, row in enumerate(rows):
        y, colour = 52 + pitch * i, COLOURS.get(side(row["who"]), INK)
        marks.append(text(122, y + 4, NAMES[row["who"]], INK, "end"))
        for name, dy, fill in (("plain", -4, colour), ("prefilled", 5, "white")):
            ends = [(x(float(row[f"{name}_{end}"])), y + dy) for end in ("low", "high")]
            marks.append(line(ends, colour))
            marks.append(
                f'<circle cx="{x(float(row[name])):.1f}" cy="{y + dy}" r="4" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'
            )
    return svg(640, bottom + 24, "Scores before and after distillation", marks)


def draw_curves(rows: Sequence[Mapping[str, str]]) -> str:
    """A panel per measure; colour is the teacher, a dashed line the second seed."""
    marks = [text(10, 18, "student of teacher A", COLOURS["a"]), text(150, 18, "of teacher B", COLOURS["b"])]
    marks.append(text(250, 18, "solid: seed 0, dashed: seed 1; horizontal: step", GREY))
    for i, (name, title) in enumerate(MEASURES.items()):
        marks += panel(rows, name, title, left=40 + 225 * (i % 4), top=52 + 180 * (i // 4))
    return svg(920, 400, "Curves of the four distillations", marks)


def panel(rows: Sequence[Mapping[str, str]], name: str, title: str, *, left: int, top: int) -> list[str]:
    values = [float(row[name]) for row in rows]
    low, high = min(0.0, *values), max(values)
    last = max(int(row["step"]) for row in rows)
    x, y = scale(1, last, left, left + 170), scale(low, high or 1.0, top + 120, top)
    marks = [text(left - 28, top - 12, title, INK)]
    for value in dict.fromkeys((low, 0.0, high)):
        marks += [
            line([(left, y(value)), (left + 170, y(value))], RULE),
            text(left - 4, y(value) + 4, f"{value:.2g}", GREY, "end"),
        ]
    marks += [text(x(step), top + 136, str(step), GREY, "middle") for step in (1, last)]
    for arm in ARMS:
        points = [(x(int(row["step"])), y(float(row[name]))) for row in rows if row["run"] == arm]
        marks.append(line(points, COLOURS[side(arm)], width=1.8, dash="5 3" if arm.endswith("1") else ""))
    return marks


def side(who: str) -> str:
    """The teacher a name belongs to: a, b or nobody.

    >>> side("teacher-a"), side("from-b-0"), side("student")
    ('a', 'b', '')
    """
    return who.split("-")[1] if "-" in who else ""


def scale(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (end - start) * (value - low) / (high - low)


def line(points: Iterable[tuple[float, float]], colour: str, *, width: float = 1, dash: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dash}"/>'


def text(x: float, y: float, words: str, colour: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{words}</text>'


def svg(width: int, height: int, title: str, marks: Iterable[str]) -> str:
    body = "\n".join(marks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="12">\n<title>{title}</title>\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    main()
