"""Which objectives there are to prove, read from the code's own records: a preset added later appears by itself."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Iterator

import torch
from pydantic import ValidationError
from torch import Tensor

from opdkit.config import RECIPES, ObjectiveConfig
from opdkit.config.objective import Divergence, Estimator, Normalisation, SupportKind, Weights

VOCABULARY, POSITIONS, K = 9, 5, 4
PRESET_VOCABULARY = 40
"""More than twice the presets' k of 16, so that their sets leave something out."""
SHARPNESS = (1.0, 0.2, 2.0, 1.0, 5.0)
"""Of the teacher's rows: unsure ones and sure ones, on both sides of an entropy gate."""


def logits_pair(
    seed: int = 0, *, positions: int = POSITIONS, vocabulary: int = VOCABULARY
) -> tuple[Tensor, Tensor]:
    """Student and teacher [N, V], float64, standard deviation 1.5."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, positions, vocabulary, generator=generator, dtype=torch.float64) * 1.5
    return student, teacher


def pairs(count: int, *, vocabulary: int = VOCABULARY) -> Iterator[tuple[Tensor, Tensor]]:
    """Several, whose teachers are unsure at some positions and sure at others."""
    sharpness = torch.tensor(SHARPNESS, dtype=torch.float64)[:, None]
    for seed in range(count):
        student, teacher = logits_pair(1000 + seed, positions=len(SHARPNESS), vocabulary=vocabulary)
        yield student, teacher * sharpness


def others_of(spec: ObjectiveConfig, student: Tensor) -> dict[str, Tensor]:
    """Logits of the models that the target and the anchor name, beside a student's [N, V]."""
    generator = torch.Generator().manual_seed(student.shape[-1])
    return {
        name: torch.randn(student.shape, generator=generator, dtype=torch.float64) * 1.5
        for name in spec.others
    }


def ends_of(spec: ObjectiveConfig) -> tuple[int, ...]:
    """End tokens, where they count as one."""
    return (1, 4, 6) if spec.merge_ends else ()


def accepted() -> list[ObjectiveConfig]:
    """Every combination of support, divergence, normalisation, estimator and weights that a config may hold."""
    names = ("support", "divergence", "normalisation", "estimator", "weights")
    choices = map(typing.get_args, (SupportKind, Divergence, Normalisation, Estimator, Weights))
    numbers = {"k": K, "beta": 0.3, "skew": 0.2, "mass": 0.8}
    found = []
    for combination in itertools.product(*choices):
        try:
            found.append(
                ObjectiveConfig.model_validate({**numbers, **dict(zip(names, combination, strict=True))})
            )
        except ValidationError:
            continue
    return found


def named(spec: ObjectiveConfig) -> str:
    return f"{spec.support}-{spec.divergence}-{spec.normalisation}-{spec.estimator}-{spec.weights}"


def presets() -> dict[str, ObjectiveConfig]:
    """Every preset as its record sets it."""
    return {name: ObjectiveConfig.model_validate({"preset": name}) for name in RECIPES}


def states_unbiased(spec: ObjectiveConfig) -> bool:
    """Whether the mean over y is stated to be the gradient of the divergence over the whole vocabulary.

    So it is for the sampled token, for a set that the sampled token completes, and over the full vocabulary with the
    student's own weights; shaping bends it, any other set leaves something out.
    """
    if spec.shaping != "none":
        return False
    if spec.support == "sampled" or spec.normalisation == "tail_sampled":
        return True
    return spec.support == "full" and spec.weights == "student"


def recorded_unbiased(preset: str, spec: ObjectiveConfig) -> bool:
    """What the preset's record says of its gradient; where it speaks of weights only ("weighted", "gated", "scaled", which
    couple positions), what its kind implies at one position."""
    says = RECIPES[preset].gradient
    if says.startswith(("weighted", "gated", "scaled")):
        return states_unbiased(spec)
    return says.startswith(("unbiased", "exact"))
