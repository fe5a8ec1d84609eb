"""Tables of the page, as headed rows of strings: headline numbers, settings, differences, evaluations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opdkit.report.change import by_group, change, gap_recovery, pass_at_k, response_tokens, scores, skipped
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
    "kept_fraction",
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
    unlike = [[row[0], *_ends(row[1:])] for row in rows if len(set(row[1:])) > 1]
    return Table(["key", *(run.name for run in runs)], unlike)


def _ends(paths: Sequence[str]) -> list[str]:
    """Paths into one folder are told by what comes after it; the whole of them is under the settings.

    >>> _ends(["/models/tiny/a", "/models/tiny/b"]), _ends(["Qwen/a", "Qwen/b"]), _ends(["1", "2"])
    (['…/a', '…/b'], ['Qwen/a', 'Qwen/b'], ['1', '2'])
    """
    parts = [path.split("/") for path in paths]
    shared = next((i for i, names in enumerate(zip(*parts, strict=False)) if len(set(names)) > 1), 0)
    return list(paths) if shared < 2 else ["/".join(["…", *part[shared:]]) for part in parts]


def evaluations(run: Run) -> Table:
    """One row per evaluation. A column that says nothing is left out; numbers this report does not know come last."""
    columns = [(title, [cell(row) for row in run.evals]) for title, cell in _columns(run)]
    kept = [(title, cells) for title, cells in columns if set(cells) - {_UNSET} - _SILENT.get(title, set())]
    rows = zip(*(cells for _, cells in kept), strict=True)
    return Table([title for title, _ in kept], [list(row) for row in rows])


_TOLD = {"step", "avg_at_k", "low", "high", "teacher_avg_at_k", "response_length", "problems", "responses"}
_TOLD |= {"truncated_fraction", "ungraded_fraction", "graded"}
_SILENT = {title: {percent(0.0)} for title in ("ungraded", "truncated_correct_fraction")}


def _columns(run: Run) -> list[tuple[str, Callable[[Row], str]]]:
    """Title of a column, and what it says of an evaluation."""
    kinds = dict.fromkeys(kind for row in run.evals for kind in by_group(row))
    widths = sorted({k for row in run.evals for k in pass_at_k(row)})
    others = dict.fromkeys(
        key for row in run.evals for key in row if key not in _TOLD and number(row[key]) is not None
    )
    if all(row.get("avg_of_finished") == row.get("avg_at_k") for row in run.evals):
        others.pop("avg_of_finished", None)  # everything finished: the same number once more
    return [
        ("step", lambda row: str(row["step"])),
        ("avg_at_k", lambda row: percent(number(row.get("avg_at_k")))),
        ("95 % interval", _interval),
        ("teacher", lambda row: percent(number(row.get("teacher_avg_at_k")))),
        *((kind, lambda row, kind=kind: percent(by_group(row).get(kind))) for kind in kinds),
        # of a single response per problem, pass@1 is avg@k once more
        *((f"pass@{k}", lambda row, k=k: percent(pass_at_k(row).get(k))) for k in widths if widths != [1]),
        ("truncated", lambda row: percent(number(row.get("truncated_fraction")))),
        ("ungraded", lambda row: percent(number(row.get("ungraded_fraction")))),
        ("mean length", lambda row: shown(number(row.get("response_length")))),
        ("problems", lambda row: shown(number(row.get("problems")))),
        ("responses", lambda row: shown(number(row.get("responses")))),
        *((key, lambda row, key=key: _number(row, key)) for key in others),
    ]


def _interval(row: Row) -> str:
    low, high = number(row.get("low")), number(row.get("high"))
    return _UNSET if low is None or high is None else f"{percent(low)} – {percent(high)}"


def _number(row: Row, key: str) -> str:
    """A score or a share as a percentage, by its name; anything else as it is."""
    value = number(row.get(key))
    is_share = key.endswith(("_fraction", "_at_k", "_of_finished", "_avg", "_score"))
    return percent(value) if is_share else shown(value)


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
