"""A teacher that is told more: the answer or a demonstration in its prompt, of the very question (arXiv 2601.18734, 2601.19897).

`teacher.context` with {answer} or {response} is filled from each row and read by the teacher alone. Two things can go wrong:

    the response begins elsewhere   both prompts must end in the same tokens, or one model reads the response after another state
    the student copies              what it could not know it learns to claim; told as `copied_fraction`: responses with a run of
                                    COPIED tokens of the privileged text that their own prompt has not

A demonstration in the student's own style shares such runs with every right response, so what is judged is the rise of
`copied_fraction` over the run (health, `privileged_leak`). An {answer} alone is shorter than a run: copying it is not seen here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opdkit.types import Prompt, Rollout, UserError

COPIED = 8
"""Tokens of a run: longer than a phrase that any two texts share, shorter than a line of working."""
FEEDBACK = "{feedback}"
"""Filled for each response, when it is graded (train/feedback.py); the others from the prompt's row."""
_KEYS = {"answer": "task.answer_key", "response": "task.response_key"}


def fields_of(context: str | None) -> list[str]:
    """Names of what a context wants filled.

    >>> fields_of("It ends in {answer}. Solve it {anew}.")
    ['answer']
    """
    return [name for name in _KEYS if f"{{{name}}}" in (context or "")]


def filled(context: str, prompts: Sequence[Prompt]) -> list[str]:
    """The context of every prompt. UserError where a row lacks what it is to be told."""
    names = fields_of(context)
    texts = []
    for prompt in prompts:
        text = context
        for name in names:
            value = getattr(prompt, name)
            if not value:
                raise UserError(
                    f"teacher.context tells {{{name}}}, and {prompt.source or prompt.id} has none",
                    hint=f"{_KEYS[name]}=COLUMN with it, or a row for every prompt",
                )
            text = text.replace(f"{{{name}}}", value)
        texts.append(text)
    return texts


def read_by_teacher(context: str | None, prompts: Sequence[Prompt]) -> list[str] | None:
    """What the teacher alone reads before any response is there; None for nothing. UserError as `filled`."""
    if context is None or FEEDBACK in context:
        return None
    return filled(context, prompts)


def refuse_other_beginnings(own: Sequence[Prompt], read: Sequence[Prompt]) -> None:
    """UserError where student and teacher would read a response after other tokens.

    What all of the student's prompts end in is what the template writes before a response; the teacher's must end in it too.
    """
    tail = _tail([prompt.ids for prompt in own])
    for ours, theirs in zip(own, read, strict=True):
        shared = len(_common_end(ours.ids, theirs.ids))
        if shared < max(1, min(tail, len(ours.ids))):
            raise UserError(
                f"with teacher.context the prompt of {ours.source or ours.id} ends in other tokens: the teacher would read the "
                f"response after another beginning (the last {shared} of {tail} are the same)",
                hint="a teacher.context without what the chat template treats apart, or task.render=student",
            )


def _tail(rows: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all rows end in; of a single row nothing is known but its last.

    >>> _tail([(1, 2, 8, 9), (3, 8, 9)]), _tail([(1, 2)])
    (2, 1)
    """
    if len(set(rows)) < 2:
        return 1
    first, *others = sorted(set(rows))
    return min(len(_common_end(first, other)) for other in others)


def _common_end(a: Sequence[int], b: Sequence[int]) -> Sequence[int]:
    n = 0
    while n < min(len(a), len(b)) and a[-1 - n] == b[-1 - n]:
        n += 1
    return a[len(a) - n :]


def told_tokens(
    prompts: Sequence[Prompt], tokenizer: Any, *, context: str | None
) -> dict[str, tuple[int, ...]]:
    """Prompt source → tokens of the demonstration that the teacher is told; {} where it is told none."""
    if "response" not in fields_of(context):
        return {}
    rows = tokenizer([prompt.response or "" for prompt in prompts], add_special_tokens=False)["input_ids"]
    return {prompt.source: tuple(row) for prompt, row in zip(prompts, rows, strict=True)}


def copies(response: Sequence[int], told: Sequence[int], own: Sequence[int], *, length: int = COPIED) -> bool:
    """Whether the response has a run of tokens of what was told, which its own prompt has not.

    >>> copies((7, 1, 2, 3), told=(1, 2, 3, 4), own=(5,), length=3), copies((1, 2, 3), (1, 2, 3), (1, 2, 3), length=3)
    (True, False)
    """
    return bool((_runs(response, length) & _runs(told, length)) - _runs(own, length))


def _runs(ids: Sequence[int], length: int) -> set[tuple[int, ...]]:
    return {tuple(ids[i : i + length]) for i in range(len(ids) - length + 1)}


def copied(
    rollouts: Sequence[Rollout], told: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[float, float]]:
    """`copied_fraction` as sum and count over rollouts; nothing where nobody was told a demonstration."""
    if not told:
        return {}
    found = [
        copies(r.response_ids, told[r.prompt.source], r.prompt.ids)
        for r in rollouts
        if r.prompt.source in told
    ]
    return {"copied_fraction": (float(sum(found)), float(len(found)))}
