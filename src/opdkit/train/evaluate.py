"""Examine a model on held-out prompts: avg@k, unbiased pass@k, a bootstrap interval over problems, truncation apart.

A truncated response has not finished, so it scores 0 in avg@k and pass@k whatever a lenient grader would find in it; how
many were cut, and how many of those held the right answer, is told beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from opdkit.config import EvalConfig, SamplingConfig
from opdkit.run.world import World
from opdkit.types import Prompt, Rollout

EVAL_STREAM = -1
"""The `step` of evaluation's random streams: the same draws at every evaluation, so that curves are paired."""


@dataclass(frozen=True)
class Mark:
    """One response to one problem, as far as an evaluation needs it. `score` None: no grader, or it failed."""

    problem: int
    score: float | None
    cut: bool
    length: int


def evaluate(
    sampler: Any,
    task: Any,
    prompts: Sequence[Prompt],
    *,
    cfg: EvalConfig,
    sampling: SamplingConfig,
    seed: int,
    world: World | None = None,
) -> dict[str, Any]:
    """One row for eval.jsonl. `prompts` are encoded; `sampling` gives what `cfg` leaves open. Ranks share the problems."""
    chosen = list(prompts[: cfg.prompts] if cfg.prompts else prompts)
    rank, size = (world.rank, world.size) if world is not None else (0, 1)
    mine = range(rank, len(chosen), size)
    rollouts = task.grade(
        sampler.sample(
            [chosen[i] for i in mine], sampling=_exam_sampling(cfg, sampling), seed=seed, step=EVAL_STREAM
        )
    )
    marks = marks_of(rollouts, problems=[i for i in mine for _ in range(cfg.responses)])
    if world is not None:
        marks = [Mark(**m) for part in world.gather([asdict(m) for m in marks]) for m in part]
    groups = [p.group for p in chosen]
    row = summarise(marks, graded=task.graded, groups=groups if any(groups) else None)
    return row | _over_benchmarks(row) if task.benchmarks else row


def _over_benchmarks(row: dict[str, Any]) -> dict[str, float]:
    """`avg_of_benchmarks`: every benchmark counts the same, however many problems it has, as in arXiv 2604.13016;
    in `avg_at_k` every problem does."""
    accuracies = list(row.get("by_group", {}).values())
    return {"avg_of_benchmarks": _mean(accuracies)} if accuracies else {}


def _exam_sampling(cfg: EvalConfig, sampling: SamplingConfig) -> SamplingConfig:
    greedy = cfg.temperature == 0
    return sampling.model_copy(
        update={
            "responses": cfg.responses,
            "temperature": 1.0 if greedy else cfg.temperature,
            "top_p": cfg.top_p,
            "top_k": 1 if greedy else 0,
            "max_tokens": cfg.max_tokens or sampling.max_tokens,
        }
    )


def marks_of(rollouts: Sequence[Rollout], *, problems: Sequence[int]) -> list[Mark]:
    return [
        Mark(
            problem=problem,
            score=None if r.grade is None else r.grade.score,
            cut=r.finish_reason == "length",
            length=r.length,
        )
        for problem, r in zip(problems, rollouts, strict=True)
    ]


def summarise(
    marks: Sequence[Mark], *, graded: bool, seed: int = 0, groups: Sequence[str | None] | None = None
) -> dict[str, Any]:
    """The numbers of one evaluation; every problem has the same number of marks, k.

    `groups` names the group of each problem, by its number: accuracy is told for each as well.
    """
    by_problem: dict[int, list[Mark]] = {}
    for mark in sorted(marks, key=lambda m: m.problem):
        by_problem.setdefault(mark.problem, []).append(mark)
    k = len(next(iter(by_problem.values())))
    row: dict[str, Any] = {
        "problems": len(by_problem),
        "responses": k,
        "response_length": _mean([m.length for m in marks]),
        "truncated_fraction": _mean([m.cut for m in marks]),
        "graded": graded,
    }
    if not graded:
        return row
    row |= _accuracy(list(by_problem.values()), k=k, seed=seed)
    return row if groups is None else row | {"by_group": _by_group(by_problem, groups)}


def _by_group(by_problem: dict[int, list[Mark]], groups: Sequence[str | None]) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for problem, marks in by_problem.items():
        mine = scores.setdefault(groups[problem] or "none", [])
        mine += [_passed(m) for m in marks]
    return {name: _mean(scores[name]) for name in sorted(scores)}


def _passed(mark: Mark) -> float:
    return 0.0 if mark.cut else mark.score or 0.0


def _accuracy(problems: Sequence[Sequence[Mark]], *, k: int, seed: int) -> dict[str, Any]:
    """`avg_at_k` with its interval, `pass_at_k`, and truncation apart. A failed grading counts as not passed, and is told."""
    scores = np.array([[_passed(m) for m in marks] for marks in problems])
    everything = [m for marks in problems for m in marks]
    finished = [m.score for m in everything if m.score is not None and not m.cut]
    low, high = bootstrap_interval(scores.mean(1), seed=seed)
    right = (scores >= 0.5).sum(1)
    return {
        "avg_at_k": float(scores.mean()),
        "low": low,
        "high": high,
        "pass_at_k": {str(n): _mean([pass_at_k(k, int(c), n) for c in right]) for n in _ks(k)},
        "avg_of_finished": _mean(finished) if finished else None,
        "truncated_correct_fraction": _mean([m.cut and (m.score or 0.0) >= 0.5 for m in everything]),
        "ungraded_fraction": _mean([m.score is None for m in everything]),
    }


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that at least one of k draws (without replacement, of n with c right) is right: 1 − C(n−c,k)/C(n,k).

    Chen et al., arXiv 2107.03374.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    return 1.0 if n - c < k else 1.0 - math.comb(n - c, k) / math.comb(n, k)


def bootstrap_interval(
    per_problem: Any, *, seed: int, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean over problems, problems resampled with replacement."""
    values = np.asarray(per_problem, dtype=np.float64)
    generator = np.random.Generator(np.random.Philox(seed))
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ks(n: int) -> list[int]:
    """1, 2, 4, … below n, and n itself.

    >>> _ks(6)
    [1, 2, 4, 6]
    """
    return sorted({1 << i for i in range(n.bit_length()) if 1 << i <= n} | {n})


def _mean(values: Sequence[Any]) -> float:
    return float(sum(float(v) for v in values) / len(values)) if values else 0.0
