"""What makes a checkpoint complete: manifest.json, written last, with size and sha256 of every file.

It finds accidents (torn writes, bit rot, mixed-up copies), in itself too. It is no signature: who can write
the folder can write the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Any

from opdkit.run.disk import files_under, read_regular, write_new
from opdkit.run.rows import from_json

MANIFEST = "manifest.json"
FORMAT = 1


class Damage(ValueError):
    """A checkpoint is not what its manifest says; the text is the reason."""


def write_manifest(folder: Path, *, step: int) -> None:
    """Hashes are of what the file system gives back, not of what was meant to be written."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.lstat().st_size, "sha256": _sha256(path)}
        for path in files_under(folder)
    }
    body = {"format": FORMAT, "step": step, "files": files}
    text = json.dumps({**body, "sha256": _digest(body)}, indent=1)
    write_new(folder / MANIFEST, data=text.encode())


def manifest_files(folder: Path, *, step: int, verify: bool) -> dict[str, int]:
    """Relative name → bytes of every file. Raises Damage if one is missing, changed, a symlink, outside.

    `verify=False` leaves out the hashes: sizes and kinds of files only, without reading them.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise Damage("it is not a folder")
    try:
        files = _entries(folder, step=step)
        for name, (size, sha256) in files.items():
            _check(folder, name, size=size, sha256=sha256 if verify else None)
    except FileNotFoundError as error:
        raise Damage(f"{Path(str(error.filename)).name} is missing") from error
    except OSError as error:
        raise Damage(f"{Path(str(error.filename)).name}: {os.strerror(error.errno or 0)}") from error
    return {name: size for name, (size, _) in files.items()}


def damage(folder: Path, *, step: int, verify: bool) -> str | None:
    """Why a checkpoint cannot be used, or None when it can."""
    try:
        manifest_files(folder, step=step, verify=verify)
    except Damage as reason:
        return str(reason)
    return None


def _entries(folder: Path, *, step: int) -> dict[str, tuple[int, str]]:
    try:
        body = from_json(read_regular(folder / MANIFEST))
        found = body.pop("sha256")
        if found != _digest(body) or body["step"] != step:
            raise Damage(f"{MANIFEST} was changed or belongs to another step")
        if body["format"] != FORMAT:
            raise Damage(f"{MANIFEST} has format {body['format']}, this opdkit reads {FORMAT}")
        return {str(name): (int(e["bytes"]), str(e["sha256"])) for name, e in body["files"].items()}
    except Damage:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damage(f"{MANIFEST} is not whole") from error


def _check(folder: Path, name: str, *, size: int, sha256: str | None) -> None:
    pure = PurePosixPath(name)
    if "\0" in name or pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise Damage(f"{name!r} leads outside the checkpoint")
    path = folder / pure
    inner = [folder.joinpath(*pure.parts[:depth]) for depth in range(1, len(pure.parts))]
    if any(place.is_symlink() for place in inner) or not stat.S_ISREG(path.lstat().st_mode):
        raise Damage(f"{name} is not a regular file inside the checkpoint")
    if path.lstat().st_size != size:
        raise Damage(f"{name} has {path.lstat().st_size:,} bytes instead of {size:,}")
    if sha256 is not None and _sha256(path) != sha256:
        raise Damage(f"{name} does not match its sha256")


def _sha256(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
