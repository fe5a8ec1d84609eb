"""The testbed's worlds as tasks: prompts that carry a demonstration, graded by the world's own verifier."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdkit.tasks.chain import ChainWorld
from opdkit.tasks.lists import ListWorld
from opdkit.tasks.rows import read_prompts
from opdkit.tasks.world import World
from opdkit.types import Grade, Prompt, Rollout, UserError

if TYPE_CHECKING:
    from opdkit.config import WorldTask

WORLDS: dict[str, type[World]] = {"chain": ChainWorld, "lists": ListWorld}
HELD_OUT_SEED = 1
"""Of the evaluation's problems: the same ones for every run in a world."""


class WorldGrading:
    """The world's verifier, in this process: it compares words and evaluates nothing."""

    def __init__(self, world: World):
        self.world = world

    def grades(self, rollouts: Sequence[Rollout]) -> list[Grade | None]:
        return [
            Grade(float(self.world.check(self.world.parse(r.prompt.text or ""), r.text).final))
            for r in rollouts
        ]

    def close(self) -> None: ...


def open_world(cfg: WorldTask) -> World:
    """The world that `cfg` describes. Raises UserError for a dial it has not, or a value that is none."""
    kind = WORLDS[cfg.family]
    dials = {field.name for field in dataclasses.fields(kind)} - {"seed"}
    for name in cfg.args:
        if name not in dials:
            near = _near(name, dials)
            hint = f"did you mean '{near}'?" if near else f"it has: {', '.join(sorted(dials))}"
            raise UserError(f"task.args.{name} is no dial of the {cfg.family} world", hint=hint)
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in cfg.args.items()}
    return kind(seed=cfg.world, **given)


def world_prompts(cfg: WorldTask) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """(training prompts, each with a demonstration; held-out prompts)."""
    if cfg.demonstrations is not None:
        own = world_prompts(cfg.model_copy(update={"demonstrations": None, "train_size": 1}))
        return _shown(cfg.demonstrations, open_world(cfg)), own[1]
    world = open_world(cfg)
    if cfg.style not in world.styles:
        hint = f"task.style={_near(cfg.style, world.styles) or ' | '.join(world.styles)}"
        raise UserError(f"the {cfg.family} world has no style {cfg.style!r}", hint=hint)
    choices: dict[str, Any] = {} if cfg.template is None else {"template": cfg.template}
    if cfg.lengths is not None:
        choices["lengths"] = _possible(cfg.lengths, world)
    try:
        train = world.demonstrations(
            cfg.train_size, seed=cfg.seed, style=cfg.style, noisy=not cfg.clean, **choices
        )
        held_out = world.prompts(cfg.eval_size, seed=HELD_OUT_SEED, held_out=True) if cfg.eval_size else []
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"the {cfg.family} world has no such problems: {type(error).__name__}: {error}",
            hint="check task.style, task.template and task.args",
        ) from error
    return tuple(train), tuple(held_out)


def _possible(lengths: Sequence[int], world: World) -> Sequence[int]:
    fewest, most = world.depth
    for length in lengths:
        if not fewest <= length <= most:
            raise UserError(
                f"task.lengths asks for {length} steps, and problems of this world have {fewest} to {most}",
                hint=f"task.lengths=[{fewest}, {most}]",
            )
    return lengths


def _near(name: str, names: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)), None)


def _shown(path: Path, world: World) -> tuple[Prompt, ...]:
    """Prompts with demonstrations from a file, each a problem of the world: its verifier must know it."""
    from opdkit.config import FileTask  # pydantic: loaded only where a file is read

    prompts = read_prompts(path, FileTask(path=path))
    _must_be_problems(prompts, world)
    return prompts


def refuse_foreign(prompts: Sequence[Prompt], cfg: WorldTask) -> None:
    """UserError for a prompt that is no problem of the world: its verifier could not judge a response to it."""
    _must_be_problems(prompts, open_world(cfg))


def _must_be_problems(prompts: Sequence[Prompt], world: World) -> None:
    for prompt in prompts:
        try:
            world.parse(prompt.text or "")
        except ValueError as error:
            raise UserError(
                f"{prompt.source} is no problem of this world: {error}",
                hint="task.demonstrations=FILE with prompts of the world, or task.type=file",
            ) from error
