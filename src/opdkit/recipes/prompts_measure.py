"""What the student's own responses say of every prompt: pass rate, the teacher's opinion, the teacher states it leads to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from opdkit.diagnostics.coverage import kmeans
from opdkit.recipes.probe import Row
from opdkit.recipes.prompts_bench import Bench, Say
from opdkit.recipes.prompts_row import Judged, kept
from opdkit.types import Prompt, Rollout

BATCH = 64
"""Prompts that are answered together; nothing of a batch stays but numbers and some states."""
STATES = 50_000
"""Teacher states kept for the clusters, evenly over all responses."""
PER_RESPONSE = 16
"""Of one response at most."""


@dataclass(frozen=True)
class Measured:
    """Rows with their numbers; `labels`: prompt id → clusters of teacher states its responses reach, of `num_clusters`."""

    rows: list[Judged]
    labels: dict[str, list[int]] = field(default_factory=dict)
    num_clusters: int = 0


def measure(rows: Sequence[Judged], bench: Bench, *, prompts: Sequence[Prompt], say: Say) -> Measured:
    """Answer every kept row, a batch at a time. `prompts`: those of the rows that fit, encoded in the wrapper that was chosen."""
    cfg = bench.config.prompts
    encoded = {p.id: p for p in prompts}
    mine = [row for row in kept(rows) if row.prompt.id in encoded]
    most = len(mine) * cfg.num_responses * bench.config.sampling.max_tokens
    say(f"{len(mine)} prompts × {cfg.num_responses} responses of the student: at most {most:,} tokens")
    each = max(1, min(PER_RESPONSE, STATES // max(1, len(mine) * cfg.num_responses)))
    found: dict[str, dict[str, float]] = {}
    states: list[Tensor] = []
    owners: list[str] = []
    began = time.perf_counter()
    for begin in range(0, len(mine), BATCH):
        batch = [encoded[row.prompt.id] for row in mine[begin : begin + BATCH]]
        rollouts = bench.rollouts(batch, responses=cfg.num_responses)
        found |= _numbers(rollouts, bench.read(rollouts).rows if bench.has_teacher else ())
        if cfg.num_clusters:
            for rollout, some in zip(rollouts, _some_states(bench, rollouts, each), strict=True):
                states.append(some)
                owners += [rollout.prompt.id] * len(some)
        if begin == 0 and len(mine) > BATCH:
            say(f"about {(time.perf_counter() - began) * (len(mine) / BATCH - 1):.0f} s more")
    told = [_told(row, found.get(row.prompt.id), fits=row.prompt.id in encoded) for row in rows]
    if not states:
        return Measured(told)
    labels = kmeans(torch.cat(states), clusters=cfg.num_clusters, seed=bench.config.seed).tolist()
    of: dict[str, list[int]] = {}
    for owner, label in zip(owners, labels, strict=True):
        of.setdefault(owner, []).append(label)
    reach = {name: sorted(set(mine)) for name, mine in of.items()}
    return Measured(told, reach, len(set(labels)))


def _numbers(rollouts: Sequence[Rollout], read: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Prompt id → means over its responses. A grader that failed says nothing; truncated responses count as they were graded."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(r.prompt.id for r in rollouts):
        mine = [r for r in rollouts if r.prompt.id == name]
        scores = [r.grade.score for r in mine if r.grade is not None and r.grade.score is not None]
        told = {"response_length": _mean([r.length for r in mine])}
        told["truncated_fraction"] = _mean([float(r.finish_reason == "length") for r in mine])
        if scores:
            rate = _mean([float(score >= 0.5) for score in scores])
            told |= {"pass_rate": rate, "weight": rate * (1 - rate)}
        found[name] = told | _opinion([row for row in read if row.prompt == name], mine)
    return found


def _opinion(read: Sequence[Row], rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Per token of the responses: the teacher's log-prob of what was said, its entropy there, KL(student ‖ teacher); nats."""
    if not read:
        return {}
    told = {}
    for name in ("entropy_teacher", "reverse_kl", "overlap_ratio"):
        total, count = np.sum([row.sums.get(name, (0.0, 0.0)) for row in read], axis=0)
        if count:
            told[name] = float(total / count)
    gap, count = np.sum([row.sums.get("reverse_kl_sampled", (0.0, 0.0)) for row in read], axis=0)
    own = [float(r.logp.double().sum()) for r in rollouts if r.logp is not None and r.length]
    if count and len(own) == len(read):
        told["teacher_logp"] = float((sum(own) - gap) / count)  # Σ log q = Σ log p − Σ (log p − log q)
    return told


def _some_states(bench: Bench, rollouts: Sequence[Rollout], each: int) -> list[Tensor]:
    """[≤ each, D] per rollout: the teacher's hidden states at positions evenly over the response."""
    states = bench.reader.states(rollouts)
    return [s[torch.linspace(0, len(s) - 1, min(each, len(s))).long()].float().cpu() for s in states]


def _told(row: Judged, numbers: dict[str, float] | None, *, fits: bool) -> Judged:
    if not row.kept:
        return row
    if not fits:
        return row.drop("leaves no room for a response in a model's context")
    rounded = {name: round(value, 5) for name, value in (numbers or {}).items()}
    notes = [f"pass rate {rounded['pass_rate']:g}"] if "pass_rate" in rounded else []
    notes += [f"teacher log-prob {rounded['teacher_logp']:.2f}"] if "teacher_logp" in rounded else []
    return row.told("; ".join(notes), **rounded)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
