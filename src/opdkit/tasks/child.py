"""The grader's process: `python -m opdkit.tasks.child`, JSON lines on stdin and stdout, one reply per request
in order.

The first line is the setup; then `{"op": "grade", …}` and, for a generator, `{"op": "make", …}`. It ends when
stdin ends. What keeps it harmless: limits on memory, processor time and written bytes, set before anything is
loaded; an audit hook that refuses processes, sockets and writes; the parent's clock, which kills. That bounds
an accident and an answer that is code (some of reasoning-gym's scorers evaluate it); it is no sandbox against
an attacker with time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from typing import Any, TextIO

from opdkit.tasks.grade import Answer, Reply, grader, score


def main() -> None:
    """Reads requests until stdin ends."""
    requests, replies = _take_channels()
    setup = json.loads(requests.readline() or "{}")
    if not setup:
        return
    _die_with_parent(setup["parent"])
    _limit(setup["memory_bytes"])
    answer, greeting = _open(setup)
    _say(replies, greeting)
    if answer is None:
        return
    sys.addaudithook(_refuse)
    for line in requests:
        request = json.loads(line)
        _limit_processor(request["seconds"])
        _say(replies, _answered(answer, request))


def _answered(answer: Answer, request: dict[str, Any]) -> Reply:
    try:
        return {"id": request["id"], **answer(request)}
    except BaseException as error:  # also SystemExit: an evaluated answer may be `exit()`
        return {"id": request["id"], "failed": f"error: {type(error).__name__}: {str(error)[:200]}"}


def _open(setup: dict[str, Any]) -> tuple[Answer | None, Reply]:
    """The function that answers requests, or None and why not, as data for the parent's message."""
    try:
        if setup["type"] == "gym":
            from opdkit.tasks.gym_child import open_gym

            return open_gym(setup), {"ready": True}
        judge = grader(setup["type"], pattern=setup["pattern"])
    except ModuleNotFoundError as error:
        return None, {"refused": "missing", "module": error.name}
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        return None, {"refused": getattr(error, "refused", "error"), "message": message}
    return lambda request: score(judge(request["text"], request["answer"], request["cut"])), {"ready": True}


def _take_channels() -> tuple[TextIO, TextIO]:
    """Both pipes under other numbers: libraries print, and an evaluated `exit()` closes sys.stdin."""
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")  # JSON in ASCII: any encoding will do
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    return requests, replies


def _say(replies: TextIO, reply: Reply) -> None:
    try:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    except BrokenPipeError:  # the parent is gone
        os._exit(1)


# --- limits -------------------------------------------------------------------------------------------------


def _die_with_parent(parent: int) -> None:
    """Linux kills this process when the parent dies, even inside a pattern that never ends; elsewhere stdin's
    end and the processor limit do."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # 1 = PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def _limit(memory_bytes: int) -> None:
    import resource

    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),  # pipes are not files
    ):
        with contextlib.suppress(OSError, ValueError):  # no such limit here, or a lower one already
            resource.setrlimit(kind, (limit, limit))


def _limit_processor(seconds: float) -> None:
    """For a parent that is stopped and cannot kill: the soft limit moves on with every request."""
    import resource

    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + 2 * seconds) + 2, hard))


# Beginnings of audit event names.
_REFUSED = re.compile(
    r"os\.(system|exec|posix_spawn|spawn|fork|kill|putenv|unsetenv)"
    r"|os\.(remove|rename|rmdir|mkdir|link|symlink|truncate|chmod|chown)"
    r"|(ctypes|subprocess|socket|shutil|pty)\."
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    """Audit hook: graders compute; nothing they are given may start, send, remove or write anything."""
    writes = event == "open" and isinstance(args[2], int) and args[2] & _WRITES
    if writes or _REFUSED.match(event):
        raise PermissionError(f"a grader may not do {event}")


if __name__ == "__main__":
    main()
