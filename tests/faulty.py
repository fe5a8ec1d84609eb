"""A proxy between a client and a served model that breaks connections and replies, as a seed says.

    with Proxy(server_url, other=url_of_another_model) as proxy:     # clean until told
        proxy.switch(Fault.draw("hang_body", seed=3, server="own"))
        …                                                            # use proxy.url
        proxy.switch(None)

Only requests for scores are struck. Faults of the line are in `faulty_line`, of what is said in `faulty_frames` (`opd serve`)
and `faulty_json` (vLLM). A seed chooses which request, whether once or from then on, which row, position, slot, bit.

Not here, because nobody at the client's end could see them:

- numbers that fit together and belong to another context, in one rollout and not in the known sequence. Among them two rollouts
  of one length exchanged in everything by `opd serve`, if at no position a candidate or token of the one is in the other's
  top-k list, or as likely as its first: possible for responses of a token or two, of the pairs here none, with an unrelated
  teacher neither. vLLM's lists hold the token taken at every position, the prompt's too, and so show it;
- in vLLM's JSON, which has no checksum: a digit of one log-prob, as long as the list stays sorted and below 1; two tokens'
  names exchanged in one list; one rollout's log-probs all lower by a constant;
- a model nearer than the tolerance of the known sequence (2e-4 nats in float32) where the server does not name its weights.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from dataclasses import dataclass
from typing import Any, Literal, Self

import faulty_frames
import faulty_json
from faulty_line import TRANSPORT, Message, forward, read

Server = Literal["own", "fake"]
SCORES = ("/score", "/v1/completions")


@dataclass(frozen=True)
class Fault:
    """What goes wrong: from the `first`th request for scores on (from 0), `times` times."""

    kind: str
    seed: int
    server: Server
    first: int
    times: int

    @classmethod
    def draw(cls, kind: str, *, seed: int, server: Server) -> Fault:
        draw = random.Random(f"{kind} {seed}")
        times = {"once_500": 1, "few_503": 3}.get(kind) or draw.choice([1, 1000])
        return cls(kind, seed, server, first=draw.choice([0, 1]), times=times)

    def strikes(self, number: int) -> bool:
        return self.first <= number < self.first + self.times

    @property
    def draws(self) -> random.Random:
        return random.Random(f"{self.kind} {self.seed} what")


class Proxy:
    """A thread with an event loop. `struck` counts requests that met the fault since it was switched on."""

    def __init__(self, upstream: str, *, other: str = ""):
        """`other`: a server of another model, which answers where the fault says so."""
        self.upstream, self.other = upstream, other
        self.fault: Fault | None = None
        self.number = self.struck = self.port = 0
        self.broken = ""  # what the proxy itself did wrong
        self.earlier: dict[str, Message] = {}  # by path: the first reply with scores before any fault
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def switch(self, fault: Fault | None) -> None:
        """Another fault, or none, from the next request on."""
        asyncio.run_coroutine_threadsafe(self._switch(fault), self._loop).result(10)

    async def _switch(self, fault: Fault | None) -> None:
        self.fault, self.number, self.struck = fault, 0, 0
        if fault is not None and fault.kind == "refused":
            self._listening.close()
            self.struck = 1
            if fault.times == 1:
                self.fault = None
                self._loop.call_later(0.4, lambda: self._keep(self._listen()))
        elif not self._listening.is_serving():
            await self._listen()

    async def _listen(self) -> None:
        self._listening = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=1 << 26)
        self.port = self._listening.sockets[0].getsockname()[1]

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        await self._listen()
        self._up.set()
        await self._stop.wait()
        self._listening.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _keep(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._keep(self._serve(reader, writer))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    # --- one request ------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request per connection; a client that has gone, or an upstream that is not there, ends it."""
        try:
            await self._answer(await read(reader), writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except Exception as error:  # of the test's own making: no fault was made of it
            self.broken = f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            writer.close()

    async def _answer(self, request: Message, writer: asyncio.StreamWriter) -> None:
        fault = self._meets(request)
        if fault is None:
            reply = await forward(request, self.upstream)
            if request.path in SCORES and self.fault is None:
                self.earlier.setdefault(request.path, reply)
            writer.write(reply.bytes())
            await writer.drain()
        elif fault.kind in TRANSPORT:
            await TRANSPORT[fault.kind](writer, request, self.upstream, fault.draws)
        else:
            writer.write((await self._says(request, fault)).bytes())
            await writer.drain()

    def _meets(self, request: Message) -> Fault | None:
        if self.fault is None or request.path not in SCORES:
            return None
        number, self.number = self.number, self.number + 1
        if not self.fault.strikes(number):
            return None
        self.struck += 1
        return self.fault

    async def _says(self, request: Message, fault: Fault) -> Message:
        """A whole reply, with something wrong in it."""
        draw = fault.draws
        reply = await forward(request, self.other if fault.kind == "other_model" else self.upstream)
        module = faulty_frames if fault.server == "own" else faulty_json
        damage = module.KINDS[fault.kind]
        return Message(
            reply.line, reply.headers, damage(reply.body, request.body, self.earlier[request.path].body, draw)
        )


def kinds(server: Server) -> list[str]:
    """Every kind of fault that this server's replies can have."""
    return [*TRANSPORT, *(faulty_frames if server == "own" else faulty_json).KINDS]
