"""Look at a few rollouts token by token: what each model gave the token taken, and what it would rather have said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opdkit.models.load import LoadedModel
from opdkit.models.teacher import LocalTeacher
from opdkit.types import Needs, Rollout, Scores

WIDTH = 5  # candidates of each model


def tokens_of(
    rollouts: Sequence[Rollout],
    *,
    student: LoadedModel,
    teacher: LoadedModel,
    temperatures: tuple[float, float],
) -> list[dict[str, Any]]:
    """Per rollout: `text`, `student_logp`, `teacher_logp` [T] of the tokens taken, in nats, and `student_top`,
    `teacher_top` [T, 5] of (text, student's log-prob, teacher's), most probable first. Each model reads twice."""
    ours, theirs = _reader(student, temperatures[0]), _reader(teacher, temperatures[1])
    own = [replace(r, teacher_prompt_ids=None) for r in rollouts]  # the student read its own prompt
    mine = ours.score(own, needs=_needs(student))
    other = theirs.score(rollouts, needs=_needs(teacher))
    mine_at_other = ours.score(own, needs=Needs(at_ids=True), ids=[_ids(s) for s in other])
    other_at_mine = theirs.score(rollouts, needs=Needs(at_ids=True), ids=[_ids(s) for s in mine])
    return [
        _told(*row, tokenizer=student.tokenizer)
        for row in zip(rollouts, mine, other, mine_at_other, other_at_mine, strict=True)
    ]


def _reader(loaded: LoadedModel, temperature: float) -> LocalTeacher:
    return LocalTeacher(loaded, temperature=temperature, payload="ids", frozen=False)


def _needs(loaded: LoadedModel) -> Needs:
    return Needs(sampled=True, top_k=min(WIDTH, loaded.head.rows))


def _ids(scores: Scores) -> Any:
    assert scores.topk_ids is not None
    return scores.topk_ids


def _told(
    rollout: Rollout,
    mine: Scores,
    other: Scores,
    mine_at_other: Scores,
    other_at_mine: Scores,
    *,
    tokenizer: Any,
) -> dict[str, Any]:
    return {
        "text": [tokenizer.decode([i]) for i in rollout.response_ids],
        "student_logp": _listed(mine.sampled),
        "teacher_logp": _listed(other.sampled),
        "student_top": _named(mine.topk_ids, mine.topk_logp, other_at_mine.at_logp, tokenizer),
        "teacher_top": _named(other.topk_ids, mine_at_other.at_logp, other.topk_logp, tokenizer),
    }


def _named(ids: Any, student: Any, teacher: Any, tokenizer: Any) -> list[list[list[Any]]]:
    return [
        [[tokenizer.decode([i]), p, q] for i, p, q in zip(row_ids, row_p, row_q, strict=True)]
        for row_ids, row_p, row_q in zip(ids.tolist(), _listed(student), _listed(teacher), strict=True)
    ]


def _listed(values: Any) -> list[Any]:
    """Rounded to 1e-4 nats: these are for eyes."""
    return (values.double() * 1e4).round().div(1e4).tolist()
