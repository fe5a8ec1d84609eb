"""Writing so that a kill, a power cut or a full disk leaves the old file or the new one, never half of one.

Durable means: the file is fsynced before its name appears, and the folder is fsynced after.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from opdkit.types import RunError, UserError

TEMPORARY = re.compile(r"\..+\.tmp-\d+")
_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")
_REMEDIES = {
    errno.ENOSPC: "free space under {folder}",
    errno.EDQUOT: "free space under {folder} or raise the quota",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f unlimited)",
    errno.EACCES: "make {folder} writable",
    errno.EPERM: "make {folder} writable",
    errno.EROFS: "make {folder} writable",
}


def write_new(path: Path, *, data: bytes) -> None:
    """A file whose content is durable; its name is, once the folder is synced. Symlinks are not followed."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
    try:
        _write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, *, data: bytes) -> None:
    """Replace `path` as a whole: temporary file beside it, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        write_new(temporary, data=data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def append_line(path: Path, *, line: bytes) -> None:
    """One whole line at the end, durable on return; a torn line that a kill left there is cut off first."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    try:
        whole = _cut_torn_line(fd)
        try:
            _write_all(fd, line + b"\n")
        except OSError:
            os.ftruncate(fd, whole)  # half a line must not be glued to the next one
            raise
        os.fsync(fd)
    finally:
        os.close(fd)
    if whole == 0:
        sync_directory(path.parent)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _cut_torn_line(fd: int) -> int:
    """Bytes of whole lines, after cutting off what follows the last newline."""
    size = os.fstat(fd).st_size
    if size == 0 or os.pread(fd, 1, size - 1) == b"\n":
        return size
    whole = _after_last_newline(fd, size)
    os.ftruncate(fd, whole)
    return whole


def _after_last_newline(fd: int, size: int) -> int:
    """Searched from the end in blocks: the file may be long, the torn line is not."""
    end = size
    while end > 0:
        start = max(0, end - 65536)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def read_regular(path: Path) -> bytes:
    """Content of a regular file. Raises OSError for a symlink, a folder or a device."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe must not make us wait
    with os.fdopen(fd, "rb") as file:
        return file.read()


def sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems where folders cannot be synced
            raise
    finally:
        os.close(fd)


def files_under(folder: Path) -> Iterator[Path]:
    """Every file below, in the order of their names. Raises OSError for what cannot be listed."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.is_dir(follow_symlinks=False):
            yield from files_under(Path(entry.path))
        else:
            yield Path(entry.path)


def sync_tree(folder: Path) -> None:
    """Every file and folder below and `folder` itself, contents before the names that lead to them."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.is_dir(follow_symlinks=False):
            sync_tree(Path(entry.path))
        else:
            sync_file(Path(entry.path))
    sync_directory(folder)


def erase(path: Path) -> None:
    """A file, a symlink (not what it points to) or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def errno_of(error: BaseException) -> int | None:
    """The operating system's error number; safetensors and tokenizers (Rust) put it into their text."""
    if isinstance(error, UserError | RunError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _RUST_ERRNO.search(str(error))
    return int(found[1]) if found else None


def disk_error(error: BaseException, *, what: str, run: Path, needed: int) -> RunError | None:
    """What to tell when writing `what` (about `needed` bytes) failed; None if the disk is not the reason."""
    number = errno_of(error)
    if number is None:
        return None
    remedy = _REMEDIES.get(number, "check the disk under {folder}").format(folder=shlex.quote(str(run)))
    free = _free_bytes(run)
    return RunError(
        f"cannot write {what}: {os.strerror(number)}; it needs about {needed:,} bytes, {free} bytes are free",
        hint=f"{remedy}, then: opd train --resume {shlex.quote(str(run))}",
    )


def _free_bytes(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        return "an unknown number of"
