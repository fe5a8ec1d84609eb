"""Operands on numbers modulo a prime, of three kinds: what a world's problems are made of.

`easy` shifts that training texts always get right; `wrong` shifts whose written result is off by a fixed ±10 in
`wrong_share` of the texts, so that imitation makes the *mode* wrong while the truth stays likely enough to be
found by sampling; `table` operands, permutations of all values without a rule: facts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from opdkit.tasks.family import by_hash, permutations, pick

_SLIPS = (-10, -3, -2, -1, 1, 2, 3, 10)


@dataclass(frozen=True)
class Operands:
    """All operands of the world `name`, `seed`; which shifts are wrong and what tables say is drawn from both."""

    name: str
    seed: int
    modulus: int
    num_wrong: int
    num_tables: int
    wrong_share: float
    slip_share: float

    @cached_property
    def shifts(self) -> Mapping[str, int]:
        """`+1` … `+9`, `-1` … `-9` and what they add."""
        return {f"{k:+d}": k for k in (*range(1, 10), *range(-1, -10, -1))}

    @cached_property
    def errors(self) -> Mapping[str, int]:
        """Wrong operands and by how much training texts are off: ±10."""
        names = by_hash(self.shifts, f"{self.name} errors", self.seed)[: self.num_wrong]
        return {name: (-10, 10)[i % 2] for i, name in enumerate(names)}

    @cached_property
    def tables(self) -> Mapping[str, tuple[int, ...]]:
        """Table operands, each a permutation of all values."""
        tables = permutations(self.num_tables, f"{self.name} table", self.seed, of=self.modulus)
        return {f"t{i}": table for i, table in enumerate(tables)}

    @cached_property
    def easy(self) -> tuple[str, ...]:
        return tuple(name for name in self.shifts if name not in self.errors)

    @property
    def words(self) -> tuple[str, ...]:
        """Values, then operands, as tokens."""
        return (*map(str, range(self.modulus)), *self.shifts, *self.tables)

    def of_kind(self, kind: str) -> tuple[str, ...]:
        return {"easy": self.easy, "wrong": tuple(self.errors), "table": tuple(self.tables)}[kind]

    def kind_of(self, operand: str) -> str:
        """Raises ValueError for a word that is no operand."""
        if operand in self.tables:
            return "table"
        if operand not in self.shifts:
            raise ValueError(f"no operand: {operand!r}")
        return "wrong" if operand in self.errors else "easy"

    def apply(self, operand: str, value: int) -> int:
        if operand in self.tables:
            return self.tables[operand][value]
        return (value + self.shifts[operand]) % self.modulus

    def misread(self, operand: str, value: int, rng: random.Random) -> int:
        """The result as training texts have it: off for wrong operands, now and then a slip."""
        result = self.apply(operand, value)
        if operand in self.errors and rng.random() < self.wrong_share:
            result += self.errors[operand]
        if rng.random() < self.slip_share:
            result += pick(rng, _SLIPS)
        return result % self.modulus
