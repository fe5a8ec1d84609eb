"""The feed: for every step, prompts → rollouts → grades → scores. Sequential and on-policy; owns timings.

Prompts and random streams are functions of (seed, step): a resumed run needs no replay. Under several ranks
each takes whole prompts (all responses to one prompt stay on one rank).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from opdkit.config import Config, SamplingConfig
from opdkit.engines.client import EngineError
from opdkit.models.contracts import Sampler, Teacher
from opdkit.models.load import LoadedModel
from opdkit.models.teacher import LocalTeacher
from opdkit.run.signals import Stop, Stopped
from opdkit.run.world import World
from opdkit.tasks import step_prompts
from opdkit.train.feedback import Feedback
from opdkit.train.horizon import Horizon, cut_at
from opdkit.train.plan import Plan
from opdkit.train.prefixes import Prefixes, is_led
from opdkit.train.privileged import copied
from opdkit.train.pruning import Pruning, is_pruned
from opdkit.train.widen import Widen
from opdkit.types import Needs, Prompt, Rollout, Scores, Tally

Answer = TypeVar("Answer")
Fed = tuple[int, list[Rollout], dict[str, list[Scores]]]
"""Step, rollouts, what each model said of them by its name."""


class Clock:
    """Seconds of the parts of a step, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def reset(self) -> None:
        self.seconds = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class OnPolicy:
    """The student's own rollouts, graded, and scored by the teacher and other models if there are any.

    Iterates over (step, rollouts, scores) from `start`; `step` counts finished updates: first `start`.
    """

    def __init__(
        self,
        config: Config,
        plan: Plan,
        *,
        prompts: Sequence[Prompt],
        task: Any,
        sampler: Any,
        teacher: Teacher | None,
        world: World,
        clock: Clock,
        start: int = 0,
        teacher_prompt_ids: Mapping[str, tuple[int, ...]] | None = None,
        student: LoadedModel | None = None,
        others: Mapping[str, Teacher] | None = None,
        widen: Widen | None = None,
        horizon: Horizon | None = None,
        told: Mapping[str, tuple[int, ...]] | None = None,
        prefixes: Prefixes | None = None,
        feedback: Feedback | None = None,
    ):
        """`student`: the learner's own module, where the sampler does not name its candidates. `others`: scorers beside the
        teacher, by name. `widen`: prompts of another kind in every step. `horizon`: moved by the loop. `told`: what the teacher
        reads of a demonstration. `prefixes`: who begins. `feedback`: who tells the teacher what came of a response."""
        self.config, self.plan, self.prompts, self.world, self.clock = config, plan, prompts, world, clock
        self.task, self.sampler, self.start = task, sampler, start
        self.scorers = ({} if teacher is None else {"teacher": teacher}) | dict(others or {})
        self.teacher_prompt_ids = teacher_prompt_ids or {}
        self.student = student
        self.widen = widen
        self.horizon = horizon or Horizon(config)
        self.told = told or {}
        self.prefixes = prefixes
        self.feedback = feedback

    def __iter__(self) -> Iterator[Fed]:
        for step in range(self.start, self.config.steps):
            self.clock.reset()
            with self.clock.timed("sample"):
                rollouts = self._rollouts(step)
            with self.clock.timed("score"):
                scores = self._scores(rollouts)
            yield step, rollouts, scores

    def beside(self, rollouts: Sequence[Rollout]) -> Tally:
        """What the feed alone knows of a step's rollouts."""
        told = {**self.horizon.numbers(rollouts), **copied(rollouts, self.told)}
        if self.prefixes is not None:
            told["led_fraction"] = (float(sum(map(is_led, rollouts))), float(len(rollouts)))
        if self.config.prune.every:
            told["pruned_fraction"] = (
                float(sum(is_pruned(r, before=self.horizon.drawn) for r in rollouts)),
                float(len(rollouts)),
            )
        if self.feedback is not None:
            told |= self.feedback.numbers(rollouts)
        return Tally(told)

    def _rollouts(self, step: int) -> list[Rollout]:
        cfg = self.config
        prompts = self._prompts(step)
        mine = distinct(prompts)[self.world.rank :: self.world.size]
        most = self.horizon.drawn
        sampling = cfg.sampling.model_copy(update={"max_tokens": most})
        sampled = self._drawn(mine, sampling, step)
        if self.plan.candidates == "student_forward":
            assert self.student is not None, "the sampler names no candidates, so the student must be at hand"
            sampled = with_candidates(self.student, sampled, needs=self.plan.student_needs)
        graded = self.task.grade([self._with_teacher_prompt(r) for r in sampled])
        if most < cfg.sampling.max_tokens:
            graded = cut_at(graded, most)
        graded = [replace(r, grade=None) if r.finish_reason == "cut" else r for r in graded]
        return graded if self.feedback is None else self.feedback.given(graded)

    def _prompts(self, step: int) -> list[Prompt]:
        cfg = self.config
        if self.widen is not None:
            return self.widen.step_prompts(self.prompts, step=step)
        return step_prompts(self.prompts, step=step, seed=cfg.seed, count=cfg.prompts_per_step)

    @property
    def numbers(self) -> dict[str, float]:
        """What the row of the step says of where its prompts came from."""
        return {} if self.widen is None else self.widen.numbers

    def _drawn(self, prompts: Sequence[Prompt], sampling: SamplingConfig, step: int) -> list[Rollout]:
        """The step's responses, some of them begun by the teacher."""
        cfg, needs = self.config, self.plan.sampler_needs

        def own(some: Sequence[Prompt], how: SamplingConfig) -> list[Rollout]:
            return self.sampler.sample(some, sampling=how, seed=cfg.seed, step=step, needs=needs)

        if cfg.prune.every:
            return self._pruning(step).rollouts(prompts, sampling)
        if self.prefixes is None:
            return own(prompts, sampling)
        drawn = self.prefixes.draw(prompts, sampling=sampling, step=step, student=own)
        assert self.student is not None
        led = [r for r in drawn if r.logp is None]
        read = iter(with_candidates(self.student, led, needs=needs | Needs(sampled=True)) if led else ())
        return [next(read) if r.logp is None else r for r in drawn]

    def _pruning(self, step: int) -> Pruning:
        """Who looks, with this step's streams."""
        cfg, tokenizer = self.config, self.plan.tokenizer

        def draw(some: Sequence[Prompt], how: SamplingConfig, needs: Needs) -> list[Rollout]:
            drawn = self.sampler.sample(some, sampling=how, seed=cfg.seed, step=step, needs=needs)
            return [self._with_teacher_prompt(r) for r in drawn]

        def score(rollouts: Sequence[Rollout], needs: Needs) -> list[Scores]:
            return self._score("teacher", rollouts, needs)

        return Pruning(
            every=cfg.prune.every,
            overlap=cfg.prune.overlap,
            k=cfg.diagnostics.k,
            needs=self.plan.sampler_needs,
            draw=draw,
            score=score,
            decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        )

    def _with_teacher_prompt(self, rollout: Rollout) -> Rollout:
        ids = self.teacher_prompt_ids.get(rollout.prompt.source)
        return rollout if ids is None else replace(rollout, teacher_prompt_ids=ids)

    def _scores(self, rollouts: Sequence[Rollout]) -> dict[str, list[Scores]]:
        """What each scorer said, by its name."""
        return {name: self._score(name, rollouts, self.plan.needs_of(name)) for name in self.scorers}

    def scores_of_others(
        self, rollouts: Sequence[Rollout], needs: Needs, names: Sequence[str] | None = None
    ) -> dict[str, list[Scores]]:
        """What scorers of these names (unset: all) say of rollouts that somebody else made, by `needs` that ask for no candidates
        of the student's."""
        with self.clock.timed("score"):
            return {name: self._score(name, rollouts, needs) for name in names or self.scorers}

    def _score(self, name: str, rollouts: Sequence[Rollout], needs: Needs) -> list[Scores]:
        ids = candidates(self.plan, rollouts) if needs.at_ids else None
        ask = partial(self.scorers[name].score, rollouts, ids=ids, needs=needs)
        told = together(self.world, partial(self.sampler.attempt, ask))
        self.sampler.settle()  # a served teacher may be waited for long, and a signal must not
        return told or []


def with_candidates(student: LoadedModel, rollouts: Sequence[Rollout], *, needs: Needs) -> list[Rollout]:
    """The rollouts with what a forward of the student says of them, where the sampler does not tell it."""
    temperature = rollouts[0].temperature if rollouts else 1.0
    reader = LocalTeacher(student, temperature=temperature, payload="ids", frozen=False)
    own = [replace(r, teacher_prompt_ids=None) for r in rollouts]  # the student read its own prompt
    scores = reader.score(own, needs=needs)
    return [_with(r, s) for r, s in zip(rollouts, scores, strict=True)]


def _with(rollout: Rollout, said: Scores) -> Rollout:
    def here(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.cpu()

    return replace(
        rollout,
        topk_ids=here(said.topk_ids),
        topk_logp=here(said.topk_logp),
        entropy=here(said.entropy),
        logp=here(said.sampled) if rollout.logp is None else rollout.logp,
    )


def candidates(plan: Plan, rollouts: Sequence[Rollout]) -> list[Tensor]:
    """[T, S] per rollout: the student's top-k as it was when they were drawn, the policy being the current one."""
    width = plan.candidate_width
    return [torch.empty(0, width, dtype=torch.long) if r.topk_ids is None else r.topk_ids for r in rollouts]


def early_ids(
    plan: Plan, rollouts: Sequence[Rollout], scores: Mapping[str, Sequence[Scores]], *, k: int
) -> list[Tensor] | None:
    """Ids of the objective's support where they had to be known before the learner's forward."""
    if plan.early_ids == "teacher":
        return [_named(s)[:, :k].cpu() for s in scores["teacher"]]
    if plan.early_ids == "student":
        return [ids[:, :k] for ids in candidates(plan, rollouts)]
    return None


def together(world: World, act: Callable[[], Answer]) -> Answer:
    """What `act` gives. An EngineError of any rank is raised on all: none goes on to a collective that others miss."""
    answer, failed = None, None
    try:
        answer = act()
    except EngineError as error:
        if world.size == 1:
            raise
        failed = {"message": str(error), "hint": error.hint}
    told = (
        next((found for found in world.gather(failed) if found is not None), None) if world.size > 1 else None
    )
    if told is not None:
        raise EngineError(told["message"], hint=told["hint"])
    return cast(Answer, answer)


class Stoppable:
    """A sampler that a signal cuts short, on all ranks at once: what was drawn so far is thrown away.

    Rollouts are a function of (weights, seed, step): a resumed run draws the same ones. The longest part of a
    step and of an evaluation need not end first: a scheduler's grace of some seconds is enough.
    """

    def __init__(self, sampler: Sampler, stop: Stop, world: World):
        self.sampler, self.stop, self.world = sampler, stop, world

    def sample(self, prompts: Sequence[Prompt], **settings: Any) -> list[Rollout]:
        """As the sampler does. Raises Stopped when a signal came to any rank."""
        drawn = self.attempt(lambda: self.sampler.sample(prompts, **settings))
        self.settle()
        return drawn or []

    def attempt(self, act: Callable[[], Answer]) -> Answer | None:
        """What `act` gives, or None where a signal cut it short; no collective, so any rank may be cut."""
        with suppress(Stopped), self.stop.interrupting():
            return act()
        return None

    def settle(self) -> None:
        """Raises Stopped on every rank when a signal came to any."""
        if self.world.any(self.stop.requested):
            raise Stopped

    @property
    def shares_weights(self) -> bool:
        return self.sampler.shares_weights

    def close(self) -> None:
        self.sampler.close()

    def sync(self, state: Mapping[str, Tensor] | None, *, version: int) -> None:
        """A signal cuts this short as well: the run ends after the step, and a resumed one publishes anew."""
        self.attempt(lambda: self.sampler.sync(state, version=version))


def _named(scores: Scores) -> Tensor:
    assert scores.topk_ids is not None, "the plan asked the teacher for its top-k"
    return scores.topk_ids


def distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """A prompt drawn twice in one step (few prompts, many asked for) gets another stream the second time."""
    seen: Counter[str] = Counter()
    distinct = []
    for prompt in prompts:
        before = seen[prompt.id]
        seen[prompt.id] += 1
        distinct.append(prompt if before == 0 else replace(prompt, id=f"{prompt.id}#{before}"))
    return distinct
