"""Feeds of rollouts to imitate: demonstrations that were given, or the student's own that turned out right.

Both yield (step, rollouts, scores), a step's rollouts being a function of (seed, step); scores are there where a teacher
says what it thinks of demonstrations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from opdkit.config import Config
from opdkit.run.folder import RunFolder
from opdkit.run.rows import Row, as_lines
from opdkit.run.world import World
from opdkit.tasks import step_prompts
from opdkit.train.feed import Clock, Fed, distinct
from opdkit.train.record import interleaved, right
from opdkit.types import Prompt, Rollout, RunError, Scores

Score = Callable[[Sequence[Rollout]], dict[str, list[Scores]]]


class Demonstrations:
    """`sft`: rollouts that somebody else made; with a teacher also what it says of them (`score`)."""

    def __init__(
        self,
        config: Config,
        *,
        rollouts: Sequence[Rollout],
        world: World,
        clock: Clock,
        start: int = 0,
        score: Score | None = None,
    ):
        self.config, self.rollouts, self.world, self.clock, self.start = config, rollouts, world, clock, start
        self.score = score
        self.numbers: dict[str, float] = {}

    def __iter__(self) -> Iterator[Fed]:
        for step in range(self.start, self.config.steps):
            self.clock.reset()
            mine = _share(self.rollouts, self.config, self.world, step)
            yield step, mine, {} if self.score is None else self.score(mine)


class Rounds:
    """`improve`, expert iteration: sample, keep what is right, imitate it; then again with what came of it.

    What a round keeps is written to the run folder, kept_ROUND.jsonl: a resumed run reads it, for the student
    that drew it is gone.
    """

    def __init__(
        self,
        config: Config,
        *,
        prompts: Sequence[Prompt],
        task: Any,
        sampler: Any,
        folder: RunFolder | None,
        world: World,
        clock: Clock,
        start: int = 0,
    ):
        self.config, self.prompts, self.task, self.sampler = config, prompts, task, sampler
        self.folder, self.world, self.clock, self.start = folder, world, clock, start
        self.numbers: dict[str, float] = {}  # of the round under way, for the step's row

    def __iter__(self) -> Iterator[Fed]:
        every = self.config.improve.every or self.config.steps
        kept: list[Rollout] = []
        for step in range(self.start, self.config.steps):
            self.clock.reset()
            if not kept or step % every == 0:
                with self.clock.timed("sample"):
                    kept = self._round(step // every)
            yield step, _share(kept, self.config, self.world, step), {}

    def _round(self, number: int) -> list[Rollout]:
        """What round `number` imitates: read if it was kept before, else sampled. A collective."""
        name = f"kept_{number}.jsonl"
        known = self.folder is not None and (self.folder.path / name).is_file()
        read = self.folder.read_lines(name) if self.folder is not None and known else None
        rows = self.world.gather(read)[0]
        count = min(self.config.improve.prompts, len(self.prompts))
        drawn = count * self.config.sampling.responses
        if rows is None:
            rows = self._sample(number, count)
            if not rows:
                raise RunError(
                    f"round {number}: none of {drawn} responses was right, so there is nothing to imitate",
                    hint="begin with story=sft, ask easier prompts, or draw more: improve.prompts=…",
                )
            if self.folder is not None:
                self.folder.write_text(name, as_lines(rows).decode())
        self.numbers = {"kept_rollouts": len(rows), "kept_fraction": len(rows) / drawn}
        return [_rollout(row) for row in rows]

    def _sample(self, number: int, count: int) -> list[Row]:
        """What is right and came to its end of responses to `count` prompts, over all ranks, in their order."""
        cfg = self.config
        asked = distinct(step_prompts(self.prompts, step=number, seed=cfg.seed, count=count))
        mine = asked[self.world.rank :: self.world.size]
        drawn = self.task.grade(self.sampler.sample(mine, sampling=cfg.sampling, seed=cfg.seed, step=number))
        parts = self.world.gather([_row(r) if _kept(r) else None for r in drawn])
        return [row for row in interleaved(parts, group=cfg.sampling.responses) if row is not None]


def _kept(rollout: Rollout) -> bool:
    return rollout.finish_reason == "stop" and bool(right(rollout))


def _share(rollouts: Sequence[Rollout], config: Config, world: World, step: int) -> list[Rollout]:
    """This rank's part of a step."""
    drawn = step_prompts(rollouts, step=step, seed=config.seed, count=config.prompts_per_step)
    return drawn[world.rank :: world.size]


def _row(rollout: Rollout) -> Row:
    prompt = rollout.prompt
    return {
        "id": prompt.id,
        "sample": rollout.sample,
        "prompt": prompt.given,
        "response": rollout.text,
        "answer": prompt.answer,
        "group": prompt.group,
        "prompt_ids": list(prompt.ids),
        "response_ids": list(rollout.response_ids),
    }


def _rollout(row: Row) -> Rollout:
    asked = row["prompt"]
    prompt = Prompt(
        id=row["id"],
        text=asked if isinstance(asked, str) else None,
        messages=None if isinstance(asked, str) else tuple(asked),
        answer=row["answer"],
        group=row["group"],
        ids=tuple(row["prompt_ids"]),
    )
    return Rollout(
        prompt=prompt,
        response_ids=tuple(row["response_ids"]),
        finish_reason="stop",
        text=row["response"],
        sample=row["sample"],
        sampler="kept",
    )
