"""What an adapter saves on real weights: parameters, optimizer, memory, time of an update.

    python benchmarks/lora.py .cache/smollm2-135m

Three updates each, in a process of its own: 8 rollouts of 32 + 64 fixed tokens, objective `paper`, float32, one thread. The
teacher is the student of step 0 at another temperature. Sides:

all          every weight is trained; the teacher is a copy
lora-copy    an adapter of rank 16 on all linear maps; the teacher is a copy
lora         the same; the teacher is the base, read with the adapter off

`peak_mb` is the process's peak resident memory above what it had before the model was read.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from machine import facts, one_core, write
from opdkit.config import LearnerConfig, LoraConfig, ModelConfig, ObjectiveConfig, OptimConfig
from opdkit.models.adapter import adapt
from opdkit.models.load import open_model
from opdkit.models.student import Student
from opdkit.models.teacher import LocalTeacher, frozen_copy
from opdkit.objectives import Objective
from opdkit.run.world import World
from opdkit.train.collate import collate
from opdkit.train.learner import Learner, Part
from opdkit.types import Needs, Prompt, Rollout

SIDES = ("all", "lora-copy", "lora")
CPU, MB = torch.device("cpu"), 2**20


def measure(side: str, folder: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    before = _peak()
    loaded = open_model(ModelConfig(model=folder), device=CPU)
    if side != "all":
        adapt(loaded.model, LoraConfig(), seed=0)
    shared = side == "lora"
    teacher = LocalTeacher(
        replace(loaded, bare=True) if shared else frozen_copy(loaded), temperature=0.5, frozen=not shared
    )
    learner = Learner(
        Student(loaded),
        optim=OptimConfig(),
        learner=LearnerConfig(),
        steps=3,
        world=World(CPU),
    )
    objective = Objective(ObjectiveConfig())
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, loaded.head.rows, (8, 96), generator=generator).tolist()
    rows = [Rollout(Prompt(id=str(i), ids=tuple(x[:32])), tuple(x[32:]), "length") for i, x in enumerate(ids)]
    seconds = []
    for step in range(3):
        batch = collate(
            rows, {"teacher": teacher.score(rows, needs=Needs(sampled=True))}, measured_positions=256
        )
        began = time.perf_counter()
        learner.update(
            Part(batch, objective.prepare(batch), objective), heads={"teacher": teacher.head}, step=step
        )
        seconds.append(time.perf_counter() - began)
    trained = [p for p in learner.student.parameters() if p.requires_grad]
    return {
        "side": side,
        "trained": sum(p.numel() for p in trained),
        "optimizer_mb": round(sum(t.nbytes for t in learner.optimizer_tensors().values()) / MB, 1),
        "peak_mb": round(_peak() - before),
        "seconds": round(min(seconds), 2),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    one_core()
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[2], sys.argv[1])))
        return
    rows = []
    for side in SIDES:
        done = subprocess.run(
            [sys.executable, __file__, sys.argv[1], side], stdout=subprocess.PIPE, check=True, text=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    write("lora", {**facts("peft"), "model": Path(sys.argv[1]).name, "rows": rows})


if __name__ == "__main__":
    main()
