"""Which rollouts go through a body together. Shared by teacher and learner.

Letters: P prompts, B rows, L tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SLACK = {"cpu": 48, "cuda": 4096}
"""Padding one forward may hold, in tokens: about what one more forward costs there. On a CPU that is 25 tokens without
and 80 with a backward, measured on bodies of 4 and 6 layers; larger ones spend more on every token."""

SHARE_GAIN = {"cpu": 0.08}
"""Share of the tokens that reading prompts once must save. A quarter saved took 22 % off a teacher's forward and 17 % off a
whole update, so masks and copied keys cost a few percent of what is left; below this nothing would be won for sure. On
other devices it was not measured, and nothing is shared."""


@dataclass(frozen=True)
class Forward:
    """Rollouts of one forward, longest first. `shared`: their prompts are read once, the responses as rows of their own."""

    rows: tuple[int, ...]
    shared: bool = False


def slack_on(device_type: str) -> int:
    return SLACK.get(device_type, SLACK["cuda"])


def forwards(
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    *,
    budget: int,
    device_type: str,
    share: bool = False,
) -> list[Forward]:
    """All rollouts in forwards of about `budget` padded tokens; `lengths` of the responses, at least 1 each.

    The last response token is read by nobody: what it predicts is not part of the response. With `share`, prompts with
    several responses are read once where that saves enough.

    >>> forwards([[5] * 40] * 4, [9, 3, 9, 9], budget=999, device_type="cpu", share=True)
    [Forward(rows=(0, 2, 3, 1), shared=True)]
    >>> forwards([[5] * 40] * 4, [9, 3, 9, 9], budget=96, device_type="cpu")
    [Forward(rows=(0, 2), shared=False), Forward(rows=(3, 1), shared=False)]
    """
    slack = slack_on(device_type)
    whole = [len(prompt) + length - 1 for prompt, length in zip(prompts, lengths, strict=True)]
    plain = [Forward(tuple(rows)) for rows in length_groups(whole, budget=budget, slack=slack)]
    if not share or device_type not in SHARE_GAIN:
        return plain
    shared = _shared_forwards(prompts, lengths, budget=budget)
    before = sum(len(f.rows) * max(whole[i] for i in f.rows) for f in plain) + slack * len(plain)
    after = sum(_padded(f.rows, prompts, lengths) for f in shared) + 2 * slack * len(shared)
    return shared if after <= (1.0 - SHARE_GAIN[device_type]) * before else plain


def _shared_forwards(
    prompts: Sequence[Sequence[int]], lengths: Sequence[int], *, budget: int
) -> list[Forward]:
    """Whole prompts with all their rows, those with the longest responses first."""
    of: dict[tuple[int, ...], list[int]] = {}
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        of.setdefault(tuple(prompts[i]), []).append(i)
    groups: list[list[int]] = []
    for rows in of.values():
        if groups and _padded([*groups[-1], *rows], prompts, lengths) <= budget:
            groups[-1] += rows
        else:
            groups.append(list(rows))
    return [Forward(tuple(rows), shared=True) for rows in groups]


def _padded(rows: Sequence[int], prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    """Tokens of a shared forward: its prompts once, then its responses, each padded to the longest of them."""
    distinct = {tuple(prompts[i]) for i in rows}
    return len(distinct) * max(map(len, distinct)) + len(rows) * max(lengths[i] - 1 for i in rows)


def length_groups(lengths: Sequence[int], *, budget: int, slack: int) -> list[list[int]]:
    """Indices in groups, longest first, each at most `budget` padded tokens (a single longer row goes alone).

    A group is closed before its padding exceeds `slack`. Longest first, so that a batch which does not fit in
    memory fails at once.

    >>> length_groups([2, 9, 3, 8], budget=18, slack=100)
    [[1, 3], [2, 0]]
    >>> length_groups([9, 8, 4, 3], budget=1000, slack=5)
    [[0, 1], [2, 3]]
    """
    groups: list[list[int]] = []
    padding = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = lengths[groups[-1][0]] if groups else 0
        padding += longest - lengths[i]
        if groups and (len(groups[-1]) + 1) * longest <= budget and padding <= slack:
            groups[-1].append(i)
        else:
            groups.append([i])
            padding = 0
    return groups
