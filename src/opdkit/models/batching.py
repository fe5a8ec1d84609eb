"""Rows of like length together, within a budget of padded tokens. Shared by teacher and learner."""

from collections.abc import Sequence

SLACK = {"cpu": 256, "cuda": 4096}
"""Padding one forward may hold, in tokens: about what one more forward costs a small model there."""


def slack_on(device_type: str) -> int:
    return SLACK.get(device_type, SLACK["cuda"])


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
