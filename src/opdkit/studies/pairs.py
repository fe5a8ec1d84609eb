"""Distil one pair of the testbed and read off what happened: scores, recovery, and the quantities of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opdkit.diagnostics import gap_recovery
from opdkit.run.folder import RunFolder
from opdkit.studies.reading import ends
from opdkit.studies.recipes import Pair
from opdkit.studies.testbed import READINGS, Workshop, finish, table

WATCHED = ("overlap_ratio", "overlap_mass_student", "overlap_mass_teacher", "overlap_advantage", "entropy_gap",
           "reverse_kl", "loss", "grad_norm")  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One run of one pair. `before`, `teacher`, `after`: accuracy by reading. `watched`: first and last steps."""

    name: str
    says: str
    run: str
    seed: int
    before: Mapping[str, Any]
    teacher: Mapping[str, Any]
    after: Mapping[str, Any]
    recovery: Mapping[str, float | None]
    watched: Mapping[str, tuple[float, float]]
    seconds: float


def run_pair(workshop: Workshop, pair: Pair, *, seed: int) -> Result:
    """Distil, or read what was distilled already; `seed` is that of prompts and sampling."""
    student = workshop.make(pair.student)
    if pair.teacher == "self":
        teacher, table = student, {"type": "self"}
    else:
        teacher = workshop.make(pair.teacher)
        table = {"model": str(teacher.path)}
    run = workshop.out / "pairs" / f"{pair.student}-from-{pair.teacher}-{teacher.key}-seed{seed}"
    config = workshop.config(
        workshop.family.distill, student=str(student.path), teacher=table, run=str(run), seed=seed
    )
    finish(config, talk=workshop.talk(config))
    trained = run / "checkpoints" / f"step_{config.steps}" / "model"
    after = {name: workshop.score(trained, dials) for name, dials in READINGS.items()}
    folder = RunFolder.read(run)
    metrics = folder.read_metrics()
    return Result(
        name=pair.name,
        says=pair.says,
        run=str(run),
        seed=seed,
        before=student.scores,
        teacher=teacher.scores,
        after=after,
        recovery={
            name: gap_recovery(
                student.scores[name]["avg_at_k"], after[name]["avg_at_k"], teacher.scores[name]["avg_at_k"]
            )
            for name in READINGS
        },
        watched=watched(metrics),
        seconds=sum(row["seconds/step"] for row in metrics),
    )


def watched(metrics: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Means over the first and the last steps of what the paper watches."""
    found = ends(metrics, WATCHED)
    return {
        name: (found[f"{name}_first"], found[f"{name}_last"]) for name in WATCHED if f"{name}_first" in found
    }


def pair_lines(results: Sequence[Result]) -> list[str]:
    """A table as Markdown."""
    reading = next(iter(READINGS))
    head = [
        "pair",
        "before",
        "teacher",
        "after",
        "recovery",
        "overlap@16",
        "Eq. 7",
        "entropy gap",
        "loss",
        "s",
    ]
    rows = []
    for r in results:
        share = r.recovery[reading]
        scores = [f"{s[reading]['avg_at_k']:.3f}" for s in (r.before, r.teacher, r.after)]
        moved = [
            "{:.3f} → {:.3f}".format(*r.watched[n])
            for n in ("overlap_ratio", "overlap_advantage", "entropy_gap", "loss")
        ]
        rows.append([r.name, *scores, "–" if share is None else f"{share:.0%}", *moved, f"{r.seconds:.0f}"])
    return table(head, rows)
