"""Lists, the testbed's second family: change every item by its own operand, then name the first or last, mod 97.

    prompt    list 45 +3 12 -9 77 t2 . . name last =>
    answer    map so 48 next 3 so 31 gives 31 <done>

Where a chain hands one value on from step to step, here nothing depends on the step before: each item is read
off the prompt, and what is asked has to be found again among one's own words. A problem asks for the item of its
kind: `easy`, `wrong` or `table` (see `opdkit.tasks.operands`); all other items are easy.

Items stand two words apart, as steps do in an answer: item i is equally far from step i in every prompt, and a
model with rotary positions finds it by looking back so far.

Four styles of answer end in the same number: `steps` and `other` share the procedure and no word, `echo` writes
each operand beside its result, `asked` works out the one item alone. Everything is a function of (world, seed,
arguments).
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
    asked: bool = False  # only the item asked for is worked out


STYLES: Mapping[str, Style] = {
    "steps": Style(
        "map", "gives", "<done>", ("so", "next", "then", "also", "again", "item", "here", "makes")
    ),
    "other": Style(
        "walk", "leaves", "<over>", ("after", "onward", "further", "later", "soon", "brings", "turns")
    ),
    "echo": Style("trace", "finally", "<stop>", echo=True),
    "asked": Style("only", "total", "<end>", asked=True),
}
_TEMPLATES = (("list", "name"), ("items", "tell"), ("row", "show"))
_PLACES = ("first", "last")  # to find the k-th of four among its own words takes so small a model too long
_GLUE = (".", "=>")


@dataclass(frozen=True)
class Problem:
    """Items as (value, operand), and which of them is asked for. `template` is the wording around it."""

    items: tuple[tuple[int, str], ...]
    asked: int
    kind: str
    template: int = 0


@dataclass(frozen=True)
class ListWorld:
    """One world of lists; another `seed` is another choice of wrong operands and tables.

    >>> world = ListWorld()
    >>> problem = world.parse("list 45 +3 12 -7 . . . . name last =>")
    >>> world.values(problem)
    (48, 5, 5)
    >>> world.check(problem, "map so 48 next 5 gives 5").final
    True
    """

    seed: int = 0
    modulus: int = 97
    depth: tuple[int, int] = (2, 4)  # items of a problem, fewest and most; the most are a prompt's slots
    num_wrong: int = 3  # of the 18 shifts
    num_tables: int = 12
    kinds: tuple[float, float, float] = (0.25, 0.45, 0.30)  # shares of easy, wrong and table problems
    wrong_share: float = 0.6  # of wrong operands in training texts that say the shifted value
    slip_share: float = 0.01  # of all values in training texts that say a near one
    templates: int = 2  # wordings drawn from; `problems(template=2)` asks for one that no text has

    @cached_property
    def operands(self) -> Operands:
        return Operands(
            "list",
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
        words = [PAD, UNKNOWN, *_GLUE, *_PLACES]
        words += [word for template in _TEMPLATES for word in template]
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
        """Tokens of the longest answer, and one."""
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
        rng = stream("list problems", self.seed, seed, held_out)

        def draw() -> Problem:
            return self._draw(rng, kinds or self.kinds, depth or self.depth, template)

        return distinct(count, draw, asked=lambda p: f"{p.items} {p.asked}", held_out=held_out)

    def _draw(
        self, rng: random.Random, kinds: Sequence[float], depth: tuple[int, int], template: int | None
    ) -> Problem:
        kind = pick(rng, KINDS, weights=kinds)
        length = pick(rng, range(depth[0], depth[1] + 1))
        asked = pick(rng, (0, length - 1))
        chosen = [pick(rng, self.operands.of_kind(kind if i == asked else "easy")) for i in range(length)]
        items = tuple((pick(rng, range(self.modulus)), operand) for operand in chosen)
        wording = pick(rng, range(self.templates)) if template is None else template
        return Problem(items, asked, kind, wording)

    def prompt(self, problem: Problem) -> str:
        """The problem in words; unused slots hold `. .`."""
        opening, verb = _TEMPLATES[problem.template]
        slots = [f"{value} {operand}" for value, operand in problem.items]
        slots += [". ."] * (self.depth[1] - len(slots))
        return f"{opening} {' '.join(slots)} {verb} {_PLACES[problem.asked > 0]} =>"

    def parse(self, prompt: str) -> Problem:
        """The problem of a prompt's text. ValueError for anything that is none of this world's."""
        words = prompt.split()
        openings = [template[0] for template in _TEMPLATES]
        if len(words) < 6 or words[0] not in openings or words[-2] not in _PLACES:
            raise ValueError(f"not a list: {prompt!r}")
        pairs = list(zip(words[1:-3:2], words[2:-3:2], strict=False))
        items = tuple((int(v), o) for v, o in pairs if is_value(v, self.modulus))
        if not items:
            raise ValueError(f"no items: {prompt!r}")
        asked = _PLACES.index(words[-2]) * (len(items) - 1)
        kind = self.operands.kind_of(items[asked][1])
        problem = Problem(items, asked, kind, openings.index(words[0]))
        if self.prompt(problem) != prompt:
            raise ValueError(f"not a list of at most {self.depth[1]} items: {prompt!r}")
        return problem

    def prompts(self, count: int, *, seed: int, held_out: bool = False, **choices: Any) -> list[Prompt]:
        """Problems as prompts: `answer` is the number asked for, `group` the kind."""
        problems = self.problems(count, seed=seed, held_out=held_out, **choices)
        return as_prompts(self, problems, name=f"list{self.seed}-{'held' if held_out else 'train'}{seed}")

    # --- answers ------------------------------------------------------------------------------------------

    def values(self, problem: Problem) -> tuple[int, ...]:
        """The true result of every item, and after them the one asked for."""
        results = [self.operands.apply(operand, value) for value, operand in problem.items]
        return (*results, results[problem.asked])

    def write(
        self, problem: Problem, results: Sequence[int], *, style: str = "steps", rng: random.Random
    ) -> str:
        """An answer with these results of the items; `rng` chooses the joints, the k-th with weight 1 / k."""
        how = STYLES[style]
        weights = [1 / (k + 1) for k in range(len(how.joints))]
        joints = [pick(rng, how.joints, weights=weights) for _ in results] if how.joints else None
        return " ".join([*_layout(problem, results, how, joints), how.end])

    def texts(
        self, count: int, *, seed: int, style: str = "steps", noisy: bool = True, **choices: Any
    ) -> list[dict[str, str]]:
        """Training texts: `prompt`, `response`, `kind`, `style`. Errors are drawn anew for every text."""
        rng = stream("list texts", self.seed, seed)
        rows = []
        for problem in self.problems(count, seed=seed, **choices):
            right = self.values(problem)[:-1]
            results = [self.operands.misread(o, v, rng) for v, o in problem.items] if noisy else right
            response = self.write(problem, results, style=style, rng=rng)
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
        """Judges an answer in any style, with or without its end token (decoders drop it).

        `follows` asks of items what `steps` does, for none depends on another, and of the result whether it is
        the one written above.
        """
        words = response.split()
        style = style_of(words, STYLES)
        written, result = numbers(words, STYLES, modulus=self.modulus)
        *gold, asked = self.values(problem)
        alone = style is not None and STYLES[style].asked
        steps = same(written, [asked] if alone else gold)
        place = 0 if alone else problem.asked
        told = place < len(written) and result == written[place]
        return Check(
            final=result == asked,
            steps=steps,
            follows=(*steps, told),
            style=style,
            complete=style is not None and _is_complete(words, problem, STYLES[style], written),
        )


def _layout(problem: Problem, results: Sequence[int], how: Style, joints: Sequence[str] | None) -> list[str]:
    """All words of an answer but its end token. `results` has one per item."""
    asked = results[problem.asked]
    if how.asked:
        return [how.mark, str(asked), how.answer, str(asked)]
    before = [operand for _, operand in problem.items] if how.echo else joints
    steps = [[str(value)] for value in results]
    if before is not None:
        steps = [[word, *step] for word, step in zip(before, steps, strict=True)]
    return [how.mark, *(word for step in steps for word in step), how.answer, str(asked)]


def _is_complete(words: Sequence[str], problem: Problem, how: Style, written: Sequence[int]) -> bool:
    if len(written) != (1 if how.asked else len(problem.items)):
        return False
    body = list(words[:-1] if words[-1] == how.end else words)
    joints = body[1 : 2 * len(written) : 2] if how.joints else None
    if joints is not None and not set(joints) <= set(how.joints):
        return False
    results = list(written) * len(problem.items) if how.asked else written
    return body == _layout(problem, results, how, joints)
