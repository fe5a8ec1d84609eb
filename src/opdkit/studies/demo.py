"""`opd demo`: one student, one budget, two teachers. One pair works, one scores higher and does not; and why.

The models of world 0 are shipped, small safetensors that scripts/ship_models.py made; another
`base` is taught on the spot. Everything after that is what `opd train` and `opd report` do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opdkit.config import Config
from opdkit.diagnostics import gap_recovery
from opdkit.report import write_report
from opdkit.run.folder import RunFolder
from opdkit.studies.pairs import watched
from opdkit.studies.recipes import Family, family
from opdkit.studies.testbed import READINGS, Workshop, finish
from opdkit.train import Talk

SHIPPED = Path(__file__).parent / "shipped"
"""Models of the chain family in world 0."""
SHIPPED_MODELS = ("student", "improved", "bigger")


@dataclass(frozen=True)
class Arm:
    """One run of the demo."""

    name: str  # also its folder
    title: str  # what a person reads
    teacher: str | None  # None: the control


ARMS = (
    Arm("working", "new capability, same style", "improved"),
    Arm("failing", "bigger, scores higher", "bigger"),
    Arm("control", "no teacher, push-down", None),
)


@dataclass(frozen=True)
class Score:
    """Accuracy on the held-out problems with its 95 % interval, and by kind of problem."""

    value: float
    low: float
    high: float
    kinds: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """What came of one arm: T = 0.7 and top-p 0.95, greedy beside it; first and last steps of what is watched."""

    arm: Arm
    run: Path
    before: Score
    teacher: Score | None
    after: Score
    greedy: Mapping[str, float]  # before, teacher, after
    watched: Mapping[str, tuple[float, float]]
    seconds: float

    @property
    def gap_recovery(self) -> float | None:
        if self.teacher is None:
            return None
        return gap_recovery(self.before.value, self.after.value, self.teacher.value)


def run_demo(
    out: Path, *, seed: int, base: int, cache: Path, talk: Callable[[Config, str], Talk]
) -> tuple[list[Outcome], Path]:
    """All arms and the page that compares the two pairs. A finished arm in `out` is read, not run again."""
    chain = family("chain", seed=base)
    workshop = Workshop(
        chain, cache / f"chain-qwen3-{base}", talk=lambda config: talk(config, config.run.name)
    )
    models = demo_models(workshop, base=base)
    greedy = {name: workshop.score(path, READINGS["greedy"])["avg_at_k"] for name, path in models.items()}
    outcomes = [_run(arm, workshop, models, greedy, out=out, seed=seed, talk=talk) for arm in ARMS]
    page = write_report(
        [o.run for o in outcomes[:2]], out / "report.html", names=[o.arm.title for o in outcomes[:2]]
    )
    return outcomes, page


def demo_models(workshop: Workshop, *, base: int) -> dict[str, Path]:
    """Shipped, or taught now."""
    if base == 0 and all((SHIPPED / name / "model.safetensors").is_file() for name in SHIPPED_MODELS):
        return {name: SHIPPED / name for name in SHIPPED_MODELS}
    return {name: workshop.make(name).path for name in SHIPPED_MODELS}


def arm_config(arm: Arm, workshop: Workshop, models: Mapping[str, Path], *, run: Path, seed: int) -> Config:
    """The run of an arm: the same student, prompts, rollouts and steps in all."""
    chain: Family = workshop.family
    student = str(models["student"])
    evaluation = {"responses": 1, "teacher": arm.teacher is not None}
    shared: dict[str, Any] = {"run": str(run), "seed": seed, "eval": evaluation}
    shared["save"] = {"every": 50, "rollouts_every": 20, "rollouts": 24}
    if arm.teacher is None:
        return workshop.config({**chain.push_down, **shared}, student=student)
    teacher = {"model": str(models[arm.teacher])}
    return workshop.config({**chain.distill, **shared}, student=student, teacher=teacher)


def _run(
    arm: Arm,
    workshop: Workshop,
    models: Mapping[str, Path],
    greedy: Mapping[str, float],
    *,
    out: Path,
    seed: int,
    talk: Callable[[Config, str], Talk],
) -> Outcome:
    config = arm_config(arm, workshop, models, run=out / arm.name, seed=seed)
    finish(config, talk=talk(config, arm.title))
    folder = RunFolder.read(config.run)
    evaluations, metrics = folder.read_eval(), folder.read_metrics()
    trained = config.run / "checkpoints" / f"step_{config.steps}" / "model"
    read = {"before": greedy["student"], "after": workshop.score(trained, READINGS["greedy"])["avg_at_k"]}
    if arm.teacher is not None:
        read["teacher"] = greedy[arm.teacher]
    return Outcome(
        arm=arm,
        run=config.run,
        before=_score(evaluations[0]),
        teacher=None if arm.teacher is None else _score(evaluations[0], "teacher_"),
        after=_score(evaluations[-1]),
        greedy=read,
        watched=watched(metrics),
        seconds=sum(row["seconds/step"] for row in metrics),
    )


def _score(row: Mapping[str, Any], prefix: str = "") -> Score:
    return Score(
        row[f"{prefix}avg_at_k"], row[f"{prefix}low"], row[f"{prefix}high"], row[f"{prefix}by_group"]
    )
