"""From a request's bytes to rollouts, from scores to bytes. What does not fit is refused by name, before the model reads.

Letters: R rollouts of a request, N their response positions, S slots, K top-k width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opdkit.engines.wire import FrameError, pack, unpack
from opdkit.models.load import LoadedModel
from opdkit.types import Needs, Prompt, Rollout, Scores


class BadRequest(ValueError):
    """What a client asked cannot be answered; the message goes back to it with status 400."""


@dataclass(frozen=True)
class Limits:
    """What one request may ask."""

    tokens: int = 1 << 20  # prompts and responses together
    top_k: int = 1024
    body_bytes: int = 256 << 20
    reply_bytes: int = 2 << 30
    waiting: int = 256  # requests in the queue; further ones get 503


@dataclass(frozen=True)
class Job:
    """A checked request. Jobs with one `kind` can be read together."""

    rollouts: tuple[Rollout, ...]
    needs: Needs
    ids: tuple[Tensor, ...] | None
    temperature: float
    rows: int
    values: str = "float32"
    number: int = 0

    @property
    def kind(self) -> tuple[Any, ...]:
        width = None if self.ids is None else self.ids[0].shape[-1]
        return (self.needs, width, self.temperature, self.rows)

    @property
    def tokens(self) -> int:
        return sum(len(r.prompt.ids) + r.length for r in self.rollouts)


def read_frame(data: bytes, *, loaded: LoadedModel, limits: Limits) -> Job:
    """The job of a /score request. Raises BadRequest."""
    try:
        header, arrays = unpack(data)
    except FrameError as error:
        raise BadRequest(f"the body is no frame: {error}") from None
    needs, temperature, rows = _header(header, loaded=loaded, limits=limits)
    lengths = [_lengths(arrays, name) for name in ("prompt_lengths", "response_lengths")]
    tokens = _ids(arrays.get("tokens"), "tokens", rows)
    rollouts = _rollouts(tokens, *lengths, loaded=loaded, limits=limits)
    positions = sum(r.length for r in rollouts)
    ids = None
    if needs.at_ids:
        at = arrays.get("at_ids")
        if at is None or at.ndim != 2 or at.shape[0] != positions or not 1 <= at.shape[1] <= limits.top_k:
            raise BadRequest(f"at_ids must be [{positions}, 1 to {limits.top_k}]")
        ids = tuple(torch.from_numpy(_ids(at, "at_ids", rows)).long().split([r.length for r in rollouts]))
    _bounded(needs, positions, ids, loaded, limits)
    return Job(
        rollouts, needs, ids, temperature, rows, values=str(header["values"]), number=header["request"]
    )


def read_completion(body: Mapping[str, Any], *, loaded: LoadedModel, limits: Limits) -> Job:
    """The job of a vLLM-like /v1/completions request: `prompt` ids, `prompt_logprobs` k. Raises BadRequest."""
    prompts = body.get("prompt")
    if isinstance(prompts, list) and prompts and all(type(i) is int for i in prompts):
        prompts = [prompts]
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, list) and p for p in prompts):
        raise BadRequest("prompt must be token ids: a list, or a list of lists")
    k = body.get("prompt_logprobs")
    if type(k) is not int or not k >= -1:
        raise BadRequest("prompt_logprobs must be a number, or -1; this server scores and does nothing else")
    if body.get("max_tokens", 1) not in (0, 1) or body.get("stream"):
        raise BadRequest("max_tokens must be 0 or 1, stream false: this server scores and writes no text")
    rows = loaded.head.rows
    k = rows if k == -1 else k
    if k > min(limits.top_k, rows):
        raise BadRequest(
            f"Requested prompt logprobs of {k}, which is greater than max allowed: {min(limits.top_k, rows)}"
        )
    flat = [i for p in prompts for i in p]
    if not all(type(i) is int and 0 <= i < rows for i in flat):
        raise BadRequest(f"prompt must be token ids from 0 to {rows - 1}")
    tokens = _ids(np.array(flat, dtype=np.int64), "prompt", rows)
    one = np.ones(len(prompts), dtype=np.int64)
    rest = np.array([len(p) - 1 for p in prompts], dtype=np.int64)
    rollouts = _rollouts(tokens, one, rest, loaded=loaded, limits=limits)
    needs = Needs(sampled=True, top_k=k)
    _bounded(needs, int(rest.sum()), None, loaded, limits)
    return Job(rollouts, needs, None, 1.0, rows)


def _header(header: Mapping[str, Any], *, loaded: LoadedModel, limits: Limits) -> tuple[Needs, float, int]:
    if header.get("fingerprint") != loaded.fingerprint:
        raise BadRequest("fingerprint is another tokenizer's")
    temperature, rows, asked = header.get("temperature"), header.get("rows"), header.get("needs")
    if (
        not isinstance(temperature, int | float)
        or isinstance(temperature, bool)
        or not 1e-3 <= temperature <= 1e3
    ):
        raise BadRequest("temperature must be a number from 0.001 to 1000")
    if type(rows) is not int or not 1 <= rows <= loaded.head.rows:
        raise BadRequest(f"rows must be 1 to {loaded.head.rows}")
    if header.get("values") not in ("float32", "float16") or type(header.get("request")) is not int:
        raise BadRequest("values must be float32 or float16, request a number")
    known = {"sampled": bool, "top_k": int, "at_ids": bool, "entropy": bool, "hidden": bool}
    if (
        not isinstance(asked, dict)
        or set(asked) != set(known)
        or any(type(asked[n]) is not t for n, t in known.items())
    ):
        raise BadRequest(f"needs must hold {', '.join(known)}")
    if not 0 <= asked["top_k"] <= min(limits.top_k, rows):
        raise BadRequest(f"top_k must be 0 to {min(limits.top_k, rows)}")
    needs = Needs(asked["sampled"], asked["top_k"], asked["at_ids"], asked["entropy"], asked["hidden"])
    if needs == Needs():
        raise BadRequest("needs ask for nothing")
    return needs, float(temperature), rows


def _lengths(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    lengths = arrays.get(name)
    if (
        lengths is None
        or lengths.ndim != 1
        or lengths.dtype != np.int32
        or not len(lengths)
        or lengths.min() < 1
    ):
        raise BadRequest(f"{name} must be a list of numbers from 1")
    return lengths.astype(np.int64)


def _ids(ids: np.ndarray | None, name: str, rows: int) -> np.ndarray:
    if ids is None or ids.dtype.kind != "i" or not ids.size or ids.min() < 0 or ids.max() >= rows:
        raise BadRequest(f"{name} must be ids from 0 to {rows - 1}")
    return np.array(ids)


def _rollouts(
    tokens: np.ndarray, prompts: np.ndarray, responses: np.ndarray, *, loaded: LoadedModel, limits: Limits
) -> tuple[Rollout, ...]:
    if (
        len(prompts) != len(responses)
        or int(prompts.sum() + responses.sum()) != len(tokens)
        or tokens.ndim != 1
    ):
        raise BadRequest("prompt_lengths and response_lengths do not add up to tokens")
    if len(tokens) > limits.tokens:
        raise BadRequest(f"{len(tokens)} tokens in one request, at most {limits.tokens}")
    longest = int((prompts + responses).max())
    if longest > loaded.max_length:
        raise BadRequest(f"a sequence of {longest} tokens, the model reaches {loaded.max_length}")
    rows, start = [], 0
    for i, (p, r) in enumerate(zip(prompts.tolist(), responses.tolist(), strict=True)):
        ids = tokens[start : start + p + r].tolist()
        rows.append(Rollout(Prompt(id=str(i), ids=tuple(ids[:p])), tuple(ids[p:]), finish_reason="unknown"))
        start += p + r
    return tuple(rows)


def _bounded(
    needs: Needs, positions: int, ids: tuple[Tensor, ...] | None, loaded: LoadedModel, limits: Limits
) -> None:
    width = 2 + 2 * needs.top_k + (0 if ids is None else ids[0].shape[-1])
    width += loaded.head.weight.shape[1] if needs.full else 0
    if 4 * width * positions > limits.reply_bytes:
        raise BadRequest(f"the reply would have {4 * width * positions} bytes, at most {limits.reply_bytes}")


def write_frame(scores: Sequence[Scores], job: Job, *, loaded: LoadedModel, weights: str) -> bytes:
    """The reply: exactly what was asked for; numbers in the layout asked for, ids as int32."""
    values = np.float16 if job.values == "float16" else np.float32
    wanted = {
        "sampled": job.needs.sampled,
        "topk_ids": job.needs.top_k,
        "topk_logp": job.needs.top_k,
        "at_logp": job.needs.at_ids,
        "entropy": job.needs.entropy,
        "hidden": job.needs.full,
    }
    arrays = {
        name: torch.cat([getattr(s, name) for s in scores]).float().cpu().numpy().astype(values)
        for name, asked in wanted.items()
        if asked and name != "topk_ids"
    }
    if job.needs.top_k:
        ids = torch.cat([s.topk_ids for s in scores if s.topk_ids is not None])
        arrays["topk_ids"] = ids.to(torch.int32).cpu().numpy()
    header = {
        "request": job.number,
        "fingerprint": loaded.fingerprint,
        "weights": weights,
        "temperature": job.temperature,
        "rows": job.rows,
    }
    return pack(header, arrays)


def write_completion(scores: Sequence[Scores], job: Job, *, name: str) -> dict[str, Any]:
    """vLLM's shape: a dict id → {logprob, rank} per position, the first position without one."""
    return {
        "object": "text_completion",
        "model": name,
        "choices": [
            {"index": i, "text": "", "finish_reason": "length", "prompt_logprobs": [None, *_positions(s, r)]}
            for i, (s, r) in enumerate(zip(scores, job.rollouts, strict=True))
        ],
    }


def _positions(scores: Scores, rollout: Rollout) -> list[dict[str, Any]]:
    assert scores.sampled is not None
    ids = scores.topk_ids.tolist() if scores.topk_ids is not None else [[]] * rollout.length
    logp = scores.topk_logp.tolist() if scores.topk_logp is not None else [[]] * rollout.length
    rows = []
    for taken, own, row_ids, row_logp in zip(
        rollout.response_ids, scores.sampled.tolist(), ids, logp, strict=True
    ):
        row = {
            str(i): {"logprob": p, "rank": rank}
            for rank, (i, p) in enumerate(zip(row_ids, row_logp, strict=True), start=1)
        }
        # vLLM gives its true rank; outside the list all that is used of it is that it comes last
        row.setdefault(str(taken), {"logprob": own, "rank": len(row_ids) + 1})
        rows.append(row)
    return rows
