"""What is measured on a pair, before its run or after: continuations from cut responses, gradients by position, and
all that `opd check` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opdkit.config import Config, LocalTeacher, ObjectiveConfig, as_local
from opdkit.models.load import LoadedModel, open_model, pick_device
from opdkit.models.pair import Reader
from opdkit.models.sampler import LocalSampler
from opdkit.recipes.coherence import coherence
from opdkit.recipes.know import continued
from opdkit.recipes.preflight import check
from opdkit.recipes.probe import numbers, read_all
from opdkit.studies.study import Arm
from opdkit.studies.testbed import Workshop
from opdkit.tasks import Task, encode, load_task
from opdkit.types import Rollout

CUTS = (0.1, 0.25, 0.5, 0.75, 0.9)
PROMPTS = 1024
SEQUENCES = 48
READ_OFF = (
    "sequence_reward_auroc",
    "sequence_reward",
    "overlap_ratio",
    "overlap_advantage",
    "reverse_kl",
    "accuracy",
)
STREAM = -7
"""The `step` of these draws."""


def measure(arm: Arm, config: Config, shop: Workshop) -> dict[str, Any]:
    """Numbers of the pair, its student as it began or as the run left it."""
    if arm.measured == "check":
        return {
            **checked(config),
            "sizes": [shop.make(name).parameters for name in (arm.student, arm.teacher or arm.student)],
        }
    trained = config.run / "checkpoints" / f"step_{config.steps}" / "model"
    student = str(trained) if arm.trained else config.student.model
    return continuation(config, student) if arm.measured == "continuation" else gradients(config, student)


def checked(config: Config) -> dict[str, Any]:
    """Every number of the document of `opd check` but those of single end tokens, without intervals, and its verdict."""
    assert isinstance(config.teacher, LocalTeacher)
    told = check(config, teachers=[config.teacher], source=lambda _: "pair.toml", say=lambda _: None)
    return {
        "verdict": told["verdict"]["name"],
        "because": told["verdict"]["because"],
        "rollouts": told["rollouts"],
        "metrics": {name: number["value"] for name, number in told["metrics"].items() if "/" not in name},
    }


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


def gradients(config: Config, student: str) -> dict[str, Any]:
    """How gradients of positions agree, within responses and between them, and how well the sequence reward tells right from
    wrong responses (arXiv 2604.13016, 6.2, Fig. 14): the first of the drawn responses for the former, all for the latter."""
    with load_task(config.task) as task:
        ours, theirs, rollouts = _drawn(config, student, task)
    piece = read_all(
        rollouts,
        student=Reader(ours, 1.0, ours.stop_ids),
        teacher=Reader(theirs, 1.0, theirs.stop_ids),
        max_tokens=config.sampling.max_tokens,
    )
    read_off = numbers(piece, vocabulary=ours.head.rows, seed=config.seed)
    told = {name: read_off[name].value for name in READ_OFF if name in read_off}
    assert isinstance(config.objective, ObjectiveConfig)
    agreeing = coherence(ours, theirs, rollouts[:SEQUENCES], objective=config.objective, seed=config.seed)
    return {**told, **{name: number.value for name, number in agreeing.items()}, "rollouts": len(rollouts)}


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
