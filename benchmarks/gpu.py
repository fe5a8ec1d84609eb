"""A training step on a GPU, phase by phase: seconds, tokens per second, peak memory; and TRL's step on the same work.

    python benchmarks/gpu.py [--lengths 2048 8192] [--preset paper full] [--steps 3] [--out FILE]
    python benchmarks/peers.py --venv .venv-peers --gpu [the same]            with TRL, in the peers' environment
    python benchmarks/gpu.py --shape tiny --device cpu                        a dry run of the same code path

Per length and preset: prompts → LocalSampler → LocalTeacher → Objective and Learner → sync (gpu_step.py), on two random
Qwen3 (gpu_workload.py), all responses of exactly that length. Where TRL is importable, its DistillationTrainer follows
at every length (gpu_trl.py). Warm-up steps do not count. The result is written after every part, so that a run cut
short keeps what it has (`complete` says which it is).

The file is one of record.py, like those of `make bench`: records with ratios, times, peaks. Without a GPU nothing is
measured and nothing written. A dry run says so in its output and in its JSON, which goes to `--out` or nowhere. Exit code 1
if a part did not fit in memory, or if TRL's loss is not ours.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from gpu_step import PHASES, Ours, Work
from gpu_workload import SHAPES, make_prompts, open_student, open_teacher, open_tokenizer
from machine import facts
from opdkit.models.load import LoadedModel
from opdkit.run.environment import environment
from record import RESULTS, Book, slug, spread

WIRED = ("paper", "full", "sampled")  # paper-eq5 takes its ids from the sampler, which Ours does not pass on
NO_GPU = "benchmarks/gpu.py: nothing was measured, because there is no GPU (CUDA device) on this machine."
NO_TRL = "TRL is not importable here (python benchmarks/peers.py --venv .venv-peers --gpu has it)"
NO_VLLM = "--sampler vllm: vLLM is not installed beside opdkit here: pip install 'opdkit[vllm]'"


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--lengths", type=int, nargs="+", help="of responses, in tokens; default: the shape's"
    )
    parser.add_argument("--steps", type=int, default=3, help="steps that count")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before, which do not")
    parser.add_argument("--prompts", type=int, help="per step")
    parser.add_argument("--responses", type=int, help="per prompt")
    parser.add_argument("--preset", nargs="+", choices=WIRED, default=["paper", "full"])
    parser.add_argument("--sampler", choices=("local", "vllm"), default="local")
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="cpu: a dry run")
    parser.add_argument("--trl", choices=("auto", "off"), default="auto", help="off: leave TRL out")
    parser.add_argument("--out", type=Path, help="default on a GPU: benchmarks/results/DATE-gpu-NAME.json")
    given = parser.parse_args(words)
    if given.sampler == "vllm" and importlib.util.find_spec("vllm") is None:
        parser.error(NO_VLLM)
    if given.steps < 1 or given.warm_up < 1:
        parser.error(
            "--steps and --warm-up are at least 1 (TRL's tokens are compared in the first warm-up step)"
        )
    shape = SHAPES[given.shape]
    if not all(
        0 < length <= shape.context - shape.prompt_tokens for length in given.lengths or shape.lengths
    ):
        parser.error(
            f"--lengths go from 1 to {shape.context - shape.prompt_tokens}: the models reach no further"
        )
    if given.device == "cpu" and given.out is not None and given.out.resolve().parent == RESULTS:
        parser.error("a dry run is no result: give --out another folder than benchmarks/results")
    return given


def main(words: Sequence[str] | None = None) -> int:
    given = arguments(words)
    os.environ.setdefault(
        "CUDA_VISIBLE_DEVICES", "0"
    )  # one GPU is measured; torch reads it when it first looks
    if given.device != "cpu" and not torch.cuda.is_available():
        print(NO_GPU)
        return 0
    device = torch.device("cpu" if given.device == "cpu" else "cuda")
    dry = device.type == "cpu"
    bench = Bench(given, device, out=given.out or (None if dry else _file(device)))
    if dry:
        name = bench.book.content["device"]["name"]
        print(f"DRY RUN on a CPU ({name}): the code path works; no number here is of a GPU")
    return bench.run()


def _file(device: torch.device) -> Path:
    return RESULTS / f"{datetime.date.today()}-gpu-{slug(card(device)['name'], 1)}.json"


class Bench:
    """All parts of one call, and the result as it grows."""

    def __init__(self, given: argparse.Namespace, device: torch.device, *, out: Path | None):
        self.given, self.device = given, device
        self.shape = SHAPES[given.shape]
        self.tokenizer = open_tokenizer(self.shape)
        self.teacher = open_teacher(self.shape, self.tokenizer, device)
        self.with_trl = given.trl == "auto" and importlib.util.find_spec("trl") is not None
        self.book = Book(out, header(given, device, self.with_trl))

    def run(self) -> int:
        for length in self.given.lengths or self.shape.lengths:
            alone = {preset: self._part(self._work(length, preset)) for preset in self.given.preset}
            self._compare(self._work(length, "full"), alone.get("full"))
        if not self.with_trl:
            print(f"TRL was not run: {self.book.content['trl']['why']}")
        self.book.finish([])
        return 0 if all(map(_fine, self.book.content["rows"])) else 1

    def _work(self, length: int, preset: str) -> Work:
        given, shape = self.given, self.shape
        return Work(
            shape,
            self.device,
            length=length,
            preset=preset,
            prompts=given.prompts or shape.prompts,
            responses=given.responses or shape.responses,
            steps=given.steps,
            warm_up=given.warm_up,
        )

    def _part(self, work: Work) -> dict[str, Any]:
        part = self._kept(
            f"{work.preset}/{work.length}",
            work,
            lambda: measure(work, self.tokenizer, self.teacher, sampler=self.given.sampler),
        )
        tell(part)
        return part

    def _compare(self, work: Work, alone: dict[str, Any] | None) -> None:
        """Reverse KL over the whole vocabulary is what both can do; `alone` is ours without TRL beside it."""
        if not self.with_trl:
            return
        from gpu_trl import compare

        alone = alone or self._part(work)
        row = self._kept(
            f"trl/{work.length}", work, lambda: compare(work, self.tokenizer, self.teacher, alone)
        )
        tell_trl(row)

    def _kept(self, name: str, work: Work, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """One record, in the result and on disk. One that does not fit in memory is a finding, not the end."""
        row: dict[str, Any] = {"name": name, "work": work.facts()}
        try:
            row |= make()
        except torch.OutOfMemoryError as error:
            row |= {"failed": str(error).partition("\n")[0][:200]}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.book.add(row)
        return row


def measure(work: Work, tokenizer: Any, teacher: LoadedModel, *, sampler: str = "local") -> dict[str, Any]:
    """One length under one preset: ours, alone on the device."""
    ours = Ours(work, open_student(work.shape, tokenizer, work.device), teacher, sampler=sampler)
    for step in range(work.warm_up + work.steps):
        ours.step(make_prompts(work.shape, count=work.prompts, step=step), step)
    steps = [seconds["step"] for seconds in ours.phases.seconds[work.warm_up :]]
    ours.sampler.close()
    peaks = ours.phases.highest(skip=work.warm_up)
    return {
        "what": f"ours alone, `{work.preset}`",
        "seconds": {"ours": spread(steps)},
        "phases": {"ours": ours.phases.spreads(skip=work.warm_up)},
        "share_in_phases": spread(ours.phases.shares(PHASES, skip=work.warm_up)),
        "tokens_per_second": {"ours": spread([work.new_tokens / s for s in steps])},
        "peak_mb": {"ours": max(peaks.values())},
        "peak_mb_of_phases": {"ours": peaks},
        "skipped_steps": ours.learner.skipped_steps,
    }


def header(given: argparse.Namespace, device: torch.device, with_trl: bool) -> dict[str, Any]:
    """What the numbers are of: device, versions, commit, command, models."""
    about, shape = environment(), SHAPES[given.shape]
    why = None if with_trl else "--trl off" if given.trl == "off" else NO_TRL
    return {
        "dry_run": device.type == "cpu",
        "device": card(device),
        "machine": facts(*(("trl", "accelerate") if with_trl else ())),
        "commit": about["commit"],
        "command": f"python benchmarks/{about['command']}",
        "config": {
            "shape": given.shape,
            "vocabulary": shape.vocabulary,
            "prompt_tokens": shape.prompt_tokens,
            "student": dict(shape.student),
            "teacher": dict(shape.teacher),
            "dtypes": {"student_masters": "float32", "student_compute": "bfloat16", "teacher": "bfloat16"},
            "sampler": given.sampler,
            "optimizer": "AdamW, fused",
        },
        "units": {"seconds": "s, wall clock, device idle at both ends", "peak_mb": _memory(device)},
        "trl": {"run": with_trl, "why": why},
    }


def card(device: torch.device) -> dict[str, Any]:
    if device.type == "cpu":
        return {"type": "cpu", "name": facts()["cpu"]}
    about = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "name": about.name,
        "memory_mb": round(about.total_memory / 2**20),
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # a container may hold the libraries without the tool
    return done.stdout.split("\n")[0].strip() or None


def _memory(device: torch.device) -> str:
    if device.type == "cuda":
        return "MB (2**20 bytes), torch.cuda.max_memory_allocated within the phase, highest of the steps"
    return "MB (2**20 bytes), resident in the whole process so far: not per phase on a CPU"


def _fine(row: dict[str, Any]) -> bool:
    return "failed" not in row and bool(row.get("checked", True))


def tell(row: dict[str, Any]) -> None:
    name = _named(row, row["work"]["preset"])
    if "failed" in row:
        print(f"{name}  FAILED: {row['failed']}", flush=True)
        return
    phases, peaks = row["phases"]["ours"], row["peak_mb_of_phases"]["ours"]
    times = "  ".join(f"{p} {phases[p]['median']:.4g}" for p in PHASES)
    memory = "  ".join(f"{p} {peaks[p]}" for p in PHASES)
    step, speed = row["seconds"]["ours"], row["tokens_per_second"]["ours"]["median"]
    print(
        f"{name}  s/step {step['median']:.4g} ({step['min']:.4g} to {step['max']:.4g}): {times}"
        f"  tokens/s {speed:.4g}  peak MB: {memory}",
        flush=True,
    )


def tell_trl(row: dict[str, Any]) -> None:
    name = _named(row, "TRL")
    if "failed" in row:
        print(f"{name}  FAILED: {row['failed']}", flush=True)
        return
    seconds, theirs, peaks = row["seconds"], row["phases"]["theirs"], row["peak_mb"]
    said = "not compared" if "checked" not in row else "agrees" if row["checked"] else "DIFFERS"
    print(
        f"{name}  TRL / ours {row['ratio']['median']:.3g}, {row['order']}: s/step {seconds['theirs']['median']:.4g} / "
        f"{seconds['ours']['median']:.4g} (TRL: generate {theirs['generate']['median']:.4g}  learn "
        f"{theirs['learn']['median']:.4g})  peak MB {peaks['theirs']} / {peaks['ours']}  loss on TRL's tokens: {said}",
        flush=True,
    )


def _named(row: dict[str, Any], side: str) -> str:
    work = row["work"]
    return f"{side:7} {work['length']:5} tokens × {work['prompts']} × {work['responses']}"


if __name__ == "__main__":
    sys.exit(main())
