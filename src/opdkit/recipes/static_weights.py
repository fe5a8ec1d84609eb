"""Weights, read from their files a slice at a time: is the teacher another model at all, and what does the
student's dtype do to its updates?
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from opdkit.recipes.static_read import Side, Subject
from opdkit.types import Finding

TENSORS = 24  # compared first; a full comparison follows only where all of them are equal
ROWS = 64  # of each, from its middle
NEARLY = 3e-4  # largest relative difference of a sampled tensor below which two models hardly differ
LOST = 0.5  # share of weights whose update rounds to nothing from which that is said
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_HELD = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def weight_findings(subject: Subject) -> list[Finding]:
    if not all(side.readable_weights for side in subject.sides):
        return []
    with ExitStack() as opened:
        student = _open(subject.student, opened)
        found = [*_masters(subject, student), *_narrowed(subject.student, student)]
        if subject.teacher is not None:
            teacher = _open(subject.teacher, opened)
            found += [*_narrowed(subject.teacher, teacher), *_alike(subject, student, teacher)]
    return found


@dataclass(frozen=True)
class Weights:
    """Tensors of a model by name, on disk. Empty for a Hub model that is not in the cache yet."""

    slices: Mapping[str, Any]  # name → a safetensors slice

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.slices[name].get_shape())

    def dtype(self, name: str) -> str:
        return str(self.slices[name].get_dtype())

    def part(self, name: str, rows: int | None = None) -> torch.Tensor:
        """The tensor as stored, or some rows from its middle."""
        piece = self.slices[name]
        count = (self.shape(name) or (0,))[0]
        if rows is None or count <= rows:
            return piece[:] if self.shape(name) else piece[...]
        start = (count - rows) // 2
        return piece[start : start + rows]


def _open(side: Side, opened: ExitStack) -> Weights:
    slices: dict[str, Any] = {}
    for path in weight_files(side):
        file = opened.enter_context(safe_open(path, framework="pt"))
        slices |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    return Weights(slices)


def weight_files(side: Side) -> list[Path]:
    """Of a folder, or of a Hub model as far as the cache has it."""
    single = _file(side, "model.safetensors")
    if single is not None:
        return [single]
    index = _file(side, "model.safetensors.index.json")
    if index is None:
        return []
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    paths = [_file(side, name) for name in names]
    return [] if None in paths else [path for path in paths if path is not None]


def _file(side: Side, name: str) -> Path | None:
    folder = Path(side.ref.model)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(side.ref.model, name, revision=side.ref.revision)
    return Path(found) if isinstance(found, str) else None


# --- student against teacher --------------------------------------------------------------------------------


def _alike(subject: Subject, student: Weights, teacher: Weights) -> list[Finding]:
    names = _common(student, teacher)
    if not names:
        return []
    sample = random.Random(0).sample(names, min(TENSORS, len(names)))
    largest = max(_apart(student, teacher, name, rows=ROWS) for name in sample)
    changed = 0
    if largest == 0.0:  # all alike so far: now every number counts
        apart = [_apart(student, teacher, name) for name in names]
        largest, changed = max(apart), sum(x > 0 for x in apart)
    if largest == 0.0:
        return [_identical(subject, student, teacher, names)]
    if largest >= NEARLY:
        return [_derived(largest)] if largest < 0.5 else []
    told = f"{changed} of {len(names)} tensors differ" if changed else f"in {len(sample)} sampled tensors"
    return [
        Finding(
            name="weights_nearly_identical",
            severity="warning",
            message=f"the teacher's weights differ from the student's by {largest:.1g} of their size at most "
            f"({told}): there is hardly anything to learn from it",
            numbers={"relative_difference": largest},
            rule=f"largest relative difference < {NEARLY:g}",
            source="measured here: students of the testbed and their improved copies are 7e-3 and more apart",
        )
    ]


def _common(student: Weights, teacher: Weights) -> list[str]:
    """Names of all weights where both models have the same; a tied head is stored once or twice."""
    ours, theirs = student.slices.keys(), teacher.slices.keys()
    if not ours or {name for name in ours ^ theirs if not name.startswith("lm_head.")}:
        return []
    names = sorted(ours & theirs)
    return names if all(student.shape(name) == teacher.shape(name) for name in names) else []


def _apart(student: Weights, teacher: Weights, name: str, *, rows: int | None = None) -> float:
    """‖a − b‖ ÷ ‖a‖, both in the coarser of the two dtypes, so that a rounded copy is no difference."""
    a, b = student.part(name, rows), teacher.part(name, rows)
    if a.dtype == b.dtype and torch.equal(a, b):
        return 0.0
    coarser = min((a.dtype, b.dtype), key=_bits)
    a, b = a.to(coarser).float(), b.to(coarser).float()
    size = float(a.norm())
    return float((a - b).norm()) / size if size else float(bool(b.any()))


def _bits(dtype: torch.dtype) -> float:
    """Of precision: the fewer, the coarser."""
    return -torch.finfo(dtype).eps if dtype.is_floating_point else 0.0


def _identical(subject: Subject, student: Weights, teacher: Weights, names: list[str]) -> Finding:
    stored = {student.dtype(names[0]), teacher.dtype(names[0])}
    same = "number for number" if len(stored) == 1 else f"up to rounding ({' and '.join(sorted(stored))})"
    meant = _other_reading(subject)
    return Finding(
        name="weights_identical",
        severity="info" if meant else "error",
        message=f"student and teacher are the same model {same}, in {len(names)} tensors: "
        + (meant or "there is nothing to learn. Take another teacher"),
        numbers={"tensors": len(names)},
        rule="" if meant else "some weight differs",
    )


def _other_reading(subject: Subject) -> str:
    """Why the same weights may still be another teacher."""
    cfg = subject.config.teacher
    if cfg is not None and cfg.context is not None:
        return "what it teaches is what teacher.context makes of it"
    if cfg is not None and cfg.temperature != subject.config.sampling.temperature:
        return f"what it teaches is its own distribution at temperature {cfg.temperature:g}"
    return ""


def _derived(largest: float) -> Finding:
    return Finding(
        name="weights_derived",
        severity="info",
        message=f"one model was trained on from the other: sampled weights differ by {largest:.1g} of "
        "their size",
        numbers={"relative_difference": largest},
    )


# --- dtype --------------------------------------------------------------------------------------------------


def _masters(subject: Subject, student: Weights) -> list[Finding]:
    """bfloat16 has 8 bits: a step of about lr, as AdamW's, is lost where half the spacing is larger."""
    lr = subject.config.optim.lr
    names = sorted(name for name in student.slices if len(student.shape(name)) >= 2)
    if subject.config.student.dtype != "bfloat16" or subject.config.student.lora is not None or not names:
        return []
    sample = random.Random(0).sample(names, min(TENSORS, len(names)))
    weights = torch.cat([student.part(name, ROWS).float().flatten() for name in sample]).abs()
    weights = weights[weights > 0]
    half_spacing = torch.exp2(torch.floor(torch.log2(weights)) - 8)
    lost = float((half_spacing > lr).float().mean()) if len(weights) else 0.0
    if lost <= LOST:
        return []
    return [
        Finding(
            name="masters_in_bfloat16",
            severity="warning",
            message=f"student.dtype is bfloat16 and optim.lr is {lr:g}: for {lost:.0%} of the sampled "
            "weights a "
            "step that large rounds to no change. Keep the weights in float32; learner.compute=bfloat16 is "
            "what saves time",
            numbers={"lost_share": lost, "lr": lr},
            remedy=subject.again("student.dtype=float32"),
            rule=f"lost_share > {LOST:g}",
            source="arXiv 2604.13016 trains with float32 masters; spacing of bfloat16",
        )
    ]


def _narrowed(side: Side, weights: Weights) -> list[Finding]:
    """Held in fewer bits than stored."""
    stored = {weights.dtype(name) for name in weights.slices} & _DTYPES.keys()
    held = _HELD[side.ref.dtype]
    finer = sorted(name for name in stored if torch.finfo(_DTYPES[name]).eps < torch.finfo(held).eps)
    if not finer:
        return []
    return [
        Finding(
            name="dtype_narrowed",
            severity="info",
            message=f"the {side.who}'s weights are stored as {', '.join(finer)} and held as "
            f"{side.ref.dtype}, "
            "which rounds them",
            numbers={"held_eps": torch.finfo(held).eps},
        )
    ]
