"""SIGTERM and Ctrl-C as a wish: granted at once inside work that can be thrown away, else between steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self


class Stopped(BaseException):
    """A signal asked for the end. No Exception: what repairs errors on the way must let it pass."""


class Stop:
    """While entered, SIGTERM and a first Ctrl-C only set `requested`; a second one raises KeyboardInterrupt.

    SIGTERM may come any number of times: schedulers repeat it. A SIGINT that the parent had us ignore
    (`opd … &` in a script) stays ignored. Python handles signals in the main thread only; entered in
    another one, nothing is installed.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        self._interrupted = False
        self._disposable = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._install(signal.SIGTERM)
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                self._install(signal.SIGINT)
        return self

    def __exit__(self, *_: object) -> None:
        while self._old:
            number, handler = self._old.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python

    def _install(self, number: int) -> None:
        self._old[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        if self._first is None:
            self._first = number
        if self._disposable:
            self._disposable = False  # signals that follow must not disturb the clearing up
            raise Stopped

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Work that may be cut off anywhere and done again: a signal, also an earlier one, raises Stopped."""
        try:
            self._disposable = True
            if self.requested:
                raise Stopped
            yield
        finally:
            self._disposable = False

    @property
    def requested(self) -> bool:
        return self._first is not None

    @property
    def exit_code(self) -> int:
        """143 for SIGTERM, 130 for Ctrl-C, whichever came first; 0 when nothing came."""
        return 0 if self._first is None else 128 + self._first
