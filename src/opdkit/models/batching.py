"""Rows of like length together, within a budget of padded tokens. Shared by teacher and learner."""

from collections.abc import Sequence


def length_groups(lengths: Sequence[int], *, budget: int) -> list[list[int]]:
    """Indices in groups, longest first, each at most `budget` padded tokens (a single longer row goes alone).

    Longest first, so that a batch which does not fit in memory fails at once.

    >>> length_groups([2, 9, 3, 8], budget=18)
    [[1, 3], [2, 0]]
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
