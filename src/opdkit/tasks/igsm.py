"""Mini-iGSM, the testbed's second family: statements about letters in any order, one letter asked, mod 23.

    prompt    where d is a + b and b is 3 and a is 5 and e is t1 d find e =>
    answer    solve a 5 b 3 d 8 e 17 so 17 <done>

After Ye et al., arXiv 2407.20311, in one line of words. Statements are constants, `+ - *` of two letters, and
operands of one letter: `u0` …, shifts whose written value is off by ±5 in `wrong_share` of the training texts
(`wrong`), and `t0` …, permutations of all values (`table`), as in `opdkit.tasks.chain`. A problem has at most
one of these; letters that the asked one does not depend on may stand beside it.

Four styles end in the same number: `needed` tells what the asked letter depends on, in order of use; `sweep`
tells every letter as soon as it can be known; `plan` first lists what is needed, backwards; `terse` tells
values alone, in other words.
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
    by_hash,
    distinct,
    is_value,
    numbers,
    permutations,
    pick,
    same,
    shuffled,
    stream,
    style_of,
)
from opdkit.types import Prompt


@dataclass(frozen=True)
class Style:
    """How an answer is written: its first word, the word before the result, its end token, its procedure."""

    mark: str
    answer: str
    end: str
    names: bool = True  # a letter stands before its value
    every: bool = False  # also letters that are not needed
    plan: bool = False  # needed letters stand before the first value, the asked one first


STYLES: Mapping[str, Style] = {
    "needed": Style("solve", "so", "<done>"),
    "sweep": Style("sweep", "thus", "<over>", every=True),
    "plan": Style("goal", "hence", "<end>", plan=True),
    "terse": Style("brief", "gives", "<stop>", names=False),
}
LETTERS = "abcdefghijkl"
BINARY = ("+", "-", "*")
_TEMPLATES = (("where", "find"), ("let", "what"), ("suppose", "compute"))
_GLUE = ("is", "and", "=>", ":")
_SLIPS = (-5, -2, -1, 1, 2, 5)


@dataclass(frozen=True)
class Statement:
    """`name` is a constant ("3",), or an operation on letters ("+", "a", "b"), ("t1", "a")."""

    name: str
    words: tuple[str, ...]

    @property
    def uses(self) -> tuple[str, ...]:
        return self.words[1:]

    def __str__(self) -> str:
        operation, *letters = self.words
        shown = (letters[0], operation, letters[1]) if operation in BINARY else self.words
        return f"{self.name} is {' '.join(shown)}"


@dataclass(frozen=True)
class Problem:
    """Statements in the order in which they are told, and the letter asked for."""

    statements: tuple[Statement, ...]
    asked: str
    kind: str
    template: int = 0

    @cached_property
    def by_name(self) -> Mapping[str, Statement]:
        return {statement.name: statement for statement in self.statements}

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """What the asked letter depends on and itself, each after what it uses."""
        order: dict[str, None] = {}

        def visit(name: str) -> None:
            for used in self.by_name[name].uses:
                visit(used)
            order[name] = None

        visit(self.asked)
        return tuple(order)

    @cached_property
    def every(self) -> tuple[str, ...]:
        """All letters, each as soon as what it uses is known, sweep after sweep; the asked one at last."""
        order: dict[str, None] = {}
        while len(order) < len(self.statements):
            known = len(order)
            for statement in self.statements:
                if set(statement.uses) <= set(order):
                    order[statement.name] = None
            if len(order) == known:
                raise ValueError("statements go in circles")
        return (*(name for name in order if name != self.asked), self.asked)


@dataclass(frozen=True)
class IgsmWorld:
    """One world of dependency graphs; another `seed` is another choice of operands' meanings.

    >>> world = IgsmWorld()
    >>> problem = world.parse("where d is a + b and b is 3 and a is 5 find d =>")
    >>> world.values(problem), problem.needed
    ((5, 3, 8), ('a', 'b', 'd'))
    >>> world.check(problem, "solve a 5 b 3 d 8 so 8").final
    True
    """

    seed: int = 0
    modulus: int = 23
    operations: tuple[int, int] = (2, 4)  # needed statements that are no constants, fewest and most
    distractors: tuple[int, int] = (0, 2)  # statements that are not needed
    num_wrong: int = 4
    num_tables: int = 12
    kinds: tuple[float, float, float] = (0.25, 0.4, 0.35)  # shares of easy, wrong and table problems
    wrong_share: float = 0.8  # of wrong operands' steps in training texts that say the shifted value
    slip_share: float = 0.01  # of all steps in training texts that say a near value
    templates: int = 2  # wordings drawn from; `problems(template=2)` asks for one that no text has

    # --- what there is ------------------------------------------------------------------------------------

    @cached_property
    def shifts(self) -> Mapping[str, int]:
        """Wrong operands and what they truly add."""
        shifts = by_hash(range(1, 10), "igsm shifts", self.seed)[: self.num_wrong]
        return {f"u{i}": shift for i, shift in enumerate(shifts)}

    @cached_property
    def errors(self) -> Mapping[str, int]:
        """Wrong operands and by how much training texts are off: ±5."""
        return {name: (-5, 5)[i % 2] for i, name in enumerate(self.shifts)}

    @cached_property
    def tables(self) -> Mapping[str, tuple[int, ...]]:
        """Table operands, each a permutation of all values."""
        tables = permutations(self.num_tables, "igsm table", self.seed, of=self.modulus)
        return {f"t{i}": table for i, table in enumerate(tables)}

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """All words; a word's place is its token id."""
        words = [PAD, UNKNOWN, *_GLUE, *(word for template in _TEMPLATES for word in template)]
        for how in STYLES.values():
            words += [how.mark, how.answer, how.end]
        words += [*map(str, range(self.modulus)), *LETTERS, *BINARY, *self.shifts, *self.tables]
        assert len(words) == len(set(words))
        return tuple(words)

    @property
    def ends(self) -> tuple[str, ...]:
        """End tokens, one per style."""
        return tuple(how.end for how in STYLES.values())

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest answer."""
        letters = 2 * self.operations[1] + 1
        return max(3 * letters + 5, 2 * (letters + self.distractors[1]) + 4)

    # --- problems -----------------------------------------------------------------------------------------

    def problems(
        self,
        count: int,
        *,
        seed: int,
        held_out: bool = False,
        kinds: Sequence[float] | None = None,
        operations: tuple[int, int] | None = None,
        template: int | None = None,
    ) -> list[Problem]:
        """`count` different problems. Held-out ones are disjoint from all others, whatever the seeds."""
        rng = stream("igsm problems", self.seed, seed, held_out)

        def draw() -> Problem:
            return self._draw(rng, kinds or self.kinds, operations or self.operations, template)

        return distinct(count, draw, asked=_asked, held_out=held_out)

    def _draw(
        self, rng: random.Random, kinds: Sequence[float], operations: tuple[int, int], template: int | None
    ) -> Problem:
        kind = pick(rng, KINDS, weights=kinds)
        count = pick(rng, range(operations[0], operations[1] + 1))
        special = -1 if kind == "easy" else pick(rng, range(count))
        names = iter(shuffled(rng, LETTERS))
        statements = [self._constant(rng, next(names))]
        for i in range(count):
            last = statements[-1].name
            if i == special:
                operand = pick(rng, tuple(self.shifts if kind == "wrong" else self.tables))
                statements.append(Statement(next(names), (operand, last)))
                continue
            earlier = [s.name for s in statements[:-1]]
            if not earlier or rng.random() < 0.5:
                statements.insert(-1, self._constant(rng, next(names)))
                earlier = [statements[-2].name]
            pair = shuffled(rng, (last, pick(rng, earlier)))
            statements.append(Statement(next(names), (pick(rng, BINARY), *pair)))
        asked = statements[-1].name
        for _ in range(pick(rng, range(self.distractors[0], self.distractors[1] + 1))):
            statements.append(self._constant(rng, next(names)))
        wording = pick(rng, range(self.templates)) if template is None else template
        return Problem(tuple(shuffled(rng, statements)), asked, kind, wording)

    def _constant(self, rng: random.Random, name: str) -> Statement:
        return Statement(name, (str(pick(rng, range(self.modulus))),))

    def prompt(self, problem: Problem) -> str:
        """The problem in words."""
        opening, asking = _TEMPLATES[problem.template]
        return f"{opening} {' and '.join(map(str, problem.statements))} {asking} {problem.asked} =>"

    def parse(self, prompt: str) -> Problem:
        """The problem of a prompt's text. ValueError for anything that is none of this world's."""
        openings = [template[0] for template in _TEMPLATES]
        words = prompt.split()
        if len(words) < 7 or words[0] not in openings:
            raise ValueError(f"not a graph: {prompt!r}")
        statements = [_statement(told.split()) for told in " ".join(words[1:-3]).split(" and ")]
        kinds = {self._kind_of(s.words[0]) for s in statements} - {"easy"}
        kind = min(kinds, key=KINDS.index, default="easy")
        problem = Problem(tuple(statements), words[-2], kind, openings.index(words[0]))
        names = set(problem.by_name)
        sound = len(names) == len(statements) and {*words[-2:-1], *_used(statements)} <= names
        if not sound or self.prompt(problem) != prompt:
            raise ValueError(f"not a graph: {prompt!r}")
        assert problem.every
        return problem

    def _kind_of(self, operation: str) -> str:
        if operation in self.tables:
            return "table"
        if operation in self.shifts:
            return "wrong"
        if operation not in BINARY and not is_value(operation, self.modulus):
            raise ValueError(f"no operation: {operation!r}")
        return "easy"

    def prompts(self, count: int, *, seed: int, held_out: bool = False, **choices: Any) -> list[Prompt]:
        """Problems as prompts: `answer` is the asked letter's number, `group` the kind."""
        problems = self.problems(count, seed=seed, held_out=held_out, **choices)
        return as_prompts(self, problems, name=f"igsm{self.seed}-{'held' if held_out else 'train'}{seed}")

    # --- answers ------------------------------------------------------------------------------------------

    def apply(self, statement: Statement, known: Mapping[str, int]) -> int:
        """The value of a statement's letter, given those it uses."""
        operation, *letters = statement.words
        values = [known[letter] for letter in letters]
        if operation in self.tables:
            return self.tables[operation][values[0]]
        if operation in self.shifts:
            return (values[0] + self.shifts[operation]) % self.modulus
        if operation == "+":
            return (values[0] + values[1]) % self.modulus
        if operation == "-":
            return (values[0] - values[1]) % self.modulus
        return (values[0] * values[1] if operation == "*" else int(operation)) % self.modulus

    def values(self, problem: Problem, *, style: str = "needed") -> tuple[int, ...]:
        """True values of the letters that a style tells, in its order; the asked one is the last."""
        return self._values(problem, style, None)

    def noisy_values(self, problem: Problem, rng: random.Random, *, style: str = "needed") -> tuple[int, ...]:
        """Values as training texts have them: errors are carried on, each follows from those before."""
        return self._values(problem, style, rng)

    def _values(self, problem: Problem, style: str, rng: random.Random | None) -> tuple[int, ...]:
        known: dict[str, int] = {}
        for name in _told(problem, STYLES[style]):
            statement = problem.by_name[name]
            value = self.apply(statement, known)
            if rng is not None and statement.words[0] in self.errors and rng.random() < self.wrong_share:
                value += self.errors[statement.words[0]]
            if rng is not None and statement.uses and rng.random() < self.slip_share:
                value += pick(rng, _SLIPS)
            known[name] = value % self.modulus
        return tuple(known.values())

    def write(self, problem: Problem, values: Sequence[int], *, style: str = "needed") -> str:
        """An answer with these values."""
        return " ".join([*_layout(problem, values, STYLES[style]), STYLES[style].end])

    def texts(
        self, count: int, *, seed: int, style: str = "needed", noisy: bool = True, **choices: Any
    ) -> list[dict[str, str]]:
        """Training texts: `prompt`, `response`, `kind`, `style`. Errors are drawn anew for every text."""
        rng = stream("igsm texts", self.seed, seed)
        return [
            {
                "prompt": self.prompt(problem),
                "response": self.write(
                    problem, self._values(problem, style, rng if noisy else None), style=style
                ),
                "kind": problem.kind,
                "style": style,
            }
            for problem in self.problems(count, seed=seed, **choices)
        ]

    # --- verifiers ----------------------------------------------------------------------------------------

    def check(self, problem: Problem, response: str) -> Check:
        """Judges an answer in any style, with or without its end token (decoders drop it)."""
        words = response.split()
        style = style_of(words, STYLES)
        how = STYLES[style or "needed"]
        told = _told(problem, how)
        written, result = numbers(words, STYLES, modulus=self.modulus)
        gold = self.values(problem, style=style or "needed")
        body = words[:-1] if words and words[-1] == how.end else words
        complete = len(written) == len(told) and body == _layout(problem, written, how)
        known = dict(zip(told, written))
        expected = [self.apply(problem.by_name[name], known) if name in known else -1 for name in told]
        return Check(
            final=result == gold[-1],
            steps=same(written, gold),
            follows=same(written, expected),
            style=style,
            complete=style is not None and complete,
        )


def _asked(problem: Problem) -> str:
    """What is asked, whatever the order of the statements."""
    return f"{' and '.join(sorted(map(str, problem.statements)))} find {problem.asked}"


def _told(problem: Problem, how: Style) -> tuple[str, ...]:
    return problem.every if how.every else problem.needed


def _layout(problem: Problem, values: Sequence[int], how: Style) -> list[str]:
    """All words of an answer but its end token."""
    words = [how.mark, *([*reversed(problem.needed), ":"] if how.plan else [])]
    for name, value in zip(_told(problem, how), values, strict=True):
        words += [name, str(value)] if how.names else [str(value)]
    return [*words, how.answer, str(values[-1])]


def _statement(words: Sequence[str]) -> Statement:
    """ValueError for what is no statement."""
    if len(words) not in (3, 4, 5) or words[1] != "is" or words[0] not in LETTERS:
        raise ValueError(f"no statement: {' '.join(words)}")
    if len(words) == 5:
        return Statement(words[0], (words[3], words[2], words[4]))
    return Statement(words[0], tuple(words[2:]))


def _used(statements: Sequence[Statement]) -> set[str]:
    return {letter for statement in statements for letter in statement.uses}
