"""Models, tokenizer and prompts of a row against TRL, opened afresh for each side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from assets import PROMPT_TOKENS, PROMPTS, make_assets, make_prompts, read_prompts
from work import HELD_OUT, SEED, Work, folder_of

NOISE = 0.02  # of a matrix's own standard deviation, where the teacher is a copy of the student (scripts/differing_copy.py)


logging.disable_progress_bar()


class Missing(Exception):
    """Weights that a row needs are not on this machine."""


class Weights:
    """Opens what a row works on. Every call gives a model of its own."""

    def __init__(self, work: Work, assets: Path):
        self.work, self.folder = work, folder_of(work.models, assets)
        if work.models == "tiny":
            make_assets(assets)
        elif not (self.folder / "config.json").is_file():
            raise Missing(f"no weights in {self.folder.name}: make smollm2")

    @property
    def student_folder(self) -> Path:
        return self.folder / "student" if self.work.models == "tiny" else self.folder

    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.student_folder, padding_side="left")

    def student(self) -> Any:
        return _open(self.student_folder)

    def teacher(self) -> Any:
        """Float32. `self`: the student as it is before the first step."""
        if self.work.models == "tiny":
            return _open(self.folder / ("student" if self.work.teacher == "self" else "teacher"))
        return _differing(_open(self.folder))

    def prompts(self) -> list[dict[str, Any]]:
        """Rows of `prompt` (text) and `ids`, all of one length, the held-out ones first."""
        if self.work.models == "tiny":
            return read_prompts(self.folder)
        needed = HELD_OUT + self.work.rows * self.work.steps
        return make_prompts(self.tokenizer(), seed=SEED + 3, count=min(needed, PROMPTS))

    @property
    def prompt_tokens(self) -> int:
        return PROMPT_TOKENS


def _open(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _differing(model: Any) -> Any:
    """Noise on every matrix, from a seed: of a teacher equal to its student there is nothing to compare."""
    generator = torch.Generator().manual_seed(SEED + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter += NOISE * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return model
