"""A task: prompts for training and evaluation, and a grader that cannot hang or harm the run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

from opdkit.tasks.grading import ChildGrading, Grading, open_grading
from opdkit.tasks.gym import gym_prompts, gym_setup, refusal
from opdkit.tasks.math_problems import benchmark_problems, training_problems
from opdkit.tasks.rows import read_prompts
from opdkit.tasks.stated import StatedGrading
from opdkit.tasks.worker import Worker
from opdkit.tasks.worlds import WorldGrading, open_world, world_prompts
from opdkit.types import Finding, Prompt, Rollout, UserError

if TYPE_CHECKING:
    from opdkit.config import FileTask, GymTask, MathTask, TaskConfig


def load_task(
    cfg: TaskConfig, *, base_seed: int = 0, only: Literal["train", "evaluation"] | None = None
) -> Task:
    """The task that `cfg` describes; `base_seed` gives a generator another stream, files are read as they
    are. `only` one side spares a `math` task the reading of the other.

    Raises UserError for whatever is wrong with files, arguments, patterns or answers, before a model is
    loaded.
    """
    if cfg.type == "testbed":
        return Task(*world_prompts(cfg), grading=WorldGrading(open_world(cfg)))
    if cfg.type == "math":
        return _math_task(cfg, only)
    return _gym_task(cfg, base_seed) if cfg.type == "gym" else _file_task(cfg)


class Task:
    """Lives because it may own a grader's process: `close` it, or use it in a `with` statement.

    `findings`: what is worth saying of the data before a run. `benchmarks`: names of the groups of
    `evaluation`, where an average over benchmarks is meant.
    """

    def __init__(
        self,
        train: tuple[Prompt, ...],
        evaluation: tuple[Prompt, ...],
        *,
        grading: Grading | None,
        findings: tuple[Finding, ...] = (),
        benchmarks: tuple[str, ...] = (),
        training_graded: bool = True,
    ):
        self.train = train
        self.evaluation = evaluation
        self.findings = findings
        self.benchmarks = benchmarks
        self._grading = grading
        self._training_graded = training_graded

    @property
    def graded(self) -> bool:
        """Whether responses to evaluation prompts get a grade."""
        return self._grading is not None

    @property
    def training_graded(self) -> bool:
        """Whether responses to training prompts do as well: demonstrations may come without answers."""
        return self.graded and self._training_graded

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
    grading = open_grading(grader.type, pattern=grader.pattern, timeout_seconds=grader.timeout_seconds)
    return Task(train, evaluation, grading=grading)


def _math_task(cfg: MathTask, only: Literal["train", "evaluation"] | None) -> Task:
    train, findings = training_problems(cfg) if only != "evaluation" else ((), ())
    evaluation, more = benchmark_problems(cfg) if only != "train" else ((), ())
    with_answers = all(p.answer is not None for p in train)
    graded = bool(evaluation) or with_answers  # without a single answer no grader is needed
    math = open_grading("math", timeout_seconds=cfg.timeout_seconds) if graded else None
    return Task(
        train,
        evaluation,
        grading=StatedGrading(math) if math is not None else None,
        findings=(*findings, *more),
        benchmarks=tuple(dict.fromkeys(p.group for p in evaluation if p.group is not None)),
        training_graded=with_answers,
    )


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
