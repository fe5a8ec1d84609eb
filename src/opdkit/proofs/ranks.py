"""Two processes against one: the same step of the learner under gloo and FSDP2, on this machine only.

The processes meet in a file, not at a port, so that none can be taken; they talk over the loopback interface, and
everything has a time-out. Run by the parent as `python -m opdkit.proofs.ranks FOLDER`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file

from opdkit.config import ObjectiveConfig
from opdkit.proofs.oracle import NotCovered, unknown
from opdkit.proofs.records import Check, Worst
from opdkit.proofs.specs import presets
from opdkit.proofs.steps import Step, one_step
from opdkit.run.world import World, end_with_parent

SIZE = 2
WAIT_SECONDS = 300.0
"""Until both must have answered. Alone they take about ten; on a machine that others use, several times that."""
NAME = "two processes (gloo, FSDP2) against one: gradient and metrics of a step"


class TwoProcesses:
    """Started at once and asked for later: they load torch while the parent proves other things."""

    def __init__(self, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self.deadline = time.monotonic() + wait_seconds
        self.wait_seconds = wait_seconds
        self._folder = tempfile.TemporaryDirectory(prefix="opd-selftest-")
        self.folder = Path(self._folder.name)
        self.ranks = [self._start(rank) for rank in range(SIZE if has_gloo() else 0)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.ranks:
            if process.poll() is None:
                process.kill()
            process.wait()
        self._folder.cleanup()

    def _start(self, rank: int) -> subprocess.Popen[bytes]:
        environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(SIZE), "OMP_NUM_THREADS": "1"}
        environment |= {"GLOO_SOCKET_IFNAME": loopback()} if loopback() else {}
        with (self.folder / f"rank_{rank}.log").open("wb") as log:
            command = [sys.executable, "-m", "opdkit.proofs.ranks", str(self.folder)]
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def proof(self) -> Iterator[Check]:
        """Their step against one of this process, preset by preset."""
        if not self.ranks:
            yield Check(NAME, covered=False, reason="this torch was built without gloo")
            return
        if wrong := self._wait():
            yield Check(NAME, reason=wrong)
            return
        worst = Worst()
        told = json.loads((self.folder / "told.json").read_text())
        for name, spec in presets().items():
            worst.attempt(name, spec, partial(self._error, name, spec, told))
        yield worst.check(NAME)

    def _error(self, name: str, spec: ObjectiveConfig, told: dict[str, Any]) -> float:
        if name not in told:
            raise NotCovered("each rank selects among its own positions")
        theirs = Step(load_file(self.folder / f"{name}.safetensors"), told[name])
        return theirs.apart(one_step(spec))

    def _wait(self) -> str:
        """Empty when both have done their work; else what went wrong.

        What counts is the mark a process leaves when its last collective is over, not its exit code: about once in
        fifteen runs on a busy machine torch's threads ended it with an abort while it was being torn down.
        """
        while time.monotonic() < self.deadline:
            codes = [
                process.poll() for process in self.ranks
            ]  # before the marks: one that ended has left its own
            waited_for = [rank for rank in range(SIZE) if not done_mark(self.folder, rank).exists()]
            if not waited_for:
                return ""
            for rank in waited_for:
                if codes[rank] is not None:
                    return f"process {rank} ended with code {codes[rank]}: {self._last_line(rank)}"
            time.sleep(0.05)
        return f"no answer within {self.wait_seconds:g} s: run it again on a quieter machine"

    def _last_line(self, rank: int) -> str:
        lines = (self.folder / f"rank_{rank}.log").read_text(errors="replace").strip().splitlines()
        return lines[-1].strip()[:300] if lines else "it said nothing"


def done_mark(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}.done"


def has_gloo() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_gloo_available()


def loopback() -> str:
    """The name of the interface that leads nowhere else; empty where it has another name."""
    names = {name for _, name in socket.if_nameindex()}
    return next((name for name in ("lo", "lo0") if name in names), "")


def steps_of_this_rank(folder: Path) -> None:
    """What each of the processes does: a step per preset, the first writes what came of it."""
    end_with_parent()
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=SIZE,
        timeout=timedelta(seconds=WAIT_SECONDS),
    )
    world = World(torch.device("cpu"))  # the group is there already, so it takes no address
    told: dict[str, Any] = {}
    for name, spec in presets().items():
        if unknown(spec) or spec.signal.select != "none":
            continue  # each rank selects among its own positions; the parent says that it was left out
        step = one_step(spec, world=world, batch_tokens=24)
        told[name] = step.told
        if world.main:
            save_file(step.gradient, folder / f"{name}.safetensors")
    if world.main:
        (folder / "told.json").write_text(json.dumps(told))
    world.barrier()
    done_mark(folder, rank).touch()
    world.close()


if __name__ == "__main__":
    steps_of_this_rank(Path(sys.argv[1]))
