"""The grader's process: `python -m opdkit.tasks.child`, JSON lines on stdin and stdout, one reply per request in order.

The first line is the setup; then `{"op": "grade", …}` and, for a generator, `{"op": "make", …}`. It ends when stdin ends.
What keeps it harmless: limits on memory, processor time and written bytes, set before anything is loaded; an audit
hook that refuses processes, sockets and writes; the parent's clock, which kills. That bounds an accident and an answer
that is code (some of reasoning-gym's scorers evaluate it); it is no sandbox against an attacker with time.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO

Reply = dict[str, Any]
Answer = Callable[[dict[str, Any]], Reply]


def main() -> None:
    """Reads requests until stdin ends."""
    replies = _take_stdout()
    setup = json.loads(sys.stdin.readline() or "{}")
    if not setup:
        return
    _die_with_parent(setup["parent"])
    _limit(setup["memory_bytes"])
    answer, greeting = _open(setup)
    _say(replies, greeting)
    if answer is None:
        return
    sys.addaudithook(_refuse)
    for line in sys.stdin:
        _limit_processor(setup["timeout_seconds"])
        _say(replies, _answered(answer, json.loads(line)))


def _answered(answer: Answer, request: dict[str, Any]) -> Reply:
    try:
        return {"id": request["id"], **answer(request)}
    except BaseException as error:   # also SystemExit: an evaluated answer may be `exit()`
        return {"id": request["id"], "failed": f"error: {type(error).__name__}: {str(error)[:200]}"}


def _open(setup: dict[str, Any]) -> tuple[Answer | None, Reply]:
    """The function that answers requests, or None and why not, as data for the parent's message."""
    try:
        if setup["type"] == "gym":
            from opdkit.tasks.gym_child import open_gym

            return open_gym(setup), {"ready": True}
        from opdkit.tasks.grade import grader

        judge = grader(setup["type"], pattern=setup["pattern"])
    except ModuleNotFoundError as error:
        return None, {"refused": "missing", "module": error.name}
    except Exception as error:
        return None, {"refused": getattr(error, "refused", "error"), "message": f"{type(error).__name__}: {error}"}
    return lambda request: score(judge(request["text"], request["answer"], request["cut"])), {"ready": True}


def score(value: float) -> Reply:
    """A reply with a score that a grade may hold."""
    number = float(value)
    if not (math.isfinite(number) and 0.0 <= number <= 1.0):
        raise ValueError(f"score {number} is not in [0, 1]")
    return {"score": number}


def _take_stdout() -> TextIO:
    """The reply channel, out of the way of libraries that print."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _say(replies: TextIO, reply: Reply) -> None:
    try:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    except BrokenPipeError:   # the parent is gone
        os._exit(1)


# --- limits -----------------------------------------------------------------------------------------------------------


def _die_with_parent(parent: int) -> None:
    """Linux kills this process when the parent dies, even inside a pattern that never ends; elsewhere stdin's end and
    the processor limit do."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)   # 1 = PR_SET_PDEATHSIG
    if os.getppid() != parent:   # it died before the call
        os._exit(1)


def _limit(memory_bytes: int) -> None:
    import resource

    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),   # pipes are not files
    ):
        with contextlib.suppress(OSError, ValueError):   # a system may not have the limit, or a lower one already
            resource.setrlimit(kind, (limit, limit))


def _limit_processor(timeout_seconds: float) -> None:
    """For a parent that is stopped and cannot kill: the soft limit moves on with every request."""
    import resource

    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + 2 * timeout_seconds) + 2, hard))


_REFUSED = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.kill", "os.killpg")
_REFUSED += ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
_REFUSED += ("os.chown", "os.putenv", "os.unsetenv", "ctypes.", "subprocess.", "socket.", "shutil.", "pty.")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    """Audit hook: graders compute; nothing they are given may start, send, remove or write anything."""
    writes = event == "open" and isinstance(args[2], int) and args[2] & _WRITES
    if writes or event.startswith(_REFUSED):
        raise PermissionError(f"a grader may not do {event}")


if __name__ == "__main__":
    random.seed(0)
    main()
