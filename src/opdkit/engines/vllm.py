"""A Sampler that is vLLM in this process: its weights are published by reference after every step, then the canary is asked.

Its log-probs are of the distribution drawn from (`processed_logprobs`: after temperature and truncation), so without truncation
they are the untruncated ones at the sampling temperature as well. Entropy it does not give.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from opdkit.config import SamplingConfig, VllmSampling
from opdkit.engines.canary import Canary
from opdkit.engines.client import before_the_run
from opdkit.engines.drawn import Drawn, Row, banned_rows, drawn, rollouts_of, rows_of, stops_of
from opdkit.engines.vllm_extension import NAME
from opdkit.models.load import DTYPES, LoadedModel
from opdkit.types import Needs, Prompt, Rollout, UserError


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

    def __init__(
        self,
        cfg: VllmSampling,
        *,
        folder: str,
        loaded: LoadedModel,
        width: int,
        dtype: str,
        revision: str | None = None,
    ):
        """Reads `folder`, or a Hub id at `revision`: the weights `loaded` has too. `width`: the top-k asked for while training.

        UserError where vLLM is missing or cannot run the model.
        """
        self.cfg, self.loaded, self.version = cfg, loaded, 0
        self.max_length = min(cfg.max_length or loaded.max_length, loaded.max_length)
        self.offers = Needs(sampled=True, top_k=max(width, 1))
        self.bias = banned_rows(loaded)
        self.dtype = cfg.dtype or dtype  # of the engine's weights
        self.llm = _engine(
            cfg, folder, width=width, dtype=self.dtype, reach=self.max_length, revision=revision
        )
        try:
            with before_the_run():
                self.canary = Canary(
                    loaded,
                    self._logps,
                    bound=cfg.canary,
                    start=cfg.canary_start,
                    dtype=self.dtype,
                    room=self.max_length,
                )
        except UserError:
            self.close()
            raise

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
        return rollouts_of(rows, found, sampling, stops, loaded=self.loaded, sampler=self)

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
            state = {name: tensor.to(DTYPES[self.dtype]) for name, tensor in state.items()}
            if self.cfg.publish == "extension":
                self.llm.collective_rpc("opd_load", args=(state,))
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


def _engine(
    cfg: VllmSampling, folder: str, *, width: int, dtype: str, reach: int, revision: str | None
) -> Any:
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
            revision=revision,
            tokenizer_revision=revision,
            max_model_len=min(reach, 1 << 20),
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
