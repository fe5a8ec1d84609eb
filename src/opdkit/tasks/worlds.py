"""The testbed's worlds as tasks: prompts that carry a demonstration, graded by the world's own verifier."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opdkit.config import WorldTask
from opdkit.tasks.chain import ChainWorld
from opdkit.tasks.lists import ListWorld
from opdkit.tasks.rows import read_prompts
from opdkit.types import Grade, Prompt, Rollout, UserError

WORLDS: dict[str, Any] = {"chain": ChainWorld, "lists": ListWorld}
HELD_OUT_SEED = 1
"""Of the evaluation's problems: the same ones for every run in a world."""


class WorldGrading:
    """The world's verifier, in this process: it compares words and evaluates nothing."""

    def __init__(self, world: Any):
        self.world = world

    def grades(self, rollouts: Sequence[Rollout]) -> list[Grade | None]:
        return [
            Grade(float(self.world.check(self.world.parse(r.prompt.text), r.text).final)) for r in rollouts
        ]

    def close(self) -> None: ...


def open_world(cfg: WorldTask) -> Any:
    """The world that `cfg` describes. Raises UserError for a dial it has not, or a value that is none."""
    kind = WORLDS[cfg.family]
    dials = {field.name for field in dataclasses.fields(kind)} - {"seed"}
    for name in cfg.args:
        if name not in dials:
            near = difflib.get_close_matches(name, dials, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"it has: {', '.join(sorted(dials))}"
            raise UserError(f"task.args.{name} is no dial of the {cfg.family} world", hint=hint)
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in cfg.args.items()}
    return kind(seed=cfg.world, **given)


def world_prompts(cfg: WorldTask) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """(training prompts, each with a demonstration; held-out prompts)."""
    if cfg.demonstrations is not None:
        own = world_prompts(cfg.model_copy(update={"demonstrations": None, "train_size": 1}))
        return _shown(cfg.demonstrations, open_world(cfg)), own[1]
    world = open_world(cfg)
    if cfg.style not in world.styles:
        near = difflib.get_close_matches(cfg.style, world.styles, n=1, cutoff=0.5)
        hint = f"task.style={near[0]}" if near else f"task.style={' | '.join(world.styles)}"
        raise UserError(f"the {cfg.family} world has no style {cfg.style!r}", hint=hint)
    choices = {} if cfg.template is None else {"template": cfg.template}
    try:
        prompts = world.prompts(cfg.train_size, seed=cfg.seed, **choices)
        texts = world.texts(cfg.train_size, seed=cfg.seed, style=cfg.style, noisy=not cfg.clean, **choices)
        held_out = world.prompts(cfg.eval_size, seed=HELD_OUT_SEED, held_out=True) if cfg.eval_size else ()
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"the {cfg.family} world has no such problems: {type(error).__name__}: {error}",
            hint="check task.style, task.template and task.args",
        ) from error
    assert all(p.text == t["prompt"] for p, t in zip(prompts, texts, strict=True))
    train = (replace(p, response=t["response"]) for p, t in zip(prompts, texts, strict=True))
    return tuple(train), tuple(held_out)


def _shown(path: Path, world: Any) -> tuple[Prompt, ...]:
    """Prompts with demonstrations from a file, each a problem of the world: its verifier must know it."""
    from opdkit.config import FileTask  # pydantic: loaded only where a file is read

    prompts = read_prompts(path, FileTask(path=path))
    for prompt in prompts:
        try:
            world.parse(prompt.text or "")
        except ValueError as error:
            raise UserError(
                f"{prompt.source} is no problem of this world: {error}",
                hint="task.demonstrations=FILE with prompts of the world, or task.type=file",
            ) from error
    return prompts
