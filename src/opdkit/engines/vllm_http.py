"""A Sampler that is a vLLM server: a request per response, weights through a folder both sides see, then the canary.

The server is started with the student's own folder, `--logprobs-mode processed_logprobs`, VLLM_SERVER_DEV_MODE=1 and, for tied
heads on a CPU, opdkit's worker extension (docs/engines.md).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdkit.config import SamplingConfig, VllmServerSampling
from opdkit.engines.canary import Canary
from opdkit.engines.client import Endpoint, EngineError, Refused, Request, before_the_run, token
from opdkit.engines.drawn import Drawn, Row, banned_rows, drawn, rollouts_of, rows_of, stops_of
from opdkit.engines.facts import named_model, top_k_cap
from opdkit.models.load import DTYPES, LoadedModel
from opdkit.types import Needs, Prompt, Rollout

_LAUNCH = (
    "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model STUDENT … (docs/engines.md)"
)


def server_top_k(cfg: VllmServerSampling, *, rows: int) -> int:
    """Widest top-k of drawn tokens the server sends; asked before anything is loaded. UserError where nobody answers."""
    endpoint = _endpoint(cfg)
    with before_the_run():
        return top_k_cap(endpoint, named_model(endpoint)[0], rows=rows, field="logprobs")


def server_reach(cfg: VllmServerSampling) -> int:
    """Tokens of prompt and response that the server takes. UserError where nobody answers."""
    with before_the_run():
        return named_model(_endpoint(cfg))[1]


class VllmServerSampler:
    """`share` holds the weights on their way; one file, replaced at every publish, removed by `close`."""

    name = "vllm-server"
    shares_weights = False

    def __init__(
        self, cfg: VllmServerSampling, *, loaded: LoadedModel, width: int, share: Path, dtype: str = "float32"
    ):
        """`width`: the top-k asked for while training; `dtype`: of the server's weights, unless `cfg` says.

        UserError where the server is not there or another model is.
        """
        self.cfg, self.loaded, self.version, self.share = cfg, loaded, 0, share
        self.endpoint = _endpoint(cfg)
        self.offers = Needs(sampled=True, top_k=width)
        self.dtype = cfg.dtype or dtype
        # made after the first publish: a server may hold an earlier run's weights
        self.canary: Canary | None = None
        self.bias = {str(i): bias for i, bias in banned_rows(loaded).items()}
        with before_the_run():
            self.model, reach, _ = named_model(self.endpoint)
            self.max_length = min(reach, loaded.max_length)
            self._logps((0, 1))  # that it gives log-probs of a prompt at all

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        sampling: SamplingConfig,
        seed: int,
        step: int,
        needs: Needs = Needs(),  # noqa: B008  frozen
        stop_ids: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """As `LocalSampler.sample`; draws differ from it, distributions do not. EngineError where the server fails."""
        assert not needs.unmet(self.offers), needs.unmet(self.offers)
        rows = rows_of(prompts, sampling, seed=seed, step=step, max_length=self.max_length)
        if not rows:
            return []
        stops = stops_of(stop_ids, sampling, self.loaded)
        bodies = self.endpoint.ask([self._request(row, sampling, needs, stops) for row in rows])
        found = [self._drawn(body, needs) for body in bodies]
        return rollouts_of(rows, found, sampling, stops, loaded=self.loaded, sampler=self)

    def _request(self, row: Row, sampling: SamplingConfig, needs: Needs, stops: Sequence[int]) -> Request:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(row.prompt.ids),
            "max_tokens": row.limit,
            "min_tokens": min(sampling.min_tokens, row.limit),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "stop_token_ids": list(stops),
            "ignore_eos": True,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "skip_special_tokens": False,
        }
        if self.cfg.seeded:
            body["seed"] = row.seed
        if self.bias:
            body["logit_bias"] = self.bias
        if needs.sampled or needs.top_k:
            body["logprobs"] = needs.top_k
        return Request("/v1/completions", json.dumps(body).encode())

    def _drawn(self, body: bytes, needs: Needs) -> Drawn:
        try:
            choice = json.loads(body)["choices"][0]
            ids = tuple(int(i) for i in choice["token_ids"])
            if not (needs.sampled or needs.top_k):
                return Drawn(ids)
            said = choice["logprobs"]
            tops = said["top_logprobs"] if needs.top_k else [{} for _ in ids]
            listed = [
                _ranked(top or {}, f"token_id:{i}", p)
                for i, p, top in zip(ids, said["token_logprobs"], tops, strict=True)
            ]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError, AttributeError) as error:
            raise EngineError(
                f"{self.endpoint.url} answered with what is no completion: {type(error).__name__}",
                hint="nothing was trained on it; look at the server's log",
            ) from None
        return drawn(ids, listed, needs.top_k, where=self.endpoint.url)

    def sync(self, state: Mapping[str, Tensor] | None, *, version: int) -> None:
        """Write, tell the server, forget what was cached under the old weights, ask the canary.

        CanaryError where the weights did not arrive, EngineError where the server does not take any.
        """
        if state is not None:
            self._publish(state)
            self.endpoint.one("/reset_prefix_cache", b"")
            if self.canary is None:
                self.canary = Canary(
                    self.loaded,
                    self._logps,
                    bound=self.cfg.canary,
                    start=self.cfg.canary_start,
                    dtype=self.dtype,
                    room=self.max_length,
                )
            else:
                self.canary.check()
        self.version = version

    def _publish(self, state: Mapping[str, Tensor]) -> None:
        folder = self.share.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "model.safetensors"
        _write(path, state, DTYPES[self.dtype])
        call: dict[str, Any] = {"method": "opd_load", "args": [str(path)]}
        if self.cfg.publish == "reload":
            call = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            self.endpoint.one("/collective_rpc", json.dumps(call).encode())
        except Refused as error:
            raise EngineError(
                f"{self.endpoint.url} takes no weights: {error}", hint=f"start it so: {_LAUNCH}"
            ) from None

    def _logps(self, ids: tuple[int, ...]) -> Tensor:
        """The server's log-probs at temperature 1 of all tokens of a sequence but the first."""
        body = {
            "model": self.model,
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": 0,
        }
        reply = self.endpoint.one("/v1/completions", json.dumps(body).encode())
        try:
            rows = json.loads(reply)["choices"][0]["prompt_logprobs"][1:]
            return torch.tensor([float(row[str(i)]["logprob"]) for row, i in zip(rows, ids[1:], strict=True)])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise EngineError(
                f"{self.endpoint.url} gave no log-probs of a prompt: {type(error).__name__}",
                hint="check sampling.url: it must be vLLM with the student",
            ) from None

    def close(self) -> None:
        (self.share / "model.safetensors").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others may keep files in a folder they named
            self.share.rmdir()


def _endpoint(cfg: VllmServerSampling) -> Endpoint:
    """As many requests at once as rows are decoded at once: a response is one request."""
    patience = cfg.patience.model_copy(update={"concurrency": cfg.batch_rows})
    return Endpoint(cfg.url, patience=patience, token=token("sampling"), key="sampling")


def _ranked(top: Mapping[str, float], taken: str, logp: float) -> dict[int, tuple[int, float]]:
    """id → (rank, log-prob); the token taken comes last where it is not among the top."""
    order = sorted(top.items(), key=lambda pair: -pair[1])
    found = {int(name.removeprefix("token_id:")): (rank, float(p)) for rank, (name, p) in enumerate(order, 1)}
    own = int(taken.removeprefix("token_id:"))
    return found if own in found else {**found, own: (len(found) + 1, float(logp))}


def _write(path: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Whole before it has its name: the server never reads half a file. A tied tensor is written once."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    tensors = {}
    for name, tensor in state.items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.detach().to(dtype).contiguous().cpu()
    part = path.with_suffix(".part")
    save_file(tensors, part)
    os.replace(part, path)
