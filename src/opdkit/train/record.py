"""What a step leaves behind: one row of metrics.jsonl, and a sample of rollouts. Divides tallies, once."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from opdkit.diagnostics import Extreme, Extremes, auroc, derived, merge, overlap_chance, rollout_tally
from opdkit.train.learner import Learner, Update
from opdkit.train.prefixes import is_led
from opdkit.types import Rollout, Tally


def metrics_row(
    done: int,
    update: Update,
    rollouts: Sequence[Rollout],
    *,
    learner: Learner,
    seconds: Mapping[str, float],
    rows: int,
    ks: Sequence[int],
    canary: float | None = None,
    beside: Tally | None = None,
) -> dict[str, float]:
    """Flat names of docs/design.md. `rows` is the vocabulary in use; `seconds` holds the parts of the step.

    `canary` is |engine − learner| in nats on the fixed prompt after the last publish, where there is an engine.
    `beside`: what the feed alone knows of the rollouts.
    `ks` are widths at which chance is told: none without a teacher.

    A collective: every rank calls it, and all get the row of all ranks' rollouts.
    """
    own = [r for r in rollouts if not is_led(r)] or rollouts  # what the student does alone
    tally = update.tally + learner.summed(rollout_tally(own) + (beside or Tally()))
    row: dict[str, float] = {"step": done, **derived(tally)}
    row |= {f"overlap_chance_at_{k}": overlap_chance(k=k, size=rows) for k in ks if k <= rows}
    row |= _sequence_numbers(update, rollouts, learner) | _extremes(update, learner)
    row |= {
        "grad_norm": update.grad_norm,
        "learning_rate": float(learner.optimizer.param_groups[0]["lr"]),
        "skipped_steps": learner.skipped_steps,
        "staleness": sum(learner.version - int(not update.skipped) - r.policy_version for r in rollouts)
        / max(len(rollouts), 1),
        "measured_positions": tally.entries.get("entropy_student", (0.0, 0.0))[1],
        "tokens_per_second": tally.entries["response_length"][0] / max(seconds["step"], 1e-9),
        **({} if canary is None else {"canary": canary}),
        "memory/peak_mb": peak_mb(learner.world.device),
        **{f"seconds/{name}": value for name, value in seconds.items()},
    }
    return row


def _sequence_numbers(update: Update, rollouts: Sequence[Rollout], learner: Learner) -> dict[str, float]:
    """Mean sequence reward, and its AUROC against correctness where graded (arXiv 2604.13016, 6.2)."""
    pairs = [
        [reward, right(rollout)]
        for reward, rollout in zip(update.sequences["sequence_reward"].tolist(), rollouts, strict=True)
        if reward == reward  # nan: no position of this response was read
    ]
    everyone = [pair for part in learner.world.gather(pairs) for pair in part]
    numbers = {}
    if everyone:
        numbers["sequence_reward"] = sum(r for r, _ in everyone) / len(everyone)
    graded = [(r, s) for r, s in everyone if s is not None]
    area = auroc(
        torch.tensor([r for r, _ in graded]), torch.tensor([bool(s) for _, s in graded], dtype=torch.bool)
    )
    return numbers if area is None else numbers | {"sequence_reward_auroc": area}


def _extremes(update: Update, learner: Learner) -> dict[str, float]:
    """The largest and smallest advantage of the step over all ranks, with both probabilities there."""
    parts = learner.world.gather(None if update.extremes is None else asdict(update.extremes))
    found = merge(
        None if p is None else Extremes(Extreme(**p["largest"]), Extreme(**p["smallest"])) for p in parts
    )
    return {} if found is None else found.named()


def sequences_row(
    update: Update, rollouts: Sequence[Rollout], learner: Learner, *, group: int
) -> dict[str, list[Any]]:
    """Row of sequences.jsonl: reward, score, length and truncation of every rollout of the step.

    A collective; in the order of prompts under any number of ranks.
    """
    rewards = update.sequences["sequence_reward"].tolist()
    mine = [
        [_finite(reward), None if r.grade is None else r.grade.score, r.length, r.finish_reason == "length"]
        for reward, r in zip(rewards, rollouts, strict=True)
    ]
    everyone = interleaved(learner.world.gather(mine), group=group)
    names = ("sequence_reward", "score", "length", "truncated")
    return {name: [row[i] for row in everyone] for i, name in enumerate(names)}


def right(rollout: Rollout) -> bool | None:
    """Whether a response counts as correct (score ≥ 0.5); None without a score."""
    if rollout.grade is None or rollout.grade.score is None:
        return None
    return rollout.grade.score >= 0.5


def rollout_rows(done: int, rollouts: Sequence[Rollout], update: Update) -> list[dict[str, Any]]:
    """Rows of rollouts/step_N.jsonl: text for people, ids for tools, and what was measured per sequence."""
    return [
        {
            "step": done,
            "id": r.prompt.id,
            "sample": r.sample,
            "prompt": r.prompt.given,
            "response": r.text,
            "finish_reason": r.finish_reason,
            "score": None if r.grade is None else r.grade.score,
            "length": r.length,
            "group": r.prompt.group,
            "prompt_ids": list(r.prompt.ids),
            "response_ids": list(r.response_ids),
            "policy_version": r.policy_version,
            **{name: _finite(values[i].item()) for name, values in update.sequences.items()},
        }
        for i, r in enumerate(rollouts)
    ]


def interleaved(parts: Sequence[Sequence[Any]], *, group: int) -> list[Any]:
    """Rows of all ranks in the order of prompts: rank r has every size-th prompt, `group` rows for each.

    >>> interleaved([["a0", "a1", "c0", "c1"], ["b0", "b1"]], group=2)
    ['a0', 'a1', 'b0', 'b1', 'c0', 'c1']
    """
    most = max(len(part) for part in parts)
    return [row for first in range(0, most, group) for part in parts for row in part[first : first + group]]


def _finite(value: float) -> float | None:
    return value if value == value else None


def peak_mb(device: torch.device) -> float:
    """Largest memory so far: allocated on the GPU, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return _high_water() if sys.platform == "linux" else _most_resident()


def _high_water() -> float:
    """Of this program alone: the peak that getrusage tells survives exec, so a child would tell its parent's."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found.group(1)) / 1024 if found else _most_resident()


def _most_resident() -> float:
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 1024 if sys.platform != "darwin" else kib / 2**20
