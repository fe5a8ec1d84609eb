"""One training step of opdkit, a phase at a time, with clocks that wait for the device. Used by benchmarks/gpu.py.

sample    LocalSampler: prefill and decode, bf16 arithmetic over the float32 masters
score     LocalTeacher, bf16
update    collate, Objective, Learner: forward, backward, clip, AdamW
sync      the sampler gets the new weights; the local one shares the learner's module, so there is next to nothing to do;
          vLLM in the process takes copies and is asked for the canary (opdkit/engines/canary.py)
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from gpu_workload import Shape
from opdkit.config import (
    DiagnosticsConfig,
    LearnerConfig,
    ObjectiveConfig,
    OptimConfig,
    SamplingConfig,
    VllmSampling,
)
from opdkit.engines.vllm import VllmSampler
from opdkit.models.contracts import Sampler
from opdkit.models.load import LoadedModel
from opdkit.models.sampler import LocalSampler
from opdkit.models.student import Student
from opdkit.models.teacher import LocalTeacher
from opdkit.objectives import Objective
from opdkit.run.world import World
from opdkit.train.collate import collate
from opdkit.train.learner import Learner, Part, Update
from opdkit.train.record import metrics_row, peak_mb
from opdkit.types import Needs, Prompt, Rollout
from record import spread

PHASES = ("sample", "score", "update", "sync")
OPTIM = OptimConfig(lr=1e-6, weight_decay=0.0)
COMPUTE = torch.bfloat16
SEED = 0


@dataclass(frozen=True)
class Work:
    """What one part does, the same for every trainer that is measured on it. Lengths in tokens."""

    shape: Shape
    device: torch.device
    length: int  # of every response: end tokens are banned before, and there it is cut
    preset: str
    prompts: int
    responses: int
    steps: int  # that count
    warm_up: int  # that do not

    @property
    def rows(self) -> int:
        return self.prompts * self.responses

    @property
    def new_tokens(self) -> int:
        return self.rows * self.length

    @property
    def micro_rows(self) -> int:
        """Rows of one training forward: the most that divide all rows and stay within the shape's micro_tokens."""
        fits = [n for n in range(1, self.rows + 1) if self.rows % n == 0 and n * self._width <= self._budget]
        return max(fits, default=1)

    @property
    def micro_tokens(self) -> int:
        return self.micro_rows * self._width

    @property
    def checkpointing(self) -> bool:
        return self.length >= self.shape.checkpoint_from

    @property
    def _width(self) -> int:
        return self.shape.prompt_tokens + self.length

    @property
    def _budget(self) -> int:
        return self.shape.micro_tokens

    def facts(self) -> dict[str, Any]:
        """What a row of the result says of the work behind it."""
        return {
            "length": self.length,
            "preset": self.preset,
            "prompts": self.prompts,
            "responses": self.responses,
            "new_tokens_per_step": self.new_tokens,
            "rows_per_forward": self.micro_rows,
            "gradient_checkpointing": self.checkpointing,
            "steps": self.steps,
            "warm_up_steps": self.warm_up,
        }


@dataclass
class Phases:
    """Wall-clock seconds and peak memory (MB) of the phases, step by step. A clock starts and stops on an idle device."""

    device: torch.device
    seconds: list[dict[str, float]] = field(default_factory=list)
    peaks: list[dict[str, float]] = field(default_factory=list)

    @contextmanager
    def step(self) -> Iterator[None]:
        self.seconds.append({})
        self.peaks.append({})
        began = now(self.device)
        yield
        self.seconds[-1]["step"] = now(self.device) - began

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began = now(self.device)
        forget_peak(self.device)
        yield
        self.seconds[-1][name] = now(self.device) - began
        self.peaks[-1][name] = peak_mb(self.device)

    def spreads(self, *, skip: int) -> dict[str, dict[str, float]]:
        """Name → median, min, max of seconds over the steps after the first `skip`."""
        return {name: spread([s[name] for s in self.seconds[skip:]]) for name in self.seconds[-1]}

    def shares(self, names: Sequence[str], *, skip: int) -> list[float]:
        """Per step: what of its seconds was spent in these phases. The rest is the row of metrics."""
        return [sum(s[name] for name in names) / s["step"] for s in self.seconds[skip:]]

    def highest(self, *, skip: int) -> dict[str, int]:
        return {name: round(max(p[name] for p in self.peaks[skip:])) for name in self.peaks[-1]}


def now(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def forget_peak(device: torch.device) -> None:
    """On a CPU there is no such thing without root's files: there the peak is the process's, from its start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _vllm(student: LoadedModel, work: Work) -> Sampler:
    """vLLM beside the learner, bf16, from a folder it reads once."""
    cfg = VllmSampling(
        dtype="bfloat16",
        batch_rows=max(work.rows, 1),
        max_length=work.shape.prompt_tokens + work.length,
    )
    with tempfile.TemporaryDirectory() as folder:
        student.model.save_pretrained(folder)
        student.tokenizer.save_pretrained(folder)
        return VllmSampler(cfg, folder=folder, loaded=student, width=0, dtype="bfloat16")


class Ours:
    """The loop's step (train/loop.py) without its folder."""

    def __init__(self, work: Work, student: LoadedModel, teacher: LoadedModel, *, sampler: str = "local"):
        self.work, self.diagnostics = work, DiagnosticsConfig()
        self.objective = Objective(ObjectiveConfig(preset=work.preset))
        self.sampling = SamplingConfig(
            responses=work.responses,
            max_tokens=work.length,
            min_tokens=work.length,
            batch_rows=max(work.rows, 1),
        )
        self.sampler: Sampler = (
            _vllm(student, work) if sampler == "vllm" else LocalSampler(student, compute=COMPUTE)
        )
        self.teacher = LocalTeacher(teacher, batch_tokens=work.micro_tokens)
        self.learner = make_learner(work, student, self.diagnostics)
        self.phases = Phases(work.device)

    def step(self, prompts: Sequence[Prompt], step: int) -> Update:
        with self.phases.step():
            with self.phases.timed("sample"):
                rollouts = self.sampler.sample(prompts, sampling=self.sampling, seed=SEED, step=step)
            assert all(r.length == self.work.length for r in rollouts), "lengths are forced"
            return self._learn(rollouts, step)

    def learn(self, rollouts: list[Rollout], step: int) -> Update:
        """A step on tokens that someone else sampled."""
        with self.phases.step():
            return self._learn(rollouts, step)

    def _learn(self, rollouts: list[Rollout], step: int) -> Update:
        with self.phases.timed("score"):
            scores = self.teacher.score(rollouts, needs=Needs(full=True))
        with self.phases.timed("update"):
            positions = self.diagnostics.positions
            batch = collate(rollouts, {"teacher": scores}, measured_positions=positions, seed=SEED, step=step)
            signal = self.objective.prepare(batch)
            update = self.learner.update(
                Part(batch, signal, self.objective), heads={"teacher": self.teacher.head}, step=step
            )
        with self.phases.timed("sync"):
            weights = None if self.sampler.shares_weights else self.learner.weights()
            self.sampler.sync(weights, version=self.learner.version)
        self._record(update, rollouts, step)
        return update

    def _record(self, update: Update, rollouts: list[Rollout], step: int) -> None:
        """The step's row of metrics: part of a step in a run, so part of it here, and of no phase, as there."""
        seconds = {"step": 1.0}
        rows, ks = self.learner.student.head.rows, self.diagnostics.ks
        metrics_row(step + 1, update, rollouts, learner=self.learner, seconds=seconds, rows=rows, ks=ks)


def make_learner(work: Work, student: LoadedModel, diagnostics: DiagnosticsConfig) -> Learner:
    trained = Student(
        student,
        compute=COMPUTE,
        gradient_checkpointing=work.checkpointing,
        k=diagnostics.k,
        ks=diagnostics.ks,
    )
    return Learner(
        trained,
        optim=OPTIM,
        learner=LearnerConfig(batch_tokens=work.micro_tokens, compute="bfloat16"),
        steps=work.steps + work.warm_up,
        world=World(work.device),
        max_tokens=work.length,
    )


def held_mb(module: torch.nn.Module, optimizer: Any) -> float:
    """MB of a trained model's weights, gradients where there are any, and its optimizer's state."""
    state = [t for values in optimizer.state.values() for t in values.values() if torch.is_tensor(t)]
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    tensors = [*module.parameters(), *module.buffers(), *gradients, *state]
    return sum(t.numel() * t.element_size() for t in tensors) / 2**20
