"""A task: prompts for training and evaluation, and a grader that cannot hang or harm the run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, Self

from opdkit.tasks.gym import gym_prompts, gym_setup, refusal
from opdkit.tasks.rows import read_prompts
from opdkit.tasks.worker import Worker
from opdkit.tasks.worlds import WorldGrading, open_world, world_prompts
from opdkit.types import Grade, Prompt, Rollout, UserError

if TYPE_CHECKING:
    from opdkit.config import FileTask, GymTask, TaskConfig

MAX_CHARACTERS = 20_000  # of a response that a grader reads, from its end: answers stand there


def load_task(cfg: TaskConfig, *, base_seed: int = 0) -> Task:
    """The task that `cfg` describes; `base_seed` gives a generator another stream, files are read as they
    are.

    Raises UserError for whatever is wrong with files, arguments, patterns or answers, before a model is
    loaded.
    """
    if cfg.type == "testbed":
        return Task(*world_prompts(cfg), grading=WorldGrading(open_world(cfg)))
    return _gym_task(cfg, base_seed) if cfg.type == "gym" else _file_task(cfg)


class Grading(Protocol):
    """Who judges responses."""

    def grades(self, rollouts: Sequence[Rollout]) -> list[Grade | None]:
        """One per rollout; None where there is nothing to judge by."""
        ...

    def close(self) -> None: ...


class Task:
    """Lives because it may own a grader's process: `close` it, or use it in a `with` statement."""

    def __init__(self, train: tuple[Prompt, ...], evaluation: tuple[Prompt, ...], *, grading: Grading | None):
        self.train = train
        self.evaluation = evaluation
        self._grading = grading

    @property
    def graded(self) -> bool:
        return self._grading is not None

    def grade(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The rollouts with `grade` set, in order; unchanged where there is nothing to judge by."""
        if self._grading is None:
            return list(rollouts)
        grades = self._grading.grades(rollouts)
        return [r if g is None else replace(r, grade=g) for r, g in zip(rollouts, grades, strict=True)]

    def close(self) -> None:
        """Ends the grader's process. Grading again starts another."""
        if self._grading is not None:
            self._grading.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ChildGrading:
    """Graders that run foreign code on foreign text, in a process that can be killed.

    Only the last 20,000 characters of a response are read; a longer one is never an exact answer. A grader
    that took too long or raised gives no score but `failed`.
    """

    def __init__(self, worker: Worker, *, timeout_seconds: float):
        self.worker, self.timeout_seconds = worker, timeout_seconds

    def grades(self, rollouts: Sequence[Rollout]) -> list[Grade | None]:
        asked = [i for i, r in enumerate(rollouts) if _gradable(r.prompt)]
        replies = self.worker.ask(
            [_request(rollouts[i]) for i in asked], timeout_seconds=self.timeout_seconds
        )
        found = {i: Grade(r.get("score"), r.get("failed")) for i, r in zip(asked, replies, strict=True)}
        return [found.get(i) for i in range(len(rollouts))]

    def close(self) -> None:
        self.worker.close()


# --- files and generators ------------------------------------------------------------------------------------------


def _file_task(cfg: FileTask) -> Task:
    train = read_prompts(cfg.path, cfg)
    evaluation = read_prompts(cfg.eval_path, cfg) if cfg.eval_path else ()
    grader = cfg.grader
    if grader.type == "none":
        return Task(train, evaluation, grading=None)
    _must_have_answers(train + evaluation, cfg)
    if grader.type == "regex":
        _must_compile(grader.pattern, "task.grader.pattern")
    worker = Worker({"type": grader.type, "pattern": grader.pattern})
    greeting = worker.start()  # now, so that a missing package shows before a model is loaded
    if "ready" not in greeting:
        worker.close()
        raise _grader_refusal(greeting, grader.type)
    return Task(train, evaluation, grading=ChildGrading(worker, timeout_seconds=grader.timeout_seconds))


def _gym_task(cfg: GymTask, base_seed: int) -> Task:
    if cfg.extract is not None:
        _must_compile(cfg.extract, "task.extract")
    worker = Worker(gym_setup(cfg, base_seed=base_seed))
    try:
        greeting = worker.start()
        if "ready" not in greeting:
            raise refusal(greeting, cfg)
        train, evaluation = gym_prompts(worker, cfg)
    except BaseException:
        worker.close()
        raise
    return Task(train, evaluation, grading=ChildGrading(worker, timeout_seconds=cfg.timeout_seconds))


def _request(rollout: Rollout) -> dict[str, Any]:
    text = rollout.text.strip()
    return {
        "op": "grade",
        "text": text[-MAX_CHARACTERS:],
        "cut": len(text) > MAX_CHARACTERS,
        "answer": rollout.prompt.answer,
        **rollout.prompt.extra,
    }


def _gradable(prompt: Prompt) -> bool:
    return prompt.answer is not None or "index" in prompt.extra


# --- refusals -----------------------------------------------------------------------------------------------


def _must_have_answers(prompts: Sequence[Prompt], cfg: FileTask) -> None:
    without = [p for p in prompts if p.answer is None]
    if without:
        raise UserError(
            f"grader {cfg.grader.type!r} needs answers: {len(without)} of {len(prompts)} rows have no "
            f"`{cfg.answer_key}`, the first at {without[0].source}",
            hint="task.answer_key=COLUMN, or task.grader=none",
        )


def _must_compile(pattern: str, key: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{key} is no pattern: {error} (got {pattern!r})", hint=f"{key}='(\\d+)'") from error
    if groups == 0:
        raise UserError(f"{key} has no group (got {pattern!r})", hint=f"{key}='({pattern})'")


def _grader_refusal(greeting: dict[str, Any], type_: str) -> UserError:
    if greeting["refused"] == "missing":
        return UserError(f"grader {type_!r} needs {greeting['module']}", hint="pip install 'opdkit[math]'")
    return UserError(f"grader {type_!r} does not start: {greeting['message']}", hint="task.grader=exact")
