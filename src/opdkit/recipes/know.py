"""Does the teacher know more? Both answer the same prompts, and both go on from where the student was cut off.

Needs a grader. A pass rate says who is better from the start; the continuation advantage, who is better from
the student's own half-finished answers, which is where on-policy distillation listens to the teacher
(arXiv 2604.13016, 6.1: +.37 after 1,000 tokens, +.02 after 16,000).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opdkit.config import SamplingConfig
from opdkit.models.sampler import LocalSampler
from opdkit.recipes.probe import LEVEL, RESAMPLES, Number
from opdkit.tasks import Task
from opdkit.train.evaluate import pass_at_k
from opdkit.types import Rollout

CUTS = (0.25, 0.5, 0.75)
STREAM = {"student": -2, "teacher": -3}
"""The `step` of these draws: streams of their own, apart from training and evaluation."""


@dataclass(frozen=True)
class Continued:
    """At one depth: how often teacher and student, going on from the same cut rollouts, end right."""

    depth: float  # share of the response that was kept; of `continued_at`, tokens
    teacher: float
    student: float
    advantage: float
    low: float
    high: float
    count: int


def teacher_numbers(
    rollouts: Sequence[Rollout], answered: Sequence[Rollout], *, seed: int = 0
) -> dict[str, Number]:
    """Pass rates of the teacher's own answers to the prompts of `rollouts`, and its lead over the student.

    `teacher_accuracy_on_failures`: over prompts that no response of the student solved.
    """
    ours, theirs = _scores(rollouts), _scores(answered)
    both = [prompt for prompt in ours if prompt in theirs]
    if not both:
        return {}
    mean = {
        who: np.array([np.mean(s[p]) for p in both]) for who, s in (("student", ours), ("teacher", theirs))
    }
    found = {
        "teacher_accuracy": _interval(mean["teacher"], seed=seed),
        "teacher_lead": _interval(mean["teacher"] - mean["student"], seed=seed),  # paired by prompt
    }
    failed = [p for p in both if max(ours[p]) < 0.5]
    if failed:
        found["teacher_accuracy_on_failures"] = _interval(
            np.array([np.mean(theirs[p]) for p in failed]), seed=seed
        )
    most = min(len(theirs[p]) for p in both)
    for n in (1 << i for i in range(1, most.bit_length())):
        right = [(len(theirs[p]), sum(s >= 0.5 for s in theirs[p])) for p in both]
        found[f"teacher_pass_at_{n}"] = _interval(np.array([pass_at_k(t, c, n) for t, c in right]), seed=seed)
    return found


def continued(
    rollouts: Sequence[Rollout],
    *,
    student: LocalSampler,
    teacher: LocalSampler,
    task: Task,
    sampling: SamplingConfig,
    seed: int,
    cuts: Sequence[float] = CUTS,
) -> list[Continued]:
    """Cut each rollout at some depths; both models write the rest once; what they wrote is graded as a whole."""
    kept = {cut: [(r, int(r.length * cut)) for r in rollouts] for cut in cuts}
    return _continued(kept, student=student, teacher=teacher, task=task, sampling=sampling, seed=seed)


def continued_at(
    rollouts: Sequence[Rollout],
    *,
    student: LocalSampler,
    teacher: LocalSampler,
    task: Task,
    sampling: SamplingConfig,
    seed: int,
    positions: Sequence[int],
) -> list[Continued]:
    """The same after so many tokens (`Continued.depth` is that number), of the rollouts that are longer (Fig. 11b)."""
    kept: dict[float, list[tuple[Rollout, int]]] = {at: [(r, at) for r in rollouts] for at in positions}
    return _continued(kept, student=student, teacher=teacher, task=task, sampling=sampling, seed=seed)


def _continued(
    cuts: Mapping[float, Sequence[tuple[Rollout, int]]],
    *,
    student: LocalSampler,
    teacher: LocalSampler,
    task: Task,
    sampling: SamplingConfig,
    seed: int,
) -> list[Continued]:
    """By depth: rollouts and how many tokens of each are kept. Where nothing or all of it would be, it says nothing."""
    found = []
    for depth, places in cuts.items():
        kept = [(r, place) for r, place in places if 0 < place < r.length]
        if not kept:
            continue
        ends = {
            who: _finished(kept, sampler, task=task, sampling=sampling, seed=seed, step=STREAM[who])
            for who, sampler in (("student", student), ("teacher", teacher))
        }
        known = [
            (t.grade.score, s.grade.score)
            for t, s in zip(ends["teacher"], ends["student"], strict=True)
            if t.grade and s.grade and t.grade.score is not None and s.grade.score is not None
        ]
        if known:
            theirs, ours = (np.array(side, dtype=float) for side in zip(*known, strict=True))
            lead = _interval(theirs - ours, seed=seed)
            assert lead.low is not None and lead.high is not None
            found.append(
                Continued(
                    depth,
                    float(theirs.mean()),
                    float(ours.mean()),
                    lead.value,
                    lead.low,
                    lead.high,
                    len(known),
                )
            )
    return found


def _finished(
    kept: Sequence[tuple[Rollout, int]],
    sampler: LocalSampler,
    *,
    task: Task,
    sampling: SamplingConfig,
    seed: int,
    step: int,
) -> list[Rollout]:
    """Each prefix with what the model wrote after it, graded; what grew longer than allowed is truncated."""
    starts = [
        replace(r.prompt, id=f"{r.prompt.id}#{r.sample}@{cut}", ids=(*r.prompt.ids, *r.response_ids[:cut]))
        for r, cut in kept
    ]
    written = sampler.sample(
        starts, sampling=sampling.model_copy(update={"responses": 1}), seed=seed, step=step
    )
    decode: Any = sampler.loaded.tokenizer.decode
    whole = []
    for (r, cut), rest in zip(kept, written, strict=True):
        ids = (*r.response_ids[:cut], *rest.response_ids)
        fits = len(ids) <= sampling.max_tokens and rest.finish_reason == "stop"
        text = decode(ids[: sampling.max_tokens], skip_special_tokens=True)
        whole.append(
            replace(
                r,
                response_ids=ids[: sampling.max_tokens],
                finish_reason="stop" if fits else "length",
                text=text,
            )
        )
    return task.grade(whole)


def _scores(rollouts: Sequence[Rollout]) -> Mapping[str, list[float]]:
    found: dict[str, list[float]] = {}
    for r in rollouts:
        if r.grade is not None and r.grade.score is not None:
            found.setdefault(r.prompt.id, []).append(r.grade.score)
    return found


def _interval(values: np.ndarray, *, seed: int) -> Number:
    """A mean over prompts with its interval."""
    generator = np.random.Generator(np.random.Philox(seed))
    again = values[generator.integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(again, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Number(float(values.mean()), len(values), float(low), float(high))
