"""Look at a few rollouts token by token: what each model gave the token taken, and what it would rather have said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from opdkit.models.contracts import Teacher
from opdkit.models.load import LoadedModel
from opdkit.models.teacher import LocalTeacher
from opdkit.types import Needs, Rollout, Scores

WIDTH = 5  # candidates of each model


@torch.no_grad()
def tokens_of(
    rollouts: Sequence[Rollout],
    *,
    student: LoadedModel,
    teacher: Teacher,
    temperature: float,
) -> list[dict[str, Any]]:
    """Per rollout: `text`, `student_logp`, `teacher_logp` [T] of the tokens taken, in nats, and `student_top`,
    `teacher_top` [T, 5] of (text, student's log-prob, teacher's), most probable first.

    A teacher that sends only its own top-k leaves out the student's candidates that are not among them."""
    own = [replace(r, teacher_prompt_ids=None) for r in rollouts]  # the student read its own prompt
    ours = LocalTeacher(student, temperature=temperature, payload="ids", frozen=False)
    asked = _at_ids(teacher)
    width = min(WIDTH, student.head.rows, asked.offers.top_k)
    mine = ours.score(own, needs=Needs(sampled=True, top_k=width))
    at = asked.offers.at_ids
    ids = [_ids(p) for p in mine]
    theirs = asked.score(rollouts, needs=Needs(sampled=True, top_k=width, at_ids=at), ids=ids if at else None)
    back = ours.score(own, needs=Needs(at_ids=True), ids=[_ids(q) for q in theirs])
    return [
        _told(r, p, q, p_at.at_logp, tokenizer=student.tokenizer)
        for r, p, q, p_at in zip(rollouts, mine, theirs, back, strict=True)
    ]


def _at_ids(teacher: Teacher) -> Teacher:
    """The same teacher, sending log-probs: one that lends its head answers here."""
    if isinstance(teacher, LocalTeacher):
        return LocalTeacher(teacher.loaded, temperature=teacher.temperature, payload="ids", frozen=False)
    return teacher


def _ids(scores: Scores) -> Tensor:
    assert scores.topk_ids is not None
    return scores.topk_ids


def _told(rollout: Rollout, p: Scores, q: Scores, p_at: Tensor | None, *, tokenizer: Any) -> dict[str, Any]:
    """`p_at` [T, K]: the student's log-probs at the teacher's candidates."""
    return {
        "text": [tokenizer.decode([i]) for i in rollout.response_ids],
        "student_logp": _listed(p.sampled),
        "teacher_logp": _listed(q.sampled),
        "student_top": _named(p.topk_ids, p.topk_logp, _teacher_at(p, q), tokenizer),
        "teacher_top": _named(q.topk_ids, p_at, q.topk_logp, tokenizer),
    }


def _teacher_at(p: Scores, q: Scores) -> Tensor:
    """The teacher's log-probs at the student's candidates: sent, or found among its own; nan where neither."""
    if q.at_logp is not None:
        return q.at_logp
    match = _ids(p)[:, :, None] == _ids(q)[:, None, :].to(_ids(p).device)
    assert q.topk_logp is not None
    found = q.topk_logp.to(match.device).gather(-1, match.int().argmax(-1))
    return torch.where(match.any(-1), found, torch.nan)


def _named(ids: Any, student: Any, teacher: Any, tokenizer: Any) -> list[list[list[Any]]]:
    return [
        [
            [tokenizer.decode([i]), p, q]
            for i, p, q in zip(row_ids, row_p, row_q, strict=True)
            if p == p and q == q
        ]
        for row_ids, row_p, row_q in zip(ids.tolist(), _listed(student), _listed(teacher), strict=True)
    ]


def _listed(values: Any) -> list[Any]:
    """Rounded to 1e-4 nats: these are for eyes."""
    return (values.double() * 1e4).round().div(1e4).tolist()
