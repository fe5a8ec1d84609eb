"""State coverage of a set of prompts: which clusters of states its rollouts reach (F37, arXiv 2609.04172).

Letters: N states, D their width, C clusters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROUNDS = 25
"""Of Lloyd's iterations; fewer where nothing moves."""
BLOCK = 4096
"""States whose distances are held at once."""


def kmeans(states: Float[Tensor, "N D"], *, clusters: int, seed: int) -> Int[Tensor, " N"]:
    """The cluster of every state, numbered from 0; at most `clusters`, fewer where fewer states differ.

    First centres are drawn one after another with probability ∝ squared distance to those there are (k-means++).
    """
    generator = torch.Generator().manual_seed(seed)
    states = states.detach().float().cpu()
    centres = _first(states, clusters, generator)
    labels = _labels(states, centres)
    for _ in range(ROUNDS):
        centres = _means(states, labels, centres)
        again = _labels(states, centres)
        if torch.equal(again, labels):
            break
        labels = again
    return torch.unique(labels, return_inverse=True)[1]  # a centre that nothing is nearest to is no cluster


def _first(states: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    chosen = [int(torch.randint(len(states), (1,), generator=generator))]
    distance = (states - states[chosen[0]]).square().sum(1)
    while len(chosen) < clusters and float(distance.max()) > 0:
        chosen.append(int(torch.multinomial(distance.double(), 1, generator=generator)))
        distance = torch.minimum(distance, (states - states[chosen[-1]]).square().sum(1))
    return states[chosen]


def _labels(states: Tensor, centres: Tensor) -> Tensor:
    return torch.cat([torch.cdist(block, centres).argmin(1) for block in states.split(BLOCK)])


def _means(states: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """Of the states of each cluster; one that has none stays where it is."""
    count = torch.bincount(labels, minlength=len(centres))
    total = torch.zeros_like(centres).index_add_(0, labels, states)
    return torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], centres)


def reached(labels: Iterable[Iterable[int]]) -> set[int]:
    """The clusters that some prompts reach together."""
    return {int(label) for mine in labels for label in mine}


def widest(labels: Sequence[Iterable[int]], *, count: int) -> list[int]:
    """`count` prompts that together reach many clusters, greedily; the first of equals.

    Each next one adds the most clusters that were not reached yet: at least 1 − 1/e of what the best choice reaches. Once all
    are reached, those that reach most.

    >>> widest([[0, 1], [0], [2, 3, 4], [1, 2]], count=2)
    [2, 0]
    """
    sets = [set(map(int, mine)) for mine in labels]
    there: set[int] = set()
    chosen: list[int] = []
    left = list(range(len(sets)))
    while left and len(chosen) < count:
        best = max(left, key=lambda i: (len(sets[i] - there), len(sets[i]), -i))
        chosen.append(best)
        left.remove(best)
        there |= sets[best]
    return chosen
