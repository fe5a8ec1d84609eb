"""Demonstrations in a step of own rollouts: the same learner, another part of the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from opdkit.config import Config
from opdkit.objectives import Likelihood, Moment, Objective, imitation
from opdkit.run.world import World
from opdkit.tasks import step_prompts
from opdkit.train.collate import collate
from opdkit.train.learner import Part
from opdkit.train.plan import Plan
from opdkit.types import Needs, Rollout, Scores, UserError

Score = Callable[[Sequence[Rollout], Needs, Sequence[str]], dict[str, list[Scores]]]
"""What the run's scorers of these names say of rollouts that somebody else made."""


class Mix:
    """A part of every step: `config.mix.demonstrations` rows, a function of (seed, step)."""

    def __init__(
        self, config: Config, plan: Plan, *, rollouts: Sequence[Rollout], score: Score, world: World
    ):
        self.config, self.rollouts, self.score, self.world = config, rollouts, score, world
        self.objective, self.needs = mixed_objective(config, plan)

    def part(self, step: int) -> Part:
        """This rank's share of the step's demonstrations. Diagnostics look at own rollouts only."""
        cfg = self.config
        drawn = step_prompts(self.rollouts, step=step, seed=cfg.seed, count=cfg.mix.demonstrations)
        mine = drawn[self.world.rank :: self.world.size]
        scores = {}
        if self.needs is not None:
            assert isinstance(self.objective, Objective)
            scores = self.score(mine, self.needs, ("teacher", *self.objective.spec.others))
        batch = collate(mine, scores)
        batch = replace(batch, measured=torch.zeros_like(batch.measured))
        signal = self.objective.prepare(batch, Moment(cfg.seed, step))
        return Part(batch, replace(signal, weight=signal.weight * cfg.mix.weight), self.objective)


def mixed_objective(config: Config, plan: Plan) -> tuple[Objective | Likelihood, Needs | None]:
    """What demonstrations are learned by, and what scorers are asked for of them; None where nobody is.

    UserError where the teacher cannot give that without the student's candidates, or a model is not in the run.
    """
    spec = config.mix.objective
    if spec is None:
        return Likelihood(imitation), None
    assert isinstance(plan.objective, Objective)
    objective = replace(plan.objective, spec=spec)
    if missing := set(spec.others) - set(plan.others):
        raise UserError(
            f"mix.objective compares with the {' and the '.join(sorted(missing))}, which this run does not have",
            hint="give mix.objective the target and the anchor of objective, or neither",
        )
    if plan.teacher.offers.full:
        return objective, Needs(full=True)
    unmet = objective.teacher_needs.unmet(replace(plan.teacher.offers, at_ids=False))
    if unmet or spec.others:
        raise UserError(
            f"mix.objective needs {', '.join(unmet) or 'another model'}, which this teacher does not give for demonstrations",
            hint='mix.objective.support="teacher_top_k", or a teacher in this process with teacher.payload="hidden"',
        )
    return objective, objective.teacher_needs | Needs(sampled=True)  # which the learner notes everywhere
