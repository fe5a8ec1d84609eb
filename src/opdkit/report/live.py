"""`opd watch RUN`: a run on the terminal while it goes on, or once. Reads the run folder and nothing else."""

from __future__ import annotations

import json
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdkit.report import stories
from opdkit.report.change import change
from opdkit.report.follow import CURVES, Following, Look, phases
from opdkit.report.read import CHECK, RUN_FILES, nearest_run
from opdkit.report.screen import lines, state
from opdkit.report.spark import Ink, ink
from opdkit.report.text import visible
from opdkit.types import UserError

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live

NAP = 0.25  # seconds after which a change of the window's size is seen
SCHEMA = "opdkit.watch/1"


def watch(
    path: Path, *, every: float = 2.0, once: bool = False, wait: bool = False, as_json: bool = False
) -> int:
    """Show `path` every so many seconds until it is over or Ctrl-C; the exit code.

    Without a terminal that can be redrawn, or with `once`, one look is printed and that is all.
    """
    if not wait:
        _refuse_no_run(path)
    following = Following(path, visible(str(path)))
    if as_json:
        print(json.dumps(document(following.look()), allow_nan=False))
        return 0
    console = _console()
    if once or not console.is_terminal or console.is_dumb_terminal:
        _print(following.look(), console)
        return 0
    return _live(following, console, every)


def document(look: Look) -> dict[str, Any]:
    """The look as data: `opd watch --json`. Times in seconds, null where nothing tells."""
    run, pulse = look.run, look.pulse
    changes = {name: it for name in CURVES if (it := change(run, name))}
    return {
        "schema": SCHEMA,
        "run": run.name,
        "story": run.story,
        "student": stories.student(run).strip("“”"),
        "teacher": stories.teacher(run).strip("“”") if run.taught else None,
        "doing": pulse.doing,
        "state": state(look),
        "step": pulse.step,
        "steps": pulse.steps,
        "saved_step": pulse.saved,
        "seconds_since_step": pulse.age,
        "seconds_per_step": pulse.each,
        "seconds_left": pulse.left,
        "seconds": phases(run.metrics),
        "curves": {n: {"first": it.first, "last": it.last, "count": it.count} for n, it in changes.items()},
        "findings": _finite(list(run.findings)),
        "evaluations": _finite(list(run.evals)),
        "verdict": _finite(run.check.get("verdict")),
        "rollout": _finite({**look.rollout, "step": look.sampled}) if look.rollout else None,
    }


def _finite(value: Any) -> Any:
    """Numbers that JSON has no word for become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value


def _refuse_no_run(path: Path) -> None:
    """A folder that holds nothing yet is a run that has not begun; one full of other things is a mistake."""
    files = (*RUN_FILES, CHECK, ".opd-run", ".opd-lock")
    if any((path / name).is_file() for name in files) or (path.is_dir() and not any(path.iterdir())):
        return
    what = "holds no run" if path.is_dir() else "is no folder" if path.exists() else "is not there"
    hint = nearest_run(path, command="opd watch")
    later = "" if path.exists() else f", or if it is yet to come: opd watch {shlex.quote(str(path))} --wait"
    raise UserError(f"{path} {what}", hint=f"{hint}{later}")


# --- the terminal -------------------------------------------------------------------------------------------


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def _print(look: Look, console: Console) -> None:
    for line in lines(look, ink=ink(console.encoding), width=console.width):
        console.print(line, no_wrap=True, crop=True, soft_wrap=False)


def _live(following: Following, console: Console, every: float) -> int:
    """Redraw until nothing more will come; what was shown last stays on the terminal, whole."""
    from rich.live import Live

    look = following.look()
    with _ended_by_signal(), Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while not look.pulse.over:
                _show(look, console, live, seconds=every)
                look = following.look()
        except KeyboardInterrupt:
            pass  # how a watch is left
    _print(look, console)
    return 0


def _frame(look: Look, console: Console, pens: Ink) -> Group:
    from rich.console import Group
    from rich.text import Text

    size = console.size
    foot = pens.line(f"{time.strftime('%H:%M:%S')} · Ctrl-C leaves, the run goes on")
    shown = lines(look, ink=pens, width=size.width, height=size.height - 1)
    blank = [Text()] * max(0, size.height - 1 - len(shown))
    return Group(*shown, *blank, Text(foot[: size.width], style="dim"))


def _show(look: Look, console: Console, live: Live, *, seconds: float) -> None:
    """One look for so long, drawn again when the window changes its size."""
    until, size = time.monotonic() + seconds, None
    pens = ink(console.encoding)
    while (left := until - time.monotonic()) > 0:
        if console.size != size:
            size = console.size
            live.update(_frame(look, console, pens), refresh=True)
        time.sleep(min(NAP, left))


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """SIGTERM and a closed connection end the watch by the front door, so that the terminal is given back."""

    def leave(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    kinds = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(kind, leave) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
