"""Mini-iGSM, the testbed's second family: quantities that depend on each other, told in any order, mod 97.

    prompt    where e= d r3 d= a + c c= 3 a= 45 find e =>
    answer    solve e d a : a= 45 so d= + c 3 48 so e= r3 55 answer 55 <done>

After Ye et al., arXiv 2407.20311, in one line of words. A statement is a constant, a sum or a difference whose
second letter is a small constant (1 … 5; several statements may share it), or a rule applied to one letter.
Rules `r0` … are shifts; in `wrong_share` of the training texts the value of some of them is off by ±10. Rules
`t0` … are permutations of all values, facts without a reason. A problem has at most one rule that makes its
kind, `wrong` or `table`, and only easy statements beside it: accuracy by kind says what a model can.

What differs from `opdkit.tasks.chain`: nothing stands where it is needed. Letters and their order are drawn for
every problem, so that each step is looked up by name; some statements do not matter; what to tell first has to
be found from the end.

Four styles of answer end in the same number: `steps` and `other` list what the asked letter depends on,
backwards, and then tell each step, with no word in common; `sweep` tells every letter as soon as it can be
known; `terse` tells values alone.
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
    joints: tuple[str, ...] = ()  # words before a step, from the most frequent to the rarest
    colon: str = ""  # the word after a list of the letters on the way, the asked one first
    every: bool = False  # tells also letters that do not matter


STYLES: Mapping[str, Style] = {
    "steps": Style(
        "solve",
        "answer",
        "<done>",
        ("so", "making", "giving", "thus"),
        ":",
    ),
    "other": Style(
        "work",
        "result",
        "<over>",
        ("becomes", "reaching", "then", "brings"),
        "|",
    ),
    "sweep": Style("sweep", "finally", "<end>", every=True),
    "terse": Style("brief", "total", "<stop>"),
}
LETTERS = "abcdefghijkl"
BINARY = ("+", "-")
SMALL = range(1, 6)
_TEMPLATES = (("where", "find"), ("let", "what"), ("suppose", "compute"))
_SLIPS = (-10, -3, -2, -1, 1, 2, 3, 10)


@dataclass(frozen=True)
class Statement:
    """`name` is a constant ("45",), or an operation on letters ("d", "r3"), ("a", "+", "c")."""

    name: str
    words: tuple[str, ...]

    @property
    def uses(self) -> tuple[str, ...]:
        return self.words[::2] if len(self.words) > 1 else ()

    @property
    def operation(self) -> str:
        return self.words[1 if len(self.words) > 1 else 0]

    def __str__(self) -> str:
        return f"{_head(self.name)} {' '.join(self.words)}"


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
    def way(self) -> tuple[str, ...]:
        """From a constant to the asked letter, each the first letter of the next one's statement."""
        names = [self.asked]
        while uses := self.by_name[names[-1]].uses:
            names.append(uses[0])
            if len(names) > len(self.statements):
                raise ValueError("statements go in circles")
        return tuple(reversed(names))

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

    def told(self, style: str) -> tuple[str, ...]:
        """The letters whose values an answer tells, in its order; a shared constant as often as it is used."""
        if STYLES[style].every:
            return self.every
        return tuple(name for step in self.way for name in (*self.by_name[step].uses[1:], step))


@dataclass(frozen=True)
class IgsmWorld:
    """One world of dependency graphs; another `seed` is another choice of the rules' meanings.

    >>> world = IgsmWorld()
    >>> problem = world.parse("where d= a + b b= 3 a= 45 find d =>")
    >>> problem.told("steps"), world.values(problem)
    (('a', 'b', 'd'), (45, 3, 48))
    >>> world.check(problem, "solve d a : a= 45 so d= + b 3 48 answer 48").final
    True
    """

    seed: int = 0
    modulus: int = 97
    depth: tuple[int, int] = (1, 3)  # operations on the way to the asked letter, fewest and most
    distractors: tuple[int, int] = (0, 1)  # statements that do not matter
    sum_share: float = 0.5  # of easy operations that have two letters
    num_rules: int = 8  # that are shifts
    num_wrong: int = 3  # of these
    num_tables: int = 12
    kinds: tuple[float, float, float] = (0.25, 0.45, 0.30)  # shares of easy, wrong and table problems
    wrong_share: float = 0.7  # of wrong rules' steps in training texts that say the shifted value
    slip_share: float = 0.01  # of all computed values in training texts: a near value
    templates: int = 2  # wordings drawn from; `problems(template=2)` asks for one that no text has

    # --- what there is ------------------------------------------------------------------------------------

    @cached_property
    def shifts(self) -> Mapping[str, int]:
        """Rules and what they truly add."""
        shifts = by_hash((*SMALL, *(-k for k in SMALL)), "igsm shifts", self.seed)
        return {f"r{i}": shift for i, shift in enumerate(shifts[: self.num_rules])}

    @cached_property
    def errors(self) -> Mapping[str, int]:
        """Wrong rules and by how much training texts are off: ±10."""
        names = by_hash(self.shifts, "igsm errors", self.seed)[: self.num_wrong]
        return {name: (-10, 10)[i % 2] for i, name in enumerate(names)}

    @cached_property
    def tables(self) -> Mapping[str, tuple[int, ...]]:
        """Table rules, each a permutation of all values."""
        tables = permutations(self.num_tables, "igsm table", self.seed, of=self.modulus)
        return {f"t{i}": table for i, table in enumerate(tables)}

    @cached_property
    def easy(self) -> tuple[str, ...]:
        return tuple(name for name in self.shifts if name not in self.errors)

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """All words; a word's place is its token id."""
        words = [PAD, UNKNOWN, "=>", *(word for template in _TEMPLATES for word in template)]
        for how in STYLES.values():
            words += [how.mark, how.answer, how.end, *how.joints, *([how.colon] if how.colon else [])]
        words += [*map(str, range(self.modulus)), *LETTERS, *map(_head, LETTERS), *BINARY, *self.shifts, *self.tables]
        assert len(words) == len(set(words))
        return tuple(words)

    @property
    def ends(self) -> tuple[str, ...]:
        """End tokens, one per style."""
        return tuple(how.end for how in STYLES.values())

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest answer."""
        deepest, letters = self.depth[1], 2 * self.depth[1] + 1 + 2 * self.distractors[1]
        return max(deepest + 1 + 6 * deepest + 7, 2 * letters + 4)

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
        rng = stream("igsm problems", self.seed, seed, held_out)

        def draw() -> Problem:
            return self._draw(rng, kinds or self.kinds, depth or self.depth, template)

        return distinct(count, draw, asked=asked, held_out=held_out)

    def _draw(
        self, rng: random.Random, kinds: Sequence[float], depth: tuple[int, int], template: int | None
    ) -> Problem:
        kind = pick(rng, KINDS, weights=kinds)
        length = pick(rng, range(depth[0], depth[1] + 1))
        special = -1 if kind == "easy" else pick(rng, range(length))
        names = iter(shuffled(rng, LETTERS))
        statements = [Statement(next(names), (str(pick(rng, range(self.modulus))),))]
        way = [statements[0].name]
        for i in range(length):
            if i == special:
                rule = pick(rng, tuple(self.errors if kind == "wrong" else self.tables))
                statements.append(Statement(next(names), (way[-1], rule)))
            else:
                self._add_easy(rng, statements, way[-1], names)
            way.append(statements[-1].name)
        for _ in range(pick(rng, range(self.distractors[0], self.distractors[1] + 1))):
            statements.append(Statement(next(names), (str(pick(rng, range(self.modulus))),)))
        wording = pick(rng, range(self.templates)) if template is None else template
        return Problem(tuple(shuffled(rng, statements)), way[-1], kind, wording)

    def _add_easy(self, rng: random.Random, statements: list[Statement], first: str, names: Any) -> None:
        """Adds an easy operation on `first`, and the small constant that it needs unless one is there."""
        if rng.random() >= self.sum_share:
            statements.append(Statement(next(names), (first, pick(rng, self.easy))))
            return
        small = [s.uses[1] for s in statements if len(s.uses) == 2]
        second = pick(rng, small) if small and rng.random() < 0.5 else next(names)
        if second not in small:
            statements.append(Statement(second, (str(pick(rng, SMALL)),)))
        statements.append(Statement(next(names), (first, pick(rng, BINARY), second)))

    def prompt(self, problem: Problem) -> str:
        """The problem in words."""
        opening, asking = _TEMPLATES[problem.template]
        return f"{opening} {' '.join(map(str, problem.statements))} {asking} {problem.asked} =>"

    def parse(self, prompt: str) -> Problem:
        """The problem of a prompt's text. ValueError for anything that is none of this world's."""
        openings = [template[0] for template in _TEMPLATES]
        words = prompt.split()
        if len(words) < 6 or words[0] not in openings:
            raise ValueError(f"not a graph: {prompt!r}")
        starts = [i for i, word in enumerate(words) if word[1:] == "="]
        told = [words[i:j] for i, j in zip(starts, [*starts[1:], len(words) - 3])]
        problem = Problem(
            tuple(Statement(head[0], tuple(rest)) for head, *rest in told),
            words[-2],
            "easy",
            openings.index(words[0]),
        )
        if self.prompt(problem) != prompt or not self._is_sound(problem):
            raise ValueError(f"not a graph: {prompt!r}")
        kinds = {self.kind_of(problem.by_name[name].operation) for name in problem.way} - {"easy"}
        kind = min(kinds, key=KINDS.index, default="easy")
        return Problem(problem.statements, problem.asked, kind, problem.template)

    def _is_sound(self, problem: Problem) -> bool:
        """Every statement is one, every letter has one, and second letters are small constants."""
        known = problem.by_name
        used = {name for s in problem.statements for name in s.uses} | {problem.asked}
        small = [known[s.uses[1]] for s in problem.statements if s.uses[1:] and s.uses[1] in known]
        return (
            len(known) == len(problem.statements)
            and used <= set(known) <= set(LETTERS)
            and all(self._is_statement(s.words) for s in problem.statements)
            and all(s.words[0].isdecimal() and int(s.words[0]) in SMALL for s in small)
            and bool(problem.every)
        )

    def _is_statement(self, words: Sequence[str]) -> bool:
        if len(words) == 1:
            return is_value(words[0], self.modulus)
        if len(words) == 2:
            return words[1] in self.shifts or words[1] in self.tables
        return len(words) == 3 and words[1] in BINARY

    def kind_of(self, operation: str) -> str:
        if operation in self.tables:
            return "table"
        return "wrong" if operation in self.errors else "easy"

    def prompts(self, count: int, *, seed: int, held_out: bool = False, **choices: Any) -> list[Prompt]:
        """Problems as prompts: `answer` is the asked letter's number, `group` the kind."""
        problems = self.problems(count, seed=seed, held_out=held_out, **choices)
        return as_prompts(self, problems, name=f"igsm{self.seed}-{'held' if held_out else 'train'}{seed}")

    # --- answers ------------------------------------------------------------------------------------------

    def apply(self, statement: Statement, known: Mapping[str, int]) -> int:
        """The value of a statement's letter, given those it uses."""
        if not statement.uses:
            return int(statement.operation)
        value, *small = (known[name] for name in statement.uses)
        if statement.operation in self.tables:
            return self.tables[statement.operation][value]
        shift = self.shifts[statement.operation] if not small else small[0]
        return (value - shift if statement.operation == "-" else value + shift) % self.modulus

    def values(self, problem: Problem, *, style: str = "steps") -> tuple[int, ...]:
        """True values of the letters that a style tells, in its order; the asked one is the last."""
        return self._values(problem, style, None)

    def noisy_values(self, problem: Problem, rng: random.Random, *, style: str = "steps") -> tuple[int, ...]:
        """Values as training texts have them: errors are carried on, each follows from those before."""
        return self._values(problem, style, rng)

    def _values(self, problem: Problem, style: str, rng: random.Random | None) -> tuple[int, ...]:
        known: dict[str, int] = {}
        values = []
        for name in problem.told(style):
            statement = problem.by_name[name]
            value = self.apply(statement, known)
            if rng is not None and statement.operation in self.errors and rng.random() < self.wrong_share:
                value += self.errors[statement.operation]
            if rng is not None and statement.uses and rng.random() < self.slip_share:
                value += pick(rng, _SLIPS)
            known[name] = value % self.modulus
            values.append(known[name])
        return tuple(values)

    def write(
        self, problem: Problem, values: Sequence[int], *, style: str = "steps", rng: random.Random
    ) -> str:
        """An answer with these values; `rng` chooses the style's joints, the k-th with weight 1 / k."""
        how = STYLES[style]
        weights = [1 / (k + 1) for k in range(len(how.joints))]
        joints = [pick(rng, how.joints, weights=weights) for _ in problem.way[1:]] if how.joints else []
        return " ".join([*_layout(problem, values, style, joints), how.end])

    def texts(
        self, count: int, *, seed: int, style: str = "steps", noisy: bool = True, **choices: Any
    ) -> list[dict[str, str]]:
        """Training texts: `prompt`, `response`, `kind`, `style`. Errors are drawn anew for every text."""
        rng = stream("igsm texts", self.seed, seed)
        rows = []
        for problem in self.problems(count, seed=seed, **choices):
            values = self._values(problem, style, rng if noisy else None)
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
        told = problem.told(style or "steps")
        gold = self.values(problem, style=style or "steps")
        known: dict[str, int] = {}
        expected = []
        for name, value in zip(told, written):
            expected.append(self.apply(problem.by_name[name], known))
            known[name] = value
        missing = [-1] * (len(told) - len(expected))
        return Check(
            final=result == gold[-1],
            steps=same(written, gold),
            follows=same(written, [*expected, *missing]),
            style=style,
            complete=style is not None and _is_complete(words, problem, style, written),
        )


def _head(name: str) -> str:
    """A letter where its value is told: a word of its own, so that one look back finds it."""
    return f"{name}="


def asked(problem: Problem) -> str:
    """What is asked, in whatever letters and order, and whatever else is told.

    >>> asked(IgsmWorld().parse("where d= a + b b= 3 a= 45 find d =>"))
    '45 + 3'
    """
    words = []
    for name in problem.way:
        statement = problem.by_name[name]
        words += [statement.operation, *(problem.by_name[small].operation for small in statement.uses[1:])]
    return " ".join(words)


def _layout(problem: Problem, values: Sequence[int], style: str, joints: Sequence[str]) -> list[str]:
    """All words of an answer but its end token."""
    how = STYLES[style]
    told = problem.told(style)
    words = [how.mark, *([*reversed(problem.way), how.colon] if how.colon else [])]
    left = iter(joints)
    for i, (name, value) in enumerate(zip(told, values, strict=True)):
        operands = problem.by_name[name].uses[1:]
        if how.every:
            words += [_head(name), str(value)]
        elif not how.colon:
            words += [str(value)]
        elif i + 1 < len(told) and name in problem.by_name[told[i + 1]].uses[1:]:
            following = told[i + 1]  # a small constant stands inside of the step that uses it
            words += [
                next(left),
                _head(following),
                problem.by_name[following].operation,
                name,
                str(value),
            ]
        elif operands:
            words += [str(value)]
        elif problem.by_name[name].uses:
            words += [next(left), _head(name), problem.by_name[name].operation, str(value)]
        else:
            words += [_head(name), str(value)]
    return [*words, how.answer, str(values[-1])]


def _is_complete(words: Sequence[str], problem: Problem, style: str, written: Sequence[int]) -> bool:
    how = STYLES[style]
    if len(written) != len(problem.told(style)):
        return False
    body = list(words[:-1] if words[-1] == how.end else words)
    joints = [word for word in body if word in how.joints]
    if len(joints) != (len(problem.way) - 1 if how.joints else 0):
        return False
    return body == _layout(problem, written, style, joints)
