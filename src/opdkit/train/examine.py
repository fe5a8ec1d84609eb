"""`opd eval`: open one model, one task, examine it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from opdkit.config import Config, VllmSampling, VllmServerSampling
from opdkit.engines.vllm import VllmSampler, check_installed
from opdkit.models.contracts import Sampler
from opdkit.models.load import (
    LoadedModel,
    check_weights,
    context_length,
    open_config,
    open_model,
    open_tokenizer,
    pick_device,
    vocabulary_rows,
)
from opdkit.models.sampler import LocalSampler
from opdkit.run.rows import as_lines
from opdkit.run.world import World
from opdkit.tasks import encode, load_task
from opdkit.train.adapters import check_engine
from opdkit.train.evaluate import evaluate
from opdkit.train.prompts import fitting, open_renderer, refuse_unknown_tokens
from opdkit.types import Prompt, Rollout, UserError


def examine(config: Config, *, keep: Path | None = None, training: bool = False) -> dict[str, Any]:
    """The evaluation row of `config.student` on `config.task`. UserError where there is nothing to do.

    `training`: the training prompts instead of the held-out ones. `keep`: a JSONL file for the responses, as
    `opd diagnose` and `story=sft` read them; of training prompts only those that came to an end, for what is
    imitated teaches where to stop.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    if keep is not None:
        _writable(keep)
    with load_task(config.task, only="train" if training else "evaluation") as task:
        if not training and not task.evaluation:
            raise UserError("the task has no evaluation prompts", hint=_EVALUATE[config.task.type])
        asked = task.train if training else task.evaluation
        prompts = _prompts(config, asked)
        check_weights(config.student)
        loaded = open_model(config.student, device=device)
        world, kept = World(device), _Keeping(answering(config, loaded), task)
        try:
            row = evaluate(
                kept.sampler,
                kept,
                prompts,
                cfg=config.eval,
                sampling=config.sampling,
                seed=config.seed,
                world=world,
            )
        finally:
            kept.sampler.close()
            world.close()
        row |= {"prompts_dropped": len(asked) - len(prompts)}
        if task.findings:
            row["findings"] = [f"{f.severity}: {f.message}" for f in task.findings]
        if keep is not None:
            rows = [_row(r) for r in kept.rollouts if not training or r.finish_reason == "stop"]
            row["responses_left_out"] = len(kept.rollouts) - len(rows)
            keep.write_bytes(as_lines(rows))
    return row


def answering(config: Config, loaded: LoadedModel) -> Sampler:
    """Who answers: this process, or vLLM in it. A server may hold anything's weights."""
    cfg = config.sampling
    if isinstance(cfg, VllmServerSampling):
        raise UserError(
            "opd eval examines a model folder, and a server may hold other weights",
            hint="sampling.type=vllm, or 'sampling={type=\"local\"}'",
        )
    if isinstance(cfg, VllmSampling):
        check_installed()
        check_engine(config)
        ref = config.student
        return VllmSampler(
            cfg, folder=ref.model, revision=ref.revision, loaded=loaded, width=0, dtype=ref.dtype
        )
    return LocalSampler(loaded)


_EVALUATE = {"file": "task.eval_path=FILE", "math": 'task.eval=["aime24", "aime25"]'}
_EVALUATE |= dict.fromkeys(("gym", "testbed"), "task.eval_size=100")


class _Keeping:
    """The task as `evaluate` sees it, holding on to what was graded."""

    def __init__(self, sampler: Sampler, task: Any):
        self.sampler, self.task, self.benchmarks = sampler, task, task.benchmarks
        self.rollouts: list[Rollout] = []

    @property
    def graded(self) -> bool:
        return self.task.graded

    def grade(self, rollouts: Any) -> list[Rollout]:
        self.rollouts = self.task.grade(rollouts)
        return self.rollouts


def _row(rollout: Rollout) -> dict[str, Any]:
    prompt = rollout.prompt
    grade = rollout.grade
    return {
        # A prompt with several responses is several rows, each with an id of its own.
        "id": prompt.id if rollout.sample == 0 else f"{prompt.id}#{rollout.sample}",
        "prompt_id": prompt.id,
        "group": prompt.group,
        "prompt": prompt.given,
        "answer": prompt.answer,
        "response": rollout.text,
        "finish_reason": rollout.finish_reason,
        "score": None if grade is None else grade.score,
        "prompt_ids": list(prompt.ids),
        "response_ids": list(rollout.response_ids),
    }


def _writable(path: Path) -> None:
    if path.exists():
        raise UserError(
            f"{path} is there already", hint=f"--out another file, or rm {shlex.quote(str(path))}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", hint="--out another file") from error


def _prompts(config: Config, asked: Sequence[Prompt]) -> list[Prompt]:
    """Encoded, those that leave room for a response."""
    model, tokenizer = open_config(config.student), open_tokenizer(config.student)
    prompts = encode(asked, tokenizer, config.task, renderer=open_renderer(config, tokenizer))
    refuse_unknown_tokens(prompts, tokenizer, rows=vocabulary_rows(tokenizer, model))
    key = "sampling.max_tokens" if config.eval.max_tokens is None else "eval.max_tokens"
    length = config.eval.max_tokens or config.sampling.max_tokens
    kept, _ = fitting(prompts, context=context_length(model), max_tokens=length, key=key, kind="evaluation")
    return kept
