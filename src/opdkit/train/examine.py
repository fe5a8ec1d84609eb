"""`opd eval`: open one model, one task, examine it."""

from __future__ import annotations

from typing import Any

import torch

from opdkit.config import Config
from opdkit.models.load import (
    check_weights,
    context_length,
    open_config,
    open_model,
    open_tokenizer,
    pick_device,
    vocabulary_rows,
)
from opdkit.models.sampler import LocalSampler
from opdkit.run.world import World
from opdkit.tasks import encode, load_task
from opdkit.train.evaluate import evaluate
from opdkit.train.prompts import fitting, refuse_unknown_tokens
from opdkit.types import Prompt, UserError


def examine(config: Config) -> dict[str, Any]:
    """The evaluation row of `config.student` on `config.task`. UserError where there is nothing to do."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    with load_task(config.task) as task:
        if not task.evaluation:
            hint = "task.eval_path=FILE" if config.task.type == "file" else "task.eval_size=100"
            raise UserError("the task has no evaluation prompts", hint=hint)
        prompts = _prompts(config, task)
        check_weights(config.student)
        loaded = open_model(config.student, device=device)
        world = World(device)
        try:
            row = evaluate(
                LocalSampler(loaded),
                task,
                prompts,
                cfg=config.eval,
                sampling=config.sampling,
                seed=config.seed,
                world=world,
            )
        finally:
            world.close()
    return {**row, "prompts_dropped": len(task.evaluation) - len(prompts)}


def _prompts(config: Config, task: Any) -> list[Prompt]:
    """Encoded, those that leave room for a response."""
    model, tokenizer = open_config(config.student), open_tokenizer(config.student)
    prompts = encode(task.evaluation, tokenizer, config.task)
    refuse_unknown_tokens(prompts, tokenizer, rows=vocabulary_rows(tokenizer, model))
    key = "sampling.max_tokens" if config.eval.max_tokens is None else "eval.max_tokens"
    length = config.eval.max_tokens or config.sampling.max_tokens
    kept, _ = fitting(prompts, context=context_length(model), max_tokens=length, key=key, kind="evaluation")
    return kept
