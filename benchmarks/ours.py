"""Our side of a row: the loop's step (train/loop.py) without its folder, on one process or on ranks of torchrun."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from opdkit.config import DiagnosticsConfig, LearnerConfig, ObjectiveConfig, OptimConfig, SamplingConfig
from opdkit.models.load import LoadedModel, describe
from opdkit.models.sampler import LocalSampler
from opdkit.models.student import Student
from opdkit.models.teacher import LocalTeacher
from opdkit.objectives import Objective
from opdkit.run.world import World
from opdkit.train.collate import collate
from opdkit.train.feed import with_candidates
from opdkit.train.learner import Learner, Part, Update
from opdkit.train.record import metrics_row
from opdkit.types import Batch, Needs, Prompt, Rollout, Scores
from weights import Weights
from work import SEED, Work

CPU = torch.device("cpu")
Contexts = Sequence[tuple[int, ...]] | None  # per row: what the teacher reads in place of the prompt


class Ours:
    """Sample, score, collate, update, publish, metrics row; with the default diagnostics (256 positions)."""

    def __init__(
        self, work: Work, weights: Weights, *, bf16_teacher: bool | None = None, world: World | None = None
    ):
        self.work, self.world, self.diagnostics = work, world or World(CPU), DiagnosticsConfig()
        tokenizer = weights.tokenizer()
        self.student: LoadedModel = describe(weights.student(), tokenizer, name="student")
        teacher = weights.teacher().requires_grad_(False)
        narrow = work.bf16_teacher if bf16_teacher is None else bf16_teacher
        self.teacher = LocalTeacher(
            describe(teacher.to(torch.bfloat16) if narrow else teacher, tokenizer, name="teacher")
        )
        self.objective = Objective(ObjectiveConfig(preset=work.preset))
        self.sampling = SamplingConfig(
            responses=work.responses, max_tokens=work.max_tokens, min_tokens=work.max_tokens
        )
        alone = self.world.size == 1
        self.sampler = LocalSampler(self.student) if alone else LocalSampler.copy_of(self.student)
        self.learner = Learner(
            Student(self.student, k=self.diagnostics.k, ks=self.diagnostics.ks),
            optim=OptimConfig(lr=work.lr, weight_decay=0.0),
            learner=LearnerConfig(),
            steps=work.steps,
            world=self.world,
            max_tokens=work.max_tokens,
        )
        self.limits: list[int] | None = None
        self._limit_rows(self.sampler)
        self.seconds: dict[str, list[float]] = {"sample": [], "score": [], "update": []}

    def step(self, prompts: Sequence[Prompt], step: int, *, contexts: Contexts = None) -> Update:
        self.limits = self.work.of_step(step)
        with self._timed("sample"):
            needs = Needs(top_k=self.width)
            drawn = self.sampler.sample(prompts, sampling=self.sampling, seed=SEED, step=step, needs=needs)
        return self._learn(_reading(drawn, contexts), step)

    def learn(self, rollouts: list[Rollout], step: int, *, contexts: Contexts = None) -> Update:
        """A step on tokens that someone else sampled."""
        if self.width:
            rollouts = with_candidates(self.student, rollouts, needs=Needs(top_k=self.width))
        return self._learn(_reading(rollouts, contexts), step)

    @property
    def width(self) -> int:
        """Candidates that have to be known before the learner's forward: where only their columns are built."""
        return self.objective.spec.k if self.objective.columns_only else 0

    def _learn(self, rollouts: list[Rollout], step: int) -> Update:
        with self._timed("score"):
            scores = self.score(rollouts)
        with self._timed("update"):
            update = self.update(self.batch(rollouts, scores, step), step)
            self.publish()
            self.record(update, rollouts, step)
        return update

    def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
        return self.teacher.score(rollouts, needs=Needs(full=True))

    def batch(self, rollouts: Sequence[Rollout], scores: Sequence[Scores], step: int) -> Batch:
        positions = -(-self.diagnostics.positions // self.world.size)
        ids = [_known(r.topk_ids)[:, : self.width] for r in rollouts] if self.width else None
        return collate(
            rollouts, {"teacher": scores}, measured_positions=positions, seed=SEED, step=step, early_ids=ids
        )

    def update(self, batch: Batch, step: int) -> Update:
        return self.learner.update(
            Part(batch, self.objective.prepare(batch), self.objective),
            heads={"teacher": self.teacher.head},
            step=step,
        )

    def publish(self) -> None:
        weights = None if self.sampler.shares_weights else self.learner.weights()
        self.sampler.sync(weights, version=self.learner.version)

    def record(self, update: Update, rollouts: Sequence[Rollout], step: int) -> dict[str, Any]:
        """The step's row of metrics: part of a step in a run, so part of it here."""
        return metrics_row(
            step + 1,
            update,
            rollouts,
            learner=self.learner,
            seconds={"step": 1.0},
            rows=self.student.head.rows,
            ks=self.diagnostics.ks,
        )

    def _limit_rows(self, sampler: Any) -> None:
        """Every row ends at its own stored length: the sampler has no such setting, its rows have."""
        make_rows = sampler._rows

        def limited(*args: Any, **kwargs: Any) -> Any:
            rows = make_rows(*args, **kwargs)
            for row, limit in zip(rows, self.limits or [row.limit for row in rows], strict=True):
                row.limit = limit
            return rows

        sampler._rows = limited

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name].append(time.perf_counter() - began)


def _reading(rollouts: list[Rollout], contexts: Contexts) -> list[Rollout]:
    if contexts is None:
        return rollouts
    return [replace(r, teacher_prompt_ids=ids) for r, ids in zip(rollouts, contexts, strict=True)]


def _known(ids: Tensor | None) -> Tensor:
    assert ids is not None, "the sampler was asked for its top k"
    return ids
