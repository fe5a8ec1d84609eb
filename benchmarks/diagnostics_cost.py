"""What diagnostics on 256 positions cost, as a share of a whole training step without them.

    python benchmarks/diagnostics_cost.py

small   the workload of benchmarks/assets.py: V = 512, 32 prompts of 32 tokens, 64 new tokens each
large   V = 49,152 and width 576, SmolLM2's, but two layers instead of 30, random weights: the head is real, the body
        is a stub, so the share is an upper bound for the real model. Prompts and responses as above.

One process, one thread, objective `paper`. Per pair: sample and score, then two updates on that same batch, one that
measures 256 positions (drawn for the step, as in a run) and one that measures none; which comes first alternates.

    share = (update with − update without) / (sample + score + update without)

An update runs from `collate` to the step's row of metrics. Processor seconds; the median over pairs counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from assets import make_assets, read_prompts
from machine import facts, one_core, write
from opdkit.config import (
    DiagnosticsConfig,
    LearnerConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    SamplingConfig,
)
from opdkit.models.load import LoadedModel, describe, open_model
from opdkit.models.sampler import LocalSampler
from opdkit.models.student import Student
from opdkit.models.teacher import LocalTeacher
from opdkit.objectives import Objective
from opdkit.run.world import World
from opdkit.train.collate import collate
from opdkit.train.learner import Learner, Part
from opdkit.train.record import metrics_row
from opdkit.types import Needs, Prompt, Rollout, Scores

ROWS, NEW_TOKENS, WARM_UP = 32, 64, 1
VOCABULARY, WIDTH = 49_152, 576
CPU = torch.device("cpu")


class Step:
    """A training step in two halves: what a batch comes from, and what is done with it."""

    def __init__(self, student: LoadedModel, teacher: LoadedModel, *, pairs: int):
        self.diagnostics = DiagnosticsConfig()
        self.objective = Objective(ObjectiveConfig(preset="paper"))
        self.sampling = SamplingConfig(responses=1, max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS)
        self.sampler, self.teacher = LocalSampler(student), LocalTeacher(teacher)
        self.rows = student.head.rows
        self.learner = Learner(
            Student(student, k=self.diagnostics.k, ks=self.diagnostics.ks),
            optim=OptimConfig(),
            learner=LearnerConfig(),
            steps=2 * pairs,
            world=World(CPU),
            max_tokens=NEW_TOKENS,
        )

    def sample_and_score(self, prompts: Sequence[Prompt], step: int) -> tuple[list[Rollout], list[Scores]]:
        rollouts = self.sampler.sample(prompts, sampling=self.sampling, seed=0, step=step)
        return rollouts, self.teacher.score(rollouts, needs=Needs(full=True))

    def update(self, rollouts: list[Rollout], scores: list[Scores], step: int, *, measuring: bool) -> float:
        """Processor seconds."""
        began = time.process_time()
        batch = collate(
            rollouts, {"teacher": scores}, measured_positions=self.diagnostics.positions, seed=0, step=step
        )
        if not measuring:
            batch = replace(batch, measured=torch.zeros_like(batch.measured))
        update = self.learner.update(
            Part(batch, self.objective.prepare(batch), self.objective),
            heads={"teacher": self.teacher.head},
            step=step,
        )
        metrics_row(
            step,
            update,
            rollouts,
            learner=self.learner,
            seconds={"step": 1.0},
            rows=self.rows,
            ks=self.diagnostics.ks,
        )
        return time.process_time() - began


def compare(step: Step, prompts: Sequence[Prompt], *, pairs: int) -> dict[str, Any]:
    rest, on, off = [], [], []
    for pair in range(pairs + WARM_UP):
        taken = [prompts[(pair * ROWS + i) % len(prompts)] for i in range(ROWS)]
        began = time.process_time()
        rollouts, scores = step.sample_and_score(taken, pair)
        rest.append(time.process_time() - began)
        for measuring in (True, False) if pair % 2 else (False, True):
            (on if measuring else off).append(step.update(rollouts, scores, pair, measuring=measuring))
    shares = [(a - b) / (r + b) for a, b, r in zip(on, off, rest, strict=True)][WARM_UP:]
    return {
        "pairs": pairs,
        "share": round(statistics.median(shares), 4),
        "shares": [round(share, 4) for share in shares],
        "seconds_sample_and_score": round(statistics.median(rest[WARM_UP:]), 4),
        "seconds_update_without": round(statistics.median(off[WARM_UP:]), 4),
        "seconds_update_with": round(statistics.median(on[WARM_UP:]), 4),
    }


def small(assets: Path, *, pairs: int) -> dict[str, Any]:
    make_assets(assets)
    student, teacher = (
        open_model(ModelConfig(model=str(assets / name)), device=CPU) for name in ("student", "teacher")
    )
    prompts = [Prompt(id=str(i), ids=tuple(row["ids"])) for i, row in enumerate(read_prompts(assets))]
    return compare(Step(student, teacher, pairs=pairs + WARM_UP), prompts, pairs=pairs)


def large(*, pairs: int) -> dict[str, Any]:
    student, teacher = (_stub(seed) for seed in (1, 2))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCABULARY, (ROWS, 32), generator=generator).tolist()
    prompts = [Prompt(id=str(i), ids=tuple(row)) for i, row in enumerate(ids)]
    return compare(Step(student, teacher, pairs=pairs + WARM_UP), prompts, pairs=pairs)


def _stub(seed: int) -> LoadedModel:
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w2")), pad_token="w0", eos_token="w1"
    )
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        intermediate_size=1536,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return describe(Qwen3ForCausalLM(config).eval(), tokenizer, name="stub")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, default=Path(".cache/bench"))
    given = parser.parse_args()
    one_core()
    result: dict[str, Any] = {"machine": facts(), "positions": DiagnosticsConfig().positions}
    for name, found in (("small", small(given.assets, pairs=11)), ("large", large(pairs=6))):
        result[name] = found
        print(
            f"{name}: diagnostics cost {found['share']:.1%} of a step (pairs: {min(found['shares']):.1%} to "
            f"{max(found['shares']):.1%}); update {found['seconds_update_without']:.3f} -> "
            f"{found['seconds_update_with']:.3f} s, sample and score {found['seconds_sample_and_score']:.3f} s",
            flush=True,
        )
    write("diagnostics_cost", result)


if __name__ == "__main__":
    main()
