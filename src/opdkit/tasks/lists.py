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
from typing import ClassVar

from opdkit.tasks.family import Check, Style, is_value, numbers, pick, same, style_of
from opdkit.tasks.world import World, step_words

STYLES: Mapping[str, Style] = {
    "steps": Style(
        "map", "gives", "<done>", ("so", "next", "then", "also", "again", "item", "here", "makes")
    ),
    "other": Style(
        "walk", "leaves", "<over>", ("after", "onward", "further", "later", "soon", "brings", "turns")
    ),
    "echo": Style("trace", "finally", "<stop>", procedure="echo"),
    "asked": Style("only", "total", "<end>", procedure="asked"),
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
class ListWorld(World):
    """One world of lists; a step is an item.

    >>> world = ListWorld()
    >>> problem = world.parse("list 45 +3 12 -7 . . . . name last =>")
    >>> world.values(problem)
    (48, 5, 5)
    >>> world.check(problem, "map so 48 next 5 gives 5").final
    True
    """

    wrong_share: float = 0.6  # .7, as in chains, left too little truth to find in a first layout

    name: ClassVar[str] = "list"
    written_in: ClassVar[Mapping[str, Style]] = STYLES
    own_words: ClassVar[tuple[str, ...]] = (
        *_GLUE,
        *_PLACES,
        *(word for template in _TEMPLATES for word in template),
    )

    # --- problems -----------------------------------------------------------------------------------------

    def draw(self, rng: random.Random, kind: str, length: int, template: int | None) -> Problem:
        asked = pick(rng, (0, length - 1))
        chosen = [pick(rng, self.operands.of_kind(kind if i == asked else "easy")) for i in range(length)]
        items = tuple((pick(rng, range(self.modulus)), operand) for operand in chosen)
        return Problem(items, asked, kind, self.wording(rng, template))

    def asked(self, problem: Problem) -> str:
        return f"{problem.items} {problem.asked}"

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

    # --- answers ------------------------------------------------------------------------------------------

    def values(self, problem: Problem) -> tuple[int, ...]:
        """The true result of every item, and after them the one asked for."""
        results = self.results(problem)
        return (*results, results[problem.asked])

    def results(self, problem: Problem) -> tuple[int, ...]:
        return tuple(self.operands.apply(operand, value) for value, operand in problem.items)

    def noisy_results(self, problem: Problem, rng: random.Random) -> tuple[int, ...]:
        return tuple(self.operands.misread(operand, value, rng) for value, operand in problem.items)

    def layout(
        self, problem: Problem, results: Sequence[int], how: Style, joints: Sequence[str] | None
    ) -> list[str]:
        asked = results[problem.asked]
        if how.procedure == "asked":
            return [how.mark, str(asked), how.answer, str(asked)]
        before = [operand for _, operand in problem.items] if how.procedure == "echo" else joints
        return [how.mark, *step_words(results, before), how.answer, str(asked)]

    def check(self, problem: Problem, response: str) -> Check:
        """`follows` asks of items what `steps` does, for none depends on another, and of the result whether it
        is the one written above."""
        words = response.split()
        style = style_of(words, STYLES)
        written, result = numbers(words, STYLES, modulus=self.modulus)
        *gold, asked = self.values(problem)
        alone = style is not None and STYLES[style].procedure == "asked"
        wanted, place = ([asked], 0) if alone else (gold, problem.asked)
        results = written * len(gold) if alone else written
        steps = same(written, wanted)
        told = place < len(written) and result == written[place]
        return Check(
            final=result == asked,
            steps=steps,
            follows=(*steps, told),
            style=style,
            complete=style is not None
            and len(written) == len(wanted)
            and self.is_laid_out(words, problem, STYLES[style], results),
        )
