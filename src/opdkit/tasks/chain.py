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
from functools import cached_property
from typing import Any

from opdkit.tasks.family import (
    KINDS,
    PAD,
    UNKNOWN,
    Check,
    as_prompts,
    distinct,
    is_value,
    numbers,
    pick,
    same,
    stream,
    style_of,
)
from opdkit.tasks.operands import Operands
from opdkit.types import Prompt


@dataclass(frozen=True)
class Style:
    """How an answer is written: its first word, the word before the result, its end token, its procedure."""

    mark: str
    answer: str
    end: str
    joints: tuple[str, ...] = ()  # words before a value, from the most frequent to the rarest
    echo: bool = False  # the operand itself stands before its value
    plan: bool = False  # all operands stand before the first value


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
    "echo": Style("trace", "finally", "<stop>", echo=True),
    "plan": Style("plan", "total", "<end>", plan=True),
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
class ChainWorld:
    """One world of chains; another `seed` is another choice of wrong operands and tables.

    >>> world = ChainWorld()
    >>> problem = world.parse("read number 45 then +3 then -7 then . then . please =>")
    >>> world.values(problem)
    (48, 41)
    >>> world.check(problem, "run so 48 now 41 answer 41").final
    True
    """

    seed: int = 0
    modulus: int = 97
    depth: tuple[int, int] = (2, 4)  # operands of a problem, fewest and most; the most are a prompt's slots
    num_wrong: int = 3  # of the 18 shifts
    num_tables: int = 12
    kinds: tuple[float, float, float] = (0.25, 0.45, 0.30)  # shares of easy, wrong and table problems
    wrong_share: float = 0.7  # of wrong operands' steps in training texts that say the shifted value
    slip_share: float = 0.01  # of all steps in training texts that say a near value
    templates: int = 2  # wordings drawn from; `problems(template=2)` asks for one that no text has

    # --- what there is ------------------------------------------------------------------------------------

    @cached_property
    def operands(self) -> Operands:
        return Operands(
            "chain",
            self.seed,
            self.modulus,
            self.num_wrong,
            self.num_tables,
            self.wrong_share,
            self.slip_share,
        )

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """All words; a word's place is its token id."""
        words = [PAD, UNKNOWN, *_GLUE, *(word for template in _TEMPLATES for word in template)]
        for how in STYLES.values():
            words += [how.mark, how.answer, how.end, *how.joints]
        words += self.operands.words
        assert len(words) == len(set(words))
        return tuple(words)

    @property
    def styles(self) -> tuple[str, ...]:
        """Names of the ways to answer."""
        return tuple(STYLES)

    @property
    def ends(self) -> tuple[str, ...]:
        """End tokens, one per style."""
        return tuple(how.end for how in STYLES.values())

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest answer."""
        return 2 * self.depth[1] + 5

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
        rng = stream("chain problems", self.seed, seed, held_out)

        def draw() -> Problem:
            return self._draw(rng, kinds or self.kinds, depth or self.depth, template)

        return distinct(count, draw, asked=lambda p: " ".join((str(p.start), *p.operands)), held_out=held_out)

    def _draw(
        self, rng: random.Random, kinds: Sequence[float], depth: tuple[int, int], template: int | None
    ) -> Problem:
        kind = pick(rng, KINDS, weights=kinds)
        length = pick(rng, range(depth[0], depth[1] + 1))
        operands = [pick(rng, self.operands.easy) for _ in range(length)]
        if kind != "easy":
            operands[pick(rng, range(length))] = pick(rng, self.operands.of_kind(kind))
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

    def prompts(self, count: int, *, seed: int, held_out: bool = False, **choices: Any) -> list[Prompt]:
        """Problems as prompts: `answer` is the final number, `group` the kind."""
        problems = self.problems(count, seed=seed, held_out=held_out, **choices)
        return as_prompts(self, problems, name=f"chain{self.seed}-{'held' if held_out else 'train'}{seed}")

    # --- answers ------------------------------------------------------------------------------------------

    def values(self, problem: Problem) -> tuple[int, ...]:
        """The true value after each operand."""
        values, value = [], problem.start
        for operand in problem.operands:
            value = self.operands.apply(operand, value)
            values.append(value)
        return tuple(values)

    def noisy_values(self, problem: Problem, rng: random.Random) -> tuple[int, ...]:
        """Values as training texts have them: errors are carried on, each follows from the one before."""
        values, value = [], problem.start
        for operand in problem.operands:
            value = self.operands.misread(operand, value, rng)
            values.append(value)
        return tuple(values)

    def write(
        self, problem: Problem, values: Sequence[int], *, style: str = "steps", rng: random.Random
    ) -> str:
        """An answer with these values; `rng` chooses the style's joints, the k-th with weight 1 / k."""
        how = STYLES[style]
        weights = [1 / (k + 1) for k in range(len(how.joints))]
        joints = [pick(rng, how.joints, weights=weights) for _ in values] if how.joints else None
        return " ".join([*_layout(problem, values, how, joints), how.end])

    def texts(
        self, count: int, *, seed: int, style: str = "steps", noisy: bool = True, **choices: Any
    ) -> list[dict[str, str]]:
        """Training texts: `prompt`, `response`, `kind`, `style`. Errors are drawn anew for every text."""
        rng = stream("chain texts", self.seed, seed)
        rows = []
        for problem in self.problems(count, seed=seed, **choices):
            values = self.noisy_values(problem, rng) if noisy else self.values(problem)
            response = self.write(problem, values, style=style, rng=rng)
            rows.append(
                {
                    "prompt": self.prompt(problem),
                    "response": response,
                    "kind": problem.kind,
                    "style": style,
                }
            )
        return rows

    # --- verifiers ----------------------------------------------------------------------------------------

    def check(self, problem: Problem, response: str) -> Check:
        """Judges an answer in any style, with or without its end token (decoders drop it)."""
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
            complete=style is not None and _is_complete(words, problem, STYLES[style], written),
        )


def _layout(problem: Problem, values: Sequence[int], how: Style, joints: Sequence[str] | None) -> list[str]:
    """All words of an answer but its end token."""
    before = problem.operands if how.echo else joints
    steps = [[str(value)] for value in values]
    if before is not None:
        steps = [[word, *step] for word, step in zip(before, steps, strict=True)]
    plan = [*problem.operands, ":"] if how.plan else []
    return [how.mark, *plan, *(word for step in steps for word in step), how.answer, str(values[-1])]


def _is_complete(words: Sequence[str], problem: Problem, how: Style, written: Sequence[int]) -> bool:
    if len(written) != len(problem.operands):
        return False
    body = list(words[:-1] if words[-1] == how.end else words)
    joints = body[1 : 2 * len(written) : 2] if how.joints else None
    if joints is not None and not set(joints) <= set(how.joints):
        return False
    return body == _layout(problem, written, how, joints)
