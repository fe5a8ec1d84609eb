"""Which prompts a step uses: a function of (seed, step), so a resume needs no replay."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")


def step_prompts(prompts: Sequence[T], *, step: int, seed: int, count: int) -> list[T]:
    """The `count` prompts (or demonstrations) of `step` (from 0): a walk through one permutation per epoch, each drawn from
    (seed, epoch).

    Step s takes the walk's places s·count … (s+1)·count − 1, so an epoch holds every prompt once, and a step
    may lie across two epochs or, with a small set, hold a prompt more than once.

    >>> two_epochs = [p for step in range(3) for p in step_prompts("abc", step=step, seed=0, count=2)]
    >>> sorted(two_epochs[:3]), sorted(two_epochs[3:])
    (['a', 'b', 'c'], ['a', 'b', 'c'])
    """
    assert step >= 0, "steps count from 0"
    return walk(prompts, begin=step * count, count=count, seed=seed)


def walk(prompts: Sequence[T], *, begin: int, count: int, seed: int) -> list[T]:
    """Places `begin` … `begin + count − 1` of that walk, for steps that do not all take as many.

    >>> walk("abc", begin=0, count=4, seed=0) == [*step_prompts("abc", step=0, seed=0, count=4)]
    True
    """
    assert (prompts or not count) and begin >= 0 and count >= 0, "prompts is not empty, places count from 0"
    chosen = []
    for place in range(begin, begin + count):
        epoch, offset = divmod(place, len(prompts))
        chosen.append(prompts[_permutation(len(prompts), seed, epoch)[offset]])
    return chosen


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Sorted by a hash: the same on every machine and release, which no library promises for its shuffle."""

    def draw(i: int) -> bytes:
        return blake2b(f"{seed}:{epoch}:{i}".encode(), digest_size=16).digest()

    return tuple(sorted(range(size), key=draw))
