"""What is measured on a pair, before its run or after: continuations from cut responses, and gradients by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opdkit.config import Config, LocalTeacher, as_local
from opdkit.models.load import LoadedModel, open_model, pick_device
from opdkit.models.sampler import LocalSampler
from opdkit.recipes.know import continued
from opdkit.studies.study import Arm
from opdkit.studies.testbed import Workshop
from opdkit.tasks import Task, encode, load_task
from opdkit.types import Rollout

CUTS = (0.1, 0.25, 0.5, 0.75, 0.9)
PROMPTS = 1024
STREAM = -7
"""The `step` of these draws."""


def measure(arm: Arm, config: Config, shop: Workshop) -> dict[str, Any]:
    """Numbers of the pair, its student as it began or as the run left it."""
    trained = config.run / "checkpoints" / f"step_{config.steps}" / "model"
    student = str(trained) if arm.trained else config.student.model
    return continuation(config, student)


def continuation(config: Config, student: str) -> dict[str, Any]:
    """How much more often the teacher ends right than the student, going on from the student's own cut responses.

    `advantage_at_N`: after N % of the response (arXiv 2604.13016, 6.1, Fig. 11b). Both write the rest once, as in training.
    """
    with load_task(config.task) as task:
        ours, theirs, rollouts = _drawn(config, student, task)
        found = continued(
            rollouts,
            student=LocalSampler(ours),
            teacher=LocalSampler(theirs),
            task=task,
            sampling=as_local(config.sampling),
            seed=config.seed,
            cuts=CUTS,
        )
    curves: dict[str, Any] = {"depth": [one.depth for one in found]}
    for name in ("advantage", "low", "high", "teacher", "student"):
        curves[name] = [getattr(one, name) for one in found]
    numbers = {f"advantage_at_{one.depth:.0%}".removesuffix("%"): one.advantage for one in found}
    return {**numbers, "rollouts": len(rollouts), "curves": curves}


def _drawn(config: Config, student: str, task: Task) -> tuple[LoadedModel, LoadedModel, Sequence[Rollout]]:
    """Both models, and what the student says to prompts of its training, graded."""
    assert isinstance(config.teacher, LocalTeacher)
    device = pick_device(config.device)
    ours = open_model(config.student.model_copy(update={"model": student}), device=device)
    theirs = open_model(config.teacher, device=device)
    prompts = encode(task.train[:PROMPTS], ours.tokenizer, config.task)
    sampling = as_local(config.sampling).model_copy(update={"responses": 1})
    drawn = LocalSampler(ours).sample(prompts, sampling=sampling, seed=config.seed, step=STREAM)
    return ours, theirs, task.grade(drawn)
