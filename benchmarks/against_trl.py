"""TRL's DistillationTrainer against our step, on one core, in one process, alternately. Run through benchmarks/peers.py.

    python benchmarks/peers.py --venv .venv-peers [--part equal] [--pairs 12]

Both sides do the same work per step: the same 32 prompts of 32 tokens, the same number of new tokens per row, the
reverse KL over the whole vocabulary against the same teacher, float32, AdamW at 1e-3, gradient norm clipped at 1.
Each side has its own student and draws its own samples. Our step runs inside TRL's `on_step_end`; TRL's time is
what passes from there to the next `on_step_end`, so A and B alternate. Ours measures its diagnostics (256
positions) and builds its metrics row; TRL tokenises its prompts and logs.

equal    64 new tokens for every row (end tokens are banned before)
ragged   the lengths of benchmarks/lengths.json; a row's end token is banned before its length, forced at it (TRL),
         or the row is cut there (ours: the same number of tokens)
four     8 prompts × 4 responses of 64 tokens; TRL gets every prompt four times

Agreement, checked first of all: our loss and gradient norm on the tokens that TRL sampled in its first step
against what TRL logged for that step. Exit code 1 if they differ by more than 1e-5 (gradient norm: 1e-4, relative),
or if they do not differ once one of the tokens is changed: a check that cannot fail says nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    TrainerCallback,
)
from trl import DistillationConfig, DistillationTrainer

from assets import make_assets, read_prompts
from lengths import FILE as LENGTHS
from machine import facts, one_core, write
from opdkit.config import (
    DiagnosticsConfig,
    LearnerConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    SamplingConfig,
)
from opdkit.models.load import open_model
from opdkit.models.sampler import LocalSampler
from opdkit.models.student import Student
from opdkit.models.teacher import LocalTeacher
from opdkit.objectives import Objective
from opdkit.run.world import World
from opdkit.train.collate import collate
from opdkit.train.learner import Learner, Update
from opdkit.train.record import metrics_row
from opdkit.types import Needs, Prompt, Rollout

ROWS, NEW_TOKENS, LR, WARM_UP = 32, 64, 1e-3, 2
HELD_OUT = 64  # the first prompts are not trained on, as in earlier measurements of these trainers
SEED = 0


@dataclass(frozen=True)
class Part:
    """One comparison. `lengths` per step and row; None = NEW_TOKENS for all."""

    name: str
    pairs: int
    responses: int = 1
    lengths: list[list[int]] | None = None

    def of_step(self, step: int) -> list[int] | None:
        return None if self.lengths is None else self.lengths[step % len(self.lengths)]

    @property
    def max_tokens(self) -> int:
        return NEW_TOKENS if self.lengths is None else max(map(max, self.lengths))


def parts() -> dict[str, Part]:
    found = [
        Part("equal", pairs=12),
        Part("ragged", pairs=8, lengths=json.loads(LENGTHS.read_text())),
        Part("four", pairs=8, responses=4),
    ]
    return {part.name: part for part in found}


# --- our side -----------------------------------------------------------------------------------------------


class Ours:
    """The loop's step, without its folder: sample, score, collate, update, publish, metrics row."""

    def __init__(self, assets: Path, part: Part):
        cpu = torch.device("cpu")
        student, teacher = (
            open_model(ModelConfig(model=str(assets / n)), device=cpu) for n in ("student", "teacher")
        )
        self.part, self.diagnostics = part, DiagnosticsConfig()
        self.objective = Objective(ObjectiveConfig(preset="full"))
        self.sampling = SamplingConfig(
            responses=part.responses, max_tokens=part.max_tokens, min_tokens=part.max_tokens
        )
        self.sampler, self.teacher = LocalSampler(student), LocalTeacher(teacher)
        self.rows = student.head.rows
        self.learner = Learner(
            Student(student, k=self.diagnostics.k, ks=self.diagnostics.ks),
            optim=OptimConfig(lr=LR, weight_decay=0.0),
            learner=LearnerConfig(),
            steps=part.pairs + WARM_UP,
            world=World(cpu),
            max_tokens=part.max_tokens,
        )
        self.limits: list[int] | None = None
        self._limit_rows(self.sampler)
        self.seconds: dict[str, list[float]] = {"sample": [], "score": [], "update": []}

    def step(self, prompts: list[Prompt], step: int) -> Update:
        self.limits = self.part.of_step(step)
        with self._timed("sample"):
            rollouts = self.sampler.sample(prompts, sampling=self.sampling, seed=SEED, step=step)
        return self.learn(rollouts, step)

    def learn(self, rollouts: list[Rollout], step: int) -> Update:
        with self._timed("score"):
            scores = self.teacher.score(rollouts, needs=Needs(full=True))
        with self._timed("update"):
            batch = collate(
                rollouts,
                {"teacher": scores},
                measured_positions=self.diagnostics.positions,
                seed=SEED,
                step=step,
            )
            signal = self.objective.prepare(batch)
            update = self.learner.update(
                Part(batch, signal, self.objective), heads={"teacher": self.teacher.head}, step=step
            )
            self.sampler.sync(None, version=self.learner.version)
            metrics_row(
                step + 1, update, rollouts, learner=self.learner, seconds={"step": 1.0}, rows=self.rows,
                ks=self.diagnostics.ks,
            )  # fmt: skip
        return update

    def _limit_rows(self, sampler: Any) -> None:
        """Every row ends at its own stored length: the sampler has no such setting, its rows have."""
        make_rows = sampler._rows

        def limited(*args: Any, **kwargs: Any) -> Any:
            rows = make_rows(*args, **kwargs)
            for row, limit in zip(rows, self.limits or [row.limit for row in rows], strict=True):
                row.limit = limit
            return rows

        sampler._rows = limited

    def _timed(self, name: str) -> Stopwatch:
        return Stopwatch(self.seconds[name])


@dataclass
class Stopwatch:
    """Appends the wall-clock seconds of a `with` block."""

    times: list[float]
    began: float = 0.0

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.times.append(time.perf_counter() - self.began)


# --- TRL's side ---------------------------------------------------------------------------------------------


class EndAt(LogitsProcessor):
    """Row i ends at lengths[i]: its end token is banned before and forced there."""

    def __init__(self, lengths: list[int], *, prompt_width: int, end: int):
        self.lengths, self.prompt_width, self.end = torch.tensor(lengths), prompt_width, end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        last = input_ids.shape[1] - self.prompt_width + 1 >= self.lengths
        scores = scores.masked_fill(last[:, None], -torch.inf)
        scores[:, self.end] = torch.where(last, 0.0, -torch.inf)
        return scores


@dataclass
class Generations:
    """Stands before the model's `generate`: forces lengths, and keeps what went in and what came out."""

    generate: Callable[..., torch.Tensor]
    part: Part
    end: int
    calls: int = 0
    prompts: list[Prompt] = field(default_factory=list)  # of the latest step, each once
    first: torch.Tensor | None = None

    def __call__(self, **kwargs: Any) -> torch.Tensor:
        ids, lengths = kwargs["input_ids"], self.part.of_step(self.calls)
        assert bool(kwargs["attention_mask"].all()), "prompts are of one length, so nothing is padded"
        if lengths is not None:
            forced = EndAt(lengths, prompt_width=ids.shape[1], end=self.end)
            kwargs["logits_processor"] = LogitsProcessorList([forced])
        made = self.generate(**kwargs)
        self.prompts = [
            Prompt(id=f"{self.calls}-{i}", ids=tuple(row))
            for i, row in enumerate(ids[:: self.part.responses].tolist())
        ]
        self.first = made[:, ids.shape[1] :] if self.calls == 0 else self.first
        self.calls += 1
        return made

    def first_rollouts(self, prompts: list[Prompt]) -> list[Rollout]:
        assert self.first is not None
        found = []
        for prompt, row in zip(prompts, self.first.tolist(), strict=True):
            response = row[: row.index(self.end) + 1] if self.end in row else row
            found.append(Rollout(prompt, tuple(response), "stop" if self.end in row else "length"))
        return found


class Alternate(TrainerCallback):
    """TRL's step, then ours, then TRL's …: wall-clock and processor seconds of each."""

    def __init__(self, ours: Ours, generations: Generations):
        self.ours, self.generations = ours, generations
        self.theirs_wall: list[float] = []
        self.theirs_cpu: list[float] = []
        self.ours_wall: list[float] = []
        self.ours_cpu: list[float] = []
        self.logs: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.first_prompts: list[Prompt] = []
        self.mark = (0.0, 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.mark = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wall, cpu = _now()
        self.theirs_wall.append(wall - self.mark[0])
        self.theirs_cpu.append(cpu - self.mark[1])
        self.first_prompts = self.first_prompts or self.generations.prompts
        update = self.ours.step(self.generations.prompts, state.global_step - 1)
        self.losses.append(update.tally.means()["loss"])
        self.mark = _now()
        self.ours_wall.append(self.mark[0] - wall)
        self.ours_cpu.append(self.mark[1] - cpu)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.logs.append(dict(logs))


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def trainer(assets: Path, part: Part, folder: str) -> tuple[DistillationTrainer, Generations]:
    """TRL through its public configuration, but for `generate`, which is watched (and told the lengths)."""
    tokenizer = AutoTokenizer.from_pretrained(assets / "student", padding_side="left")
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(assets / name, dtype=torch.float32)
        for name in ("student", "teacher")
    )
    end = tokenizer.eos_token_id
    generations = Generations(student.generate, part, end)
    student.generate = generations
    texts = [row["prompt"] for row in read_prompts(assets)[HELD_OUT:] for _ in range(part.responses)]
    config = DistillationConfig(
        output_dir=folder,
        max_steps=part.pairs + WARM_UP,
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=1,
        max_completion_length=part.max_tokens,
        generation_kwargs={"min_new_tokens": NEW_TOKENS} if part.lengths is None else None,
        beta=1.0,
        temperature=1.0,
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        shuffle_dataset=part.responses == 1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_num_workers=0,
        seed=SEED,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    dataset = Dataset.from_dict({"prompt": texts})
    made = DistillationTrainer(
        model=student, teacher_model=teacher, args=config, train_dataset=dataset, processing_class=tokenizer
    )
    return made, generations


# --- the comparison -----------------------------------------------------------------------------------------


def compare(assets: Path, part: Part) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        peer, generations = trainer(assets, part, folder)
        ours = Ours(assets, part)
        both = Alternate(ours, generations)
        peer.add_callback(both)
        peer.train()
    rollouts = generations.first_rollouts([p for p in both.first_prompts for _ in range(part.responses)])
    told = agreement(Ours(assets, part).learn(rollouts, 0), both.logs[0])
    control = agreement(Ours(assets, part).learn(one_token_changed(rollouts), 0), both.logs[0])
    return {
        "pairs": part.pairs,
        "agreement": told | {"difference_with_one_token_changed": control["difference"]},
        "checked": told["agrees"] and not control["agrees"],
        "ratio": _spread([t / o for t, o in _pairs(both.theirs_wall, both.ours_wall)]),
        "ratio_of_processor_time": _spread([t / o for t, o in _pairs(both.theirs_cpu, both.ours_cpu)]),
        "ratios": [round(t / o, 3) for t, o in _pairs(both.theirs_wall, both.ours_wall)],
        "seconds_trl": _spread(both.theirs_wall[WARM_UP:]),
        "seconds_ours": _spread(both.ours_wall[WARM_UP:]),
        **{f"seconds_{k}": round(statistics.median(v[WARM_UP:]), 4) for k, v in ours.seconds.items()},
        "last_loss_trl": round(both.logs[-1]["loss"], 5),
        "last_loss_ours": round(both.losses[-1], 5),
    }


def agreement(update: Update, logged: dict[str, float]) -> dict[str, Any]:
    """Our loss and gradient norm on TRL's first tokens against TRL's own."""
    loss = update.tally.means()["loss"]
    difference, relative = abs(loss - logged["loss"]), abs(update.grad_norm / logged["grad_norm"] - 1)
    return {
        "loss_trl": logged["loss"],
        "loss_ours": loss,
        "difference": difference,
        "grad_norm_trl": logged["grad_norm"],
        "grad_norm_ours": update.grad_norm,
        "agrees": difference <= 1e-5 and relative <= 1e-4,
    }


def one_token_changed(rollouts: list[Rollout]) -> list[Rollout]:
    """A control: the third token of the first response is another one, which the check has to notice."""
    first = rollouts[0]
    ids = list(first.response_ids)
    ids[2] = (ids[2] + 7) % 512
    return [replace(first, response_ids=tuple(ids)), *rollouts[1:]]


def _pairs(theirs: list[float], ours: list[float]) -> list[tuple[float, float]]:
    return list(zip(theirs, ours, strict=True))[WARM_UP:]


def _spread(values: list[float]) -> dict[str, float]:
    shown = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 4) for name, value in shown.items()}


def main() -> int:
    known = parts()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, default=Path(".cache/bench"))
    parser.add_argument(
        "--part", choices=known, action="append", help="default: all; only a full run is written"
    )
    parser.add_argument("--pairs", type=int, help="timed pairs per part")
    given = parser.parse_args()
    core, machine = one_core(), facts("trl", "accelerate", "datasets")
    make_assets(given.assets)
    result: dict[str, Any] = {"machine": machine | {"core": core, "used_cores": 1}}
    for name in given.part or known:
        part = known[name]
        if given.pairs:
            part = Part(part.name, given.pairs, part.responses, part.lengths)
        found = result[name] = compare(given.assets, part)
        told = found["agreement"]
        print(
            f"{name:8} TRL / ours {found['ratio']['median']:.2f} ({found['ratio']['min']:.2f} to {found['ratio']['max']:.2f},"
            f" processor time {found['ratio_of_processor_time']['median']:.2f})"
            f"  s/step {found['seconds_trl']['median']:.3f} / {found['seconds_ours']['median']:.3f}"
            f"  loss on TRL's tokens {told['loss_trl']:.7f} / {told['loss_ours']:.7f}"
            f" {'agrees' if found['checked'] else 'FAILED'} (one token changed: {told['difference_with_one_token_changed']:.1e})",
            flush=True,
        )
    if given.part is None:
        write("against_trl", result)
    return 0 if all(result[name]["checked"] for name in given.part or known) else 1


if __name__ == "__main__":
    sys.exit(main())
