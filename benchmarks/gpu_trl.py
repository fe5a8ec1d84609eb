"""TRL's DistillationTrainer on the work of benchmarks/gpu.py, with ours in turn. Needs TRL (benchmarks/peers.py --gpu).

Both sides have a student of their own from one seed, float32 masters and bf16 arithmetic, and share one bf16 teacher;
the reverse KL over the whole vocabulary, the same prompts, the same number of new tokens, the same rows per forward, AdamW.
Our step runs inside TRL's `on_step_end`: A, B, A, B. Where both do not fit in memory, TRL runs alone, against
what ours measured alone before, and the result says so.

TRL's bf16 = True reaches its generation only: on one device its loss calls the decoder beside the forward that accelerate
wrapped, so without more its training forward would be float32 (TRL 1.16, transformers 5.23). Here its loss runs under
autocast, as ours does, and the dtype that is seen in a projection of each phase stands in the result (`arithmetic`).

In step 0, which does not count, ours learns from TRL's tokens: both have the same weights then, so the losses must agree.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from gpu_step import COMPUTE, OPTIM, SEED, Ours, Phases, Work, forget_peak, held_mb, now
from gpu_workload import STUDENT, make_model, make_prompts, open_student
from opdkit.models.load import LoadedModel
from opdkit.train.learner import Update
from opdkit.train.record import peak_mb
from opdkit.types import Prompt, Rollout
from record import ratio, spread

AGREES = 0.01  # relative, of loss and gradient norm: both sides round to bf16, each in its own places


class Trainer(DistillationTrainer):
    """TRL's, its loss in the arithmetic that was asked for."""

    def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self.accelerator.device.type, dtype=COMPUTE):
            return super()._compute_loss(*args, **kwargs)


@dataclass
class Theirs:
    """TRL's steps as seen from outside: stands before the student's `generate`, and is told when a step ends."""

    work: Work
    generate: Callable[..., torch.Tensor]
    phases: Phases
    arithmetic: dict[str, str] = field(default_factory=dict)  # dtype of a projection, per phase
    prompts: list[Prompt] = field(default_factory=list)  # of the latest step, each once
    first: list[Rollout] = field(default_factory=list)
    phase: str = "learn"
    began: float = 0.0

    def __call__(self, **kwargs: Any) -> torch.Tensor:
        ids, self.phase = kwargs["input_ids"], "generate"
        assert ids.shape == (self.work.rows, self.work.shape.prompt_tokens), "the same prompts, none padded"
        with self.phases.timed("generate"):
            made = self.generate(**kwargs)
        self.phase = "learn"
        assert made.shape[1] - ids.shape[1] == self.work.length, "lengths are forced"
        self.prompts = self._prompts(ids.tolist())
        self.first = self.first or self._rollouts(made[:, ids.shape[1] :].tolist())
        forget_peak(self.work.device)
        return made

    def _prompts(self, ids: list[list[int]]) -> list[Prompt]:
        step, each = len(self.phases.seconds) - 1, self.work.responses
        return [Prompt(id=f"{step}-{i}", ids=tuple(row)) for i, row in enumerate(ids[::each])]

    def _rollouts(self, responses: list[list[int]]) -> list[Rollout]:
        prompts = [prompt for prompt in self.prompts for _ in range(self.work.responses)]
        return [Rollout(p, tuple(row), "length") for p, row in zip(prompts, responses, strict=True)]

    def see(self, _module: Any, _inputs: Any, output: torch.Tensor) -> None:
        self.arithmetic[self.phase] = str(output.dtype).removeprefix("torch.")

    def begin(self) -> None:
        self.phases.seconds.append({})
        self.phases.peaks.append({})
        self.began = now(self.work.device)

    def end(self) -> None:
        seconds = self.phases.seconds[-1]
        seconds["step"] = now(self.work.device) - self.began
        seconds["learn"] = seconds["step"] - seconds["generate"]
        self.phases.peaks[-1]["learn"] = peak_mb(self.work.device)


class Turns(TrainerCallback):
    """TRL's step, ours if there is one, TRL's …"""

    def __init__(self, theirs: Theirs, ours: Ours | None):
        self.theirs, self.ours = theirs, ours
        self.logs: list[dict[str, float]] = []  # TRL's
        self.our_first: Update | None = None
        self.held_by_trl = 0.0  # MB, while it is our turn

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.theirs.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **lives: Any) -> None:
        self.theirs.end()
        self.held_by_trl = held_mb(lives["model"], lives["optimizer"])
        if self.ours is not None:
            self._our_turn(self.ours, state.global_step - 1)
        if state.global_step < state.max_steps:
            self.theirs.begin()

    def _our_turn(self, ours: Ours, step: int) -> None:
        if step == 0:
            self.our_first = ours.learn(self.theirs.first, 0)
        else:
            ours.step(self.theirs.prompts, step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.logs.append({name: float(logs[name]) for name in ("loss", "grad_norm")})


def compare(work: Work, tokenizer: Any, teacher: LoadedModel, alone: dict[str, Any]) -> dict[str, Any]:
    """One row of the comparison. `alone` is what ours measured by itself on the same work."""
    try:
        return _in_turn(work, tokenizer, teacher)
    except torch.OutOfMemoryError:
        if "failed" in alone:
            raise
        # the frames of the failed run hold its tensors until this block is left
    gc.collect()
    torch.cuda.empty_cache()
    return _one_after_the_other(work, tokenizer, teacher, alone)


def _in_turn(work: Work, tokenizer: Any, teacher: LoadedModel) -> dict[str, Any]:
    ours = Ours(work, open_student(work.shape, tokenizer, work.device), teacher)
    theirs, turns = _train(work, tokenizer, teacher, ours)
    skip = work.warm_up
    held = held_mb(ours.learner.student.model, ours.learner.optimizer)
    peaks = {
        "theirs": _without(theirs.phases.highest(skip=skip), held, work),
        "ours": _without(ours.phases.highest(skip=skip), turns.held_by_trl, work),
    }
    phases = {"theirs": theirs.phases.spreads(skip=skip), "ours": ours.phases.spreads(skip=skip)}
    steps = {side: [s["step"] for s in p.seconds[skip:]] for side, p in _sides(theirs, ours)}
    return _row(work, steps, phases, peaks, order="in turn, in one process") | {
        "ratio": ratio(steps["theirs"], steps["ours"]),
        "arithmetic_of_trl": theirs.arithmetic,
        **agreement(turns.logs[0], turns.our_first),
    }


def _sides(theirs: Theirs, ours: Ours) -> list[tuple[str, Phases]]:
    return [("theirs", theirs.phases), ("ours", ours.phases)]


def _one_after_the_other(
    work: Work, tokenizer: Any, teacher: LoadedModel, alone: dict[str, Any]
) -> dict[str, Any]:
    theirs, _ = _train(work, tokenizer, teacher, None)
    skip = work.warm_up
    steps = [s["step"] for s in theirs.phases.seconds[skip:]]
    phases = {"theirs": theirs.phases.spreads(skip=skip)} | alone["phases"]
    peaks = {"theirs": theirs.phases.highest(skip=skip)} | alone["peak_mb_of_phases"]
    row = _row(
        work,
        {"theirs": steps},
        phases,
        peaks,
        order="one after the other: both together do not fit in memory",
    )
    medians = [row["seconds"]["theirs"]["median"]], [alone["seconds"]["ours"]["median"]]
    return row | {
        "ratio": ratio(*medians),  # of medians: there are no pairs
        "seconds": row["seconds"] | alone["seconds"],
        "tokens_per_second": row["tokens_per_second"] | alone["tokens_per_second"],
        "arithmetic_of_trl": theirs.arithmetic,
        "not_compared": "TRL ran alone",
    }


def _row(
    work: Work,
    steps: dict[str, list[float]],
    phases: dict[str, Any],
    peaks: dict[str, dict[str, int]],
    *,
    order: str,
) -> dict[str, Any]:
    speeds = {side: spread([work.new_tokens / s for s in values]) for side, values in steps.items()}
    return {
        "what": "DistillationTrainer / ours `full`",
        "order": order,
        "seconds": {side: spread(values) for side, values in steps.items()},
        "phases": phases,
        "tokens_per_second": speeds,
        "peak_mb": {side: max(found.values()) for side, found in peaks.items()},
        "peak_mb_of_phases": peaks,
    }


def _without(peaks: dict[str, int], held: float, work: Work) -> dict[str, int]:
    """What one side would have used alone: the other's weights and optimizer state are in the GPU's peak as well."""
    return peaks if work.device.type == "cpu" else {name: round(peak - held) for name, peak in peaks.items()}


def agreement(trl: dict[str, float], ours: Update | None) -> dict[str, Any]:
    """Our loss and gradient norm on TRL's first tokens against TRL's own."""
    assert ours is not None
    loss = ours.tally.means()["loss"]
    relative = {"loss": abs(loss / trl["loss"] - 1), "gradient": abs(ours.grad_norm / trl["grad_norm"] - 1)}
    found = {
        "loss_theirs": trl["loss"],
        "loss_ours": loss,
        "loss_difference": abs(loss - trl["loss"]),
        "gradient_norm_theirs": trl["grad_norm"],
        "gradient_norm_ours": ours.grad_norm,
        "gradient_norm_relative": relative["gradient"],
    }
    return {"agreement": found, "checked": max(relative.values()) <= AGREES}


def _train(work: Work, tokenizer: Any, teacher: LoadedModel, ours: Ours | None) -> tuple[Theirs, Turns]:
    """All of TRL's steps, through its public configuration but for what is watched and the arithmetic of its loss."""
    shape, device = work.shape, work.device
    student = make_model(shape, shape.student, seed=STUDENT, dtype=torch.float32, device=device)
    theirs = Theirs(work, student.generate, Phases(device))
    student.generate = theirs
    student.base_model.layers[0].self_attn.q_proj.register_forward_hook(theirs.see)
    turns = Turns(theirs, ours)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=student,
            teacher_model=teacher.model,
            args=_config(work, folder),
            train_dataset=Dataset.from_dict({"prompt": _texts(work)}),
            processing_class=tokenizer,
            callbacks=[turns],
        )
        trainer.remove_callback(PrinterCallback)  # stdout is for the table
        trainer.train()
    return theirs, turns


def _texts(work: Work) -> list[str]:
    """Every prompt as often as it is answered, step after step, in the order in which TRL takes them."""
    steps = range(work.warm_up + work.steps)
    prompts = [p for step in steps for p in make_prompts(work.shape, count=work.prompts, step=step)]
    return [str(prompt.text) for prompt in prompts for _ in range(work.responses)]


def _config(work: Work, folder: str) -> DistillationConfig:
    return DistillationConfig(
        output_dir=folder,
        max_steps=work.warm_up + work.steps,
        per_device_train_batch_size=work.micro_rows,
        gradient_accumulation_steps=work.rows // work.micro_rows,
        max_completion_length=work.length,
        generation_kwargs={"min_new_tokens": work.length},
        beta=1.0,
        temperature=1.0,
        learning_rate=OPTIM.lr,
        lr_scheduler_type="constant",
        weight_decay=OPTIM.weight_decay,
        max_grad_norm=OPTIM.clip,
        shuffle_dataset=False,
        use_cpu=work.device.type == "cpu",
        bf16=True,
        gradient_checkpointing=work.checkpointing,
        dataloader_num_workers=0,
        seed=SEED,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
