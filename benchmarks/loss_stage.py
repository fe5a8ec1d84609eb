"""The loss stage at a vocabulary of 151,936 (benchmarks/head_memory.py has the workload): time, and memory, as records.

    python benchmarks/loss_stage.py --row loss|columns|memory [--pairs 2]

loss      per preset: forward and backward of the loss from hidden states of 256 positions, over the matrix products that
          the full head cannot avoid: logits of both models, the gradients of the student's hidden states and of its weight. The
          products run over all positions at once into buffers that are there already, in turn with the stage.
columns   `paper-eq5` through the full head over `paper-eq5` through the 16 columns, at T = 512, in turn; `ratio_at_8192` has the
          columns' time at T = 8,192 under the full head's time at 512 times 16 (its chunks are alike, its time is linear)
memory    extra MB of naive full rows, of `paper` in chunks, of `paper-eq5` in columns, each in a process of its own; naive at
          8,192 is extrapolated linearly from 512 and 1,024

Diagnostics are off here (`diagnostics_cost.py` has them) but for `memory`'s `paper`, which measures 256 positions.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from head_memory import Stage, V, in_own_process
from machine import one_core
from opdkit.config import ObjectiveConfig
from opdkit.config.presets import RECIPES
from record import digits, ratio, spread

POSITIONS, SHORT, LONG = 256, 512, 8192


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", choices=("loss", "columns", "memory"), required=True)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--preset", choices=RECIPES, action="append", help="of `loss`; default: all")
    parser.add_argument("--assets", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--records", action="store_true", help="lines of JSON (the only form there is)")
    parser.add_argument("--short", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    one_core()
    made = {
        "loss": lambda: loss(given.preset or POSITIONWISE, given.pairs),
        "columns": lambda: columns(given.pairs),
        "memory": memory,
    }
    for record in made[given.row]():
        print(json.dumps(record), flush=True)


POSITIONWISE = [
    name
    for name, recipe in RECIPES.items()
    if "signal" not in recipe.keys and not ObjectiveConfig(preset=name).others
]
"""What couples positions is added to the stage of the preset under it, and further models each need a head of their own: not
rows of one teacher's stage."""


def loss(presets: list[str], pairs: int) -> Iterator[dict[str, Any]]:
    stage = Stage(POSITIONS)
    products = Products(stage)
    products.run()  # warms up
    for preset in presets:
        sides = in_turn(lambda preset=preset: stage_once(stage, preset), products.run, pairs=pairs)
        yield {
            "name": f"loss/{preset}",
            "what": f"`{preset}`, loss stage / its head's matrix products",
            "work": {"positions": POSITIONS, "vocabulary": V, "preset": preset},
            "ratio": ratio(sides[0], sides[1], of="stage / products", better="lower"),
            "seconds": {"stage": spread(sides[0]), "products": spread(sides[1])},
        }


def columns(pairs: int) -> Iterator[dict[str, Any]]:
    stage = Stage(SHORT)
    full, narrow = in_turn(
        lambda: stage_once(stage, "paper-eq5", columns=False),
        lambda: stage_once(stage, "paper-eq5"),
        pairs=pairs,
    )
    long = Stage(LONG)
    many = sorted(timed(lambda: stage_once(long, "paper-eq5")) for _ in range(3))
    found = ratio(full, narrow, of="full head / columns")
    yield {
        "name": "columns",
        "what": "`paper-eq5` through the full head / through its 16 columns, T = 512, V = 151,936",
        "work": {"positions": SHORT, "vocabulary": V, "preset": "paper-eq5"},
        "ratio": found,
        "seconds": {"full": spread(full), "columns": spread(narrow)},
        "seconds_columns_at_8192": digits(many[1]),
        "ratio_at_8192": digits(spread(full)["median"] * LONG / SHORT / many[1]),
    }


def memory() -> Iterator[dict[str, Any]]:
    sides = [("naive", 512, 0), ("naive", 1024, 0), ("paper", 1024, 256), ("paper-eq5", LONG, 0)]
    extra = {}
    for side, positions, measured in sides:
        found = in_own_process("--one", side, str(positions), str(measured))
        extra[f"{side} at {positions}"] = found["extra_mb"]
    slope = (extra["naive at 1024"] - extra["naive at 512"]) / 512
    naive = extra["naive at 1024"] + slope * (LONG - 1024)
    at_1024, at_long = extra["paper at 1024"], extra[f"paper-eq5 at {LONG}"]
    yield {
        "name": "memory",
        "what": f"extra MB: {', '.join(f'{k} {v}' for k, v in extra.items())}; naive at {LONG} {naive:.0f} (linear)",
        "work": {"vocabulary": V},
        "extra_mb": extra | {f"naive at {LONG}, extrapolated": round(naive)},
        "naive_over_columns": digits(naive / at_long),
        "naive_over_paper_at_1024": digits(extra["naive at 1024"] / at_1024),
    }


class Products:
    """What no way around the full head avoids: four products of [T, D], [D, V] and [T, V]."""

    def __init__(self, stage: Stage):
        self.stage = stage
        positions = len(stage.hidden)
        self.logits, self.theirs = (torch.empty(positions, V) for _ in range(2))
        self.d_hidden = torch.empty_like(stage.hidden)
        self.d_weight = torch.empty_like(stage.head.weight)

    @torch.no_grad()
    def run(self) -> None:
        hidden, weight = self.stage.hidden, self.stage.head.weight
        torch.mm(self.stage.teacher_hidden, self.stage.teacher_head.weight.T, out=self.theirs)
        torch.mm(hidden, weight.T, out=self.logits)
        torch.mm(self.logits, weight, out=self.d_hidden)
        torch.mm(self.logits.T, hidden, out=self.d_weight)


def stage_once(stage: Stage, preset: str, *, columns: bool = True) -> None:
    """Forward and backward of the loss; the gradients are dropped."""
    stage.gradients(stage.ours(preset, measured=0, columns=columns))


def in_turn(first: Callable[[], None], second: Callable[[], None], *, pairs: int) -> tuple[list[float], list[float]]:  # fmt: skip
    """A, B, A, B: wall-clock seconds of each."""
    sides: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs):
        sides[0].append(timed(first))
        sides[1].append(timed(second))
    return sides


def timed(act: Callable[[], None]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
