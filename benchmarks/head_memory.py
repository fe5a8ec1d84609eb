"""The loss stage at a vocabulary of 151,936: how much memory above the weight gradient, how long, and is it right?

    python benchmarks/head_memory.py [--all]

Student and teacher heads of [151936, 896] in float32, hidden states of T positions, one thread. Sides:

naive        logits of both models for all positions, log-softmax, KL(p‖q), plain autograd
full         `Student.forward` with objective `full`: the same loss, in chunks
paper        … with objective `paper` (student's top 16), in chunks
paper-eq5    … with objective `paper-eq5`: only the support's columns, at 16 given ids (random, which is the worst case
             for the caches; in a run they are the sampler's top 16)

`measured` is the number of positions at which diagnostics are measured (a run's default: 256). Every number comes from
a process of its own:

    extra MB = peak resident memory − resident memory before the loss − the weight gradient's own V·D·4 bytes

"Before the loss" both heads, both hidden states [T, D] and the ids are there. Not subtracted, so it is in `extra MB`:
the gradient of the hidden states, T·D·4 bytes (29 MB at T = 8192). Times are processor seconds of one run each, and
noisy.

`agreement`: gradients of loss / T at T = 512 against plain autograd over full logits, ‖g − g′‖ / ‖g′‖, in float32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from machine import facts, one_core, write
from opdkit.config import ObjectiveConfig
from opdkit.models.head import Head
from opdkit.models.load import LoadedModel
from opdkit.models.student import Student
from opdkit.objectives import Objective
from opdkit.support.select import of_ids
from opdkit.types import MicroBatch, Scores

V, D, K, MB = 151_936, 896, 16, 2**20
RUNS = [
    ("naive", 512, 0), ("naive", 2048, 0),
    ("full", 512, 256), ("full", 2048, 256),
    ("paper", 512, 256), ("paper", 2048, 256), ("paper", 8192, 256),
    ("paper-eq5", 2048, 256), ("paper-eq5", 8192, 256),
    ("paper-eq5", 512, 0), ("paper-eq5", 2048, 0), ("paper-eq5", 8192, 0),
]  # fmt: skip
LONG_RUNS = [("full", 8192, 256)]  # a minute or two more, and nothing new
NAIVE_MB_PER_POSITION = 6  # generously: to refuse a run that the memory would not hold


class Stage:
    """Both heads and both hidden states of T positions, and the ways to a loss."""

    def __init__(self, positions: int):
        torch.manual_seed(0)
        blank = [nn.utils.skip_init(nn.Linear, D, V, bias=False) for _ in range(2)]
        self.head, self.teacher_head = (Head(linear, rows=V) for linear in blank)
        for head in (self.head, self.teacher_head):
            nn.init.normal_(head.weight, std=0.05)
        self.teacher_head.output.requires_grad_(False)
        self.hidden = torch.randn(positions, D, requires_grad=True)
        self.teacher_hidden = torch.randn(positions, D)
        self.ids = torch.randint(V, (positions, K))
        self.sampled_ids = torch.randint(V, (positions,))

    def loss(self, side: str, *, measured: int) -> Tensor:
        return self.naive() if side == "naive" else self.ours(side, measured=measured)

    def naive(self) -> Tensor:
        """Eq. 4 over the whole vocabulary."""
        p = (self.hidden @ self.head.weight.T).log_softmax(-1)
        q = (self.teacher_hidden @ self.teacher_head.weight.T).log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean()

    def ours(self, preset: str, *, measured: int, given_ids: bool = False, columns: bool = True) -> Tensor:
        """The learner's forward from packed hidden states on; without `columns` always through whole rows."""
        objective = Objective(ObjectiveConfig(preset=preset))
        positions, models = len(self.hidden), ("teacher", *objective.spec.others)
        student = Student(_loaded(self.head))
        student.states = lambda micro: self.hidden  # the body is not what is measured here
        micro = MicroBatch(
            input_ids=torch.zeros(1, positions, dtype=torch.long),
            gather=torch.arange(positions),
            sampled_ids=self.sampled_ids,
            weight=torch.ones(positions),
            measured=torch.arange(positions) % max(positions // max(measured, 1), 1)
            == (0 if measured else -1),
            index=torch.arange(positions),
            support=of_ids(self.ids, source="teacher" if objective.spec.of_teacher else "sampler")
            if given_ids or (objective.columns_only and columns)
            else None,
            scores=dict.fromkeys(models, Scores(fingerprint="", hidden=self.teacher_hidden)),
        )
        loss, _ = student(micro, objective, dict.fromkeys(models, self.teacher_head))
        return loss / positions

    def gradients(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """With respect to the hidden states and the head's weight."""
        hidden, weight = torch.autograd.grad(loss, [self.hidden, self.head.weight])
        return hidden, weight


def _loaded(head: Head) -> LoadedModel:
    """A model that is a head only."""
    return LoadedModel("head", head.output, None, head, stop_ids=(), fingerprint="", max_length=0)


# --- in a process of its own --------------------------------------------------------------------------------


def measure(side: str, positions: int, measured: int) -> dict[str, Any]:
    stage = Stage(positions)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    began = time.process_time()
    stage.loss(side, measured=measured).backward()
    seconds = time.process_time() - began
    extra = _status("VmHWM") - before - V * D * 4 / MB
    return {"extra_mb": round(extra), "seconds": round(seconds, 2)}


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def agreement() -> dict[str, float]:
    """Gradients of the three objectives against plain autograd over full logits, Σ in the order of the formulas."""
    stage = Stage(512)
    found = {}
    for preset, plain in {"full": stage.naive, "paper": _plain_paper, "paper-eq5": _plain_eq5}.items():
        wanted = stage.gradients(plain() if preset == "full" else plain(stage))
        ours = stage.gradients(stage.ours(preset, measured=0, given_ids=preset == "paper"))
        for name, g, w in zip(("hidden", "weight"), ours, wanted, strict=True):
            found[f"{preset}/{name}"] = float((g - w).norm() / w.norm())
    return found


def _plain_paper(stage: Stage) -> Tensor:
    """−Σ_S w·(log q − log p)·log p, w = p / Σ_S p, with w and the advantage detached."""
    p = (stage.hidden @ stage.head.weight.T).log_softmax(-1).gather(-1, stage.ids)
    q = (stage.teacher_hidden @ stage.teacher_head.weight.T).log_softmax(-1).gather(-1, stage.ids)
    weight = p.detach().softmax(-1)
    return -(weight * (q - p.detach()) * p).sum(-1).mean()


def _plain_eq5(stage: Stage) -> Tensor:
    """KL(p̄‖q̄), both renormalised over the ids."""
    p = (stage.hidden @ stage.head.weight.T).gather(-1, stage.ids).log_softmax(-1)
    q = (stage.teacher_hidden @ stage.teacher_head.weight.T).gather(-1, stage.ids).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


# --- all of them --------------------------------------------------------------------------------------------


def in_own_process(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, Path(__file__).resolve(), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="with the slow runs that add nothing new")
    parser.add_argument("--one", nargs=3, metavar=("SIDE", "T", "MEASURED"), help=argparse.SUPPRESS)
    parser.add_argument("--agreement", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    one_core()
    if given.one:
        side, positions, measured = given.one
        print(json.dumps(measure(side, int(positions), int(measured))))
    elif given.agreement:
        print(json.dumps(agreement()))
    else:
        report(RUNS + LONG_RUNS if given.all else RUNS)


def report(runs: list[tuple[str, int, int]]) -> None:
    result: dict[str, Any] = {"machine": facts(), "vocabulary": V, "hidden": D, "rows": []}
    print(f"{'side':10} {'T':>5} {'measured':>8} {'extra MB':>9} {'seconds':>8}")
    for side, positions, measured in runs:
        if side == "naive" and _available_mb() < NAIVE_MB_PER_POSITION * positions + 3 * V * D * 4 / MB:
            print(f"{side:10} {positions:5} not run: too little memory is free")
            continue
        _tell(result, {"side": side, "T": positions, "measured": measured}
              | in_own_process("--one", side, str(positions), str(measured)))  # fmt: skip
    naive = {row["T"]: row["extra_mb"] for row in result["rows"] if row["side"] == "naive"}
    if 2048 in naive:
        slope = (naive[2048] - naive[512]) / (2048 - 512)
        row = {
            "side": "naive",
            "T": 8192,
            "measured": 0,
            "extra_mb": round(naive[2048] + slope * (8192 - 2048)),
        }
        _tell(result, row | {"seconds": None, "extrapolated": "linearly from T = 512 and 2048; not run"})
    result["agreement"] = in_own_process("--agreement")
    for name, error in result["agreement"].items():
        print(f"gradient of {name:17} relative difference from plain autograd {error:.1e}")
    write("head_memory", result)


def _tell(result: dict[str, Any], row: dict[str, Any]) -> None:
    result["rows"].append(row)
    seconds = "not run" if row["seconds"] is None else f"{row['seconds']:.2f}"
    print(f"{row['side']:10} {row['T']:5} {row['measured']:8} {row['extra_mb']:9} {seconds:>8}", flush=True)


def _available_mb() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) / 1024


if __name__ == "__main__":
    main()
