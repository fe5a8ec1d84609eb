"""What a step of a row against TRL consists of, the same on both sides; and which of TRL's trainers it is measured against.

equal              32 prompts of 32 tokens, 64 new tokens for every row (end tokens are banned before)
ragged             the lengths of benchmarks/lengths.json; a row's end token is banned before its length, forced at it
                   (TRL), or the row is cut there (ours: the same number of tokens)
bf16               as `equal`; our teacher in bfloat16, TRL's in float32
four               8 prompts × 4 responses of 64 tokens; TRL gets every prompt four times
vocabulary         SmolLM2-135M (V = 49,152), a noisy copy of it as the teacher, KL(p̄‖q̄) over the student's top 16
vocabulary-full    the same against DistillationTrainer, which has the whole vocabulary only: another objective
gkd … sdpo         as `equal`, each trainer with the objective that both have (trainers.py)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lengths import FILE as LENGTHS

LR, WARM_UP, SEED = 1e-3, 2, 0
HELD_OUT = 64  # the first prompts are not trained on
NEED_A_SERVER = (
    "server_distillation",
    "async_distillation",
)  # trainers that are listed with the error they give


@dataclass(frozen=True)
class Work:
    """One comparison. `lengths` per step and row; None = `new_tokens` for all."""

    name: str
    peer: str = "distillation"
    preset: str = "full"  # ours
    rows: int = 32  # responses per step
    responses: int = 1  # per prompt
    new_tokens: int = 64
    lengths: list[list[int]] | None = field(default=None, repr=False)
    models: str = "tiny"  # benchmarks/assets.py, or smollm2
    teacher: str = "teacher"  # or `self`: the student as it was, reading a longer prompt
    bf16_teacher: bool = False  # ours only
    lr: float = LR
    warm_up: int = WARM_UP
    pairs: int = 8  # timed
    held_out: int = 32  # prompts

    @property
    def steps(self) -> int:
        return self.pairs + self.warm_up

    @property
    def max_tokens(self) -> int:
        return self.new_tokens if self.lengths is None else max(map(max, self.lengths))

    def of_step(self, step: int) -> list[int] | None:
        return None if self.lengths is None else self.lengths[step % len(self.lengths)]

    def tokens(self, step: int) -> int:
        """New tokens of a step, on each side."""
        lengths = self.of_step(step)
        return self.rows * self.new_tokens if lengths is None else sum(lengths)

    def facts(self) -> dict[str, Any]:
        """What a record says of it. Two records are compared only where these agree."""
        return {
            "models": self.models,
            "prompts": self.rows // self.responses,
            "responses": self.responses,
            "new_tokens": self.new_tokens if self.lengths is None else "benchmarks/lengths.json",
            "peer": self.peer,
            "preset": self.preset,
        }


def works() -> dict[str, Work]:
    small: dict[str, Any] = {
        "rows": 8, "new_tokens": 24, "models": "smollm2", "lr": 1e-5, "warm_up": 1, "held_out": 8,
    }  # fmt: skip
    found = [
        Work("equal"),
        Work("ragged", lengths=json.loads(LENGTHS.read_text())),
        Work("bf16", bf16_teacher=True),
        Work("four", responses=4),
        Work("vocabulary", peer="iw_opd_top_16", preset="paper-eq5", **small),
        Work("vocabulary-full", preset="paper-eq5", **small),
        Work("gkd", peer="gkd", preset="gkd"),
        Work("gold", peer="gold"),
        Work("iw_opd", peer="iw_opd", preset="sampled"),
        Work("sdft", peer="sdft", teacher="self"),
        Work("sdpo", peer="sdpo", preset="sampled", responses=8, teacher="self"),
        Work("server_distillation", peer="server_distillation"),
        Work("async_distillation", peer="async_distillation"),
    ]
    return {work.name: work for work in found}


def folder_of(models: str, assets: Path) -> Path:
    """Where the weights of `models` lie."""
    return assets if models == "tiny" else assets.parent / "smollm2-135m"
