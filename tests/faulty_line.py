"""What can go wrong on the line between a client and a served model: connections, statuses, bytes. See `faulty`.

A function gets the client's stream, the request, the URL that would answer it, and a generator.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

LONG = 30.0  # seconds that a hanging reply hangs: longer than any deadline here
DRIP = 0.2  # seconds between bytes


@dataclass(frozen=True)
class Message:
    """A request or a reply: its first line, headers by lower-case name, body."""

    line: str
    headers: dict[str, str]
    body: bytes

    def bytes(self, **headers: str) -> bytes:
        names = {**self.headers, "content-length": str(len(self.body)), "connection": "close"}
        names |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = [self.line, *(f"{name}: {value}" for name, value in names.items())]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + self.body

    @property
    def path(self) -> str:
        return self.line.split()[1]


async def read(reader: asyncio.StreamReader) -> Message:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:] if line)}
    return Message(head[0], headers, await reader.readexactly(int(headers.get("content-length", 0))))


async def forward(request: Message, url: str) -> Message:
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=1 << 26)
    try:
        writer.write(request.bytes())
        return await read(reader)
    finally:
        writer.close()


Strike = Callable[[asyncio.StreamWriter, Message, str, random.Random], Awaitable[None]]


async def _closed(writer: asyncio.StreamWriter, *_: Any) -> None:
    """Accepted, read, and closed without a byte."""


async def _reset(writer: asyncio.StreamWriter, request: Message, url: str, draw: random.Random) -> None:
    """A part of the reply, then RST."""
    await _part(writer, request, url, draw)
    made = writer.get_extra_info("socket")
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _part(writer: asyncio.StreamWriter, request: Message, url: str, draw: random.Random) -> None:
    data = (await forward(request, url)).bytes()
    writer.write(data[: draw.randrange(20, len(data))])
    await writer.drain()


async def _hang_headers(writer: asyncio.StreamWriter, *_: Any) -> None:
    await asyncio.sleep(LONG)


async def _hang_body(writer: asyncio.StreamWriter, request: Message, url: str, draw: random.Random) -> None:
    await _part(writer, request, url, draw)
    await asyncio.sleep(LONG)


def _drip(*, headers: bool) -> Strike:
    """Every byte arrives in time, the whole never does."""

    async def strike(writer: asyncio.StreamWriter, request: Message, url: str, draw: random.Random) -> None:
        data = (await forward(request, url)).bytes()
        start = draw.randrange(0, 20) if headers else data.index(b"\r\n\r\n") + 4
        writer.write(data[:start])
        for i in range(start, start + int(LONG / DRIP)):
            await writer.drain()
            await asyncio.sleep(DRIP)
            writer.write(data[i : i + 1])

    return strike


def _replied(change: Callable[[Message, random.Random], bytes]) -> Strike:
    """The upstream's reply, changed."""

    async def strike(writer: asyncio.StreamWriter, request: Message, url: str, draw: random.Random) -> None:
        writer.write(change(await forward(request, url), draw))
        await writer.drain()

    return strike


def _status(status: str, **headers: str) -> Strike:
    def change(reply: Message, _: random.Random) -> bytes:
        return Message(f"HTTP/1.1 {status}", {}, b'{"error": "as the test says"}').bytes(**headers)

    return _replied(change)


def _body(reply: Message, body: bytes, **headers: str) -> bytes:
    return Message(reply.line, reply.headers, body).bytes(**headers)


def _bit(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def _cut(reply: Message, draw: random.Random) -> int:
    return draw.randrange(1, len(reply.body))


async def _asked_otherwise(
    writer: asyncio.StreamWriter, request: Message, url: str, draw: random.Random
) -> None:
    """The request is damaged on its way, the reply is right for what arrived: a bit of it, or a digit of a token."""
    body = request.body
    if body.startswith(b"{"):
        first = body.index(b"[[") + 2
        places = [i for i in range(first, body.index(b"]]")) if chr(body[i]).isdigit()]
        at = draw.choice([i for i in places if body[i - 1 : i] in (b"[", b" ")])  # else 0123 is no number
        body = body[:at] + (b"1" if body[at : at + 1] != b"1" else b"2") + body[at + 1 :]
    else:
        body = _bit(body, draw)
    reply = await forward(Message(request.line, request.headers, body), url)
    writer.write(reply.bytes())
    await writer.drain()


TRANSPORT: dict[str, Strike] = {
    "refused": _closed,  # by closing the listener (Proxy._switch); this is for what was already in its queue
    "closed": _closed,
    "reset": _reset,
    "hang_headers": _hang_headers,
    "hang_body": _hang_body,
    "drip_headers": _drip(headers=True),
    "drip_body": _drip(headers=False),
    "truncated": _replied(
        lambda r, d: _body(r, r.body[: _cut(r, d)], content_length=str(len(r.body)))
    ),  # and closed
    "short_length": _replied(lambda r, d: _body(r, r.body, content_length=str(_cut(r, d)))),
    "empty": _replied(lambda r, d: _body(r, b"")),
    "garbage": _replied(lambda r, d: _body(r, d.randbytes(d.randrange(1, 4096)))),
    "no_http": _replied(lambda r, d: d.randbytes(d.randrange(1, 4096))),
    "html": _replied(
        lambda r, d: _body(r, b"<!doctype html><title>Sign in</title>", content_type="text/html")
    ),
    "json_error": _replied(lambda r, d: _body(r, b'{"error": {"message": "overloaded"}}')),
    "compressed": _replied(lambda r, d: _body(r, gzip.compress(r.body), content_encoding="gzip")),
    "oversized": _replied(lambda r, d: _body(r, r.body + bytes(1 << 20))),
    "asked_otherwise": _asked_otherwise,
    "redirect": _status("302 Found", location="http://127.0.0.1:9/score"),
    "no_content": _status("204 No Content", content_length="0"),
    **{
        f"status_{status}": _status(f"{status} As The Test Says")
        for status in (400, 401, 403, 404, 413, 422, 429, 500, 502, 503)
    },
    "once_500": _status("500 Internal Server Error"),
    "few_503": _status("503 Service Unavailable"),
}
