"""A rehearsal: the first steps of the run as configured, on a copy that is thrown away.

What separates pairs that work from pairs that do not, on every pair of the testbed, is whether the loss falls
at once. Reading alone cannot see it: a student may have the teacher's tokens in reach at every single state and
still not hold them all (facts), or may take over a skill from a teacher of another lineage.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from opdkit.config import Config
from opdkit.recipes.probe import Number
from opdkit.run.folder import RunFolder
from opdkit.train import Silent, run_story

STEPS = 30
WINDOW = 5


def rehearse(config: Config, *, steps: int) -> dict[str, Number]:
    """`rehearsed_loss_ratio`: mean loss of the last steps over that of the first; the count is of steps.

    The run's own prompts, rollouts, optimizer and objective; nothing of it is kept. Empty where it began at 0.
    """
    with tempfile.TemporaryDirectory() as place:
        short = config.model_copy(
            update={
                "steps": steps,
                "run": Path(place) / "rehearsal",
                "eval": config.eval.model_copy(update={"every": 0, "at_ends": False, "teacher": False}),
                "save": config.save.model_copy(update={"every": 0, "rollouts_every": 0}),
                "health": config.health.model_copy(update={"enabled": False}),
                "track": [],
            }
        )
        if run_story(short, talk=Silent()) != 0:
            raise SystemExit(130)
        losses = [row["loss"] for row in RunFolder.read(short.run).read_metrics()]
    first, last = _mean(losses[:WINDOW]), _mean(losses[-WINDOW:])
    return {"rehearsed_loss_ratio": Number(last / first, steps)} if first > 1e-6 else {}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
