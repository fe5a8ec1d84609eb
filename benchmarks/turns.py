"""A row against TRL: its step, then ours, then its …; agreement first in importance, then time, then what was learnt."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback

from held_out import before_and_after
from opdkit.train.learner import Update
from opdkit.types import Rollout
from ours import Ours
from record import digits, ratio, spread
from theirs import Generations, trainer
from trainers import PEERS
from weights import Weights
from work import Work

LOSS, GRADIENT = 1e-5, 1e-5  # loss: absolute; gradient norm: relative
Pair = tuple[float, float]  # wall-clock and processor seconds


class Alternate(TrainerCallback):
    """TRL's step, then ours, then TRL's …: wall-clock and processor seconds of each."""

    def __init__(self, ours: Ours | None, generations: Generations):
        self.ours, self.generations = ours, generations
        self.theirs_seconds: list[Pair] = []
        self.our_seconds: list[Pair] = []
        self.logs: list[dict[str, float]] = []
        self.mark: Pair = (0.0, 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.mark = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.theirs_seconds.append(self._lap())
        if self.ours is not None:
            made = self.generations
            self.ours.step(made.prompts, state.global_step - 1, contexts=made.contexts)
            self.our_seconds.append(self._lap())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.logs.append({name: float(logs[name]) for name in ("loss", "grad_norm")})

    def _lap(self) -> Pair:
        last, self.mark = self.mark, _now()
        return self.mark[0] - last[0], self.mark[1] - last[1]


def _now() -> Pair:
    return time.perf_counter(), time.process_time()


def compare(work: Work, weights: Weights, *, full: bool = True) -> dict[str, Any]:
    """The record of a row; without `full` no held-out KL."""
    with tempfile.TemporaryDirectory() as folder:
        peer, generations = trainer(work, weights, folder)
        ours = Ours(work, weights)
        both = Alternate(ours, generations)
        peer.add_callback(both)
        peer.train()
    record = {"name": work.name, "what": what(work), "work": work.facts()} | agreement(
        work, weights, both.logs[0], generations
    )
    record |= times(work, both, ours)
    if full and work.teacher != "self":
        record["held_out_reverse_kl"] = before_and_after(
            work, weights, peer.accelerator.unwrap_model(peer.model), ours.student
        )
    return record


def what(work: Work) -> str:
    peer = PEERS[work.peer]
    teacher = ", our teacher in bfloat16" if work.bf16_teacher else ""
    return f"{peer.trainer} / ours `{work.preset}`{teacher}"


def times(work: Work, both: Alternate, ours: Ours) -> dict[str, Any]:
    theirs, mine = both.theirs_seconds[work.warm_up :], both.our_seconds[work.warm_up :]
    tokens = [work.tokens(step) for step in range(work.steps)][work.warm_up :]
    sides = {"theirs": [wall for wall, _ in theirs], "ours": [wall for wall, _ in mine]}
    processor = ratio([cpu for _, cpu in theirs], [cpu for _, cpu in mine])
    return {
        "ratio": ratio(sides["theirs"], sides["ours"]),
        "ratio_of_processor_time": processor,
        "seconds": {side: spread(values) for side, values in sides.items()},
        "tokens_per_second": {
            side: spread([n / s for n, s in zip(tokens, values, strict=True)])
            for side, values in sides.items()
        },
        "phases": {k: digits(statistics.median(v[work.warm_up :])) for k, v in ours.seconds.items()},
    }


def agreement(
    work: Work, weights: Weights, logged: dict[str, float], generations: Generations
) -> dict[str, Any]:
    """Our loss and gradient norm on TRL's first tokens against what TRL logged, and again with one token changed.

    The control is part of the check: one that cannot notice a changed token says nothing.
    """
    compared, rollouts = PEERS[work.peer].compared, generations.first
    if work.name == "vocabulary-full":
        return {"not_compared": "another objective: TRL's is over the whole vocabulary"}

    def on(tokens: list[Rollout], **how: Any) -> dict[str, Any]:
        learnt = Ours(work, weights, **how).learn(tokens, 0, contexts=generations.first_contexts)
        return _difference(learnt, logged, compared)

    told = on(rollouts, bf16_teacher=False)
    control = on(one_token_changed(rollouts), bf16_teacher=False)
    found = {
        "agreement": told | {"with_one_token_changed": control},
        "checked": _agrees(told) and not _agrees(control),
    }
    if work.bf16_teacher:
        narrow = on(rollouts)
        found["bf16_teacher_error"] = {
            "loss": narrow["loss_ours"] - told["loss_ours"],
            "gradient_norm_relative": narrow["gradient_norm_relative"],
        }
    return found


def _difference(update: Update, logged: dict[str, float], compared: tuple[str, ...]) -> dict[str, Any]:
    loss = update.tally.means()["loss"]
    return {
        "loss_theirs": logged["loss"],
        "loss_ours": loss,
        "loss_difference": abs(loss - logged["loss"]) if "loss" in compared else None,
        "gradient_norm_theirs": logged["grad_norm"],
        "gradient_norm_ours": update.grad_norm,
        "gradient_norm_relative": abs(update.grad_norm / logged["grad_norm"] - 1),
    }


def _agrees(told: dict[str, Any]) -> bool:
    loss = told["loss_difference"]
    return bool((loss is None or loss <= LOSS) and told["gradient_norm_relative"] <= GRADIENT)


def one_token_changed(rollouts: list[Rollout]) -> list[Rollout]:
    """The third token of the first response is another one, which the check has to notice."""
    first = rollouts[0]
    ids = list(first.response_ids)
    ids[2] = (ids[2] + 7) % 512
    return [replace(first, response_ids=tuple(ids)), *rollouts[1:]]
