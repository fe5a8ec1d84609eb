"""Servers for tests: `opd serve` and the fake vLLM, in threads of this process or as processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

import fake_vllm
from models import tiny_model, tiny_tokenizer
from opdkit.models.load import LoadedModel
from opdkit.serve.app import make_app
from opdkit.serve.scoring import Limits

HERE = Path(__file__).parent


def save_tiny(
    folder: Path,
    *,
    seed: int = 0,
    hidden: int = 32,
    kind: str = "qwen3",
    tokenizer: Any = None,
    **settings: Any,
) -> Path:
    """A tiny model folder with its tokenizer."""
    tokenizer = tokenizer or tiny_tokenizer()
    tiny_model(kind, seed=seed, hidden=hidden, tokenizer=tokenizer, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def own_server(
    loaded: LoadedModel, *, token: str | None = None, limits: Limits | None = None, **settings: Any
) -> Iterator[str]:
    """`opd serve` in a thread; its URL. The app is at `own_server.app` while it runs."""
    app = make_app(loaded, token=token, limits=limits, **settings)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="error", access_log=False, lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        threading.Event().wait(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        app.state.batcher.close()


@contextlib.contextmanager
def fake_server(folder: Path, *, cap: int = 20, defect: str = "") -> Iterator[str]:
    server = fake_vllm.serve(str(folder), cap=cap, defect=defect)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


class Process:
    """A server as a process of its own, to be killed. `url` once it is up."""

    def __init__(self, *command: str, port: int = 0):
        self.command, self.port = command, port
        self.start()

    def start(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *self.command, "--port", str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["url"]
        self.port = int(self.url.rsplit(":", 1)[1])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def own_process(folder: Path, *, port: int = 0) -> Process:
    return Process("-m", "opdkit", "serve", str(folder), "--json", port=port)


def fake_process(folder: Path, *, port: int = 0, cap: int = 20) -> Process:
    return Process(str(HERE / "fake_vllm.py"), str(folder), "--cap", str(cap), port=port)
