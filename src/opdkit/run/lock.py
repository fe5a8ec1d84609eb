"""One writer per run folder: an advisory lock that ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
import shlex
import socket
import weakref
from pathlib import Path
from typing import Any

from opdkit.types import UserError

LOCK = ".opd-lock"
_held: list[weakref.finalize[Any, Any]] = []


def hold_lock(path: Path, *, owner: object) -> weakref.finalize[Any, Any]:
    """Lock the folder `path` until the returned handle is called or `owner` is gone.

    Raises UserError, naming the holder, when somebody else has the lock.
    """
    fd = _locked(path)
    release = weakref.finalize(owner, _unlock, fd)
    _held[:] = [*(held for held in _held if held.alive), release]
    return release


def _locked(path: Path) -> int:
    # The file is never deleted: two processes could then hold locks on two files of the same name.
    fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    except BlockingIOError:
        holder = os.pread(fd, 200, 0).decode(errors="replace") or "another process"
        os.close(fd)
        raise UserError(
            f"{path} is being written to by {holder}",
            hint=f"wait until it has stopped, then: opd train --resume {shlex.quote(str(path))}",
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _unlock(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_UN)  # a child that was just forked may still have it open
    os.close(fd)


def _close_inherited() -> None:
    """A forked child (a grader, a data worker) must not keep the lock alive after its parent was killed.

    Closed, not unlocked: unlocking here would take the lock from the parent.
    """
    for release in _held:
        if (held := release.detach()) is not None:
            os.close(held[2][0])


os.register_at_fork(after_in_child=_close_inherited)
