"""A Sampler that is vLLM in this process: its weights are published by reference after every step, then the canary is asked.

Its log-probs are of the distribution drawn from (`processed_logprobs`: after temperature and truncation), so without truncation
they are the untruncated ones at the sampling temperature as well. Entropy it does not give.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opdkit.config import SamplingConfig, VllmSampling
from opdkit.engines.canary import Canary
from opdkit.engines.client import EngineError
from opdkit.engines.vllm_extension import NAME
from opdkit.models.draw import stream_key
from opdkit.models.load import LoadedModel
from opdkit.types import Needs, Prompt, Rollout, UserError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
BANNED = -100.0  # logit bias of embedding rows that no tokenizer knows: e⁻¹⁰⁰ is nothing in float32


@dataclass(frozen=True)
class Row:
    """One response to draw: the seed of its stream, and the most tokens the context leaves."""

    prompt: Prompt
    sample: int
    limit: int
    seed: int


def rows_of(
    prompts: Sequence[Prompt], sampling: SamplingConfig, *, seed: int, step: int, max_length: int
) -> list[Row]:
    """G rows per prompt, in order; a prompt that is there twice goes on with its samples' numbering.

    UserError for a prompt that fills the context.
    """
    seen: dict[str, int] = {}
    rows = []
    for prompt in prompts:
        room = max_length - len(prompt.ids)
        if room < 1 or not prompt.ids:
            raise UserError(
                f"prompt {prompt.id} has {len(prompt.ids)} tokens, the engine reaches {max_length}",
                hint="leave out prompts that fill the context, or raise sampling.max_length",
            )
        first = seen.get(prompt.id, 0)
        seen[prompt.id] = first + sampling.responses
        for sample in range(sampling.responses):
            key = stream_key(seed=seed, step=step, prompt=prompt.id, sample=first + sample)
            rows.append(Row(prompt, sample, min(sampling.max_tokens, room), key % (1 << 63)))
    return rows


def check_installed() -> None:
    """UserError where there is no vLLM, before anything is loaded."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "sampling.type=vllm needs vLLM, which is not installed",
            hint="pip install 'opdkit[vllm]', or sampling.type=local",
        )


class VllmSampler:
    """Lives in the learner's process; `close` frees the engine."""

    name = "vllm"
    shares_weights = False

    def __init__(self, cfg: VllmSampling, *, folder: str, loaded: LoadedModel, width: int, dtype: str):
        """Reads `folder`, the weights `loaded` has too. `width`: the top-k asked for while training.

        UserError where vLLM is missing or cannot run the model.
        """
        self.cfg, self.loaded, self.version = cfg, loaded, 0
        self.max_length = min(cfg.max_length or loaded.max_length, loaded.max_length)
        self.offers = Needs(sampled=True, top_k=max(width, 1))
        self.bias = banned_rows(loaded)
        self.dtype = _DTYPES[cfg.dtype or dtype]  # of the engine's weights
        self.llm = _engine(cfg, folder, width=width, dtype=cfg.dtype or dtype, max_length=self.max_length)
        try:
            self.canary = Canary(
                loaded, self._logps, bound=cfg.canary, start=cfg.canary_start, room=self.max_length
            )
        except EngineError as error:
            self.close()
            raise UserError(str(error), hint=error.hint) from None

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
        """As `LocalSampler.sample`; draws differ from it, distributions do not."""
        assert not needs.unmet(self.offers), needs.unmet(self.offers)
        rows = rows_of(prompts, sampling, seed=seed, step=step, max_length=self.max_length)
        if not rows:
            return []
        stops = stops_of(stop_ids, sampling, self.loaded)
        asked = [{"prompt_token_ids": list(row.prompt.ids)} for row in rows]
        params = [self._params(row, sampling, needs, stops) for row in rows]
        outputs = self.llm.generate(asked, params, use_tqdm=False)
        found = [self._drawn(output, needs) for output in outputs]
        return rollouts_of(rows, found, sampling, stops, needs=needs, loaded=self.loaded, sampler=self)

    def _params(self, row: Row, sampling: SamplingConfig, needs: Needs, stops: Sequence[int]) -> Any:
        from vllm import SamplingParams

        asks = needs.sampled or needs.top_k
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or -1,
            max_tokens=row.limit,
            min_tokens=min(sampling.min_tokens, row.limit),
            seed=row.seed if self.cfg.seeded else None,
            logprobs=needs.top_k if asks else None,
            stop_token_ids=list(stops),
            ignore_eos=True,  # ends are ours alone
            detokenize=False,
            logit_bias=self.bias or None,
        )

    def _drawn(self, output: Any, needs: Needs) -> Drawn:
        first = output.outputs[0]
        ids = tuple(int(i) for i in first.token_ids)
        if not (needs.sampled or needs.top_k):
            return Drawn(ids)
        said = [{int(i): (p.rank, p.logprob) for i, p in at.items()} for at in first.logprobs or ()]
        return drawn(ids, said, needs.top_k, where="vLLM")

    def sync(self, state: Mapping[str, Tensor] | None, *, version: int) -> None:
        """Publish, forget what was cached under the old weights, ask the canary. CanaryError where it is not well."""
        if state is not None:
            state = {name: tensor.to(self.dtype) for name, tensor in state.items()}
            if self.cfg.publish == "extension":
                self.llm.collective_rpc("opd_load", args=(dict(state),))
            else:
                self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(state.items())})
            self.llm.reset_prefix_cache()
            self.canary.check()
        self.version = version

    def _logps(self, ids: tuple[int, ...]) -> Tensor:
        """The engine's log-probs at temperature 1 of all tokens of a sequence but the first."""
        from vllm import SamplingParams

        self.llm.reset_prefix_cache()  # cached positions would come back without log-probs
        params = SamplingParams(temperature=1.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        output = self.llm.generate([{"prompt_token_ids": list(ids)}], [params], use_tqdm=False)[0]
        rows = output.prompt_logprobs[1:]
        return torch.tensor([row[i].logprob for row, i in zip(rows, ids[1:], strict=True)])

    def close(self) -> None:
        llm, self.llm = self.llm, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()


def _engine(cfg: VllmSampling, folder: str, *, width: int, dtype: str, max_length: int) -> Any:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # tensors are handed over, not sent
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, where there is no GPU
    try:
        from vllm import LLM
    except ImportError as error:
        raise UserError(
            f"sampling.type=vllm needs vLLM: {error}",
            hint="pip install 'opdkit[vllm]', or sampling.type=local",
        ) from None
    try:
        return LLM(
            model=folder,
            tokenizer=folder,
            dtype=dtype,
            max_model_len=min(max_length, 1 << 20),
            gpu_memory_utilization=cfg.memory,
            enforce_eager=cfg.eager,
            max_num_seqs=cfg.batch_rows,
            max_logprobs=max(width, 1),
            logprobs_mode="processed_logprobs",
            enable_prefix_caching=True,
            worker_extension_cls=NAME,
            trust_remote_code=False,
            load_format="safetensors",
            seed=0,
        )
    except Exception as error:  # whatever the engine makes of a model or of too little memory
        text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"vLLM does not start with {folder}: {text[:300]}",
            hint="sampling.memory=…, or sampling.type=local",
        ) from error


# --- shared with the server's sampler -----------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """What an engine said of one response."""

    ids: tuple[int, ...]
    logp: Tensor | None = None  # [T], of the distribution drawn from
    topk_ids: Tensor | None = None  # [T, K]
    topk_logp: Tensor | None = None


def drawn(
    ids: tuple[int, ...], said: Sequence[Mapping[int, tuple[int, float]]], k: int, *, where: str
) -> Drawn:
    """From id → (rank, log-prob) per position. EngineError where a position, its token or a candidate is missing."""
    if len(said) != len(ids) or any(i not in at for i, at in zip(ids, said, strict=True)):
        raise EngineError(
            f"{where} sent log-probs for {len(said)} of {len(ids)} tokens, or not of those drawn",
            hint="look at its log; sampling.type=local draws without it",
        )
    tops = [sorted((rank, i, p) for i, (rank, p) in at.items())[:k] for at in said]
    if any(len(top) < k for top in tops):
        raise EngineError(
            f"{where} sent fewer than the top {k} asked for", hint="start it with --max-logprobs"
        )
    logp = torch.tensor([at[i][1] for i, at in zip(ids, said, strict=True)], dtype=torch.float32)
    if not bool((logp.isfinite() & (logp <= 1e-4)).all()):
        raise EngineError(
            f"{where} sent log-probs that no distribution has", hint="look at its log; then resume"
        )
    if not k:
        return Drawn(ids, logp)
    top_ids = torch.tensor([[i for _, i, _ in top] for top in tops], dtype=torch.long).view(len(ids), k)
    top_logp = torch.tensor([[p for _, _, p in top] for top in tops], dtype=torch.float32).view(len(ids), k)
    return Drawn(ids, logp, top_ids, top_logp)


def rollouts_of(
    rows: Sequence[Row],
    found: Sequence[Drawn],
    sampling: SamplingConfig,
    stops: Sequence[int],
    *,
    needs: Needs,
    loaded: LoadedModel,
    sampler: Any,
) -> list[Rollout]:
    """Rollouts with what was said of them. Under truncation the untruncated log-prob is unknown, and left out."""
    ends = set(stops)
    whole = sampling.top_p >= 1.0 and sampling.top_k == 0 and sampling.min_tokens == 0
    for row, one in zip(rows, found, strict=True):
        _refuse_odd(row, one, rows=loaded.head.rows, name=sampler.name)
    texts = loaded.tokenizer.batch_decode([list(one.ids) for one in found], skip_special_tokens=True)
    return [
        Rollout(
            prompt=row.prompt,
            response_ids=one.ids,
            finish_reason="stop" if one.ids[-1] in ends else "length",
            text=text,
            sample=row.sample,
            temperature=sampling.temperature,
            behaviour_logp=one.logp,
            logp=one.logp if whole else None,
            topk_ids=one.topk_ids,
            topk_logp=one.topk_logp if whole else None,
            policy_version=sampler.version,
            sampler=sampler.name,
        )
        for row, one, text in zip(rows, found, texts, strict=True)
    ]


def _refuse_odd(row: Row, one: Drawn, *, rows: int, name: str) -> None:
    if not 1 <= len(one.ids) <= row.limit or max(one.ids, default=0) >= rows or min(one.ids, default=0) < 0:
        raise EngineError(
            f"{name} drew {len(one.ids)} tokens (at most {row.limit}), the largest {max(one.ids, default=-1)} of a "
            f"vocabulary of {rows}",
            hint="the engine serves another model: check sampling.url, or sampling.type=local",
        )


def stops_of(given: Sequence[int] | None, sampling: SamplingConfig, loaded: LoadedModel) -> list[int]:
    """End tokens, as the local sampler takes them."""
    chosen = given if given is not None else sampling.stop_ids
    return sorted(i for i in (loaded.stop_ids if chosen is None else chosen) if 0 <= i < loaded.head.rows)


def banned_rows(loaded: LoadedModel) -> dict[int, float]:
    """Ids behind the shared vocabulary, that nobody may draw: a bias for each."""
    every = int(loaded.model.config.get_text_config().vocab_size)
    return dict.fromkeys(range(loaded.head.rows, every), BANNED)
