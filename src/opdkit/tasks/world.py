"""What every world of the testbed shares: its dials, its words, problems as prompts, and texts that teach errors.

A family (`opdkit.tasks.chain`, `opdkit.tasks.lists`) is a `World` that says how a problem is drawn, worded, worked
out and laid out as an answer. Everything is a function of (world, seed, arguments).
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from opdkit.tasks.family import KINDS, PAD, UNKNOWN, Check, Style, distinct, pick, stream
from opdkit.tasks.operands import Operands
from opdkit.types import Prompt


@dataclass(frozen=True)
class World(ABC):
    """The dials of a world; another `seed` is another choice of wrong operands and tables."""

    seed: int = 0
    modulus: int = 97
    depth: tuple[int, int] = (2, 4)  # steps of a problem, fewest and most; the most are a prompt's slots
    num_wrong: int = 3  # of the 18 shifts
    num_tables: int = 12
    kinds: tuple[float, float, float] = (0.25, 0.45, 0.30)  # shares of easy, wrong and table problems
    wrong_share: float = 0.7  # of wrong operands' steps in training texts that say the shifted value
    slip_share: float = 0.01  # of all steps in training texts that say a near value
    templates: int = 2  # wordings drawn from; `problems(template=2)` asks for one that no text has

    name: ClassVar[str]
    written_in: ClassVar[Mapping[str, Style]]
    own_words: ClassVar[tuple[str, ...]]  # of its prompts, beside values and operands

    # --- what a family says -------------------------------------------------------------------------------

    @abstractmethod
    def draw(self, rng: random.Random, kind: str, length: int, template: int | None) -> Any:
        """A problem of that kind and length, in that wording or in one of its own."""

    @abstractmethod
    def asked(self, problem: Any) -> str:
        """What is asked, whatever the wording."""

    @abstractmethod
    def prompt(self, problem: Any) -> str:
        """The problem in words."""

    @abstractmethod
    def parse(self, prompt: str) -> Any:
        """The problem of a prompt's text. ValueError for anything that is none of this world's."""

    @abstractmethod
    def values(self, problem: Any) -> tuple[int, ...]:
        """All true values, the answer last."""

    @abstractmethod
    def results(self, problem: Any) -> tuple[int, ...]:
        """The true results of the steps, as `write` takes them."""

    @abstractmethod
    def noisy_results(self, problem: Any, rng: random.Random) -> tuple[int, ...]:
        """Results as training texts have them."""

    @abstractmethod
    def layout(
        self, problem: Any, results: Sequence[int], how: Style, joints: Sequence[str] | None
    ) -> list[str]:
        """All words of an answer but its end token."""

    @abstractmethod
    def check(self, problem: Any, response: str) -> Check:
        """Judges an answer in any style, with or without its end token (decoders drop it)."""

    # --- what there is ------------------------------------------------------------------------------------

    @cached_property
    def operands(self) -> Operands:
        return Operands(
            self.name,
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
        words = [PAD, UNKNOWN, *self.own_words]
        for how in self.written_in.values():
            words += [how.mark, how.answer, how.end, *how.joints]
        words += self.operands.words
        assert len(words) == len(set(words))
        return tuple(words)

    @property
    def styles(self) -> tuple[str, ...]:
        """Names of the ways to answer."""
        return tuple(self.written_in)

    @property
    def ends(self) -> tuple[str, ...]:
        """End tokens, one per style."""
        return tuple(how.end for how in self.written_in.values())

    @property
    def max_tokens(self) -> int:
        """Tokens that hold the longest answer."""
        return 2 * self.depth[1] + 5

    # --- problems -----------------------------------------------------------------------------------------

    def problems(
        self,
        count: int,
        *,
        seed: int,
        held_out: bool = False,
        kinds: Sequence[float] | None = None,
        lengths: Sequence[int] | None = None,
        template: int | None = None,
    ) -> list[Any]:
        """`count` different problems, their lengths drawn among `lengths`. Held-out ones are disjoint from all others,
        whatever the seeds."""
        rng = stream(f"{self.name} problems", self.seed, seed, held_out)
        steps = lengths or range(self.depth[0], self.depth[1] + 1)

        def draw() -> Any:
            kind = pick(rng, KINDS, weights=kinds or self.kinds)
            return self.draw(rng, kind, pick(rng, steps), template)

        return distinct(count, draw, asked=self.asked, held_out=held_out)

    def wording(self, rng: random.Random, template: int | None) -> int:
        return pick(rng, range(self.templates)) if template is None else template

    def prompts(self, count: int, *, seed: int, held_out: bool = False, **choices: Any) -> list[Prompt]:
        """Problems as prompts: `answer` is the final number, `group` the kind."""
        problems = self.problems(count, seed=seed, held_out=held_out, **choices)
        return self._prompts(problems, name=f"{self.name}{self.seed}-{'held' if held_out else 'train'}{seed}")

    def _prompts(self, problems: Sequence[Any], *, name: str) -> list[Prompt]:
        return [
            Prompt(
                id=f"{name}-{i}",
                text=self.prompt(problem),
                answer=str(self.values(problem)[-1]),
                group=problem.kind,
                source=f"{name}:{i}",
            )
            for i, problem in enumerate(problems)
        ]

    # --- answers ------------------------------------------------------------------------------------------

    def write(self, problem: Any, results: Sequence[int], *, style: str = "steps", rng: random.Random) -> str:
        """An answer with these results; `rng` chooses the style's joints, the k-th with weight 1 / k."""
        how = self.written_in[style]
        weights = [1 / (k + 1) for k in range(len(how.joints))]
        joints = [pick(rng, how.joints, weights=weights) for _ in results] if how.joints else None
        return " ".join([*self.layout(problem, results, how, joints), how.end])

    def demonstrations(
        self, count: int, *, seed: int, style: str = "steps", noisy: bool = True, **choices: Any
    ) -> list[Prompt]:
        """The prompts of `seed`, each with a training text as its `response`. Errors are drawn anew for each."""
        problems = self.problems(count, seed=seed, **choices)
        rng = stream(f"{self.name} texts", self.seed, seed)
        prompts = self._prompts(problems, name=f"{self.name}{self.seed}-train{seed}")
        responses = []
        for problem in problems:
            results = self.noisy_results(problem, rng) if noisy else self.results(problem)
            responses.append(self.write(problem, results, style=style, rng=rng))
        return [replace(p, response=r) for p, r in zip(prompts, responses, strict=True)]

    def texts(self, count: int, *, style: str = "steps", **choices: Any) -> list[dict[str, Any]]:
        """Training texts as plain rows: `prompt`, `response`, `kind`, `style`."""
        return [
            {"prompt": p.text, "response": p.response, "kind": p.group, "style": style}
            for p in self.demonstrations(count, style=style, **choices)
        ]

    def is_laid_out(self, words: Sequence[str], problem: Any, how: Style, results: Sequence[int]) -> bool:
        """Whether an answer with these results is written just as its style writes it."""
        body = list(words[:-1] if words[-1] == how.end else words)
        joints = body[1 : 2 * len(results) : 2] if how.joints else None
        if joints is not None and not set(joints) <= set(how.joints):
            return False
        return body == self.layout(problem, results, how, joints)


def step_words(results: Sequence[int], before: Sequence[str] | None) -> list[str]:
    """Values, each after its word if there are such.

    >>> step_words([48, 41], ["so", "now"]), step_words([48], None)
    (['so', '48', 'now', '41'], ['48'])
    """
    if before is None:
        return [str(value) for value in results]
    return [word for pair in zip(before, map(str, results), strict=True) for word in pair]
