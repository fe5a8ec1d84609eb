"""`opd eval`: open one model, one task, examine it."""

from __future__ import annotations

from typing import Any

import torch

from opdkit.config import Config
from opdkit.models.load import open_model, open_tokenizer, pick_device
from opdkit.models.sampler import LocalSampler
from opdkit.run.world import World
from opdkit.tasks import encode, fit, load_task
from opdkit.train.evaluate import evaluate
from opdkit.types import UserError


def examine(config: Config) -> dict[str, Any]:
    """The evaluation row of `config.student` on `config.task`. UserError where there is nothing to evaluate on."""
    if config.threads:
        torch.set_num_threads(config.threads)
    with load_task(config.task) as task:
        if not task.evaluation:
            raise UserError("the task has no evaluation prompts", hint="give task.eval_path=FILE, or task.eval_size=N")
        prompts = encode(task.evaluation, open_tokenizer(config.student), config.task)
        loaded = open_model(config.student, device=pick_device(config.device))
        length = config.eval.max_tokens or config.sampling.max_tokens
        kept, dropped = fit(prompts, max_prompt_tokens=max(loaded.max_length - length, 0))
        world = World(loaded.device)
        try:
            row = evaluate(
                LocalSampler(loaded), task, kept, cfg=config.eval, sampling=config.sampling, seed=config.seed, world=world
            )
        finally:
            world.close()
    return {**row, "prompts_dropped": len(dropped)}
