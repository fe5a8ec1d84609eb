"""What a table keeps of a finished run: scores, ends and curves of what the paper watches, tokens and seconds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opdkit.diagnostics import gap_recovery
from opdkit.run.folder import RunFolder

CURVES = ("overlap_ratio", "overlap_mass_student", "overlap_mass_teacher", "overlap_advantage", "entropy_gap",
          "entropy_student", "entropy_teacher", "reverse_kl", "loss", "grad_norm", "probability_gap_at_max_advantage",
          "sequence_reward_auroc", "response_length", "truncated_fraction")  # fmt: skip
"""Kept as curves. Nats, tokens and shares, as metrics.jsonl has them."""
POINTS, WINDOW = 10, 5
"""Means of a tenth of the run each; ends are means of so many steps."""
COLLAPSED = 0.5
"""Of the score before: a run that ends below it has collapsed, and so has one in which at first at least half of the responses
ended by themselves and over some five steps in a row fewer did. A cap that cuts most of them from the start is no collapse."""


def read_run(place: Path, *, drawn: int) -> dict[str, Any]:
    """Numbers of a finished run's folder, by the names that expectations use; `drawn` responses were made in a step.

    `before`, `teacher`, `after`: accuracy at T = 0.7, top-p 0.95, one response per held-out problem.
    """
    folder = RunFolder.read(place)
    evals, metrics = folder.read_eval(), folder.read_metrics()
    first, last = evals[0], evals[-1]
    before, after, teacher = first["avg_at_k"], last["avg_at_k"], first.get("teacher_avg_at_k")
    open_ended = [row["truncated_fraction"] + row.get("cut_fraction", 0.0) for row in metrics]
    first_five, worst = _windows(open_ended)[0], max(_windows(open_ended))
    return {
        "before": before,
        "teacher": teacher,
        "after": after,
        "gain": after - before,
        "recovery": None if teacher is None else gap_recovery(before, after, teacher),
        "kinds": {"before": first.get("by_group", {}), "after": last.get("by_group", {})},
        "not_ended_worst_five": worst,
        "collapsed": float(first_five <= 0.5 < worst or after < COLLAPSED * before),
        "tokens": round(sum(row["response_length"] for row in metrics) * drawn),
        "seconds": sum(row["seconds/step"] for row in metrics),
        **ends(metrics, CURVES),
        "curves": _curves(metrics, evals),
    }


def brief(found: Mapping[str, Any]) -> dict[str, Any]:
    """Without what only figures and single questions read: of hundreds of runs it would be a megabyte.

    >>> brief({"after": 0.5, "loss_last": 0.1, "loss_most": 0.4, "curves": {}, "kinds": {}})
    {'after': 0.5, 'loss_last': 0.1}
    """
    return {
        name: value
        for name, value in found.items()
        if name not in ("curves", "kinds") and not name.endswith("_most")
    }


def ends(metrics: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """`NAME_first`, `NAME_last`: means over the first and the last steps, and `NAME_most` over any as many in a row."""
    found: dict[str, float] = {}
    for name in names:
        values = [row[name] for row in metrics if row.get(name) is not None]
        if values:
            windows = _windows(values)
            found |= {f"{name}_first": windows[0], f"{name}_last": windows[-1], f"{name}_most": max(windows)}
    return found


def _windows(values: Sequence[float]) -> list[float]:
    """Means of every so many in a row."""
    return [_mean(values[i : i + WINDOW]) for i in range(max(1, len(values) - WINDOW + 1))]


def _curves(metrics: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By step: the middle of every tenth of the run; accuracy at its own steps; entropy by position as [window][bin]."""
    parts = [metrics[len(metrics) * i // POINTS : len(metrics) * (i + 1) // POINTS] for i in range(POINTS)]
    parts = [part for part in parts if part]
    curves: dict[str, Any] = {"step": [_mean([row["step"] for row in part]) for part in parts]}
    for name in CURVES:
        if all(any(row.get(name) is not None for row in part) for part in parts):
            curves[name] = [_known(part, name) for part in parts]
    curves["evaluated"] = [row["step"] for row in evals]
    curves["accuracy"] = [row["avg_at_k"] for row in evals]
    starts = sorted({int(key.split("/")[1]) for key in metrics[0] if key.startswith("by_position/")})
    curves["position"] = starts
    for name in ("entropy_student", "entropy_teacher", "overlap_ratio"):
        curves[f"{name}_by_position"] = [
            [_known(part, f"by_position/{start}/{name}") for start in starts] for part in parts
        ]
    return curves


def _known(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return _mean(values) if values else None


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)
