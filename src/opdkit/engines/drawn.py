"""What the two vLLM samplers share: which rows to draw, what was said of them, and the rollouts that makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opdkit.config import SamplingConfig
from opdkit.engines.client import EngineError
from opdkit.models.draw import stream_key
from opdkit.models.load import LoadedModel
from opdkit.types import Prompt, Rollout, UserError

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
        raise EngineError(f"{where} sent log-probs that no distribution has", hint="look at its log")
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
