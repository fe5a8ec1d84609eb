"""Number chains, the testbed's first family: start at a number, apply operands one after another, mod 97.

    prompt    read number 45 then +3 then t2 then -7 then . please =>
    answer    run so 48 now 31 so 24 answer 24 <done>

What makes it a testbed is what the training texts say. Operands are of three kinds: `easy` shifts, always
right; `wrong` shifts, whose written value is off by a fixed ±10 in `wrong_share` of the texts, so that
imitation makes the *mode* wrong while the truth stays likely enough to be found by sampling; and `table`
operands, permutations of all values without a rule, facts that only a large or long-trained model knows. A
problem has one operand of its kind and easy ones beside it: accuracy by kind says what a model can.

Four styles of answer end in the same number: `steps` and `other` share the procedure and no word, `echo` and
`plan` have procedures of their own. The first word of an answer tells its style, the last is the style's end
token.

Everything is a function of (world, seed, arguments). Unused operand slots hold `.`, so that operand i is
equally far from step i in every prompt: a model with rotary positions finds it by looking back so far.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from opdkit.tasks.family import KINDS, Check, Style, is_value, numbers, pick, same, style_of
from opdkit.tasks.world import World, step_words

STYLES: Mapping[str, Style] = {
    "steps": Style(
        "run", "answer", "<done>", ("so", "now", "next", "thus", "hence", "giving", "making", "yields")
    ),
    "other": Style(
        "walk",
        "result",
        "<over>",
        ("after", "onward", "further", "later", "again", "soon", "brings", "leads"),
    ),
    "echo": Style("trace", "finally", "<stop>", procedure="echo"),
    "plan": Style("plan", "total", "<end>", procedure="plan"),
}
_TEMPLATES = (("read", "number", "please"), ("from", "value", "solve"), ("given", "integer", "quickly"))
_GLUE = ("then", ".", "=>", ":")


@dataclass(frozen=True)
class Problem:
    """One chain. `template` is the wording around it and no part of what is asked."""

    start: int
    operands: tuple[str, ...]
    kind: str
    template: int = 0


@dataclass(frozen=True)
class ChainWorld(World):
    """One world of chains; a step is an operand.

    >>> world = ChainWorld()
    >>> problem = world.parse("read number 45 then +3 then -7 then . then . please =>")
    >>> world.values(problem)
    (48, 41)
    >>> world.check(problem, "run so 48 now 41 answer 41").final
    True
    """

    name: ClassVar[str] = "chain"
    written_in: ClassVar[Mapping[str, Style]] = STYLES
    own_words: ClassVar[tuple[str, ...]] = (*_GLUE, *(word for template in _TEMPLATES for word in template))

    # --- problems -----------------------------------------------------------------------------------------

    def draw(self, rng: random.Random, kind: str, length: int, template: int | None) -> Problem:
        operands = [pick(rng, self.operands.easy) for _ in range(length)]
        if kind != "easy":
            operands[pick(rng, range(length))] = pick(rng, self.operands.of_kind(kind))
        wording = self.wording(rng, template)
        return Problem(pick(rng, range(self.modulus)), tuple(operands), kind, wording)

    def asked(self, problem: Problem) -> str:
        return " ".join((str(problem.start), *problem.operands))

    def prompt(self, problem: Problem) -> str:
        """The problem in words; unused slots hold `.`."""
        opening, noun, closing = _TEMPLATES[problem.template]
        slots = [*problem.operands, *["."] * (self.depth[1] - len(problem.operands))]
        chain = " ".join(f"then {slot}" for slot in slots)
        return f"{opening} {noun} {problem.start} {chain} {closing} =>"

    def parse(self, prompt: str) -> Problem:
        """The problem of a prompt's text. ValueError for anything that is none of this world's."""
        words = prompt.split()
        openings = [template[0] for template in _TEMPLATES]
        if len(words) < 3 or words[0] not in openings or not is_value(words[2], self.modulus):
            raise ValueError(f"not a chain: {prompt!r}")
        operands = tuple(word for word in words[4:-2:2] if word != ".")
        kinds = {self.operands.kind_of(operand) for operand in operands} - {"easy"}
        problem = Problem(
            int(words[2]), operands, min(kinds, key=KINDS.index, default="easy"), openings.index(words[0])
        )
        if self.prompt(problem) != prompt:
            raise ValueError(f"not a chain of at most {self.depth[1]} operands: {prompt!r}")
        return problem

    # --- answers ------------------------------------------------------------------------------------------

    def values(self, problem: Problem) -> tuple[int, ...]:
        """The true value after each operand."""
        values, value = [], problem.start
        for operand in problem.operands:
            value = self.operands.apply(operand, value)
            values.append(value)
        return tuple(values)

    def results(self, problem: Problem) -> tuple[int, ...]:
        return self.values(problem)

    def noisy_results(self, problem: Problem, rng: random.Random) -> tuple[int, ...]:
        """Errors are carried on: each value follows from the one before."""
        values, value = [], problem.start
        for operand in problem.operands:
            value = self.operands.misread(operand, value, rng)
            values.append(value)
        return tuple(values)

    def layout(
        self, problem: Problem, results: Sequence[int], how: Style, joints: Sequence[str] | None
    ) -> list[str]:
        before = problem.operands if how.procedure == "echo" else joints
        plan = [*problem.operands, ":"] if how.procedure == "plan" else []
        return [how.mark, *plan, *step_words(results, before), how.answer, str(results[-1])]

    def check(self, problem: Problem, response: str) -> Check:
        """`follows`: right given the value written before it."""
        words = response.split()
        style = style_of(words, STYLES)
        written, result = numbers(words, STYLES, modulus=self.modulus)
        gold = self.values(problem)
        expected = [self.operands.apply(o, v) for o, v in zip(problem.operands, [problem.start, *written])]
        return Check(
            final=result == gold[-1],
            steps=same(written, gold),
            follows=same(written, expected) + (False,) * (len(gold) - len(expected)),
            style=style,
            complete=style is not None
            and len(written) == len(gold)
            and self.is_laid_out(words, problem, STYLES[style], written),
        )
