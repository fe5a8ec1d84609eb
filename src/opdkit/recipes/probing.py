"""One probe of a student on its way: its own rollouts to held-out prompts, read by both models, as `opd check` reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from opdkit.config import ColdstartConfig, Config, LocalTeacher, as_local
from opdkit.models.load import open_model, pick_device
from opdkit.models.pair import Reader
from opdkit.models.sampler import LocalSampler
from opdkit.recipes.answering import teacher_of
from opdkit.recipes.probe import numbers, read_all
from opdkit.run.rows import Row
from opdkit.tasks import Task
from opdkit.types import Prompt

STREAM = -5
"""The `step` of its draws: the same ones at every probe, so that a curve is paired."""
TOLD = (
    "overlap_ratio",
    "overlap_mass_student",
    "overlap_mass_teacher",
    "overlap_mass_teacher_before_end",
    "reverse_kl",
    "entropy_student",
    "entropy_teacher",
    "entropy_gap",
    "teachable_share",
    "response_length",
    "truncated_fraction",
    "repetition_fraction",
    "accuracy",
)


def probe(
    config: Config,
    cold: ColdstartConfig,
    student: str,
    *,
    step: int,
    prompts: Sequence[Prompt],
    task: Task,
    teacher_ids: Mapping[str, tuple[int, ...]],
    rows: int,
) -> Row:
    """The numbers of the student in the folder `student` after `step` steps, with the interval of overlap over prompts.

    Both models are opened anew: between probes the learner has the memory. `teacher_ids`: prompt source →
    what a teacher with a context of its own reads; `rows`: the shared vocabulary.
    """
    device, teacher = pick_device(config.device), config.teacher
    assert isinstance(teacher, LocalTeacher)
    ours = open_model(config.student.model_copy(update={"model": student}), device=device, rows=rows)
    sampling = as_local(config.sampling).model_copy(update={"responses": cold.probe_responses})
    sampled = LocalSampler(ours).sample(prompts, sampling=sampling, seed=config.seed, step=STREAM)
    drawn = [replace(r, teacher_prompt_ids=teacher_ids.get(r.prompt.source)) for r in task.grade(sampled)]
    theirs = open_model(teacher_of(config), device=device, rows=rows)
    readers = (
        Reader(ours, sampling.temperature, tuple(sampling.stop_ids or ours.stop_ids)),
        Reader(theirs, teacher.temperature, tuple(theirs.stop_ids), batch_tokens=teacher.batch_tokens),
    )
    piece = read_all(drawn, student=readers[0], teacher=readers[1], max_tokens=sampling.max_tokens)
    found = numbers(piece, vocabulary=rows, seed=config.seed)
    told: Row = {"step": step, **{name: found[name].value for name in TOLD if name in found}}
    overlap = found["overlap_ratio"]
    return told | {"overlap_ratio_low": overlap.low, "overlap_ratio_high": overlap.high}
