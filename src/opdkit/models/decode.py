"""Decode rows with one key-value cache: prefill prompts, step all rows by a token, drop those that are done.

Prefill goes through the model's own body. A step goes through `layers.FastLayers` where they reproduce the
body, else through the body too. Which architectures can be decoded at all is found out by trying: see
`check`.

Letters: R rows in the cache, P prompts of one prefill, L prompt tokens, D hidden.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opdkit.models.cache import KVCache, Prefilled
from opdkit.models.layers import FastLayers, fast_layers
from opdkit.models.load import LoadedModel
from opdkit.types import UserError

PREFILL_TOKENS = 16384  # padded prompt tokens of one prefill forward
_LAYER_TYPES = ("full_attention", "sliding_attention")


class Decoder:
    """Rows under way on one model."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        slots: int,
        room: int = 1 << 30,
        compute: torch.dtype | None = None,
        fast: bool = True,
    ):
        """Up to `slots` rows of about `room` new tokens; `fast` uses `FastLayers` if they know the body."""
        self.loaded = loaded
        self.compute = compute
        self.cache = KVCache(slots, room=room, dtype=compute)
        self.windows = layer_windows(loaded.model.config)
        plain = fast and self.windows == {"full_attention": None}
        self.layers = fast_layers(loaded.body, dtype=compute or loaded.model.dtype) if plain else None
        self._starts: Tensor | None = None  # [R, 1] on the device, rebuilt when rows come or go

    @property
    def rows(self) -> int:
        return self.cache.rows

    def admit(self, prompts: Sequence[Sequence[int]], *, responses: Sequence[int]) -> Float[Tensor, "R D"]:
        """Prefill each prompt once for its rows; the hidden states that predict their first tokens."""
        hidden = []
        for part in _prefill_parts([len(p) for p in prompts]):
            hidden.append(self._prefill(prompts[part], responses[part]))
        self._starts = None
        return torch.cat(hidden)

    def step(self, tokens: Int[Tensor, " R"]) -> Float[Tensor, "R D"]:
        """Feed each row its latest token; the hidden states that predict the next ones."""
        if self._starts is None:
            self._starts = torch.tensor(self.cache.starts, device=tokens.device)[:, None]
        hidden = (
            self._through_body(tokens) if self.layers is None else self._through_layers(tokens, self.layers)
        )
        low = self.cache.low
        self.cache.advance()
        if self.cache.low != low:  # the columns were renumbered
            self._starts = None
        return hidden

    def _through_layers(self, tokens: Tensor, layers: FastLayers) -> Tensor:
        assert self._starts is not None
        cache = self.cache
        if not cache.padded:
            return layers.step(tokens, cache, position=cache.column - cache.low, seen=None)
        return layers.step(tokens, cache, position=cache.column - self._starts, seen=self._seen(None))

    def _through_body(self, tokens: Tensor) -> Tensor:
        assert self._starts is not None
        with self.arithmetic():
            output = self.loaded.body(
                input_ids=tokens[:, None],
                attention_mask=self._masks(),
                position_ids=self.cache.column - self._starts,
                past_key_values=self.cache,
                use_cache=True,
            )
        return output.last_hidden_state[:, 0]

    def drop(self, rows: Sequence[int]) -> list[int]:
        """Remove rows; returns which old row each remaining one was."""
        self._starts = None
        return self.cache.drop(rows)

    def _prefill(self, prompts: Sequence[Sequence[int]], responses: Sequence[int]) -> Float[Tensor, "R D"]:
        """Right-padded and causal, so padding is never looked at and needs no mask."""
        lengths = [len(p) for p in prompts]
        ids = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        device = self.loaded.device
        found = Prefilled()
        with self.arithmetic():
            output = self.loaded.body(input_ids=ids.to(device), past_key_values=found, use_cache=True)
        source = [p for p, count in enumerate(responses) for _ in range(count)]
        self.cache.admit(found.states, lengths=lengths, source=source)
        last = torch.tensor([lengths[p] - 1 for p in source], device=device)
        return output.last_hidden_state[torch.tensor(source, device=device), last]

    def _masks(self) -> Any:
        """What layers may look at, [R, 1, 1, C]: one mask, or one per kind where a body has several."""
        masks = {kind: self._mask(window) for kind, window in self.windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _mask(self, window: int | None) -> Tensor:
        seen = self._seen(window)
        if self.loaded.model.config._attn_implementation != "eager":
            return seen
        dtype = self.compute or self.loaded.model.dtype  # eager attention adds its mask to the scores
        return added_to_scores(seen, dtype)

    def _seen(self, window: int | None) -> Tensor:
        """[R, 1, 1, C], True where a row's newest token looks: its own columns, the last `window` of them."""
        assert self._starts is not None
        columns = torch.arange(self.cache.low, self.cache.column + 1, device=self._starts.device)
        seen = columns >= self._starts
        if window is not None:
            seen = seen & (columns > self.cache.column - window)
        return seen[:, None, None, :]

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        if self.compute is None or self.compute == self.loaded.model.dtype:
            return contextlib.nullcontext()
        return torch.autocast(self.loaded.device.type, dtype=self.compute)


def added_to_scores(seen: Bool[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """0 where a token looks, the lowest number where it does not."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
        ~seen, torch.finfo(dtype).min
    )


def layer_windows(config: Any) -> dict[str, int | None]:
    """Kinds of attention layers a body has and how many tokens each looks back over (None = all).

    Raises ValueError for kinds that need more than a key-value cache.
    """
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
    for kind in kinds:
        if kind not in _LAYER_TYPES:
            raise ValueError(f"it has {kind.replace('_', ' ')} layers")
    return {kind: window if kind == "sliding_attention" else None for kind in dict.fromkeys(kinds)}


def _prefill_parts(lengths: Sequence[int]) -> Iterator[slice]:
    """Consecutive prompts whose padded tokens stay within one forward's budget; always at least one."""
    begin = 0
    while begin < len(lengths):
        end, widest = begin + 1, lengths[begin]
        while end < len(lengths) and max(widest, lengths[end]) * (end + 1 - begin) <= PREFILL_TOKENS:
            widest = max(widest, lengths[end])
            end += 1
        yield slice(begin, end)
        begin = end


# --- can this model be decoded? -----------------------------------------------------------------------------


def check(loaded: LoadedModel, *, compute: torch.dtype | None = None) -> bool:
    """Whether the fast layers may be used. UserError unless decoding equals fresh forwards.

    Found out by trying rather than by a list of names: a new architecture works if its numbers do.
    """
    narrow = (compute or loaded.model.dtype) in (torch.bfloat16, torch.float16)
    tolerance = 5e-2 if narrow else 1e-4
    reason = ""
    for fast in (True, False):
        try:
            error = _decoding_error(loaded, compute, fast=fast)
        except Exception as problem:  # whatever a body raises when it meets a cache it was not written for
            reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
            continue
        if error is not None and error <= tolerance:
            return fast
        reason = f"decoding with a key-value cache differs from a fresh forward by {error or 0:.2g}"
    raise _refused(loaded, reason)


@torch.inference_mode()
def _decoding_error(loaded: LoadedModel, compute: torch.dtype | None, *, fast: bool) -> float | None:
    """Largest difference over largest value, on rows of 9, 5 and 3 prompt tokens stepped 4 times.

    None where there are no fast layers to try.
    """
    _check_positions(loaded.model.config)
    rows = [
        [(7 * i + 3 * r + i * i) % loaded.head.rows for i in range(n + 4)] for r, n in enumerate((9, 5, 3))
    ]
    decoder = Decoder(loaded, slots=3, compute=compute, fast=fast)
    if fast and decoder.layers is None:
        return None
    decoder.admit([row[:-4] for row in rows], responses=[1, 1, 1])
    device = loaded.device
    stepped = [decoder.step(torch.tensor([row[i - 4] for row in rows], device=device)) for i in range(4)]
    worst = 0.0
    for r, row in enumerate(rows):
        with decoder.arithmetic():
            fresh = loaded.body(
                input_ids=torch.tensor([row], device=device), use_cache=False
            ).last_hidden_state[0, -4:]
        ours = torch.stack([hidden[r] for hidden in stepped])
        worst = max(worst, float((ours - fresh).abs().max() / fresh.abs().max()))
    return worst


def _check_positions(config: Any) -> None:
    """Rotary frequencies that change with a batch's longest row would tie rows to their neighbours."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = {str(value.get("rope_type")) for value in (rope, *rope.values()) if isinstance(value, dict)}
    for kind in kinds & {"dynamic", "longrope"}:
        raise ValueError(f"its {kind} rotary positions depend on the length of the batch")


def _refused(loaded: LoadedModel, why: str) -> UserError:
    return UserError(
        f"{type(loaded.model).__name__} ({loaded.name}) cannot be sampled here: {why}",
        hint="known to work: Llama, Qwen2, Qwen3, Mistral, Gemma, Gemma 2 and 3 (text), SmolLM",
    )
