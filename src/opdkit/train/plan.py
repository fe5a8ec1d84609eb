"""What objective and diagnostics need against what sampler and teacher offer, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from opdkit.config import Config, LocalTeacher, SelfTeacher
from opdkit.models.load import open_config, open_tokenizer, shared_rows, vocabulary_rows
from opdkit.models.teacher import OFFERS
from opdkit.objectives import Likelihood, Objective, group_relative, imitation, push_down
from opdkit.types import Needs, UserError


@dataclass(frozen=True)
class Plan:
    """How this run will get its numbers."""

    objective: Objective | Likelihood
    rows: int  # vocabulary in use: the ids all tokenizers share
    sampler_needs: Needs
    teacher_needs: Needs
    early_ids: str | None  # who names candidates before the learner's forward: "sampler", "teacher" or nobody
    tokenizer: Any  # the student's


LIKELIHOODS: dict[str, Callable[[Config], Likelihood]] = {
    "sft": lambda _: Likelihood(imitation),
    "improve": lambda _: Likelihood(imitation),
    "grpo": lambda config: Likelihood(partial(group_relative, scale=config.grpo.scale)),
    "push_down": lambda config: Likelihood(
        partial(push_down, share=config.push_down.share), student_needs=Needs(sampled=True, entropy=True)
    ),
}
"""Stories without a teacher, by what they do with the likelihood of tokens."""


def make_plan(config: Config) -> Plan:
    """Reads configs and tokenizers only. Raises UserError for what cannot work, with what would."""
    return _with_teacher(config) if config.story == "distill" else _alone(config)


def _alone(config: Config) -> Plan:
    if config.teacher is not None:
        raise UserError(f"story {config.story!r} has no teacher", hint="leave teacher out, or story=distill")
    if config.story == "grpo" and config.sampling.responses < 2:
        raise UserError("a group of one response has no spread", hint="sampling.responses=8")
    objective = LIKELIHOODS[config.story](config)
    tokenizer = open_tokenizer(config.student)
    rows = vocabulary_rows(tokenizer, open_config(config.student))
    _refuse_wide({"sampling.top_k": config.sampling.top_k}, rows)
    _refuse_stop_ids(config, rows)
    return Plan(objective, rows, objective.student_needs, Needs(), early_ids=None, tokenizer=tokenizer)


def _with_teacher(config: Config) -> Plan:
    if config.teacher is None:
        raise UserError(
            "story 'distill' needs a teacher", hint="teacher=FOLDER or a Hub id; or story=sft, grpo, improve"
        )
    objective = Objective(config.objective)
    payload = config.teacher.payload
    _refuse_unmet(objective, OFFERS[payload], payload)
    student_config, student_tokenizer = open_config(config.student), open_tokenizer(config.student)
    rows = _shared(config.teacher, student_tokenizer, student_config)
    _refuse_wide(_widths(config), rows)
    _refuse_stop_ids(config, rows)
    early = _early_ids(objective, payload)
    return Plan(
        objective=objective,
        rows=rows,
        sampler_needs=Needs(sampled=True, top_k=_sampler_width(config, payload, early, rows)),
        teacher_needs=_teacher_needs(config, payload, objective, early, rows),
        early_ids=early,
        tokenizer=student_tokenizer,
    )


def _refuse_unmet(objective: Objective, offers: Needs, payload: str) -> None:
    unmet = objective.teacher_needs.unmet(offers)
    if unmet:
        raise UserError(
            f'the objective needs {", ".join(unmet)}, but a teacher with payload = "{payload}" gives '
            "log-probs of sampled tokens, at ids, and its own top-k only",
            hint='set objective.support = "teacher_top_k" or "student_top_k", or teacher.payload = "hidden"',
        )


def _shared(teacher: LocalTeacher | SelfTeacher, student_tokenizer: Any, student_config: Any) -> int:
    if teacher.type == "self":
        return vocabulary_rows(student_tokenizer, student_config)
    teacher_config = open_config(teacher)
    return shared_rows(
        student_tokenizer,
        open_tokenizer(teacher),
        student_config=student_config,
        teacher_config=teacher_config,
    )


def _widths(config: Config) -> dict[str, int]:
    wide = {"diagnostics.k": config.diagnostics.k, "sampling.top_k": config.sampling.top_k}
    if config.objective.support in ("student_top_k", "teacher_top_k"):
        wide = {"objective.k": config.objective.k, **wide}
    return wide


def _refuse_wide(widths: dict[str, int], rows: int) -> None:
    """k and top_k beyond the vocabulary mean nothing."""
    for key, value in widths.items():
        if value > rows:
            raise UserError(
                f"{key} = {value} is larger than the vocabulary of {rows} shared tokens",
                hint=f"{key}={min(16, rows)}",
            )


def _refuse_stop_ids(config: Config, rows: int) -> None:
    """An end token that cannot be drawn never ends anything."""
    beyond = [i for i in config.sampling.stop_ids or () if not 0 <= i < rows]
    if beyond:
        raise UserError(
            f"sampling.stop_ids holds {beyond[0]}, but ids go from 0 to {rows - 1}",
            hint="leave sampling.stop_ids out to take the model's own end tokens",
        )


def _early_ids(objective: Objective, payload: str) -> str | None:
    """Ids must be known before the learner's forward if only they are scored, or only their columns made."""
    if objective.spec.support == "teacher_top_k" and objective.columns_only:
        return "teacher"
    if objective.columns_only or payload == "ids":
        return "sampler"
    return None


def _sampler_width(config: Config, payload: str, early: str | None, rows: int) -> int:
    if early != "sampler":
        return 0
    width = config.objective.k if config.objective.support == "student_top_k" else 0
    return min(rows, max(width, config.diagnostics.k if payload == "ids" else 0))


def _teacher_needs(config: Config, payload: str, objective: Objective, early: str | None, rows: int) -> Needs:
    """What travels. Beside hidden states only ids that must be known early; else each number that is used."""
    early_k = config.objective.k if early == "teacher" else 0
    if payload == "hidden":
        return Needs(full=True, top_k=early_k)
    widest = max(config.diagnostics.k, *config.diagnostics.ks, early_k)
    measured = Needs(sampled=True, top_k=min(rows, widest), at_ids=early == "sampler", entropy=True)
    return objective.teacher_needs | measured
