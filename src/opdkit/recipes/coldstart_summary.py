"""What a cold start came to: a document for tools, the same in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from opdkit.config import ColdstartConfig
from opdkit.diagnostics import gap_recovery
from opdkit.recipes.coldstart_folder import ColdstartFolder
from opdkit.run.folder import check_beside
from opdkit.run.rows import Row, read_rows
from opdkit.types import Finding

SHOWN = (
    "overlap_ratio",
    "overlap_mass_teacher_before_end",
    "overlap_mass_student",
    "reverse_kl",
    "teachable_share",
    "entropy_student",
    "response_length",
    "truncated_fraction",
    "accuracy",
)


def summary(folder: ColdstartFolder, cold: ColdstartConfig, findings: Sequence[Finding]) -> dict[str, Any]:
    """As far as the stages go; what is not known is None."""
    stages = {
        name: {k: v for k, v in told.items() if k not in ("state", "inputs", "files")}
        for name, told in folder.complete.items()
    }
    probes = {int(row["step"]): row for row in folder.rows("probes.jsonl")}
    over = stages.get("sft")
    after = None if over is None else probes.get(int(over["step"]))
    return {
        "run": str(folder.path),
        "stages": stages,
        "until": cold.until.model_dump(),
        "probe_before": probes.get(0),
        "probe_after": after,
        "scores": _scores(folder, stages),
        "findings": [asdict(finding) for finding in findings],
        "next": _next(folder, stages),
        "check_again": _check_again(folder, stages),
    }


def _scores(folder: ColdstartFolder, stages: Mapping[str, Any]) -> dict[str, float | None]:
    """Accuracy on the held-out problems: the student before, at the hand-over, after distillation; the teacher if asked for."""
    rows: list[Row] = [r for r in read_rows(folder.path / "distill" / "eval.jsonl") if "avg_at_k" in r]
    first = (stages.get("before") or {}).get("eval") or {}
    before = first.get("avg_at_k")
    handed = rows[0]["avg_at_k"] if rows and rows[0]["step"] == 0 else None
    after = rows[-1]["avg_at_k"] if "distill" in stages and rows else None
    teacher = next((row["teacher_avg_at_k"] for row in rows if "teacher_avg_at_k" in row), None)
    recovered = None
    if before is not None and after is not None and teacher is not None:
        recovered = gap_recovery(before, after, teacher)
    return {
        "before": before,
        "handed_over": handed,
        "after": after,
        "teacher": teacher,
        "gap_recovery": recovered,
    }


def _next(folder: ColdstartFolder, stages: Mapping[str, Any]) -> str:
    if "distill" in stages:
        return f"opd report {folder.path}"
    return f"opd coldstart --resume {folder.path}"


def _check_again(folder: ColdstartFolder, stages: Mapping[str, Any]) -> str | None:
    """The check that led here is asked again, of the student that was handed over; None where it is not beside the folder."""
    earlier = check_beside(folder.path)
    if "distill" not in stages or not earlier.is_file():
        return None
    return f"opd check {folder.path / 'distill' / 'config.toml'} --against {earlier}"


def lines(told: Mapping[str, Any]) -> list[str]:
    """For people: what was kept, when the student was handed over, what changed, what to type."""
    stages, said = told["stages"], []
    if (answers := stages.get("answers")) is not None:
        graded = "" if answers["accuracy"] is None else f", {answers['accuracy']:.1%} of them right"
        said.append(
            f"the teacher gave {answers['answers']:,} answers to {answers['prompts']:,} prompts{graded}"
        )
    if (sorted_out := stages.get("filters")) is not None:
        reasons = ", ".join(f"{name} {count:,}" for name, count in sorted_out["reasons"].items())
        dropped = f"dropped {sorted_out['dropped']:,}" + (f" ({reasons})" if reasons else "")
        said.append(f"kept {sorted_out['kept']:,}, {dropped}")
        if not sorted_out["answers_recognised"]:
            said.append("whether an answer is stated was not looked at (coldstart.filters.answer=PATTERN)")
    if (over := stages.get("sft")) is not None:
        said.append(f"hand-over after {over['says']}; {over['trained']:,} steps were trained")
    said += _changes(told["probe_before"], told["probe_after"]) + _told_scores(told["scores"])
    said += [f"check again: {told['check_again']}"] if told["check_again"] else []
    return [*said, f"next: {told['next']}"]


def _changes(before: Row | None, after: Row | None) -> list[str]:
    if before is None or after is None:
        return []
    rows = ["on its own held-out rollouts        before    handed over"]
    for name in SHOWN:
        if name in before and name in after:
            rows.append(f"  {name:32}  {before[name]:8.3f}  {after[name]:8.3f}")
    return rows


def _told_scores(scores: Mapping[str, float | None]) -> list[str]:
    names = ("before", "handed_over", "after", "teacher")
    known = [f"{name.replace('_', ' ')} {scores[name]:.3f}" for name in names if scores[name] is not None]
    if not known:
        return []
    recovery = scores["gap_recovery"]
    return [
        "accuracy: " + "   ".join(known) + ("" if recovery is None else f"   gap recovery {recovery:.0%}")
    ]
