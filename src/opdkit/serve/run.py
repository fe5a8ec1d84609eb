"""Bind, say where, serve until a signal. Loopback unless a token guards it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import torch
import uvicorn

from opdkit.config import ModelConfig
from opdkit.engines.client import is_loopback
from opdkit.models.load import check_weights, open_model, pick_device
from opdkit.serve.app import make_app
from opdkit.serve.scoring import Limits
from opdkit.types import UserError

TOKEN = "OPD_SERVE_TOKEN"
CLOSING_SECONDS = 5  # for requests under way when a signal comes


def serve(
    model: ModelConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 8017,
    device: str = "auto",
    batch_tokens: int = 16384,
    limits: Limits | None = None,
    ready: Callable[[dict[str, object]], None],
) -> None:
    """Serve until SIGINT or SIGTERM. `ready` is told once, after loading: url, model, fingerprint, weights, widths.

    UserError before anything is loaded: an address beyond this machine without a token, a port that is taken.
    """
    token = os.environ.get(TOKEN) or None
    if token is None and not is_loopback(host):
        raise UserError(
            f"host {host} can be reached from other machines, and there is no token",
            hint=f"export {TOKEN}=$(openssl rand -hex 32), or leave --host out and use a tunnel",
        )
    with _listening(host, port) as listener:
        check_weights(model)
        loaded = open_model(model, device=pick_device(device))
        loaded.model.requires_grad_(False)
        app = make_app(loaded, token=token, limits=limits, batch_tokens=batch_tokens)
        bound = listener.getsockname()
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        about = {"url": f"http://{shown}:{bound[1]}", "model": model.model, "token": token is not None}
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=CLOSING_SECONDS,
                server_header=False,
            )
        )
        try:
            ready(about | {"fingerprint": loaded.fingerprint, "rows": loaded.head.rows})
            with torch.inference_mode():
                server.run(sockets=[listener])
        finally:
            app.state.batcher.close()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)  # before anybody is told: nobody is refused in between
    except OSError as error:
        listener.close()
        raise UserError(
            f"cannot listen at {host}:{port}: {error.strerror}", hint="--port 0 takes a free one"
        ) from None
    return listener
