"""Number chains, the small testbed's first family: start at a number, apply operands one after another, mod 97.

    prompt    read number 45 then +3 then t2 then -7 then . please =>
    answer    run so 48 now 31 so 24 answer 24 <done>

What makes it a testbed is what the training texts say. Operands are of three kinds: `easy` shifts, always right;
`wrong` shifts, whose written value is off by a fixed ±10 in `wrong_share` of the texts, so that imitation makes
the *mode* wrong while the truth stays likely enough to be found by sampling; and `table` operands, permutations
of all values without a rule, facts that only a large or long-trained model knows. A problem holds operands of
at most one kind beside easy ones, so that accuracy by kind says what a model can and cannot.

Four styles of answer end in the same number: `steps` and `other` differ in every word, `echo` and `plan` in
the procedure too. The first word of an answer tells its style, the last is the style's own end token.

Everything is a function of (world, seed, arguments). Unused operand slots hold `.` so that operand i has the
same distance to step i in every prompt: a model with rotary positions finds it by looking back so far.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from opdkit.types import Prompt

KINDS = ("easy", "wrong", "table")
PAD, UNKNOWN = "<pad>", "<unk>"
HELD_OUT_SHARE = 8  # one problem in so many is never in training texts


@dataclass(frozen=True)
class Style:
    """How an answer is written: its first word, the word before the result, its end token, its procedure."""

    mark: str
    answer: str
    end: str
    joints: tuple[
        str, ...
    ] = ()  # words before a value, the first the most frequent; none = the operand itself
    plan: bool = False  # all operands are listed before the first value


STYLES: Mapping[str, Style] = {
    "steps": Style(
        "run", "answer", "<done>", joints=tuple("so now next thus hence giving making yields".split())
    ),
    "other": Style(
        "walk", "result", "<over>", joints=tuple("after onward further later again soon brings leads".split())
    ),
    "echo": Style("trace", "finally", "<stop>"),
    "plan": Style("plan", "total", "<end>", plan=True),
}
_TEMPLATES = (("read", "number", "please"), ("from", "value", "solve"), ("given", "integer", "quickly"))
_GLUE = ("then", ".", "=>", ":")
_SLIPS = (-10, -3, -2, -1, 1, 2, 3, 10)
T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """One chain. `template` is the wording around it and no part of what is asked."""

    start: int
    operands: tuple[str, ...]
    kind: str
    template: int = 0


@dataclass(frozen=True)
class Check:
    """What a verifier found in a response. Steps are judged twice: against the truth, and given the value before."""

    final: bool  # the number after the answer word is right
    steps: tuple[bool, ...]  # value i is the true one; values that are not there count as wrong
    follows: tuple[bool, ...]  # value i is operand i applied to the written value i − 1
    style: str | None  # by the first word
    complete: bool  # exactly as the style writes it, every value right or wrong


@dataclass(frozen=True)
class ChainWorld:
    """One world of chains; another `seed` is another choice of wrong operands, shifts and tables.

    >>> world = ChainWorld()
    >>> problem = world.parse("read number 45 then +3 then -7 then . then . please =>")
    >>> world.values(problem)
    (48, 41)
    >>> world.check(problem, "run so 48 now 41 answer 41").final
    True
    """

    seed: int = 0
    modulus: int = 97
    depth: tuple[int, int] = (2, 4)  # operands of a problem, fewest and most; the most are the prompt's slots
    num_wrong: int = 6  # of the 18 shifts
    num_tables: int = 12
    kinds: tuple[float, float, float] = (0.25, 0.4, 0.35)  # shares of easy, wrong, table
    wrong_share: float = 0.8  # of wrong-kind steps in training texts that say the shifted value
    slip_share: float = 0.01  # of all steps in training texts that say a random near value
    templates: int = 2  # wordings in training texts; prompts may ask for one more

    # --- what there is ------------------------------------------------------------------------------------

    @cached_property
    def shifts(self) -> Mapping[str, int]:
        """`+1` … `+9`, `-1` … `-9` and what they add."""
        return {f"{k:+d}": k for k in (*range(1, 10), *range(-1, -10, -1))}

    @cached_property
    def errors(self) -> Mapping[str, int]:
        """Wrong-kind operands and by how much training texts are off: ±10."""
        names = by_hash(self.shifts, "errors", self.seed)[: self.num_wrong]
        return {name: (-10, 10)[i % 2] for i, name in enumerate(names)}

    @cached_property
    def tables(self) -> Mapping[str, tuple[int, ...]]:
        """Table operands, each a permutation of all values."""
        values = range(self.modulus)
        return {f"t{i}": tuple(by_hash(values, "table", self.seed, i)) for i in range(self.num_tables)}

    @cached_property
    def easy(self) -> tuple[str, ...]:
        return tuple(name for name in self.shifts if name not in self.errors)

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """All words; a word's place is its token id."""
        words = [PAD, UNKNOWN, *_GLUE, *(word for template in _TEMPLATES for word in template)]
        for style in STYLES.values():
            words += [style.mark, style.answer, style.end, *style.joints]
        words += [*map(str, range(self.modulus)), *self.shifts, *self.tables]
        assert len(words) == len(set(words))
        return tuple(words)

    @property
    def ends(self) -> tuple[str, ...]:
        """End tokens, one per style."""
        return tuple(style.end for style in STYLES.values())

    @property
    def max_tokens(self) -> int:
        """The longest answer, in tokens."""
        return 3 * self.depth[1] + 4

    # --- problems -----------------------------------------------------------------------------------------

    def problems(
        self,
        count: int,
        *,
        seed: int,
        held_out: bool = False,
        kinds: Sequence[float] | None = None,
        depth: tuple[int, int] | None = None,
        template: int | None = None,
    ) -> list[Problem]:
        """`count` different problems. Held-out ones are disjoint from all others, whatever the seeds."""
        rng = stream("problems", self.seed, seed, held_out)
        found: dict[Problem, None] = {}
        while len(found) < count:
            problem = self._draw(rng, kinds or self.kinds, depth or self.depth, template)
            if _is_held_out(problem) == held_out:
                found[problem] = None
        return list(found)

    def _draw(
        self,
        rng: random.Random,
        kinds: Sequence[float],
        depth: tuple[int, int],
        template: int | None,
    ) -> Problem:
        kind = pick(rng, KINDS, weights=kinds)
        length = pick(rng, range(depth[0], depth[1] + 1))
        operands = [pick(rng, self.easy) for _ in range(length)]
        if kind != "easy":
            special = tuple(self.errors if kind == "wrong" else self.tables)
            operands[pick(rng, range(length))] = pick(rng, special)
        wording = pick(rng, range(self.templates)) if template is None else template
        return Problem(pick(rng, range(self.modulus)), tuple(operands), kind, wording)

    def prompt(self, problem: Problem) -> str:
        """The problem in words; unused slots hold `.`."""
        opening, noun, closing = _TEMPLATES[problem.template]
        slots = [*problem.operands, *["."] * (self.depth[1] - len(problem.operands))]
        chain = " ".join(f"then {slot}" for slot in slots)
        return f"{opening} {noun} {problem.start} {chain} {closing} =>"

    def parse(self, prompt: str) -> Problem:
        """The problem of a prompt's text. ValueError for anything that is none of this world's."""
        words = prompt.split()
        opening = [template[0] for template in _TEMPLATES]
        if len(words) < 3 or words[0] not in opening or not words[2].isdecimal():
            raise ValueError(f"not a chain: {prompt!r}")
        operands = tuple(word for word in words[4:-2:2] if word != ".")
        kinds = [self.kind_of(operand) for operand in operands]
        kind = next((kind for kind in kinds if kind != "easy"), "easy")
        problem = Problem(int(words[2]), operands, kind, opening.index(words[0]))
        if self.prompt(problem) != prompt:
            raise ValueError(f"not a chain of at most {self.depth[1]} operands: {prompt!r}")
        return problem

    def kind_of(self, operand: str) -> str:
        if operand in self.tables:
            return "table"
        if operand not in self.shifts:
            raise ValueError(f"no operand: {operand!r}")
        return "wrong" if operand in self.errors else "easy"

    def prompts(self, count: int, *, seed: int, held_out: bool = False, **choices: Any) -> list[Prompt]:
        """Problems as prompts: `answer` is the final number, `group` the kind."""
        name = f"chain{self.seed}-{'held' if held_out else 'train'}{seed}"
        return [
            Prompt(
                id=f"{name}-{i}",
                text=self.prompt(problem),
                answer=str(self.values(problem)[-1]),
                group=problem.kind,
                source=f"{name}:{i}",
            )
            for i, problem in enumerate(self.problems(count, seed=seed, held_out=held_out, **choices))
        ]

    # --- answers ------------------------------------------------------------------------------------------

    def apply(self, operand: str, value: int) -> int:
        if operand in self.tables:
            return self.tables[operand][value]
        return (value + self.shifts[operand]) % self.modulus

    def values(self, problem: Problem) -> tuple[int, ...]:
        """The true value after each operand."""
        values, value = [], problem.start
        for operand in problem.operands:
            value = self.apply(operand, value)
            values.append(value)
        return tuple(values)

    def write(
        self, problem: Problem, values: Sequence[int], *, style: str = "steps", rng: random.Random
    ) -> str:
        """An answer with these values; `rng` chooses among a style's words, the k-th word with weight 1 / k."""
        how = STYLES[style]
        words = [how.mark]
        if how.plan:
            words += [*problem.operands, ":"]
        for operand, value in zip(problem.operands, values, strict=True):
            words += [*self._joint(how, operand, rng), str(value)]
        return " ".join([*words, how.answer, str(values[-1]), how.end])

    @staticmethod
    def _joint(how: Style, operand: str, rng: random.Random) -> list[str]:
        if how.joints:
            return [pick(rng, how.joints, weights=[1 / k for k in range(1, len(how.joints) + 1)])]
        return [] if how.plan else [operand]

    def noisy_values(self, problem: Problem, rng: random.Random) -> tuple[int, ...]:
        """Values as training texts have them: each step follows from the written one before, errors included."""
        values, value = [], problem.start
        for operand in problem.operands:
            value = self.apply(operand, value)
            if operand in self.errors and rng.random() < self.wrong_share:
                value += self.errors[operand]
            if rng.random() < self.slip_share:
                value += pick(rng, _SLIPS)
            value %= self.modulus
            values.append(value)
        return tuple(values)

    def texts(
        self, count: int, *, seed: int, style: str = "steps", noisy: bool = True, **choices: Any
    ) -> list[dict[str, str]]:
        """Training texts: `prompt`, `response`, `kind`, `style`. Errors are drawn anew for every text."""
        rng = stream("texts", self.seed, seed)
        rows = []
        for problem in self.problems(count, seed=seed, **choices):
            values = self.noisy_values(problem, rng) if noisy else self.values(problem)
            rows.append(
                {
                    "prompt": self.prompt(problem),
                    "response": self.write(problem, values, style=style, rng=rng),
                    "kind": problem.kind,
                    "style": style,
                }
            )
        return rows

    # --- verifiers ----------------------------------------------------------------------------------------

    def check(self, problem: Problem, response: str) -> Check:
        """Judges an answer in any style, with or without its end token (decoders drop it)."""
        words = response.split()
        style = next((name for name, s in STYLES.items() if words and words[0] == s.mark), None)
        written, result = self._numbers(words)
        gold = self.values(problem)
        steps = tuple(i < len(written) and written[i] == value for i, value in enumerate(gold))
        before = [problem.start, *written]
        follows = tuple(
            i < len(written) and before[i] is not None and written[i] == self.apply(operand, before[i])
            for i, operand in enumerate(problem.operands)
        )
        return Check(
            final=result == gold[-1],
            steps=steps,
            follows=follows,
            style=style,
            complete=style is not None and self._is_complete(words, problem, STYLES[style], written),
        )

    def _numbers(self, words: Sequence[str]) -> tuple[list[int], int | None]:
        """Values before the last answer word, and the number right after it."""
        answers = {style.answer for style in STYLES.values()}
        at = max((i for i, word in enumerate(words) if word in answers), default=len(words))
        written = [int(word) for word in words[:at] if self._is_value(word)]
        after = words[at + 1 : at + 2]
        return written, int(after[0]) if after and self._is_value(after[0]) else None

    def _is_value(self, word: str) -> bool:
        return word.isdecimal() and int(word) < self.modulus

    def _is_complete(
        self, words: Sequence[str], problem: Problem, how: Style, written: Sequence[int]
    ) -> bool:
        if len(written) != len(problem.operands):
            return False
        expected = [how.mark, *([*problem.operands, ":"] if how.plan else [])]
        body = words[: len(words) - (words[-1] == how.end)]
        joints = set(how.joints)
        for operand, value in zip(problem.operands, written, strict=True):
            place = len(expected)
            if joints:
                expected.append(body[place] if place < len(body) and body[place] in joints else how.joints[0])
            elif not how.plan:
                expected.append(operand)
            expected.append(str(value))
        return list(body) == [*expected, how.answer, str(written[-1])]


# --- chance: only what is promised to be the same on every machine and release --------------------------------


def stream(*key: object) -> random.Random:
    """A stream of its own for every key. Draw from it with `pick` and `random()` only."""
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


def by_hash(items: Iterable[T], *key: object) -> list[T]:
    """The items in an order drawn from `key`."""
    return sorted(items, key=lambda item: _digest(*key, item))


def _digest(*key: object) -> bytes:
    return hashlib.blake2b(":".join(map(str, key)).encode(), digest_size=16).digest()


def _is_held_out(problem: Problem) -> bool:
    """By what is asked, not by how: the same chain in another wording is on the same side."""
    name = f"{problem.start} {' '.join(problem.operands)}"
    return _digest("held out", name)[0] % HELD_OUT_SHARE == 0
