"""What opdkit says of a run that TRL trains: diagnostics of the trainer's own rollouts, findings, a run folder.

    trainer = DistillationTrainer(…)                               # or GKDTrainer(…)
    trainer.add_callback(OpdCallback(trainer, run="runs/trl"))
    trainer.train()                                                # meanwhile: opd watch runs/trl

A guest in somebody else's loop: it copies token ids that were sampled anyway, and reads both models under no_grad just
before the optimizer moves the weights that drew them. Modes, gradients and random state are as before; losses and
weights are the same to the bit with and without it (tests/peers). It needs no TRL to be imported.

What is read is what the loss sees: logits over the trainer's temperature (GKDTrainer's loss divides by none), the
arithmetic of its mixed precision, and of several processes the first one's rollouts. The vocabulary is the
tokenizer's: rows that only pad the embedding are left out.
"""

from __future__ import annotations

import logging
import math
import random
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import TrainerCallback

from opdkit.config import dump_table
from opdkit.diagnostics import (
    Monitor,
    by_position,
    by_sequence,
    derived,
    overlap_chance,
    rollout_tally,
    tally,
)
from opdkit.integrations.trl_rollouts import refuse_unreadable, replace_method, tap
from opdkit.models.load import describe
from opdkit.models.pair import Reader, Reading, read_pair
from opdkit.models.teacher import LocalTeacher
from opdkit.run.environment import environment
from opdkit.run.folder import MARKER, RunFolder
from opdkit.train.look import tokens_of
from opdkit.types import Finding, Rollout, RunError, UserError

log = logging.getLogger("opdkit")

TOLD = (
    "reverse_kl",
    "overlap_ratio",
    "overlap_mass_student",
    "overlap_mass_teacher",
    "overlap_advantage",
    "entropy_student",
    "entropy_teacher",
    "entropy_gap",
    "top1_agreement",
    "teachable_share",
    "response_length",
    "truncated_fraction",
    "repetition_fraction",
)
"""What also goes into TRL's own logs, as `opd/NAME`: a few curves, for the trackers it reports to."""
OWN = ("loss", "grad_norm", "learning_rate")  # TRL's names that mean what ours mean
SETTINGS = {
    "optim.lr": "learning_rate",
    "sampling.max_tokens": "max_completion_length",
    "learner.compute": "bf16",
}
"""Our settings in remedies → the trainer's arguments."""


@dataclass(frozen=True)
class Scale:
    """How much is read, and at what width."""

    every: int
    rollouts: int
    save_every: int
    k: int
    ks: tuple[int, ...]
    bins: int


class OpdCallback(TrainerCallback):
    """Attach with `trainer.add_callback(OpdCallback(trainer, run=…))`, before `trainer.train()`.

    `every`: measure at the first step and at every so many logging steps (optimizer steps where it does not log by
    steps). `rollouts`: how many of the step's rollouts both models read; lengths are of all. `save_every`: write
    sampled rollouts at every so many measurements. `k`, `ks`, `bins` as in [diagnostics]. `on_critical`: at a finding
    of severity `error` go on, or end the training as TRL does at its last step.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        run: str | Path,
        every: int = 1,
        rollouts: int = 16,
        save_every: int = 10,
        k: int = 16,
        ks: Sequence[int] = (1, 4, 16, 64),
        bins: int = 8,
        on_critical: Literal["go_on", "stop"] = "go_on",
    ):
        refuse_unreadable(trainer)
        least = min(every, rollouts, save_every, k, bins, *ks)
        if least < 1:
            raise UserError(f"{least} is no count", hint="OpdCallback(trainer, run=…, every=1, rollouts=16)")
        self.trainer, self.run, self.on_critical = trainer, Path(run), on_critical
        self.scale = Scale(every, rollouts, save_every, k, tuple(ks), bins)
        self._undo: list[Callable[[], None]] = []
        self._folder: RunFolder | None = None
        self._own: list[Rollout] = []  # of the step under way
        self._row: dict[str, Any] = {}  # measured, and not written yet
        self._clock = Clock()
        self._measured = 0
        self._due = False  # stays so until a step has rollouts of the student's (GKDTrainer with lmbda < 1)
        self._broken = False

    # --- what transformers calls ------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._leave()
        if state.is_world_process_zero:
            with undisturbed(self._models()):
                self._begin(args, state, control)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._folder is not None:
            self._write({}, control)  # measured at a step that TRL did not log
            self._own.clear()
            step = state.global_step + 1
            self._due = not self._broken and (self._due or step == 1 or step % self._stride == 0)
            self._clock.begin()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The weights are still those that drew the rollouts."""
        if not self._due or not self._own:
            return
        step, began = state.global_step + 1, time.perf_counter()
        try:
            self._row = self._measure(step, last=step == state.max_steps)
        except (torch.OutOfMemoryError, OSError, RunError) as error:  # RunError: the disk is full
            self._give_up(step, error)
        self._due, self._clock.measured = False, time.perf_counter() - began

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._folder is not None:
            self._clock.end()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self._folder is not None and logs and "loss" in logs:
            self._write(logs, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._folder is not None:
            self._write({}, control)
            self._folder.close()
        self._leave()

    # --- what happens ------------------------------------------------------------------------------------------

    def _begin(self, args: Any, state: Any, control: Any) -> None:
        with self._arithmetic():
            self._pair = readers(self.trainer)
        self._stride = stride(args, state, self.scale.every)
        self._folder = open_folder(self.run, self.trainer, state, self.scale)
        rows, findings = self._folder.read_metrics(), self._folder.read_findings()
        self._monitor = Monitor(
            steps=max(1, state.max_steps // self._stride),
            run=str(self.run),
            lr=args.learning_rate,
            max_tokens=longest(self.trainer),
        )
        for finding in self._monitor.replay(rows, findings):
            self._tell(finding, control)
        self._measured = len(rows)
        self._undo = [
            tap(self.trainer, self._own.extend, wanted=lambda: self._due),
            replace_method(self.trainer, "log", self._logging()),
        ]

    def _measure(self, step: int, *, last: bool) -> dict[str, Any]:
        assert self._folder is not None
        shown, (student, teacher) = self._own[: self.scale.rollouts], self._pair
        with undisturbed(self._models()), self._arithmetic():
            reading = read_pair(shown, student=student, teacher=teacher, **widths(self.scale, student))
            if last or self._measured % self.scale.save_every == 0:
                looks = tokens_of(
                    shown,
                    student=student.loaded,
                    teacher=LocalTeacher(teacher.loaded, temperature=teacher.temperature, frozen=False),
                    temperature=student.temperature,
                )
                self._folder.log_rollouts(step, sample_rows(step, shown, reading, looks, student))
            self._measured += 1
            most = longest(self.trainer)
            return measured_row(step, self._own, shown, reading, self._pair, self.scale, most)

    def _logging(self) -> Callable[..., Any]:
        """TRL's `log` with a few of our numbers in what it is given: its trackers show them beside its own."""
        trl_log = self.trainer.log

        def log_with_ours(logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
            if "loss" in logs:
                logs.update({f"opd/{name}": self._row[name] for name in TOLD if name in self._row})
            return trl_log(logs, *args, **kwargs)

        return log_with_ours

    def _write(self, logs: Mapping[str, Any], control: Any) -> None:
        """The measured row with what TRL logged of the same step, if it did, and what the monitor makes of it."""
        if not self._row or self._folder is None:
            return
        row, self._row = self._row | trl_numbers(logs) | self._clock.read(), {}
        try:
            self._folder.log_metrics(row["step"], row)
            with undisturbed():
                found = self._monitor.see(row)
            for finding in found:
                self._tell(finding, control)
        except (OSError, RunError) as error:
            self._give_up(row["step"], error)

    def _tell(self, finding: Finding, control: Any) -> None:
        assert self._folder is not None
        finding = for_trl(finding, self.run, self.trainer)
        self._folder.log_finding(finding)
        log.warning("%s: %s  [%s]", finding.severity, finding.message, finding.remedy)
        if finding.severity == "error" and self.on_critical == "stop":
            control.should_training_stop = True

    def _give_up(self, step: int, error: BaseException) -> None:
        """Training is worth more than its record: say it once, measure no more."""
        self._broken, self._row = True, {}
        message = f"not measured from step {step} on: {type(error).__name__}: {first_line(error)}"
        log.warning("warning: %s", message)
        finding = Finding(
            "measuring_stopped", "warning", message, remedy=f"opd report {self._quoted}", step=step
        )
        try:
            assert self._folder is not None
            self._folder.log_finding(finding)
        except (OSError, RunError):
            log.warning("warning: and the finding could not be written to %s", self.run)

    @property
    def _quoted(self) -> str:
        return shlex.quote(str(self.run))

    def _models(self) -> list[Any]:
        return [bare(self.trainer.model, self.trainer), bare(self.trainer.teacher_model, self.trainer)]

    def _arithmetic(self) -> Any:
        return self.trainer.accelerator.autocast()

    def _leave(self) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo, self._folder = [], None
        self._own.clear()


class Clock:
    """Seconds per optimizer step since the last row, and of the measurement, which is no part of them."""

    def __init__(self) -> None:
        self.began = self.measured = self.total = 0.0
        self.steps = 0

    def begin(self) -> None:
        self.began, self.measured = time.perf_counter(), 0.0

    def end(self) -> None:
        self.total += time.perf_counter() - self.began - self.measured
        self.steps += 1

    def read(self) -> dict[str, float]:
        told = {"seconds/measure": self.measured}
        if self.steps:
            told["seconds/step"] = self.total / self.steps
        self.total, self.steps = 0.0, 0
        return told


# --- reading --------------------------------------------------------------------------------------------------


@contextmanager
def undisturbed(models: Sequence[Any] = ()) -> Iterator[None]:
    """Models in eval mode and without gradients; modes, module by module, and random states are put back.

    Python's and numpy's too, though nothing of ours draws from them: GKDTrainer does, and type checkers that a
    user may have switched on look at random items of what we pass.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    devices = {p.device for model in models for p in model.parameters() if p.device.type == "cuda"}
    draws, numpy_draws = random.getstate(), np.random.get_state()
    try:
        for module, _ in modes:
            module.training = False
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
            yield
    finally:
        random.setstate(draws)
        np.random.set_state(numpy_draws)
        for module, training in modes:
            module.training = training


def bare(model: Any, trainer: Any) -> Any:
    """The causal LM itself: without wrappers of accelerate, and with PEFT's adapters in place inside it."""
    model = trainer.accelerator.unwrap_model(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def readers(trainer: Any) -> tuple[Reader, Reader]:
    """Student and teacher as the loss reads them. UserError for an architecture whose head is not known."""
    temperature = 1.0 if hasattr(trainer, "generate_on_policy_outputs") else float(trainer.temperature)
    student, teacher = (
        Reader(described, temperature=temperature, stop_ids=described.stop_ids)
        for described in (
            describe(bare(model, trainer), trainer.processing_class, name=named(model, trainer))
            for model in (trainer.model, trainer.teacher_model)
        )
    )
    return student, teacher


def named(model: Any, trainer: Any) -> str:
    return str(bare(model, trainer).config.name_or_path or type(model).__name__)


def widths(scale: Scale, student: Reader) -> dict[str, Any]:
    rows = student.head.rows
    return {"k": min(scale.k, rows), "ks": [k for k in scale.ks if k <= rows]}


def stride(args: Any, state: Any, every: int) -> int:
    """Optimizer steps between measurements."""
    by_steps = str(getattr(args.logging_strategy, "value", args.logging_strategy)) == "steps"
    return every * max(1, int(state.logging_steps)) if by_steps else every


def longest(trainer: Any) -> int:
    """Most tokens of a response."""
    found = getattr(trainer.args, "max_completion_length", None) or getattr(
        trainer.args, "max_new_tokens", None
    )
    return int(found or 256)


# --- what is written ------------------------------------------------------------------------------------------


def measured_row(
    step: int,
    own: Sequence[Rollout],
    shown: Sequence[Rollout],
    reading: Reading,
    pair: tuple[Reader, Reader],
    scale: Scale,
    max_tokens: int,
) -> dict[str, Any]:
    """Flat names of docs/design.md: models over the rollouts `shown`, lengths over all the process's `own`."""
    trained = torch.tensor([t for r in shown for t in flags(r)])
    here = trained & ~reading.after_end
    measures = reading.measures
    told = tally(measures, keep=trained) + by_position(
        {name: pair_ for name, pair_ in measures.items() if not name.startswith("stop_")},
        reading.depth,
        bins=scale.bins,
        max_tokens=max_tokens,
        keep=here,
    )
    shape = rollout_tally(own)
    row: dict[str, Any] = {"step": step, **derived(told + shape)}
    del row["ungraded_fraction"]  # nobody grades here
    rows = pair[0].head.rows
    row |= {f"overlap_chance_at_{k}": overlap_chance(k=k, size=rows) for k in scale.ks if k <= rows}
    return row | {"measured_positions": int(here.sum())}


def flags(rollout: Rollout) -> list[bool]:
    """Which packed positions of `read_pair` belong to tokens that train: it reads one more after an end."""
    trained = list(rollout.trained or (True,) * rollout.length)
    return [*trained, True] if rollout.finish_reason == "stop" else trained


def sample_rows(
    step: int, shown: Sequence[Rollout], reading: Reading, looks: Sequence[Any], student: Reader
) -> list[dict[str, Any]]:
    """Rows of rollouts/step_N.jsonl, as our own loop writes them (train/record.py)."""
    means = by_sequence(reading.measures, reading.row, rows=len(shown), keep=~reading.after_end)
    tokenizer = student.loaded.tokenizer
    return [
        {
            "step": step,
            "id": r.prompt.id,
            "sample": r.sample,
            "prompt": tokenizer.decode(list(r.prompt.ids)),
            "response": tokenizer.decode(list(r.response_ids), skip_special_tokens=True),
            "finish_reason": r.finish_reason,
            "score": None,
            "length": r.length,
            "group": None,
            "prompt_ids": list(r.prompt.ids),
            "response_ids": list(r.response_ids),
            "policy_version": step - 1,
            **{name: value for name, values in means.items() if math.isfinite(value := values[i].item())},
            "tokens": look,
        }
        for i, (r, look) in enumerate(zip(shown, looks, strict=True))
    ]


def trl_numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """What TRL logged: under our name where it is the same quantity, else under `trl/`."""
    numbers = {name: value for name, value in logs.items() if isinstance(value, int | float)}
    return {n if n in OWN else f"trl/{n}": v for n, v in numbers.items() if not n.startswith("opd/")}


def for_trl(finding: Finding, run: Path, trainer: Any) -> Finding:
    """The remedy as it can be typed here: our train command would train something else."""
    command, _, why = finding.remedy.partition("  # ")
    if command.startswith("opd report"):
        return finding
    changed = [
        (SETTINGS[key], value)
        for key, _, value in (w.partition("=") for w in command.split())
        if key in SETTINGS
    ]
    shown = [f"{name}={'False' if name == 'bf16' else value}" for name, value in changed]
    hint = f"again with {', '.join(shown)} in {type(trainer.args).__name__}" if shown else why
    return replace(finding, remedy=f"opd report {shlex.quote(str(run))}  # {hint}")


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def open_folder(run: Path, trainer: Any, state: Any, scale: Scale) -> RunFolder:
    """A new run, or the one that a resumed training goes on with, rewound to where it goes on."""
    if state.global_step > 0 and (run / MARKER).is_file():
        folder = RunFolder.open(run)
        folder.rewind(state.global_step)
        return folder
    env = environment() | {"trainer": {"class": type(trainer).__name__, "trl": trl_version()}}
    try:
        return RunFolder.create(run, config_toml=dump_table(settings(run, trainer, state, scale)), env=env)
    except UserError as error:
        raise UserError(str(error), hint=f'OpdCallback(trainer, run="{run}-2")') from None


def trl_version() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("trl")
    except metadata.PackageNotFoundError:
        return None


def settings(run: Path, trainer: Any, state: Any, scale: Scale) -> dict[str, Any]:
    """Dotted key → value: under our keys what has one, for report and watch; the trainer's own under `trl`."""
    args = trainer.args
    given = args.to_dict()  # tokens are masked in it
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {
        "story": "distill",
        "run": str(run),
        "steps": state.max_steps,
        "seed": args.seed,
        "prompts_per_step": batch,
        "student.model": named(trainer.model, trainer),
        "teacher.model": named(trainer.teacher_model, trainer),
        "objective.preset": f"{type(trainer).__name__}, beta = {args.beta}",
        "sampling.responses": 1,
        "sampling.temperature": float(trainer.temperature),
        "sampling.max_tokens": longest(trainer),
        "optim.lr": args.learning_rate,
        "diagnostics.k": scale.k,
        "diagnostics.ks": list(scale.ks),
        "diagnostics.bins": scale.bins,
        "trl.trainer": type(trainer).__name__,
        **{f"trl.{key}": value for key, value in sorted(given.items()) if simple(value)},
    }


def simple(value: Any) -> bool:
    """What a line of TOML can hold; callables, nested tables and None are left out."""
    if isinstance(value, list | tuple):
        return all(isinstance(item, str | int | float | bool) for item in value)
    return isinstance(value, str | int | float | bool)
