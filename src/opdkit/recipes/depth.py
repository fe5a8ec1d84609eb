"""`opd diagnose --depth`: what the supervision is worth along the response, step by step, as maps.

    RUN/rollouts/step_N.jsonl → both models read them → by position bin: entropy, overlap, |advantage|, sign reliability
                              → both go on from where bins begin → continuation advantage        (with a grader, if asked)

The student that reads step N is the checkpoint nearest below, for the weights that drew those rollouts may be gone; which one
is in every row. The folder that is written is one that `opd report` draws: position upwards, step to the right (arXiv
2604.13016, Figs. 11b, 13, 14 and 23).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from opdkit.config import Config, LocalTeacher, ModelConfig, as_local
from opdkit.diagnostics import Measures, bin_starts, by_position, derived, reliability
from opdkit.models.load import LoadedModel, open_model, open_tokenizer, pick_device, shared_rows
from opdkit.models.load import open_config as read_config
from opdkit.models.pair import Reader, read_pair
from opdkit.models.sampler import LocalSampler
from opdkit.recipes.diagnose import rollouts_of
from opdkit.recipes.know import continued_at
from opdkit.recipes.preflight import Say
from opdkit.recipes.probe import KS, K
from opdkit.run.disk import append_line
from opdkit.run.rows import to_json
from opdkit.tasks import Task, load_task
from opdkit.tasks.rollouts import read_rollouts
from opdkit.types import Rollout, Tally, UserError

TOLD = ("entropy_student", "entropy_teacher", "overlap_ratio", "overlap_mass_teacher", "reverse_kl")
"""Of the usual measures; beside them the signal's size and sign."""
_STEP = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class Column:
    """The rollouts of one step, and the weights that read them: after `updates` steps, or those that the config names."""

    step: int
    file: Path
    student: ModelConfig
    updates: int | None


def depth_maps(
    config: Config, path: Path, *, out: Path, layout: str, limit: int | None, going_on: int, say: Say
) -> list[dict[str, Any]]:
    """A row per step, as they are in OUT/metrics.jsonl. `going_on`: rollouts that are cut and continued, at each bin; 0 = none.

    UserError where there is nothing to read, or OUT is taken.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    teacher = config.teacher
    assert isinstance(teacher, LocalTeacher)
    if (out / "metrics.jsonl").exists():
        raise UserError(f"{out} holds maps or a run already", hint="--depth another folder")
    found = columns(path, config)
    tokenizers = open_tokenizer(config.student), open_tokenizer(teacher)
    rows = shared_rows(
        *tokenizers, student_config=read_config(config.student), teacher_config=read_config(teacher)
    )
    device = pick_device(config.device)
    theirs = open_model(teacher, device=device, rows=rows)
    told: list[dict[str, Any]] = []
    with load_task(config.task) as task:
        _refuse_ungraded(task, going_on)
        out.mkdir(parents=True, exist_ok=True)
        opened: tuple[ModelConfig, LoadedModel] | None = None
        for column in found:
            if opened is None or opened[0] != column.student:
                opened = column.student, open_model(column.student, device=device, rows=rows)
            rollouts = _read(column, opened[1], theirs, config, layout=layout, limit=limit)
            row = _row(column, rollouts, opened[1], theirs, config)
            if going_on:
                row |= _going_on(rollouts[:going_on], opened[1], theirs, config, task)
            append_line(out / "metrics.jsonl", line=to_json(row).encode())
            say(f"step {column.step}: {len(rollouts)} rollouts, read by {column.student.model}")
            told.append(row)
    return told


def columns(path: Path, config: Config) -> list[Column]:
    """Of a run folder, or a folder of its rollouts: every sampled step. Of a single file, that one."""
    folder = path / "rollouts" if (path / "rollouts").is_dir() else path
    files = sorted(folder.glob("step_*.jsonl"), key=_number) if folder.is_dir() else [path]
    if not files:
        raise UserError(f"{path} has no rollouts/step_N.jsonl", hint="save.rollouts_every=10 writes some")
    checkpoints = sorted(
        (p.parent for p in folder.parent.glob("checkpoints/step_*/manifest.json")), key=_number
    )
    found = []
    for file in files:
        step = _number(file)
        before = [p for p in checkpoints if _number(p) < step]
        student = (
            config.student.model_copy(update={"model": str(before[-1] / "model"), "lora": None})
            if before
            else config.student
        )
        found.append(Column(step, file, student, _number(before[-1]) if before else None))
    return found


def _number(path: Path) -> int:
    number = _STEP.match(path.name)
    return int(number[1]) if number else 0


def _refuse_ungraded(task: Task, going_on: int) -> None:
    if going_on and not task.training_graded:
        raise UserError(
            "who ends right from a cut response takes a grader, and the task has none",
            hint="--continue 0, or task.grader=exact with an answer in every row",
        )


def _read(
    column: Column,
    student: LoadedModel,
    teacher: LoadedModel,
    config: Config,
    *,
    layout: str,
    limit: int | None,
) -> list[Rollout]:
    said = list(read_rollouts(column.file, layout=layout))[:limit]
    room = min(student.max_length, teacher.max_length)
    found = rollouts_of(said, student, config, room=room)
    if not found:
        raise UserError(
            f"no rollout of {column.file} could be read by both models", hint="are they of this student?"
        )
    return found


def _row(
    column: Column, rollouts: Sequence[Rollout], student: LoadedModel, teacher: LoadedModel, config: Config
) -> dict[str, Any]:
    """Means by position bin, named as in a run's metrics."""
    assert config.teacher is not None
    ours = Reader(student, config.sampling.temperature, student.stop_ids)
    theirs = Reader(teacher, config.teacher.temperature, teacher.stop_ids)
    rows = student.head.rows
    seen = read_pair(rollouts, student=ours, teacher=theirs, k=min(K, rows), ks=[k for k in KS if k <= rows])
    told: Measures = {name: seen.measures[name] for name in TOLD}
    apart = seen.measures["reverse_kl_sampled"][0].cpu()  # log p − log q of the sampled token
    scores = [None if r.grade is None else r.grade.score for r in rollouts]
    told |= reliability(apart, torch.zeros_like(apart), seen.row, scores)
    inside = ~seen.after_end
    here = by_position(
        told, seen.depth, bins=config.diagnostics.bins, max_tokens=config.sampling.max_tokens, keep=inside
    )
    whole = Tally({"response_length": (float(sum(r.length for r in rollouts)), float(len(rollouts)))})
    read_by = {} if column.updates is None else {"read_by_student_of": column.updates}
    return {"step": column.step, "rollouts": len(rollouts), **read_by, **derived(here + whole)}


def _going_on(
    rollouts: Sequence[Rollout], student: LoadedModel, teacher: LoadedModel, config: Config, task: Task
) -> dict[str, float]:
    """`by_position/START/continuation_advantage`: accuracy when the teacher goes on after START tokens, less the student's."""
    starts = bin_starts(bins=config.diagnostics.bins, max_tokens=config.sampling.max_tokens)
    found = continued_at(
        rollouts,
        student=LocalSampler(student),
        teacher=LocalSampler(teacher),
        task=task,
        sampling=as_local(config.sampling),
        seed=config.seed,
        positions=[start for start in starts if start > 0],
    )
    return {f"by_position/{int(c.depth)}/continuation_advantage": c.advantage for c in found}
