"""The runs of a cold start as configurations of the product's own stories, and what a cold start refuses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from opdkit.config import ColdstartConfig, Config, FileTask, MixConfig, ObjectiveConfig, as_local
from opdkit.models.load import open_stop_ids
from opdkit.train.plan import Plan
from opdkit.types import UserError


def refuse(config: Config) -> None:
    """UserError for what has no cold start."""
    if config.story != "distill":
        raise UserError(
            f"a cold start comes before distillation, and the story is {config.story!r}", hint="story=distill"
        )
    if config.teacher is None:
        raise UserError("there is no teacher to answer", hint="teacher=FOLDER or a Hub id")
    if config.teacher.type != "local":
        what = {
            "self": "a teacher that is the student's own copy has no other way of answering",
            "server": "the teacher's answers are drawn from its weights, and a served one's are elsewhere",
            "router": "one teacher answers, and a router has several",
        }
        raise UserError(what[config.teacher.type], hint="teacher=FOLDER or a Hub id, for the cold start")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "a cold start runs in one process, and there are several ranks",
            hint="opd coldstart CONFIG without torchrun; its distill stage alone can be several: opd train CONFIG",
        )
    cold = config.coldstart or ColdstartConfig()
    if cold.filters.wrong and config.task.type == "file" and config.task.grader.type == "none":
        raise UserError(
            "coldstart.filters.wrong drops wrong answers, and the task has no grader",
            hint="task.grader=exact, regex or math, or coldstart.filters.wrong=false",
        )
    if config.task.render == "teacher" and cold.warm_up == "likelihood":
        raise UserError(
            "task.render=teacher, and plain SFT has no teacher whose template could write the prompts",
            hint="coldstart.warm_up=forward_kl, or task.render=student",
        )


def sft_config(config: Config, cold: ColdstartConfig, *, steps: int) -> Config:
    """The imitation up to `steps`: the run's student, optimizer and learner; its own rate, constant, for the end is not known."""
    forward, task = cold.warm_up == "forward_kl", config.task
    rate = cold.lr if cold.lr is not None else 10 * config.optim.lr
    optim = {"lr": rate, "warmup_steps": cold.warmup_steps, "schedule": "constant"}
    objective = {"preset": "full", "divergence": "forward_kl"} if forward else {}
    shown = FileTask(
        path=config.run / "kept.jsonl",
        chat_template=task.chat_template,
        render=task.render,
        thinking=task.thinking,
        system=task.system,
        prefix=task.prefix,
    )
    return config.model_copy(
        update={
            "story": "sft",
            "teacher": config.teacher if forward else None,
            "reference": None,
            "objective": ObjectiveConfig.model_validate(objective),
            "mix": MixConfig(),
            "task": shown,
            "sampling": as_local(config.sampling),
            "optim": config.optim.model_copy(update=optim),
            "prompts_per_step": cold.prompts_per_step,
            "steps": steps,
            "eval": config.eval.model_copy(update={"every": 0, "at_ends": False, "teacher": False}),
            # of a plateau an earlier checkpoint is handed over
            "save": config.save.model_copy(update={"every": 0, "keep": cold.until.patience + 2}),
            "coldstart": None,
            "run": config.run / "sft",
        }
    )


def distill_config(config: Config, student: str) -> Config:
    """The run as configured, from the student that was handed over."""
    started = config.student.model_copy(update={"model": student, "revision": None})
    return config.model_copy(update={"student": started, "run": config.run / "distill", "coldstart": None})


def as_imitated(
    rows: Sequence[Mapping[str, Any]], config: Config, plan: Plan
) -> tuple[list[dict[str, Any]], int, int]:
    """(rows as the student reads them, how many had an end token of the teacher's alone, how many are read as other tokens).

    An end token that does not end the student's responses is taken off: imitated, it would be followed by the student's own, a
    response with two ends. What is imitated is text, so ids that no text gives back come as others.
    """
    stops = config.sampling.stop_ids or open_stop_ids(config.student, plan.tokenizer, rows=plan.rows)
    told, replaced, respelt = [], 0, 0
    for row in rows:
        ids = row["response_ids"]
        foreign = row["finish_reason"] == "stop" and ids[-1] not in stops
        replaced += foreign
        ids = ids[:-1] if foreign else ids
        text = plan.tokenizer.decode(ids) if foreign else row["response"]
        respelt += plan.tokenizer(text, add_special_tokens=False)["input_ids"] != list(ids)
        told.append({**row, "response": text})
    return told, replaced, respelt
