"""The parent's side of the grader's process: batches in, one reply per request out, a clock per item, kill
and go on."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from opdkit.types import RunError

MEMORY_BYTES = 4 << 30
START_SECONDS = 120.0  # loading reasoning-gym takes 2 s, on a busy network disk much longer
AHEAD = 64  # requests in flight; what a killed child had not answered is sent again
_KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_",
    "PYTHON",
    "LD_LIBRARY_PATH",
    "DYLD_",
    "TMPDIR",
    "VIRTUAL_ENV",
    "SYSTEMROOT",
)


class Worker:
    """One child process after another, all with the same setup. Starts at the first request; `close` ends
    it."""

    def __init__(self, setup: Mapping[str, Any]):
        self.setup = {**setup, "memory_bytes": MEMORY_BYTES}
        self._child: _Child | None = None

    def start(self) -> dict[str, Any]:
        """The child's greeting, `{"ready": true}` or why it refuses. Raises RunError when it does not
        come."""
        self.close()
        self._child = _Child(self.setup)
        return self._child.greeting

    def ask(self, requests: Sequence[Mapping[str, Any]], *, timeout_seconds: float) -> list[dict[str, Any]]:
        """One reply per request, in order. An item over its time gets `failed: timeout`, one that ended the
        process `failed: error: …`; a new child goes on with the next. Not for two threads at once."""
        replies: list[dict[str, Any]] = []
        while len(replies) < len(requests):
            if self._child is None or not self._child.alive:
                self._restart()
            assert self._child is not None
            try:
                failed = self._child.converse(requests, replies, timeout_seconds=timeout_seconds)
            except BaseException:  # what is still on its way would be taken for the next batch
                self.close()
                raise
            if failed:
                self.close()
                replies.append({"failed": failed})
        return replies

    def close(self) -> None:
        """Ends the child; a later request would start another."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _restart(self) -> None:
        greeting = self.start()
        if "ready" not in greeting:
            raise RunError(
                f"the grader refused to start again: {greeting}", hint="run the command again with --resume"
            )


class _Child:
    """One process in its own session. The finalizer ends it also when nobody calls `end`."""

    def __init__(self, setup: Mapping[str, Any]):
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-m", "opdkit.tasks.child"],  # -P: no module from the working folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.end = weakref.finalize(self, _end, self.process, os.getpid())
        self.inbox, self.outbox = self.process.stdout.fileno(), self.process.stdin.fileno()
        os.set_blocking(self.outbox, False)  # a child that does not read must not stop the clock
        self.partial, self.unsent = b"", b""
        self.greeting = self._greet(setup)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def converse(
        self, requests: Sequence[Mapping[str, Any]], replies: list[dict[str, Any]], *, timeout_seconds: float
    ) -> str | None:
        """Appends replies to `replies` until there is one per request (None) or the next item failed
        (why)."""
        sent, self.unsent = len(replies), b""
        deadline = time.monotonic() + timeout_seconds
        while len(replies) < len(requests):
            while sent < len(requests) and sent < len(replies) + AHEAD and len(self.unsent) < 1 << 16:
                self.unsent += _line({**requests[sent], "id": sent, "seconds": timeout_seconds})
                sent += 1
            received = self._exchange(deadline)
            if isinstance(received, str):
                return received
            for reply in received:
                if reply.pop("id", None) != len(replies):
                    return "error: the grader's reply is for another item"
                replies.append(reply)
                deadline = time.monotonic() + timeout_seconds
        return None

    def _greet(self, setup: Mapping[str, Any]) -> dict[str, Any]:
        self.unsent = _line({**setup, "parent": os.getpid()})
        deadline = time.monotonic() + START_SECONDS
        while True:
            received = self._exchange(deadline)
            if isinstance(received, str):
                self.end()
                raise RunError(
                    f"the grader's process did not start: {received}",
                    hint=f"see what it says: {sys.executable} -m opdkit.tasks.child < /dev/null",
                )
            if received:
                return received[0]

    def _exchange(self, deadline: float) -> list[dict[str, Any]] | str:
        """Writes and reads what is possible now, waiting until `deadline`: replies, or why there will be
        none."""
        poller = select.poll()  # select() cannot count beyond 1024 open files
        poller.register(self.inbox, select.POLLIN)
        if self.unsent:
            poller.register(self.outbox, select.POLLOUT)
        ready = {fd for fd, _ in poller.poll(max(0.0, deadline - time.monotonic()) * 1000)}
        if self.outbox in ready:
            with contextlib.suppress(BrokenPipeError):  # the end shows on the reading side, with the reason
                self.unsent = self.unsent[os.write(self.outbox, self.unsent) :]
        if self.inbox not in ready:
            return [] if time.monotonic() < deadline else "timeout"
        return self._receive()

    def _receive(self) -> list[dict[str, Any]] | str:
        data = os.read(self.inbox, 1 << 16)
        if not data:
            return _ended(self.process)
        *lines, self.partial = (self.partial + data).split(b"\n")
        return [json.loads(line) for line in lines]


def _line(message: Mapping[str, Any]) -> bytes:
    """ASCII: lone surrogates and control characters are escaped."""
    return json.dumps(message, default=str).encode() + b"\n"


def _environment() -> dict[str, str]:
    """No secrets; one thread, since pools of threads would eat the memory limit; set order the same in every
    run."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(_KEPT)}
    return kept | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _ended(process: subprocess.Popen[bytes]) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
    code = process.returncode
    if code == -signal.SIGXCPU:
        return "timeout"
    return f"error: the grader's process ended ({signal.Signals(-code).name if code and code < 0 else code})"


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """The whole session is killed, then reaped; nothing in it has anything to save."""
    if os.getpid() != owner:  # a fork of the owner ends, not the owner
        return
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()
