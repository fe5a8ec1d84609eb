"""The teacher answers prompts: its folder opened as a sampler, rows written as they come, gone on with after a kill."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opdkit.config import (
    ColdstartConfig,
    Config,
    LocalTeacher,
    ModelConfig,
    SamplingConfig,
    VllmSampling,
    as_local,
)
from opdkit.models.contracts import Sampler
from opdkit.models.load import (
    check_weights,
    context_length,
    open_config,
    open_model,
    open_tokenizer,
    pick_device,
    vocabulary_rows,
)
from opdkit.recipes.coldstart_folder import ColdstartFolder
from opdkit.run.signals import Stop
from opdkit.tasks import Task, encode
from opdkit.train.examine import answering
from opdkit.train.privileged import read_by_teacher
from opdkit.train.prompts import fitting, refuse_unknown_tokens
from opdkit.types import Finding, Prompt, Rollout

Progress = Callable[[int, int], None]
"""Done, of how many."""
FILE = "answers.jsonl"
CHUNK = 64
"""Prompts between two writes, or as many as are decoded at once: what a kill costs at most."""


@dataclass(frozen=True)
class Asked:
    """Prompts as the teacher's own template writes them; what was left out for length is told."""

    prompts: Sequence[Prompt]
    findings: tuple[Finding, ...]


def teacher_of(config: Config) -> ModelConfig:
    """The teacher as a model that can be opened like a student."""
    teacher = config.teacher
    assert isinstance(teacher, LocalTeacher)
    return ModelConfig(model=teacher.model, dtype=teacher.dtype, revision=teacher.revision)


def ask(config: Config, cold: ColdstartConfig, prompts: Sequence[Prompt]) -> Asked:
    """The prompts the teacher will answer, encoded. UserError where none leaves room. No weights are read."""
    teacher = teacher_of(config)
    context = read_by_teacher(config.teacher.context if config.teacher else None, prompts)
    check_weights(teacher)
    model, tokenizer = open_config(teacher), open_tokenizer(teacher)
    encoded = encode(prompts, tokenizer, config.task, system=context)
    refuse_unknown_tokens(encoded, tokenizer, rows=vocabulary_rows(tokenizer, model))
    length = cold.max_tokens or config.sampling.max_tokens
    key = "coldstart.max_tokens" if cold.max_tokens else "sampling.max_tokens"
    kept, findings = fitting(
        encoded, context=context_length(model), max_tokens=length, key=key, reader="teacher"
    )
    return Asked(kept, tuple(findings))


def answer(
    config: Config,
    cold: ColdstartConfig,
    asked: Asked,
    *,
    task: Task,
    folder: ColdstartFolder,
    rows: int,
    stop: Stop,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Every answer: those of the file as far as it goes, then the rest. Raises Stopped after a signal; whole chunks stay.

    `rows`: the vocabulary that the student shares, beyond which nothing may be drawn.
    """
    each, count = cold.responses, len(asked.prompts)
    chunk = max(CHUNK, config.sampling.batch_rows // each)
    there = len(folder.rows(FILE)) // each
    done = there if there >= count else there // chunk * chunk
    folder.shorten(FILE, done * each)
    progress(done, count)
    if done < count:
        with _opened(config, rows=rows) as (sampler, tokenizer):
            for begin in range(done, count, chunk):
                some = asked.prompts[begin : begin + chunk]
                with stop.interrupting():  # a signal costs this chunk, which is drawn again in the same way
                    drawn = sampler.sample(some, sampling=_sampling(config, cold), seed=config.seed, step=0)
                    graded = task.grade(drawn) if task.training_graded else drawn
                folder.append(FILE, [_row(rollout, tokenizer) for rollout in graded])
                progress(begin + len(some), count)
    return folder.rows(FILE)


@contextmanager
def _opened(config: Config, *, rows: int) -> Iterator[tuple[Sampler, Any]]:
    """The teacher where the run would draw: in this process or by vLLM in it. A server has the student's weights."""
    teacher = teacher_of(config)
    loaded = open_model(teacher, device=pick_device(config.device), rows=rows)
    local = config.sampling if isinstance(config.sampling, VllmSampling) else as_local(config.sampling)
    sampler = answering(config.model_copy(update={"student": teacher, "sampling": local}), loaded)
    try:
        yield sampler, loaded.tokenizer
    finally:
        sampler.close()


def _sampling(config: Config, cold: ColdstartConfig) -> SamplingConfig:
    """As the paper asks: colder than training, and truncated."""
    return config.sampling.model_copy(
        update={
            "responses": cold.responses,
            "temperature": cold.temperature,
            "top_p": cold.top_p,
            "top_k": 0,
            "max_tokens": cold.max_tokens or config.sampling.max_tokens,
        }
    )


def _row(rollout: Rollout, tokenizer: Any) -> dict[str, Any]:
    """A response with its end token, for it is imitated; `text` without, as a grader reads it; ids for filters and others."""
    prompt, grade = rollout.prompt, rollout.grade
    return {
        "id": f"{prompt.id}#{rollout.sample}",
        "prompt_id": prompt.id,
        "prompt": prompt.given,
        "answer": prompt.answer,
        "group": prompt.group,
        "response": tokenizer.decode(rollout.response_ids),
        "text": rollout.text,
        "finish_reason": rollout.finish_reason,
        "score": None if grade is None else grade.score,
        "response_ids": list(rollout.response_ids),
    }
