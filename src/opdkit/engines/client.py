"""HTTP with an end: one deadline over all tries, a time-out per try, bounded concurrency, bounded replies.

A lost connection, 429 and 5xx are tried again after a growing pause while the deadline allows; any other
4xx and a redirect are final at once. Waiting is asyncio's, so that a server which drips a byte a second, in headers
or body, is cut off as surely as a silent one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from opdkit.config import Patience
from opdkit.types import RunError, UserError

Answer = TypeVar("Answer")
AGAIN = {429, 500, 502, 503, 504}
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 15.0  # seconds between tries
_SHOWN = 300  # characters of a refusal


class EngineError(RunError):
    """A served model did not answer, or not as it must. The run stops, saved; nothing was trained on the answer."""

    finding = "served_model"  # the name under which findings.jsonl keeps it


class Refused(EngineError):
    """An answer that more tries will not change; `status` is HTTP's, `said` what the server wrote."""

    def __init__(self, message: str, *, hint: str, status: int, said: str):
        super().__init__(message, hint=hint)
        self.status, self.said = status, said


@contextmanager
def before_the_run() -> Iterator[None]:
    """What a server does wrong before anything has begun is the user's input to mend: an EngineError becomes a UserError."""
    try:
        yield
    except EngineError as error:
        raise UserError(str(error), hint=error.hint) from None


@dataclass(frozen=True)
class Request:
    """One thing to ask. `body` None is a GET."""

    path: str
    body: bytes | None = None
    content_type: str = "application/json"


class Endpoint:
    """A URL, its token, and how long to wait. `reconnected` counts tries that had to be made again."""

    def __init__(self, url: str, *, patience: Patience, token: str | None = None, key: str = "teacher"):
        """`key` is the config's name for it, for hints. UserError for a token that would cross a network in clear."""
        self.url, self.patience, self.token, self.key = url.rstrip("/"), patience, token, key
        self.reconnected = 0
        if token and self.url.startswith("http://") and not is_loopback(self.url):
            raise UserError(
                f"{self.url} is not encrypted, and the token would be sent over the network in clear",
                hint=f"{key}.url=https://…, or a tunnel: ssh -L 8017:127.0.0.1:8017 HOST",
            )

    def ask(self, requests: Sequence[Request]) -> list[bytes]:
        """One body per request, in order. Raises Refused, or EngineError when the deadline has passed.

        A signal that raises in the caller cuts the wait short.
        """
        return elsewhere(self._ask_all(requests))

    def one(self, path: str, body: bytes | None = None, **kind: Any) -> bytes:
        return self.ask([Request(path, body, **kind)])[0]

    async def _ask_all(self, requests: Sequence[Request]) -> list[bytes]:
        deadline = time.monotonic() + self.patience.deadline_seconds
        gate = asyncio.Semaphore(self.patience.concurrency)
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        async with httpx.AsyncClient(
            timeout=None,  # ours is over the whole try, not over each read
            follow_redirects=False,
            headers=headers,
            trust_env=not is_loopback(self.url),
        ) as client:
            tasks = [asyncio.create_task(self._patiently(client, r, gate, deadline)) for r in requests]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _patiently(
        self, client: httpx.AsyncClient, request: Request, gate: asyncio.Semaphore, deadline: float
    ) -> bytes:
        why, began = "no try was made", time.monotonic()
        pause = FIRST_PAUSE
        for attempt in range(self.patience.retries + 1):
            if attempt:
                self.reconnected += 1
                if time.monotonic() + pause >= deadline:
                    break
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            try:
                # the wait for a free place counts too: else a slow server makes the deadline meaningless
                async with asyncio.timeout_at(_loop_time(deadline)), gate:
                    return await self._try(client, request, deadline)
            except _Again as error:
                why = str(error)
            except TimeoutError:
                why = "the deadline passed"
                break
        raise EngineError(
            f"{self.url}{request.path} did not answer in {time.monotonic() - began:.3g} s and "
            f"{attempt + 1} tries; last: {why}",
            hint=f"see that it runs: curl {self.url}/health; {self.key}.patience.retries=… and deadline_seconds=… wait longer",
        )

    async def _try(self, client: httpx.AsyncClient, request: Request, deadline: float) -> bytes:
        seconds = min(self.patience.timeout_seconds, deadline - time.monotonic())
        method = "GET" if request.body is None else "POST"
        kind = {} if request.body is None else {"Content-Type": request.content_type}
        try:
            async with (
                asyncio.timeout(seconds),
                client.stream(method, self.url + request.path, content=request.body, headers=kind) as reply,
            ):
                data = await self._read(reply, request)
        except TimeoutError:
            raise _Again(f"no whole answer in {seconds:.3g} s") from None
        except httpx.TransportError as error:
            raise _Again(f"{type(error).__name__}: {error}".rstrip(": ")) from None
        if reply.status_code in AGAIN:
            raise _Again(f"status {reply.status_code}: {_text(data)}")
        if reply.status_code != 200:
            raise self._refused(request, reply.status_code, _text(data))
        return data

    async def _read(self, reply: httpx.Response, request: Request) -> bytes:
        """The body as it travelled: a compressed one could unfold to anything."""
        pieces, size, most = [], 0, self.patience.max_reply_bytes
        async for piece in reply.aiter_raw():
            size += len(piece)
            if size > most:
                raise EngineError(
                    f"{self.url}{request.path} sends more than {most} bytes",
                    hint=f"{self.key}.patience.max_reply_bytes={4 * most}, or fewer {self.key}.batch_tokens",
                )
            pieces.append(piece)
        return b"".join(pieces)

    def _refused(self, request: Request, status: int, said: str) -> Refused:
        hints = {
            401: f"export {TOKENS[self.key]}=… as the server has it",
            403: f"export {TOKENS[self.key]}=… as the server has it",
            404: f"check {self.key}.url, and {self.key}.api where it has one",
            413: f"{self.key}.batch_tokens=… smaller",
        }
        return Refused(
            f"{self.url}{request.path} refused (status {status}): {said}",
            hint=hints.get(status, f"check {self.key}.url and what runs there"),
            status=status,
            said=said,
        )


def elsewhere(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Run a coroutine in an event loop of its own thread, and wait for it where signals are heard.

    In the caller's own thread a loop would swallow what a signal's handler raises, and would not end before a hanging
    look-up of a host name does. The thread is a daemon: what is late is left behind, never waited for.
    """
    answer: Future[Answer] = Future()
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        begun.set_result((asyncio.get_running_loop(), task))
        try:
            answer.set_result(await work)
        except BaseException as error:  # cancelled, too: whoever waits is to hear of it
            answer.set_exception(error)

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="opd-client", daemon=True)
    thread.start()
    try:
        return answer.result()
    except BaseException:
        if not answer.done():
            loop, task = begun.result(1.0)
            loop.call_soon_threadsafe(task.cancel)
        raise
    finally:
        thread.join(1.0)


class _Again(Exception):
    """A try that failed in a way that another may not."""


TOKENS = {"teacher": "OPD_TEACHER_TOKEN", "sampling": "OPD_SAMPLER_TOKEN"}
"""Secrets come from the environment alone: what is in a config is written to run folders."""


def token(key: str) -> str | None:
    return os.environ.get(TOKENS[key]) or None


def is_loopback(url: str) -> bool:
    """Whether a URL or host name stays on this machine."""
    host = urlsplit(url).hostname if "://" in url else url
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _loop_time(deadline: float) -> float:
    return asyncio.get_running_loop().time() + deadline - time.monotonic()


def _text(data: bytes) -> str:
    """A server's words as one printable line."""
    text = data[: 4 * _SHOWN].decode(errors="replace")
    return "".join(c if c.isprintable() else " " for c in text)[:_SHOWN].strip() or "without a word"
