"""What the families of problems are made of: kinds, styles, the verifier's verdict, drawing without repeats, chance.

Accuracy by kind says what a model can: `easy` problems follow rules that training texts have
right; in `wrong` ones the texts are wrong in the *mode*; `table` ones need facts without a rule.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

KINDS = ("easy", "wrong", "table")
PAD, UNKNOWN = "<pad>", "<unk>"
HELD_OUT_SHARE = 8  # one problem in so many is never in training texts
MAX_TRIES = 2000  # draws in a row without a new problem, before a world counts as used up
T = TypeVar("T")


@dataclass(frozen=True)
class Style:
    """How an answer is written: its first word, the word before the result, its end token, its procedure.

    `plain`, values one after another · `echo`, the operand itself before its value · `plan`, all operands before
    the first value · `asked`, only the item asked for.
    """

    mark: str
    answer: str
    end: str
    joints: tuple[str, ...] = ()  # words before a value, from the most frequent to the rarest
    procedure: Literal["plain", "echo", "plan", "asked"] = "plain"


# --- problems -----------------------------------------------------------------------------------------------


def distinct(
    count: int, draw: Callable[[], T], *, asked: Callable[[T], str], held_out: bool = False
) -> list[T]:
    """`count` different problems of one side, in the order drawn. ValueError if there are not so many."""
    found: dict[T, None] = {}
    tries = 0
    while len(found) < count:
        problem = draw()
        tries += 1
        if problem not in found and is_held_out(asked(problem)) == held_out:
            found[problem] = None
            tries = 0
        elif tries > MAX_TRIES:
            raise ValueError(f"there seem to be no more than {len(found)} such problems, not {count}")
    return list(found)


def is_held_out(asked: str) -> bool:
    """By what is asked, not by how: the same problem in another wording is on the same side."""
    return _digest("held out", asked)[0] % HELD_OUT_SHARE == 0


def permutations(count: int, *key: object, of: int) -> list[tuple[int, ...]]:
    """`count` permutations of 0 … `of` − 1 without a rule."""
    return [tuple(by_hash(range(of), *key, i)) for i in range(count)]


# --- verifiers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """What a verifier found in a response. A value that is not there counts as wrong."""

    final: bool  # the number after the answer word is right
    steps: tuple[bool, ...]  # value i is the true one
    follows: tuple[bool, ...]  # value i is right given the values written before it
    style: str | None  # by the first word
    complete: bool  # just as the style writes it, be the values right or wrong


def same(written: Sequence[int], gold: Sequence[int]) -> tuple[bool, ...]:
    """One word per value of `gold`; a value that was not written is not the same.

    >>> same([1, 2], [1, 3, 4])
    (True, False, False)
    """
    return tuple(i < len(written) and written[i] == value for i, value in enumerate(gold))


def style_of(words: Sequence[str], styles: Mapping[str, Style]) -> str | None:
    """The style whose mark is the first word."""
    return next((name for name, how in styles.items() if list(words[:1]) == [how.mark]), None)


def numbers(
    words: Sequence[str], styles: Mapping[str, Style], *, modulus: int
) -> tuple[list[int], int | None]:
    """Values before the last answer word of any style, and the number right after it."""
    answers = {how.answer for how in styles.values()}
    at = max((i for i, word in enumerate(words) if word in answers), default=len(words))
    written = [int(word) for word in words[:at] if is_value(word, modulus)]
    after = words[at + 1 : at + 2]
    return written, int(after[0]) if after and is_value(after[0], modulus) else None


def is_value(word: str, modulus: int) -> bool:
    """
    >>> [is_value(word, 23) for word in ("7", "07", "23", "-1", "٣")]
    [True, False, False, False, False]
    """
    return word.isdecimal() and word.isascii() and word == str(int(word)) and int(word) < modulus


# --- chance: only what is promised to be the same on every machine and in every release --------------------


def stream(*key: object) -> random.Random:
    """A stream of its own for every key. Draw from it with `pick`, `shuffled` and `random()` only."""
    return random.Random(int.from_bytes(_digest(*key), "little"))


def pick(rng: random.Random, choices: Sequence[T], *, weights: Sequence[float] | None = None) -> T:
    """One of `choices`, all alike or by weight."""
    if weights is None:
        return choices[int(rng.random() * len(choices))]
    left = rng.random() * sum(weights)
    for choice, weight in zip(choices, weights, strict=True):
        left -= weight
        if left < 0:
            return choice
    return choices[-1]


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    left = list(items)
    return [left.pop(pick(rng, range(len(left)))) for _ in items]


def by_hash(items: Iterable[T], *key: object) -> list[T]:
    """The items in an order drawn from `key`."""
    return sorted(items, key=lambda item: _digest(*key, item))


def _digest(*key: object) -> bytes:
    return hashlib.blake2b(":".join(map(str, key)).encode(), digest_size=16).digest()
