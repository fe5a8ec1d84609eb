"""A teacher that is told what came of the student's own responses: `{feedback}` in `teacher.context` (SDPO, arXiv 2601.20802).

What it is told of a response, once the step's responses are graded (`group`: those to the same prompt):

    another of its group was right     that one's text: how the student itself gets there
    it is wrong, and no other right    its own text, and that it is wrong
    anything else                      nothing, and the teacher reads what the student read

Right is the full score, 1. Under `teacher.type = "self"` a response of which nothing is told does not train: its teacher is the
student's copy with the same prompt. `told_fraction` counts the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from opdkit.types import Prompt, Rollout

RIGHT = 1.0
Read = Callable[[Sequence[Prompt], Sequence[str]], Sequence[Prompt]]
"""Prompts and what each is told → the prompts as the teacher reads them."""


@dataclass(frozen=True)
class Feedback:
    """Who reads the rollouts' prompts with what came of them. `alone`: what nothing is told of does not train.

    `room`: most prompt tokens the teacher reads, and `rows`: ids it knows; beyond them nothing is told.
    """

    read: Read
    room: int
    rows: int
    alone: bool

    def given(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The graded rollouts with the prompts their teacher reads."""
        said = told(rollouts)
        asked = [r.prompt for r, text in zip(rollouts, said, strict=True) if text]
        read = iter(self.read(asked, [text for text in said if text]))
        ids = [next(read).ids if text else () for text in said]
        return [self._with(r, there) for r, there in zip(rollouts, ids, strict=True)]

    def _with(self, rollout: Rollout, ids: tuple[int, ...]) -> Rollout:
        if ids and len(ids) <= self.room and max(ids) < self.rows:
            return replace(rollout, teacher_prompt_ids=ids)
        return replace(rollout, trained=(False,) * rollout.length) if self.alone else rollout

    def numbers(self, rollouts: Sequence[Rollout]) -> dict[str, tuple[float, float]]:
        """`told_fraction` as sum and count."""
        some = sum(r.teacher_prompt_ids is not None for r in rollouts)
        return {"told_fraction": (float(some), float(len(rollouts)))}


def told(rollouts: Sequence[Rollout]) -> list[str]:
    """What the teacher is told of each; "" is nothing.

    >>> from opdkit.types import Grade
    >>> group = [Rollout(Prompt("a"), (1,), "stop", text=t, grade=Grade(s)) for t, s in (("x", 0.0), ("y", 1.0))]
    >>> told(group), told(group[:1])
    (['A right answer: y', ''], ['A wrong answer: x'])
    """
    groups: dict[str, list[int]] = {}
    for i, rollout in enumerate(rollouts):
        groups.setdefault(rollout.prompt.id, []).append(i)
    return [_of(i, rollouts, groups[rollout.prompt.id]) for i, rollout in enumerate(rollouts)]


def _of(i: int, rollouts: Sequence[Rollout], group: Sequence[int]) -> str:
    for other in group:
        if other != i and _is_right(rollouts[other]):
            return f"A right answer: {rollouts[other].text}"
    score = _score(rollouts[i])
    return f"A wrong answer: {rollouts[i].text}" if score is not None and score < RIGHT else ""


def _is_right(rollout: Rollout) -> bool:
    score = _score(rollout)
    return score is not None and score >= RIGHT


def _score(rollout: Rollout) -> float | None:
    return None if rollout.grade is None else rollout.grade.score
