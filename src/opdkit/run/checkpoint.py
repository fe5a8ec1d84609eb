"""Checkpoints: `step_N/` is whole or not there; after the first one there is never a moment without.

The order that makes it so: everything into a hidden folder, all of it fsynced, the manifest last, one rename.
Older ones go only after the new one is durable, and by a rename first, so that half of one is never seen.
safetensors and JSON only; nothing here can run code that somebody put into a file.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdkit.run.disk import disk_error, erase, files_under, read_regular, sync_directory, sync_tree, write_new
from opdkit.run.folder import MARKER
from opdkit.run.manifest import Damage, damage, manifest_files, write_manifest
from opdkit.run.rows import from_json
from opdkit.types import UserError

if TYPE_CHECKING:
    from torch import Tensor

STATE = "state.json"
_STEP = re.compile(r"step_(0|[1-9]\d{0,17})(\.next)?")
_LEFTOVER = re.compile(r"\.step_\d+\.tmp-\d+|\.trash-step_\d+(\.next)?-[0-9a-f]+")
_TENSORS = re.compile(r"[A-Za-z0-9_-]{1,80}")


@dataclass(frozen=True)
class Found:
    """The checkpoint to go on from; `skipped` names the newer ones that were not whole, and why."""

    path: Path
    step: int
    skipped: tuple[str, ...] = ()


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    write: Callable[[Path], None],
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Save `step_{step}` into `folder` (the `checkpoints` of a run), keep the newest `keep`, return its path.

    `write(place)` saves the model under `place / "model"`; `tensors[name]` becomes `name.safetensors`,
    `state` (plain JSON, finite numbers) `state.json`. Raises RunError when the disk refuses; what was
    complete before stays untouched then.
    """
    assert step >= 0 and keep >= 1 and all(_TENSORS.fullmatch(name) for name in tensors)
    _refuse_outside_run(folder)
    data = json.dumps(state, allow_nan=False, indent=1).encode()
    final, temporary = folder / f"step_{step}", folder / f".step_{step}.tmp-{os.getpid()}"
    try:
        _prepare(folder)
        _fill(temporary, step=step, write=write, tensors=tensors, state=data)
        _publish(temporary, final)
        _rotate(folder, step=step, keep=keep)
    except BaseException as error:
        needed = _needed(temporary, tensors)
        shutil.rmtree(temporary, ignore_errors=True)
        failed = disk_error(error, what=f"checkpoint {final}", run=folder.parent, needed=needed)
        if failed is None:
            raise
        raise failed from error
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Complete ones, oldest first: with a manifest that all files agree with in size. [] without a folder."""
    newest = {_step_of(path): path for path in _candidates(folder) if _complete(path)}
    return list(newest.values())


def latest_checkpoint(folder: Path, *, verify: bool = True) -> Found | None:
    """The newest checkpoint whose files match their hashes (without `verify`: sizes); None if there is none.

    Raises UserError where there are some and none is whole: to begin again in silence would lose the run.
    """
    skipped: list[str] = []
    for path in reversed(_candidates(folder)):
        reason = damage(path, step=_step_of(path), verify=verify)
        if reason is None:
            return Found(path, _step_of(path), tuple(skipped))
        skipped.append(f"{path.name}: {reason}")
    if skipped:
        run = shlex.quote(str(folder.parent))
        raise UserError(
            f"no checkpoint in {folder} is whole ({'; '.join(skipped)})",
            hint=f"restore one from a copy, or begin again: opd train {run}/config.toml run={run}-2",
        )
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(name → tensors on the CPU, state) of a checkpoint, all hashes checked, those of the model as well.

    Raises UserError when it is not whole. The model is under `path / "model"`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if not _STEP.fullmatch(path.name):
            raise Damage("its name is not step_N")
        names = manifest_files(path, step=_step_of(path), verify=True)
        state = from_json(read_regular(path / STATE))
        if not isinstance(state, dict):
            raise Damage(f"{STATE} is not an object")
        tops = [name[:-12] for name in names if "/" not in name and name.endswith(".safetensors")]
        tensors = {name: load_file(path / f"{name}.safetensors") for name in tops}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"checkpoint {path} cannot be used: {error}",
            hint=f"opd train --resume {shlex.quote(str(path.parent.parent))}  # takes the newest whole one",
        ) from error
    # Cloned: load_file maps the file into memory, and rotation deletes the file while training goes on.
    return {name: {k: v.clone() for k, v in held.items()} for name, held in tensors.items()}, state


# --- the steps of saving -----------------------------------------------------------------------------------


def _prepare(folder: Path) -> None:
    """The folder is there; what killed saves left is gone; a replacement that was cut short is finished."""
    if not folder.exists():
        folder.mkdir()
        sync_directory(folder.parent)
    for path in sorted(folder.iterdir()):
        if _LEFTOVER.fullmatch(path.name):
            erase(path)
        elif (match := _STEP.fullmatch(path.name)) and match[2]:
            _settle(path)


def _settle(following: Path) -> None:
    """`step_N.next` takes the place of `step_N`, if it is whole; `step_N` may be gone already."""
    if damage(following, step=_step_of(following), verify=True) is None:
        _replace(following, following.with_suffix(""))
    else:
        _discard(following)


def _fill(
    place: Path,
    *,
    step: int,
    write: Callable[[Path], None],
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: bytes,
) -> None:
    from safetensors.torch import save_file

    os.mkdir(place)
    write_new(place / STATE, data=state)
    write(place)
    for name, held in tensors.items():
        save_file({key: tensor.contiguous() for key, tensor in held.items()}, place / f"{name}.safetensors")
    _share(place)
    sync_tree(place)
    write_manifest(place, step=step)
    sync_directory(place)


def _share(place: Path) -> None:
    """safetensors makes files only their owner can read; the umask, seen in state.json, decides instead."""
    mode = (place / STATE).stat().st_mode & 0o777
    for path in files_under(place):
        assert not path.is_symlink(), f"{path} is a symlink: a checkpoint holds its files itself"
        os.chmod(path, mode)


def _publish(temporary: Path, final: Path) -> None:
    """One rename; where the step is there already, by way of `step_N.next`, which counts like `step_N`."""
    if not os.path.lexists(final):
        os.rename(temporary, final)
        sync_directory(final.parent)
        return
    following = final.with_name(f"{final.name}.next")
    os.rename(temporary, following)
    sync_directory(final.parent)
    _replace(following, final)


def _replace(following: Path, final: Path) -> None:
    if os.path.lexists(final):
        _discard(final)
    os.rename(following, final)
    sync_directory(final.parent)


def _rotate(folder: Path, *, step: int, keep: int) -> None:
    """Keep the newest `keep` up to `step`.

    Later ones belong to a future that the run has gone back on: it resumed before them because they were
    damaged, and counting them would let them push out the good ones.
    """
    complete = checkpoints(folder)
    past = [path for path in complete if _step_of(path) <= step]
    for path in [*past[:-keep], *complete[len(past) :]]:
        _discard(path)


def _discard(path: Path) -> None:
    """Out of sight first, durably, then gone."""
    trash = path.with_name(f".trash-{path.name}-{secrets.token_hex(4)}")
    os.rename(path, trash)
    sync_directory(path.parent)
    erase(trash)


# --- looking -----------------------------------------------------------------------------------------------


def _candidates(folder: Path) -> list[Path]:
    """Everything named like a checkpoint, oldest first; of one step, the one that replaces the other last."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(
            f"{folder} is not a folder of its own; a run stays inside its folder",
            hint="put the whole run where there is room: run=PATH",
        )
    found = [path for path in folder.iterdir() if _STEP.fullmatch(path.name)] if folder.exists() else []
    return sorted(found, key=lambda path: (_step_of(path), path.name))


def _step_of(path: Path) -> int:
    match = _STEP.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def _complete(path: Path) -> bool:
    return damage(path, step=_step_of(path), verify=False) is None


def _refuse_outside_run(folder: Path) -> None:
    _candidates(folder)
    if not (folder.parent / MARKER).is_file():
        raise UserError(
            f"{folder} is not inside a run folder, and old checkpoints are deleted inside one only",
            hint="make one with RunFolder.create and save into its `checkpoints`",
        )


def _needed(temporary: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Bytes of a checkpoint, from what a failed save has written, its tensors, and the newest one before."""
    own = sum(tensor.nbytes for held in tensors.values() for tensor in held.values())
    try:
        model = sum(p.lstat().st_size for p in files_under(temporary) if p.stem not in tensors)
    except OSError:
        model = 0
    try:
        before = sum(path.lstat().st_size for path in files_under(checkpoints(temporary.parent)[-1]))
    except (OSError, IndexError):
        before = 0
    return max(own + model, before)
