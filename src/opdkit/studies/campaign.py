"""`opd study run`: every arm on every base, once. What is in the tables already, under the same configuration, is not run again.

    OUT/NAME.json                     the study's table, written after every arm
    OUT/runs/FAMILY-SEED/…-HASH       a run, as of `opd train`; arms of several questions that are one run share it
    CACHE/FAMILY-qwen3-SEED           models of a base

A base is worked on by one process at a time, so that its models are made once; several bases at once with `jobs`.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opdkit.config import Config, dump_toml
from opdkit.run.environment import environment
from opdkit.studies.estimate import Row
from opdkit.studies.pairwise import measure
from opdkit.studies.reading import brief, read_run
from opdkit.studies.recipes import family
from opdkit.studies.study import Arm, Scale, Study
from opdkit.studies.tables import Place, keep, kept_at
from opdkit.studies.testbed import READINGS, Workshop, finish
from opdkit.train import Silent
from opdkit.types import RunError, UserError

Say = Callable[[str], None]
SIGNALLED = (130, 143)
"""Exit codes of a run that a signal stopped."""


@dataclass(frozen=True)
class Task:
    """One arm on one base."""

    study: Study
    arm: Arm
    family: str
    seed: int
    scale: Scale
    commit: str | None  # of the code that runs, which is loaded once, whatever happens to its files later

    @property
    def place(self) -> Place:
        return self.scale.name, self.family, self.seed, self.arm.name

    @property
    def base(self) -> tuple[str, int]:
        """Whose models it takes."""
        return self.world, self.seed

    @property
    def world(self) -> str:
        """A family or a variant of one."""
        return self.arm.within(self.family) or self.family

    @property
    def weight(self) -> float:
        """Of its time beside others'."""
        return self.arm.steps * self.scale.steps


def tasks(studies: Sequence[Study], scale: Scale) -> list[Task]:
    """In the order of questions, then bases, then arms."""
    commit = environment()["commit"]
    return [
        Task(study, arm, name, seed, scale, commit)
        for study in studies
        for seed in scale.seeds
        for name in scale.families
        for arm in study.arms
        if arm.within(name) is not None
    ]


def campaign(
    studies: Sequence[Study], scale: Scale, *, out: Path, cache: Path, jobs: int = 1, say: Say
) -> None:
    """Run what is missing. Tables are written here alone, a row at a time.

    RunError with the first failure, after all arms that did not fail; SystemExit at once after a signal, with runs saved.
    """
    todo = tasks(studies, scale)
    out.mkdir(parents=True, exist_ok=True)
    clock = _Clock(todo, say)
    failed: list[Failure] = []
    for task, ended in _worked(todo, out=out, cache=cache, jobs=jobs):
        if isinstance(ended, Failure):
            if ended.code in SIGNALLED:
                raise SystemExit(ended.code)
            failed.append(ended)
            say(f"{_name(task)}: {ended.text}")
        else:
            keep(task.study, ended, out)
            clock.done(task, ended)
    if failed:
        raise RunError(
            f"{len(failed)} of {len(todo)} arms failed, the first: {failed[0].text}", hint=failed[0].hint
        )


@dataclass(frozen=True)
class Failure:
    """An arm that raised, in words that can be sent from a worker. `code`: of a program that ended."""

    text: str
    hint: str
    code: object = None


def _worked(
    todo: Sequence[Task], *, out: Path, cache: Path, jobs: int
) -> Iterator[tuple[Task, Row | Failure]]:
    if jobs == 1:
        for task in todo:
            yield task, _work_safely(task, out, cache, kept_at(task.place, task.study, out))
        return
    waiting, running = list(todo), dict[Future[Row | Failure], Task]()
    with _stopping(), ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        while waiting or running:
            busy = {task.base for task in running.values()}
            for task in _ready(waiting, busy, jobs - len(running)):
                waiting.remove(task)
                packed = replace(task, study=replace(task.study, expected=()))  # predicates do not travel
                running[
                    pool.submit(_work_safely, packed, out, cache, kept_at(task.place, task.study, out))
                ] = task
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                yield running.pop(future), _result_of(future)


def _result_of(future: Future[Row | Failure]) -> Row | Failure:
    """RunError where a worker died: its pool is of no more use, and would wait for workers that take a signal for a run's."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        for child in multiprocessing.active_children():
            child.kill()
        raise RunError(
            "a worker died", hint="the same command goes on; --jobs 1 shows what it dies of"
        ) from error


@contextmanager
def _stopping() -> Iterator[None]:
    """A SIGTERM for this process is one for its workers, which save their runs and end; it then ends as well."""

    def stop(*_: object) -> None:
        for child in multiprocessing.active_children():
            child.terminate()
        raise SystemExit(128 + signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():  # handlers belong to the main thread
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ready(waiting: Sequence[Task], busy: set[tuple[str, int]], free: int) -> list[Task]:
    """The next ones whose base nobody works on."""
    found: list[Task] = []
    for task in waiting:
        if len(found) < free and task.base not in busy:
            found.append(task)
            busy.add(task.base)
    return found


def _work_safely(task: Task, out: Path, cache: Path, kept: Row | None) -> Row | Failure:
    """One arm that fails must not take the others with it."""
    hint = "the same command runs it again"
    try:
        return work(task, out=out, cache=cache, kept=kept)
    except SystemExit as error:
        return Failure(f"ended with {error.code}", hint, error.code)
    except (UserError, RunError) as error:
        return Failure(str(error), error.hint)
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}", hint)


def work(task: Task, *, out: Path, cache: Path, kept: Row | None) -> Row:
    """The row of one arm: the kept one if nothing about it has changed."""
    began = time.perf_counter()
    arm, name = task.arm, task.world
    known = family(name, seed=task.seed)
    shop = Workshop(
        known,
        cache / f"{name}-qwen3-{task.seed}",
        talk=lambda _: Silent(),
        problems=task.scale.problems,
    )
    config = configured(arm, shop, scale=task.scale, seed=task.seed)
    key = config_key(config, arm)
    if kept is not None and kept["config"] == key:
        return kept
    teacher = arm.teacher or "nobody"
    run = out / "runs" / f"{name}-{task.seed}" / f"{arm.student}-from-{teacher}-{config_key(config, None)}"
    config = config.model_copy(update={"run": run})
    if arm.measured == "run" or arm.trained:
        finish(config, talk=Silent())
    drawn = config.prompts_per_step * config.sampling.responses
    found = read_run(run, drawn=drawn) if arm.measured == "run" else measure(arm, config, shop)
    if not task.study.curves:
        found = brief(found)
    reading = next(iter(READINGS))
    return {
        "scale": task.scale.name,
        "family": task.family,
        "seed": task.seed,
        "arm": arm.name,
        "config": key,
        "commit": task.commit,
        "wall_seconds": time.perf_counter() - began,
        "reference": shop.make("student").scores[reading]["avg_at_k"],
        **found,
    }


def configured(arm: Arm, shop: Workshop, *, scale: Scale, seed: int) -> Config:
    """An arm's run, wherever it will lie. Accuracy is read four times on the way."""
    steps = max(2, round(arm.steps * scale.steps))
    student = shop.make(arm.student)
    usual = shop.family.distill if arm.teacher else shop.family.push_down
    evaluation = {"responses": 1, "teacher": arm.teacher is not None, "every": max(1, steps // 4)}
    own = arm.over(steps)
    settings = {**usual, "steps": steps, "eval": evaluation, **own}
    settings["task"] = {**usual.get("task", {}), **own.get("task", {})}
    # a thousand apart: no draw of one base has the seed of another base
    more: dict[str, Any] = {"run": "run", "seed": seed + 1000 * arm.draw, "student": str(student.path)}
    if arm.teacher is not None:
        more["teacher"] = {"model": str(shop.make(arm.teacher).path)}
    return shop.config(settings, **more)


def config_key(config: Config, arm: Arm | None) -> str:
    """Of what is run, wherever it lies: models by the name of their folder, which has their content's hash."""
    text = dump_toml(config)
    teacher = getattr(config.teacher, "model", None)
    for path in (config.student.model, teacher):
        if path is not None:
            text = text.replace(path, Path(path).name)
    if arm is not None and arm.measured != "run":
        text += f"{arm.measured} {arm.trained}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class _Clock:
    """Says what came, and how long the rest will take: by what the arms so far took, per step."""

    def __init__(self, todo: Sequence[Task], say: Say):
        self.say, self.count, self.ended = say, len(todo), 0
        self.left, self.weight = sum(task.weight for task in todo), 0.0
        self.began = time.perf_counter()

    def done(self, task: Task, row: Row) -> None:
        self.ended += 1
        self.left -= task.weight
        self.weight += task.weight
        rest = (time.perf_counter() - self.began) * self.left / self.weight
        ahead = f"; about {rest / 60:.0f} min left" if self.left else ""
        self.say(f"[{self.ended}/{self.count}] {_name(task)}: {_result(row)}{ahead}")


def _name(task: Task) -> str:
    return f"{task.study.name} · {task.family} {task.seed} · {task.arm.name}"


def _result(row: Row) -> str:
    if "after" not in row:
        return "measured"
    gained = "" if row["recovery"] is None else f" ({row['recovery']:.0%} of the gap)"
    return f"{row['before']:.3f} → {row['after']:.3f}{gained}"
