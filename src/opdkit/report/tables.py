"""Tables of the page, as headed rows of strings: headline numbers, settings, differences, evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opdkit.report.change import change, gap_recovery, pass_at_k, response_tokens, scores, skipped
from opdkit.report.read import Row, Run
from opdkit.report.text import number, percent, shown

HEADLINE = (
    "loss",
    "reverse_kl",
    "overlap_advantage",
    "overlap_ratio",
    "overlap_mass_student",
    "overlap_mass_teacher",
    "entropy_student",
    "entropy_gap",
    "grad_norm",
    "response_length",
    "truncated_fraction",
    "accuracy",
    "tokens_per_second",
)
_UNSET = "–"


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def headline(runs: Sequence[Run]) -> Table:
    """First → last of the numbers that matter, one column per run; rows nobody logged are left out."""
    rows = [["steps", *(shown(len(run.metrics)) for run in runs)]]
    rows += [["response tokens", *(shown(response_tokens(run)) for run in runs)]]
    rows += [[name, *(_change(run, name) for run in runs)] for name in HEADLINE]
    rows += [["avg_at_k", *(_scores(run) for run in runs)]]
    rows += [["gap recovery", *(percent(gap_recovery(run)) for run in runs)]]
    rows += [["skipped_steps", *(shown(skipped(run)) for run in runs)]]
    rows += [["findings", *(str(len(run.findings)) for run in runs)]]
    kept = [row for row in rows if any(cell != _UNSET for cell in row[1:])]
    return Table(["", *(run.name for run in runs)], kept)


def settings(table: Mapping[str, Any]) -> Table:
    return Table(["key", "value"], [[key, _cell(value)] for key, value in table.items()])


def differences(runs: Sequence[Run]) -> Table:
    """Config keys on which the runs do not agree. The run folder always differs and is left out."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key != "run")
    rows = [[key, *(_cell(run.config[key]) if key in run.config else _UNSET for run in runs)] for key in keys]
    return Table(["key", *(run.name for run in runs)], [row for row in rows if len(set(row[1:])) > 1])


def evaluations(run: Run) -> Table:
    widths = sorted({k for row in run.evals for k in pass_at_k(row)})
    head = ["step", "avg_at_k", "95 % interval", *(f"pass@{k}" for k in widths)]
    head += ["truncated", "ungraded", "mean length", "problems", "responses"]
    return Table(head, [_evaluation(row, widths) for row in run.evals])


def _evaluation(row: Row, widths: Sequence[int]) -> list[str]:
    low, high = number(row.get("low")), number(row.get("high"))
    interval = _UNSET if low is None or high is None else f"{percent(low)} – {percent(high)}"
    fractions = [number(row.get(key)) for key in ("truncated_fraction", "ungraded_fraction")]
    counts = [number(row.get(key)) for key in ("response_length", "problems", "responses")]
    cells = [str(row["step"]), percent(number(row.get("avg_at_k"))), interval]
    cells += [percent(pass_at_k(row).get(k)) for k in widths]
    return [*cells, *map(percent, fractions), *map(shown, counts)]


def _change(run: Run, name: str) -> str:
    found = change(run, name)
    return found.words if found else _UNSET


def _scores(run: Run) -> str:
    found = scores(run)
    if len(found) < 2:
        return found[0].words if found else _UNSET
    return f"{found[0].words} → {found[-1].words}"


def _cell(value: Any) -> str:
    """As TOML would write it, so that a value can be copied into a config or onto the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_cell, value))}]"
    return str(value)
