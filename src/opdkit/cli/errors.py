"""Whatever ends a command: one message, one hint that can be typed, an exit code. Never a traceback."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from opdkit.types import RunError, UserError


class Verdict(NamedTuple):
    message: str
    hint: str
    code: int


class Interrupted(Exception):
    """Ctrl-C that nobody granted; a KeyboardInterrupt would be swallowed by click."""


@contextmanager
def going_on(run: Path | None = None) -> Iterator[None]:
    """Notes on whatever is raised how this run goes on, if there is a run by then."""
    try:
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted from None
    except Exception as error:
        if run is not None and (run / ".opd-run").is_file():
            error.add_note(f"opd train --resume {shlex.quote(str(run))}")
        raise


def leave(error: BaseException) -> NoReturn:
    """Say it on stderr (of several ranks the first says it, unless each fails on its own) and exit."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
        sys.exit(2)
    message, hint, code = verdict(error)
    if code == 1 and os.environ.get("OPD_TRACEBACK"):
        raise error
    if int(os.environ.get("RANK", "0")) == 0 or code == 1:
        print(f"error: {message}\nhint:  {hint}", file=sys.stderr)
    sys.exit(code)


def verdict(error: BaseException) -> Verdict:
    notes: list[str] = getattr(error, "__notes__", [])
    again = notes[-1] if notes else "run the command again, nothing was begun"
    if isinstance(error, UserError):
        return Verdict(str(error), error.hint, 2)
    if isinstance(error, RunError):
        return Verdict(str(error), error.hint, 1)
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return Verdict("interrupted", again, 130)
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return _usage(error)
    if _out_of_memory(error):
        smaller = "with half of learner.batch_tokens, sampling.batch_rows and teacher.batch_tokens"
        return Verdict(f"out of memory: {_first_line(error)}", f"{again}  # {smaller}", 1)
    if isinstance(error, OSError):
        return _system(error, again)
    return Verdict(
        f"{type(error).__name__}: {_first_line(error)}",
        "a defect of opdkit; OPD_TRACEBACK=1 before the command shows where",
        1,
    )


def _usage(error: Any) -> Verdict:
    """What click says of a wrong command line, in our form."""
    context = getattr(error, "ctx", None)
    command = " ".join(["opd", *sys.argv[1:2]]) if context is None else context.command_path
    message = error.format_message().partition(" (Possible option")[0].rstrip(".")
    said, _, near = message.partition(". Did you mean ")
    hint = f"{command} -h"
    if near:
        hint = f"did you mean {near.strip('?')}?"
    elif type(error).__name__ == "NoSuchOption":
        hint = f"{command} -h; a config value has no dashes: {error.option_name.lstrip('-')}=VALUE"
    return Verdict(said[:1].lower() + said[1:], hint, error.exit_code)


def _system(error: OSError, again: str) -> Verdict:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Verdict(
            f"no space left to write{where}: {error.strerror}", f"free some space, then: {again}", 1
        )
    return Verdict(f"{error.strerror or _first_line(error)}{where}", f"check that path, then: {again}", 1)


def _out_of_memory(error: BaseException) -> bool:
    """On a GPU a class of torch's (which is not imported here), on a CPU a RuntimeError with this text."""
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return named or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__
