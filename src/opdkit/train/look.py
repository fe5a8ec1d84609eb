"""Look at a few rollouts token by token: what each model gave the token taken, and what it would rather have said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from opdkit.models.head import Head, read
from opdkit.models.load import LoadedModel
from opdkit.models.teacher import LocalTeacher
from opdkit.types import Needs, Rollout

WIDTH = 5  # candidates of each model


@torch.no_grad()
def tokens_of(
    rollouts: Sequence[Rollout],
    *,
    student: LoadedModel,
    teacher: LoadedModel,
    temperatures: tuple[float, float],
) -> list[dict[str, Any]]:
    """Per rollout: `text`, `student_logp`, `teacher_logp` [T] of the tokens taken, in nats, and `student_top`,
    `teacher_top` [T, 5] of (text, student's log-prob, teacher's), most probable first."""
    own = [replace(r, teacher_prompt_ids=None) for r in rollouts]  # the student read its own prompt
    ours, theirs = _reader(student, temperatures[0]), _reader(teacher, temperatures[1])
    mine, other = (reader.score(r, needs=Needs(full=True)) for reader, r in ((ours, own), (theirs, rollouts)))
    return [
        _told(rollout, p.hidden, q.hidden, heads=(ours.head, theirs.head), tokenizer=student.tokenizer)
        for rollout, p, q in zip(rollouts, mine, other, strict=True)
    ]


def _reader(loaded: LoadedModel, temperature: float) -> LocalTeacher:
    return LocalTeacher(loaded, temperature=temperature, frozen=False)


def _told(
    rollout: Rollout, student: Any, teacher: Any, *, heads: tuple[Head, Head], tokenizer: Any
) -> dict[str, Any]:
    """`student` and `teacher` [T, D]: the states that predict the response's tokens."""
    taken = torch.tensor(rollout.response_ids, dtype=torch.long, device=student.device)
    wanted = Needs(sampled=True, top_k=min(WIDTH, heads[0].rows, heads[1].rows))
    p, q = (
        read(h, head, needs=wanted, sampled_ids=taken)
        for h, head in zip((student, teacher), heads, strict=True)
    )
    p_at = read(student, heads[0], needs=Needs(at_ids=True), ids=q.topk_ids)
    q_at = read(teacher, heads[1], needs=Needs(at_ids=True), ids=p.topk_ids)
    return {
        "text": [tokenizer.decode([i]) for i in rollout.response_ids],
        "student_logp": _listed(p.sampled),
        "teacher_logp": _listed(q.sampled),
        "student_top": _named(p.topk_ids, p.topk_logp, q_at.at_logp, tokenizer),
        "teacher_top": _named(q.topk_ids, p_at.at_logp, q.topk_logp, tokenizer),
    }


def _named(ids: Any, student: Any, teacher: Any, tokenizer: Any) -> list[list[list[Any]]]:
    return [
        [[tokenizer.decode([i]), p, q] for i, p, q in zip(row_ids, row_p, row_q, strict=True)]
        for row_ids, row_p, row_q in zip(ids.tolist(), _listed(student), _listed(teacher), strict=True)
    ]


def _listed(values: Any) -> list[Any]:
    """Rounded to 1e-4 nats: these are for eyes."""
    return (values.double() * 1e4).round().div(1e4).tolist()
