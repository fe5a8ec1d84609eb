"""A reasoning-gym generator, inside the child: makes items by index and scores answers to them.

Made here and not in the parent so that an index names the same item for ever: some generators iterate over
sets of strings, whose order the hash seed decides, and only a child can be started with a fixed one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from opdkit.tasks.grade import Answer, Reply, last_group, score

BLOCK = 1000  # some generators prepare `size` items when they are opened, others refuse a size above 20000


class GymRefusal(ValueError):
    """The generator cannot be opened as asked; `refused` is what the parent's message turns on."""

    def __init__(self, message: str, *, refused: str):
        super().__init__(message)
        self.refused = refused


def open_gym(setup: dict[str, Any]) -> Answer:
    """Answers `make` (start, count -> items) and `grade` (index, text -> score). Raises GymRefusal."""
    gym = Gym(setup["name"], setup["args"], seed=setup["seed"])
    gym.entry(0)  # wrong arguments often show only now
    pattern = re.compile(setup["extract"]) if setup["extract"] else None

    def answer(request: dict[str, Any]) -> Reply:
        if request["op"] == "make":
            return {
                "items": [gym.item(i) for i in range(request["start"], request["start"] + request["count"])]
            }
        text = last_group(pattern, request["text"]) if pattern else request["text"].strip()
        if text is None or (request["cut"] and not pattern):
            return score(0.0)
        return score(gym.score(text, request["index"]))

    return answer


class Gym:
    """Items by index: block b of the generator has seed + b·BLOCK, so that the usual Random(seed + index)
    runs on."""

    def __init__(self, name: str, args: dict[str, Any], *, seed: int):
        from reasoning_gym.factory import DATASETS

        if name not in DATASETS:
            raise GymRefusal(" ".join(sorted(DATASETS)), refused="unknown")
        self.name, self.args, self.seed = name, args, seed
        self.block = lru_cache(maxsize=64)(self._block)
        self.entry = lru_cache(maxsize=65536)(self._entry)

    def item(self, index: int) -> dict[str, Any]:
        entry = self.entry(index)
        answer = entry.get("answer")
        return {
            "index": index,
            "question": entry["question"],
            "answer": None if answer is None else str(answer),
        }

    def score(self, text: str, index: int) -> float:
        return self.block(index // BLOCK).score_answer(text, self.entry(index))

    def _block(self, number: int) -> Any:
        from reasoning_gym import create_dataset

        seed = self.seed + number * BLOCK
        try:
            return create_dataset(self.name, **self.args, seed=seed, size=BLOCK)
        except Exception as error:  # the generators check by assert, by type errors and by ValueError
            raise GymRefusal(str(error), refused="arguments") from error

    def _entry(self, index: int) -> dict[str, Any]:
        block = self.block(index // BLOCK)
        try:
            return block[index % BLOCK]
        except Exception as error:
            raise GymRefusal(f"{type(error).__name__}: {error}", refused="arguments") from error
