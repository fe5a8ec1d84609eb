"""The routes, behind one gate: a token on every path where there is one, bodies of bounded size.

    GET  /health       alive, how much was read together
    GET  /info         what is served: tokenizer fingerprint, widths, limits
    GET  /vocabulary   token → id, for a student whose tokenizer has another fingerprint
    GET  /head         the output head as a frame, for clients that ask for hidden states
    POST /score        a frame in, a frame out (opdkit/engines/wire.py)
    POST /v1/completions, /tokenize, GET /v1/models   vLLM's contract: prompt_logprobs, nothing is written

Only reads: no route changes the model.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from opdkit.engines.wire import CONTENT_TYPE, pack
from opdkit.models.load import LoadedModel
from opdkit.serve.batcher import Batcher, Full
from opdkit.serve.scoring import (
    BadRequest,
    Job,
    Limits,
    read_completion,
    read_frame,
    write_completion,
    write_frame,
)
from opdkit.types import Scores


def make_app(
    loaded: LoadedModel, *, token: str | None = None, limits: Limits | None = None, batch_tokens: int = 16384
) -> FastAPI:
    """The server of one frozen model. Its state: `app.state.batcher`, to be closed by whoever runs it."""
    limits = limits or Limits()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    batcher = Batcher(loaded, batch_tokens=batch_tokens, waiting=limits.waiting)
    app.state.batcher = batcher
    weights = weights_id(loaded)
    about = _about(loaded, limits, weights)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "requests": batcher.requests, "batches": batcher.batches}

    @app.get("/info")
    async def info() -> dict[str, Any]:
        return about

    @app.get("/vocabulary")
    async def vocabulary() -> dict[str, int]:
        return dict(loaded.tokenizer.get_vocab())

    @app.get("/head")
    async def head() -> Response:
        return Response(await asyncio.to_thread(_head_frame, loaded), media_type=CONTENT_TYPE)

    @app.post("/score")
    async def score(request: Request) -> Response:
        data = await request.body()
        job = await asyncio.to_thread(read_frame, data, loaded=loaded, limits=limits)
        scores = await _scored(batcher, job)
        frame = await asyncio.to_thread(write_frame, scores, job, loaded=loaded, weights=weights)
        return Response(frame, media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        card = {"id": loaded.name, "object": "model", "max_model_len": loaded.max_length}
        return {"object": "list", "data": [card]}

    @app.post("/tokenize")
    async def tokenize(request: Request) -> dict[str, Any]:
        text = (await _json(request)).get("prompt")
        if not isinstance(text, str) or len(text) > MAX_TEXT:
            raise BadRequest(f"prompt must be text of at most {MAX_TEXT} characters")
        ids = await asyncio.to_thread(loaded.tokenizer, text, add_special_tokens=False)
        return {"tokens": list(ids["input_ids"]), "count": len(ids["input_ids"])}

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await _json(request)
        job = await asyncio.to_thread(read_completion, body, loaded=loaded, limits=limits)
        scores = await _scored(batcher, job)
        text = await asyncio.to_thread(lambda: json.dumps(write_completion(scores, job, name=loaded.name)))
        return Response(text, media_type="application/json")

    @app.exception_handler(BadRequest)
    async def bad(_: Request, error: BadRequest) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(Full)
    async def full(_: Request, error: Full) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 503, {"Retry-After": "1"})

    app.add_middleware(_Gate, token=token, body_bytes=limits.body_bytes)
    return app


MAX_TEXT = 100_000  # characters that /tokenize reads


async def _json(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise BadRequest("the body is no JSON") from None
    if not isinstance(body, dict):
        raise BadRequest("the body is no object")
    return body


async def _scored(batcher: Batcher, job: Job) -> list[Scores]:
    return await asyncio.wrap_future(batcher.submit(job))


class _Gate:
    """In front of every route, known or not: the token first, then the size of the body."""

    def __init__(self, app: Any, *, token: str | None, body_bytes: int):
        self.app, self.expected, self.body_bytes = (
            app,
            f"Bearer {token}".encode() if token else None,
            body_bytes,
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self.expected is not None and not hmac.compare_digest(
            headers.get(b"authorization", b""), self.expected
        ):
            await JSONResponse({"error": "no token, or another"}, 401)(scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.body_bytes:
            await self._too_large()(scope, receive, send)
            return
        await self._counted(scope, receive, send)

    async def _counted(self, scope: Any, receive: Any, send: Any) -> None:
        """A body without a length is counted as it comes; the connection is dropped in the middle of one too long."""
        seen = 0

        async def counting() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            return {"type": "http.disconnect"} if seen > self.body_bytes else message

        try:
            await self.app(scope, counting, send)
        except Exception:
            if seen <= self.body_bytes:
                raise
            await self._too_large()(scope, receive, send)

    def _too_large(self) -> JSONResponse:
        return JSONResponse({"error": f"the body has more than {self.body_bytes} bytes"}, 413)


def _about(loaded: LoadedModel, limits: Limits, weights: str) -> dict[str, Any]:
    head = loaded.head
    return {
        "server": "opd",
        "model": loaded.name,
        "fingerprint": loaded.fingerprint,
        "weights": weights,
        "rows": head.rows,
        "max_length": loaded.max_length,
        "max_top_k": min(limits.top_k, head.rows),
        "max_tokens": limits.tokens,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "stop_ids": list(loaded.stop_ids),
        "hidden": head.weight.shape[1],
    }


def _head_frame(loaded: LoadedModel) -> bytes:
    """Weight [V, D], maybe bias [V], and what is done to h Wᵀ + b before it is a logit."""
    head = loaded.head
    weight, bias = head.used(head.weight.dtype)
    arrays = {"weight": weight.detach().float().cpu().numpy()}
    if bias is not None:
        arrays["bias"] = bias.detach().float().cpu().numpy()
    return pack({"scale": head.scale, "softcap": head.softcap}, arrays)


def weights_id(loaded: LoadedModel) -> str:
    """A digest of 64 numbers spread over every tensor: another checkpoint has another one, at the cost of none."""
    digest = hashlib.sha256()
    for name, tensor in sorted(loaded.model.state_dict().items()):
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // 64)][:64].float().cpu().numpy()
        digest.update(
            f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + some.astype(np.float32).tobytes()
        )
    return digest.hexdigest()
