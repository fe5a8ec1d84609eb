"""The tables of benchmarks/README.md, between their markers, from the newest result file.

python benchmarks/table.py            writes them
python benchmarks/table.py --check    exit code 1 where they are not what the file says (tests/test_bench.py)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import stored
from rows import AIMS, ROWS

PAGE = Path(__file__).resolve().parent / "README.md"
BEGIN, END = "<!-- table:begin (make bench) -->", "<!-- table:end -->"


def tables(result: dict[str, Any], *, name: str) -> str:
    """Everything between the markers."""
    order = {
        row.name: i for i, row in enumerate(ROWS)
    }  # a file's own order is that in which rows were measured
    records = sorted(result["rows"], key=lambda r: order.get(r["name"].partition("/")[0], len(order)))
    steps = [r for r in records if "ratio" in r and not r["name"].startswith("loss/")]
    loss = [r for r in records if "ratio" in r and r["name"].startswith("loss/")]
    refused = [r for r in records if "failed" in r]
    parts = [_said(result, name), _steps(steps), _aims(records)]
    parts += [_loss(loss)] if loss else []
    parts += [_refused(refused)] if refused else []
    return "\n\n".join(parts)


def _said(result: dict[str, Any], name: str) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{k} {machine[k]}" for k in ("torch", "transformers", "trl") if k in machine)
    rest = "" if result["complete"] else " **Not all rows were run.**"
    loads = [r["load"] for r in result["rows"] if "load" in r]
    busy = f" Load before the rows: {min(loads):.1f} to {max(loads):.1f}." if loads else ""
    return (
        f"From `results/{name}`: {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, {versions}; "
        f"`{result['command']}`, commit {str(result['commit'])[:12]}.{busy}{rest}"
    )


def _steps(records: Sequence[dict[str, Any]]) -> str:
    head = (
        "| row | ratio, median (min to max), pairs | of processor time | s/step, theirs / ours | tokens/s | peak MB "
        "| held-out KL after (before) | loss and gradient agree |\n|---|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *map(_step, records)])


def _step(record: dict[str, Any]) -> str:
    ratio = record["ratio"]
    cells = [
        f"`{record['name']}` {record['what']}",
        f"**{_short(ratio['median'])}** ({_short(ratio['min'])} to {_short(ratio['max'])}), {ratio['pairs']}",
        _short(record.get("ratio_of_processor_time", {}).get("median")),
        _sides(record.get("seconds"), lambda v: f"{v['median']:.3g}"),
        _sides(record.get("tokens_per_second"), lambda v: f"{v['median']:.0f}"),
        _sides(record.get("peak_mb"), lambda v: f"{v:.0f}"),
        _held_out(record.get("held_out_reverse_kl")),
        _agreement(record),
    ]
    return f"| {' | '.join(cells)} |"


def _sides(values: dict[str, Any] | None, say: Any) -> str:
    return "" if not values else " / ".join("?" if v is None else say(v) for v in values.values())


def _held_out(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    return f"{found['theirs']:.4f} / {found['ours']:.4f} ({found['before']:.4f})"


def _agreement(record: dict[str, Any]) -> str:
    found = record.get("agreement")
    if not found:
        return str(record.get("not_compared", ""))
    told = f"{found['gradient_norm_relative']:.0e}"
    if found.get("loss_difference") is not None:
        told = f"{found['loss_difference']:.0e}, {told}"
    return told if record["checked"] else f"**NO**: {told}"


def _aims(records: Sequence[dict[str, Any]]) -> str:
    """Target, goal, reached: only where there is a target."""
    lines = ["| row | number | measured | target | goal | reached |", "|---|---|---|---|---|---|"]
    for record in records:
        aim = AIMS.get(record["name"])
        value = None if aim is None else number(record, aim.number)
        if aim is None:
            continue
        sign = "≥" if aim.better == "higher" else "≤"
        reached = "not measured" if value is None else aim.reached(value)
        cells = (
            record["name"],
            aim.number,
            _short(value),
            f"{sign} {aim.target:g}",
            f"{sign} {aim.goal:g}",
            reached,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def number(record: dict[str, Any], name: str) -> float | None:
    """The median of the ratio, or another number that the record has under its name."""
    found = record.get("ratio", {}).get("median") if name == "ratio" else record.get(name)
    return None if found is None else float(found)


def _loss(records: Sequence[dict[str, Any]]) -> str:
    head = (
        "Loss stage at V = 151,936: time over the matrix products that the full head cannot avoid "
        "(student three, teacher one).\n\n"
        "| preset | time over products, median (min to max) | seconds, stage / products |\n|---|---|---|"
    )
    lines = []
    for r in records:
        ratio, seconds = r["ratio"], _sides(r["seconds"], lambda v: f"{v['median']:.3g}")
        spread = f"{_short(ratio['median'])} ({_short(ratio['min'])} to {_short(ratio['max'])})"
        lines.append(f"| `{r['name'].partition('/')[2]}` | {spread} | {seconds} |")
    return "\n".join([head, *lines])


def _refused(records: Sequence[dict[str, Any]]) -> str:
    lines = [f"| `{r['name']}` | {r['failed'].replace('|', '/')} |" for r in records]
    return "\n".join(["| not measured | why, in its own words |", "|---|---|", *lines])


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def page(text: str, inside: str) -> str:
    """The page with what is between the markers replaced."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"the page has no markers: {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{inside}\n{END}{after}"


def main() -> int:
    files = [path for path in stored() if "-gpu-" not in path.name]
    inside = "Nothing is stored yet: `make bench`."
    if files:
        inside = tables(json.loads(files[-1].read_text()), name=files[-1].name)
    text = PAGE.read_text()
    made = page(text, inside)
    if "--check" in sys.argv[1:]:
        if made != text:
            print("benchmarks/README.md is stale: python benchmarks/table.py", file=sys.stderr)
        return int(made != text)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
