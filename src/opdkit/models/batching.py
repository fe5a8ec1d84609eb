"""Which rollouts go through a body together. Shared by teacher and learner.

Letters: P prompts, B rows, L tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Way = Literal["plain", "shared", "joined"]

SLACK = {"cpu": 48, "cuda": 4096}
"""Padding one forward may hold, in tokens: about what one more forward costs there. On a CPU that is 25 tokens without
and 80 with a backward, measured on bodies of 4 and 6 layers; larger ones spend more on every token."""

SHARE_GAIN = {"cpu": 0.08}
"""Share of the tokens that reading prompts once must save. A quarter saved took 22 % off a teacher's forward and 17 % off a
whole update, so masks and copied keys cost a few percent of what is left; below this nothing would be won for sure. On
other devices it was not measured, and nothing is shared."""

JOINED_TOKENS = {"cpu": 4096}
"""Tokens of rows that stand end to end in one forward, at most. An update of 2,700 tokens in one took .83 of its time in
padded rows; cut into forwards of 1,536 tokens .86, of 1,024 .90, of 512 .95. Elsewhere it was not measured: nothing is joined."""

JOINED_ROW = 4
"""Tokens that one more row costs there: its attention is a call of its own."""

WAYS: Mapping[Way, Collection[str]] = {"shared": SHARE_GAIN, "joined": JOINED_TOKENS}
"""Ways to lay rows out beside plain ones, and the devices they are for."""


@dataclass(frozen=True)
class Forward:
    """Rollouts of one forward, longest first. "shared": their prompts are read once, the responses as rows of their own;
    "joined": all rows end to end in one."""

    rows: tuple[int, ...]
    way: Way = "plain"


def slack_on(device_type: str) -> int:
    return SLACK.get(device_type, SLACK["cuda"])


def forwards(
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    *,
    budget: int,
    device_type: str,
    ways: Collection[Way] = (),
) -> list[Forward]:
    """All rollouts in forwards of about `budget` padded tokens; `lengths` of the responses, at least 1 each.

    The last response token is read by nobody: what it predicts is not part of the response. Of `ways`, those the body knows,
    the one that costs least: rows end to end where much would be padded, prompts read once where that saves enough.

    >>> forwards([[5] * 40] * 4, [9, 3, 9, 9], budget=999, device_type="cpu", ways=["shared"])
    [Forward(rows=(0, 2, 3, 1), way='shared')]
    >>> forwards([[5] * 40] * 4, [9, 3, 9, 9], budget=96, device_type="cpu")
    [Forward(rows=(0, 2), way='plain'), Forward(rows=(3, 1), way='plain')]
    >>> forwards([[5], [5], [5]], [400, 300, 100], budget=2000, device_type="cpu", ways=["joined"])
    [Forward(rows=(0, 1, 2), way='joined')]
    """
    slack = slack_on(device_type)
    whole = [len(prompt) + length - 1 for prompt, length in zip(prompts, lengths, strict=True)]
    found = [Forward(tuple(rows)) for rows in length_groups(whole, budget=budget, slack=slack)]
    cost = sum(len(f.rows) * max(whole[i] for i in f.rows) for f in found) + slack * len(found)
    if "joined" in ways and device_type in JOINED_TOKENS:
        joined = _joined_forwards(whole, most=min(budget, JOINED_TOKENS[device_type]))
        tokens = sum(whole) + JOINED_ROW * len(whole) + slack * len(joined)
        if tokens < cost:
            found, cost = joined, tokens
    if "shared" in ways and device_type in SHARE_GAIN:
        shared = _shared_forwards(prompts, lengths, budget=budget)
        tokens = sum(_padded(f.rows, prompts, lengths) for f in shared) + 2 * slack * len(shared)
        if tokens <= (1.0 - SHARE_GAIN[device_type]) * cost:
            found = shared
    return found


def _joined_forwards(lengths: Sequence[int], *, most: int) -> list[Forward]:
    """Longest first, in forwards of about one size, at most `most` tokens each (a single longer row goes alone)."""
    each = sum(lengths) / max(1, -(-sum(lengths) // most))
    groups: list[list[int]] = []
    begun = here = 0  # tokens of the groups before, of the last one
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and begun + here < each * len(groups) and here + lengths[i] <= most:
            groups[-1].append(i)
            here += lengths[i]
        else:
            groups.append([i])
            begun, here = begun + here, lengths[i]
    return [Forward(tuple(rows), "joined") for rows in groups]


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
    return [Forward(tuple(rows), "shared") for rows in groups]


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
