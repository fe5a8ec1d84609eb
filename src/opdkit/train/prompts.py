"""The prompts of a run as both models read them, settled before any weight is loaded.

What leaves no room for a response in a model's context is left out and told, never truncated; where nothing
is left, the user is told what would fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from opdkit.config import Config, FileTask, RouterTeacher
from opdkit.engines.router import refuse_unrouted
from opdkit.models.load import context_length, open_config, open_stop_ids
from opdkit.tasks import demonstrations, encode, fit
from opdkit.tasks.rows import must_be_file, read_prompts
from opdkit.tasks.worlds import refuse_foreign
from opdkit.train.feedback import Feedback
from opdkit.train.plan import Plan
from opdkit.train.privileged import FEEDBACK, filled, refuse_other_beginnings, told_tokens
from opdkit.train.teachers import renderer_of
from opdkit.types import Finding, Prompt, Rollout, UserError

_GRADER = "task.grader=exact, regex or math, with an answer in every row"


@dataclass(frozen=True)
class Prompts:
    """Encoded. `teacher_ids`: prompt source → what a teacher with a context of its own reads instead."""

    train: Sequence[Prompt]
    exam: Sequence[Prompt]
    teacher_ids: Mapping[str, tuple[int, ...]]
    findings: tuple[Finding, ...]
    demonstrations: Sequence[Rollout] = ()
    others: Sequence[Prompt] = ()  # of another kind, beside `train`
    told: Mapping[str, tuple[int, ...]] = field(
        default_factory=dict
    )  # source → a demonstration the teacher reads
    feedback: Feedback | None = None


def encoded_prompts(config: Config, task: Any, plan: Plan) -> Prompts:
    """Training and evaluation prompts with ids; what the story imitates.

    UserError where none fits, one has a token that a model does not know, or the story asks what is not there.
    """
    cfg = config.task
    if config.story in ("grpo", "improve") and not task.training_graded:
        raise UserError(
            f"story {config.story!r} lives on scores, and the task has no grader",
            hint=_GRADER if config.task.type != "math" else "task.train=dapo-math-17k, which has answers",
        )
    if config.story == "distill" and config.objective.signal.reads_grades and not task.training_graded:
        raise UserError("objective.signal reads grades, and the task has no grader", hint=_GRADER)
    if config.story == "distill" and config.objective.signal.prompts == "row":
        _must_be_weighted(task.train)
    if wants_feedback(config) and not task.training_graded:
        raise UserError("teacher.context tells {feedback}, and the task has no grader", hint=_GRADER)
    if config.horizon.mode != "off" and config.horizon.by == "sign_reliability" and not task.training_graded:
        raise UserError(
            "horizon.by = sign_reliability is measured against grades, and the task has no grader",
            hint=f"horizon.by=overlap_ratio, or {_GRADER}",
        )
    renderer = open_renderer(config, plan.tokenizer)
    train = encode(task.train, plan.tokenizer, cfg, renderer=renderer)
    exam = encode(task.evaluation, plan.tokenizer, cfg, renderer=renderer)
    refuse_unknown_tokens([*train, *exam], plan.tokenizer, rows=plan.rows)
    student = min(context_length(open_config(config.student)), plan.reach)
    if config.widen.path is not None and config.story in ("sft", "improve"):
        raise UserError(
            f"story {config.story!r} has no steps of own rollouts that widen.path could add to",
            hint="widen.path=unset, or story=distill",
        )
    if config.story == "sft":
        context = min(student, plan.teacher.context)
        return _to_imitate(config, plan, train, exam, context, told=(*plan.findings, *task.findings))
    kept, findings = fitting(train, context=student, max_tokens=config.sampling.max_tokens)
    exam, more = _examined(config, exam, student)
    kept, teacher_ids, read = _as_the_teacher_reads(kept, config, plan, renderer)
    others, other_ids, left = _others(config, plan, renderer, student)
    shown, dropped = (
        _demonstrated(config, plan, task.train, renderer, student) if _mixes(config) else ([], [])
    )
    told_context = None if config.teacher is None else config.teacher.context
    tokens = told_tokens([*kept, *others], plan.tokenizer, context=told_context)
    told = (
        *plan.findings,
        *task.findings,
        *findings,
        *more,
        *read,
        *left,
        *dropped,
        *_ungraded(task, config),
    )
    return Prompts(
        kept,
        exam,
        teacher_ids | other_ids,
        told,
        demonstrations=shown,
        others=others,
        told=tokens,
        feedback=feedback_of(config, plan, renderer) if wants_feedback(config) else None,
    )


def wants_feedback(config: Config) -> bool:
    """Whether the teacher is told what came of the student's own responses."""
    context = None if config.teacher is None else config.teacher.context
    return config.story == "distill" and FEEDBACK in (context or "")


def open_renderer(config: Config, tokenizer: Any) -> Any:
    """Whose chat template writes the prompts: the student's, whose `tokenizer` is given, or the teacher's.

    A student's own copy has the student's. UserError where there is no teacher, or it has no template.
    """
    if config.task.render == "student" or not config.task.chat_template:
        return tokenizer
    if config.teacher is None:
        raise UserError("task.render=teacher, but there is no teacher", hint="task.render=student")
    if config.teacher.type == "self":
        return tokenizer
    theirs = renderer_of(config)
    if not getattr(theirs, "chat_template", None):
        whose = getattr(config.teacher, "model", None) or "the teacher"
        raise UserError(
            f"task.render=teacher, but the tokenizer of {whose} has no chat template",
            hint="task.render=student, or task.chat_template=false",
        )
    return theirs


def _to_imitate(
    config: Config,
    plan: Plan,
    train: Sequence[Prompt],
    exam: Sequence[Prompt],
    context: int,
    *,
    told: Sequence[Finding],
) -> Prompts:
    """Demonstrations as rollouts, and what the student is examined by."""
    kept, findings = _shown(config, plan, train, context)
    exam, more = _examined(config, exam, context)
    return Prompts((), exam, {}, (*told, *findings, *more), demonstrations=kept)


def _must_be_weighted(prompts: Sequence[Prompt]) -> None:
    without = [p for p in prompts if "weight" not in p.extra]
    if without:
        raise UserError(
            f"{len(without)} of {len(prompts)} prompts have no opd.weight, the first is {without[0].source or without[0].id}",
            hint="opd prompts CONFIG prompts.responses=4 --out FILE.jsonl writes it, or objective.signal.prompts=pass_rate",
        )


def _others(
    config: Config, plan: Plan, renderer: Any, context: int
) -> tuple[list[Prompt], dict[str, tuple[int, ...]], list[Finding]]:
    """The prompts of `widen.path` as both models read them. Their ids are marked, so that no stream is drawn twice.

    UserError for rows without an answer where the story lives on scores, or that a world's verifier cannot judge.
    """
    path = config.widen.path
    if path is None:
        return [], {}, []
    must_be_file(path, key="widen.path")
    columns = config.task.model_dump(include={"prompt_key", "answer_key"})
    rows = read_prompts(path, FileTask(path=path, **columns))
    graded = config.story == "grpo" or config.objective.signal.reads_grades
    if graded and (without := [p for p in rows if p.answer is None and config.task.type != "testbed"]):
        raise UserError(
            f"{without[0].source} has no answer, and the signal of this run is made of grades",
            hint="widen.path=unset, or a file whose rows have answers",
        )
    if config.objective.signal.prompts == "row":
        _must_be_weighted(rows)
    if config.task.type == "testbed":
        refuse_foreign(rows, config.task)
    rows = tuple(replace(p, id=f"off/{p.id}") for p in rows)
    read = encode(rows, plan.tokenizer, config.task, renderer=renderer)
    refuse_unknown_tokens(read, plan.tokenizer, rows=plan.rows)
    length = config.sampling.max_tokens
    fit_in, findings = fitting(read, context=context, max_tokens=length, kind="off-distribution")
    kept, ids, more = _as_the_teacher_reads(fit_in, config, plan, renderer)
    return kept, ids, [*findings, *more]


def _mixes(config: Config) -> bool:
    return config.story == "distill" and config.mix.demonstrations > 0


def _demonstrated(
    config: Config, plan: Plan, own: Sequence[Prompt], renderer: Any, context: int
) -> tuple[list[Rollout], list[Finding]]:
    """The data beside own rollouts: of a file, or the responses that the task's rows have."""
    if config.teacher is not None and config.teacher.context is not None and config.mix.objective is not None:
        raise UserError(
            "mix.objective compares with the teacher, which reads a context of its own before every prompt",
            hint="leave mix.objective out, or teacher.context",
        )
    if config.mix.path is not None:
        must_be_file(config.mix.path, key="mix.path")
        own = read_prompts(config.mix.path, FileTask(path=config.mix.path))
    encoded = encode(own, plan.tokenizer, config.task, renderer=renderer)
    refuse_unknown_tokens(encoded, plan.tokenizer, rows=plan.rows)
    return _shown(config, plan, encoded, min(context, plan.teacher.context))


def _shown(
    config: Config, plan: Plan, train: Sequence[Prompt], context: int
) -> tuple[list[Rollout], list[Finding]]:
    """Demonstrations as rollouts; those that the context cannot hold are left out and told."""
    stops = open_stop_ids(config.student, plan.tokenizer, rows=plan.rows)
    shown = demonstrations(train, plan.tokenizer, stop_ids=config.sampling.stop_ids or stops)
    responses = [replace(r.prompt, ids=r.response_ids) for r in shown]
    refuse_unknown_tokens(responses, plan.tokenizer, rows=plan.rows)
    kept = [r for r in shown if len(r.prompt.ids) + r.length <= context]
    if not kept:
        raise UserError(
            f"no demonstration fits into the student's context of {context} tokens",
            hint="shorten them, or take a student with a longer context",
        )
    findings = []
    if len(kept) < len(shown):
        dropped = len(shown) - len(kept)
        findings = [
            Finding(
                name="demonstrations_dropped",
                severity="warning",
                message=f"{dropped} of {len(shown)} demonstrations are longer than the student's context of "
                f"{context} tokens, and were left out",
                numbers={"dropped": dropped, "demonstrations": len(shown)},
                remedy="shorten or remove them",
            )
        ]
    return kept, findings


def _examined(config: Config, exam: Sequence[Prompt], context: int) -> tuple[list[Prompt], list[Finding]]:
    key = "eval.max_tokens" if config.eval.max_tokens else "sampling.max_tokens"
    length = config.eval.max_tokens or config.sampling.max_tokens
    return fitting(exam, context=context, max_tokens=length, key=key, kind="evaluation")


def fitting(
    prompts: Sequence[Prompt],
    *,
    context: int,
    max_tokens: int,
    key: str = "sampling.max_tokens",
    kind: str = "training",
    reader: str = "student",
) -> tuple[list[Prompt], list[Finding]]:
    """Encoded prompts that leave room for a longest response in that `context`; what was dropped, told."""
    if not prompts:
        return [], []
    lengths = [len(p.ids) for p in prompts]
    if min(lengths) + max_tokens > context:
        room = context - max(lengths) if max(lengths) < context else context - min(lengths)
        raise UserError(
            f"no {kind} prompt leaves room for a response: the shortest has {min(lengths)} tokens, {key} is "
            f"{max_tokens}, the {reader}'s context is {context}",
            hint=f"{key}={room}"
            if room > 0
            else f"shorten the prompts, or take a {reader} with a longer context",
        )
    kept, dropped = fit(prompts, max_prompt_tokens=context - max_tokens)
    if not dropped:
        return list(kept), []
    room = context - max(lengths)
    finding = Finding(
        name="prompts_dropped",
        severity="warning",
        message=f"{len(dropped)} of {len(prompts)} {kind} prompts are longer than the {context - max_tokens} "
        f"tokens that the {reader}'s context leaves, and were left out",
        numbers={"dropped": len(dropped), "prompts": len(prompts), "max_prompt_tokens": context - max_tokens},
        remedy=f"{key}={room} keeps all" if room > 0 else "shorten or remove them",
    )
    return list(kept), [finding]


def refuse_unknown_tokens(prompts: Sequence[Prompt], tokenizer: Any, *, rows: int) -> None:
    """A token without a row in either model's embedding cannot be read: a template's special token, say."""
    for prompt in prompts:
        token = max(prompt.ids)
        if token >= rows:
            name = tokenizer.convert_ids_to_tokens(token)
            raise UserError(
                f"{prompt.source or prompt.id} has token {name!r}, id {token}, "
                f"but models and tokenizers share ids below {rows} only",
                hint="task.chat_template=false, or take a teacher of the student's family",
            )


def _as_the_teacher_reads(
    prompts: list[Prompt], config: Config, plan: Plan, renderer: Any
) -> tuple[list[Prompt], dict[str, tuple[int, ...]], list[Finding]]:
    """Prompts the teacher has room for as well, and what it reads where it has a context of its own."""
    cfg = config.teacher
    if cfg is None:
        return prompts, {}, []
    context = plan.teacher.context
    if isinstance(cfg, RouterTeacher):
        refuse_unrouted(prompts, cfg.teachers)
    if cfg.context is None:
        kept, findings = fitting(
            prompts, context=context, max_tokens=config.sampling.max_tokens, reader="teacher"
        )
        return kept, {}, findings
    if FEEDBACK in cfg.context:
        feedback = feedback_of(config, plan, renderer)
        some = prompts[:64]
        refuse_other_beginnings(some, feedback.read(some, ["A wrong answer: 0"] * len(some)))
        kept, findings = fitting(
            prompts, context=context, max_tokens=config.sampling.max_tokens, reader="teacher"
        )
        return kept, {}, findings
    bare = [replace(p, ids=()) for p in prompts]
    read = encode(bare, plan.tokenizer, config.task, system=filled(cfg.context, bare), renderer=renderer)
    refuse_unknown_tokens(read, plan.tokenizer, rows=plan.rows)
    refuse_other_beginnings(prompts, read)
    read, findings = fitting(read, context=context, max_tokens=config.sampling.max_tokens, reader="teacher")
    ids = {p.source: p.ids for p in read}
    return [p for p in prompts if p.source in ids], ids, findings


def feedback_of(config: Config, plan: Plan, renderer: Any) -> Feedback:
    """Who tells the teacher what came of a response; the teacher's context asks for it."""
    cfg = config.teacher
    assert cfg is not None and cfg.context is not None
    context: str = cfg.context

    def read(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Prompt]:
        bare = [replace(p, ids=()) for p in prompts]
        system = [
            said.replace(FEEDBACK, text) for said, text in zip(filled(context, bare), texts, strict=True)
        ]
        return encode(bare, plan.tokenizer, config.task, system=system, renderer=renderer)

    room = plan.teacher.context - config.sampling.max_tokens
    return Feedback(read, room=room, rows=plan.rows, alone=cfg.type == "self")


def _ungraded(task: Any, config: Config) -> list[Finding]:
    if task.graded:
        return []
    return [
        Finding(
            name="no_grader",
            severity="info",
            message="no grader, so nothing will be said about accuracy",
            remedy=_GRADER if config.task.type != "math" else 'task.eval=["aime24", "aime25"]',
        )
    ]
