"""Trackers that mirror a run while it goes on: TensorBoard, Weights & Biases, trackio. Optional: `opdkit[track]`.

The run folder is the record; a tracker shows a copy of it: the rows of metrics.jsonl under the same names, those of
eval.jsonl under `eval/NAME`. Only finite numbers travel. A mirror is made anew from the folder whenever a run is taken
up: what a resume rewound is in no tracker twice, and a tracker that failed is whole again after the next resume.

tensorboard   RUN/tensorboard         tensorboard --logdir runs
wandb         RUN/wandb, offline      wandb sync RUN/wandb/offline-run-*       WANDB_MODE=online sends it at once
trackio       where trackio keeps it  trackio show --project opdkit            TRACKIO_DIR, else trackio's own place

A run sent to W&B at once cannot be taken back there: after a resume W&B itself leaves out steps that it has.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from opdkit.run.disk import erase
from opdkit.run.folder import RunFolder
from opdkit.run.rows import Row, from_json
from opdkit.types import Finding, UserError

PROJECT = "opdkit"
IDENTITY = "tracker.json"  # the run's id in every tracker: a resumed run is the same one


class Mirror(Protocol):
    """One tracker of one run. `anew`: it is empty, so that all rows so far belong into it."""

    anew: bool

    def log(self, step: int, numbers: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


def require_trackers(names: Sequence[str]) -> None:
    """UserError where a package is missing. Imports none of them."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"track = {missing[0]!r}, but {missing[0]} is not installed", hint="pip install 'opdkit[track]'"
        )


class Trackers:
    """The mirrors of one run. One that fails is left behind, and `failures` tells it once: training goes on."""

    def __init__(self, mirrors: Mapping[str, Mirror] | None = None, *, run: Path = Path("RUN")):
        self._mirrors = dict(mirrors or {})
        self._run = run
        self._failures: list[Finding] = []
        self._rows = 0

    @classmethod
    def open(cls, names: Sequence[str], *, folder: RunFolder, config: Mapping[str, Any]) -> Self:
        """With all the folder holds so far. Raises UserError for a tracker that does not start."""
        trackers = cls(run=folder.path)
        rows = sorted([*_metrics(folder), *_evaluations(folder)], key=lambda row: row[0])
        for name in dict.fromkeys(names):
            try:
                mirror = trackers._mirrors[name] = OPENERS[name](folder.path, _identity(folder), config)
                for step, numbers in rows if mirror.anew else ():
                    mirror.log(step, numbers)
            except Exception as error:  # whatever a foreign package raises
                trackers.close()
                hint = (
                    "WANDB_MODE=offline opd train …, or without track"
                    if name == "wandb"
                    else "leave it out: track=[]"
                )
                raise UserError(f"{name} does not start: {_told(error)}", hint=hint) from error
        return trackers

    def metrics(self, row: Row) -> None:
        self._log(row["step"], numbers_of(row))

    def evaluation(self, row: Row) -> None:
        self._log(row["step"], numbers_of(row, prefix="eval/"))

    def failures(self) -> list[Finding]:
        """What went wrong since the last time somebody asked."""
        found, self._failures = self._failures, []
        return found

    def close(self) -> None:
        for name, mirror in list(self._mirrors.items()):
            self._guarded(name, mirror.close)
        self._mirrors.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, mirror in list(self._mirrors.items()):
            self._guarded(name, lambda mirror=mirror: mirror.log(step, numbers), step=step)  # type: ignore[misc]
        self._rows += 1

    def _guarded(self, name: str, action: Callable[[], None], *, step: int | None = None) -> None:
        try:
            action()
        except Exception as error:  # whatever a foreign package raises: no reason to lose a training
            self._mirrors.pop(name, None)
            self._failures.append(
                Finding(
                    name="tracker_failed",
                    severity="warning",
                    message=f"{name} took no more rows, and the run goes on without it: {_told(error)}",
                    numbers={"rows_taken": float(self._rows)},
                    remedy=f"opd train --resume {shlex.quote(str(self._run))}  # mirrors everything again",
                    step=step,
                )
            )


def erase_mirrors(run: Path) -> None:
    """What trackers put into the folder of a run that never began."""
    for name in (IDENTITY, "tensorboard", "wandb"):
        if os.path.lexists(run / name):
            erase(run / name)


def numbers_of(row: Mapping[str, Any], *, prefix: str = "") -> dict[str, float]:
    """Flat name → finite number, the step left out.

    >>> numbers_of({"step": 3, "loss": 0.5, "pass_at_k": {"1": 0.25}, "low": None, "graded": True}, prefix="eval/")
    {'eval/loss': 0.5, 'eval/pass_at_k/1': 0.25}
    """
    return {prefix + name: value for name, value in _leaves(row) if name != "step"}


def _leaves(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield prefix + name, value


def _metrics(folder: RunFolder) -> list[tuple[int, dict[str, float]]]:
    return [(row["step"], numbers_of(row)) for row in folder.read_metrics()]


def _evaluations(folder: RunFolder) -> list[tuple[int, dict[str, float]]]:
    return [(row["step"], numbers_of(row, prefix="eval/")) for row in folder.read_eval()]


def _identity(folder: RunFolder) -> str:
    """Eight hexadecimal digits, drawn once per run."""
    if (folder.path / IDENTITY).is_file():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # somebody else's file: draw anew
            return str(from_json(folder.read_text(IDENTITY))["id"])[:32]
    drawn = secrets.token_hex(4)
    folder.write_text(IDENTITY, f'{{"id": "{drawn}"}}\n')
    return drawn


def _told(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


# --- one each ---------------------------------------------------------------------------------------------------


class _TensorBoard:
    """Event files without TensorFlow or torch. They hold float32: 7 digits of what metrics.jsonl says."""

    def __init__(self, run: Path, identity: str, config: Mapping[str, Any]):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        place = _place(run / "tensorboard", "events.out.tfevents.*")
        self.anew, self._event, self._summary = True, Event, Summary
        self._writer = EventFileWriter(str(place), flush_secs=5)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._writer.add_event(
            self._event(wall_time=time.time(), step=step, summary=self._summary(value=values))
        )

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """Offline unless WANDB_MODE says otherwise. Numbers only: no code, no console, no machine statistics."""

    def __init__(self, run: Path, identity: str, config: Mapping[str, Any]):
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        self.anew = mode not in ("online", "shared")
        if self.anew:
            _place(run / "wandb", "offline-run-*")
        quiet = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_machine_info=True,
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=identity,
            dir=str(run),
            config=dict(config),
            mode=mode,  # type: ignore[arg-type]
            resume=None if self.anew else "allow",
            reinit="create_new",
            settings=quiet,
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """Its own database on this machine (TRACKIO_DIR): one dashboard for all runs. Named by folder and id."""

    def __init__(self, run: Path, identity: str, config: Mapping[str, Any]):
        with contextlib.redirect_stdout(io.StringIO()):  # it talks on stdout, which is for data
            import trackio
            from trackio.sqlite_storage import SQLiteStorage

            project, name = os.environ.get("TRACKIO_PROJECT", PROJECT), f"{run.name}-{identity}"
            SQLiteStorage.delete_run(project, name)
            self.anew = True
            self._run = trackio.init(
                project=project,
                name=name,
                config=dict(config),
                resume="never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            if trackio.context_vars.current_run.get() is self._run:
                trackio.finish()  # else its exit handler finishes the run again, and says so on stdout
            else:
                self._run.finish()


OPENERS: dict[str, Callable[[Path, str, Mapping[str, Any]], Mirror]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "trackio": _Trackio,
}


def _place(place: Path, old: str) -> Path:
    """The tracker's folder inside the run's, without what an earlier start mirrored (names like `old`)."""
    if place.is_symlink():
        raise UserError(
            f"{place} is a symlink; a run stays inside its folder", hint=f"rm {shlex.quote(str(place))}"
        )
    for path in sorted(place.glob(old)):
        erase(path)
    return place
