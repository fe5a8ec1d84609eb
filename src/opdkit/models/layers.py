"""One decoding step of a Llama-like body without the body's own Python: a third of the time of a small model's step.

Reads the module's own weights at every step, so nothing has to be refreshed when they change. `fast_layers`
returns None for what it does not recognise; that what it recognises is computed rightly is measured
(`decode.check`), never assumed.

Letters: R rows, D hidden, H query heads, h key-value heads, d head width, C columns of the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from opdkit.models.cache import KVCache


@dataclass(frozen=True)
class _Norm:
    """Root-mean-square norm. Gemma stores its gain as a difference from 1."""

    gain: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.gain.shape, self.gain, self.eps)


@dataclass(frozen=True)
class _Linear:
    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class _Layer:
    attention_norm: _Norm
    query: _Linear
    key: _Linear
    value: _Linear
    out: _Linear
    head_gain: Tensor | None  # [H + h, d] of Qwen3's norms of queries and keys
    head_eps: float
    scaling: float
    mlp_norm: _Norm
    gate: _Linear
    up: _Linear
    down: _Linear
    activation: Callable[[Tensor], Tensor]


class FastLayers:
    """The body's step for one token per row.

    Residuals stay in the embedding's dtype, products are made in `dtype`.
    """

    def __init__(self, body: Any, layers: list[_Layer], *, dtype: torch.dtype):
        self.body, self.layers, self.dtype = body, layers, dtype
        self.width = int(layers[0].query.weight.shape[0] + layers[0].key.weight.shape[0])
        self.head_width = int(body.layers[0].self_attn.head_dim)
        self.key_heads = int(layers[0].key.weight.shape[0]) // self.head_width
        self._rotations: tuple[Tensor, Tensor] | None = None

    def step(
        self,
        tokens: Int[Tensor, " R"],
        cache: KVCache,
        *,
        position: Int[Tensor, "R 1"] | int,
        seen: Bool[Tensor, "R 1 1 C"] | None,
    ) -> Float[Tensor, "R D"]:
        """Hidden states after the final norm; writes the cache's current column.

        One position for all rows may be an int.
        """
        hidden = self.body.embed_tokens(tokens)
        cos, sin = self._rotation(position, hidden, reach=cache.column + 1)
        for index, layer in enumerate(self.layers):
            x = layer.attention_norm(hidden).to(self.dtype)
            query_key, value = torch.cat((layer.query(x), layer.key(x)), -1), layer.value(x)
            query_key = self._rotated(layer, query_key.view(len(tokens), -1, self.head_width), cos, sin)
            hidden = hidden + layer.out(self._attended(layer, query_key, value, cache, index, seen))
            x = layer.mlp_norm(hidden).to(self.dtype)
            hidden = hidden + layer.down(layer.activation(layer.gate(x)).mul_(layer.up(x)))
        return self.body.norm(hidden)

    def _rotated(self, layer: _Layer, query_key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries and keys [R, H + h, d], normed and turned together.

        `sin` is signed, so a roll does rotate_half's work.
        """
        if layer.head_gain is not None:
            query_key = F.rms_norm(query_key, (self.head_width,), None, layer.head_eps) * layer.head_gain
        return torch.addcmul(query_key * cos, query_key.roll(self.head_width // 2, -1), sin).to(self.dtype)

    def _attended(
        self, layer: _Layer, query_key: Tensor, value: Tensor, cache: KVCache, index: int, seen: Tensor | None
    ) -> Tensor:
        """[R, H·d]. The queries of one key head count as its query positions, so keys are not repeated."""
        rows = query_key.shape[0]
        query, key = query_key[:, : -self.key_heads], query_key[:, -self.key_heads :]
        keys, values = cache.update(
            key[:, :, None], value.view(rows, self.key_heads, 1, self.head_width), index
        )
        query = query.reshape(rows, self.key_heads, -1, self.head_width)
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=layer.scaling)
        return mixed.reshape(rows, -1)

    def _rotation(self, position: Tensor | int, like: Tensor, *, reach: int) -> tuple[Tensor, Tensor]:
        """cos and signed sin at `position`, [R, 1, d] or [d], from a table that grows with the sequences."""
        if self._rotations is None or self._rotations[0].shape[0] < reach:
            table = torch.arange(reach + 512, device=like.device)[None]
            cos, sin = (part[0] for part in self.body.rotary_emb(like[None], table))
            first, second = sin.chunk(2, -1)
            self._rotations = cos, torch.cat((-first, second), -1)
        cos, sin = self._rotations
        return cos[position], sin[position]


@torch.no_grad()
def fast_layers(body: Any, *, dtype: torch.dtype) -> FastLayers | None:
    """The body's layers if they are plain Llama-like ones (Llama, Qwen2, Qwen3, Mistral, Gemma, SmolLM), else None."""
    try:
        plain = [_read(layer, dtype) for layer in body.layers]
        return (
            FastLayers(body, plain, dtype=dtype)
            if all(hasattr(body, n) for n in ("embed_tokens", "rotary_emb", "norm"))
            else None
        )
    except (AttributeError, TypeError):  # a part is missing, or is not what it is in a Llama
        return None


def _read(layer: Any, dtype: torch.dtype) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    gain, eps = _head_norms(attention)
    return _Layer(
        attention_norm=_norm(layer.input_layernorm),
        query=_linear(attention.q_proj, dtype),
        key=_linear(attention.k_proj, dtype),
        value=_linear(attention.v_proj, dtype),
        out=_linear(attention.o_proj, dtype),
        head_gain=gain,
        head_eps=eps,
        scaling=float(attention.scaling),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate=_linear(mlp.gate_proj, dtype),
        up=_linear(mlp.up_proj, dtype),
        down=_linear(mlp.down_proj, dtype),
        activation=mlp.act_fn,
    )


def _linear(module: Any, dtype: torch.dtype) -> _Linear:
    """The module's own tensors, or copies in another dtype.

    TypeError for a wrapped one (an adapter, a quantised weight).
    """
    if type(module) is not nn.Linear:
        raise TypeError(type(module).__name__)
    return _Linear(module.weight.to(dtype), None if module.bias is None else module.bias.to(dtype))


def _norm(module: Any) -> _Norm:
    eps = getattr(module, "variance_epsilon", None) or module.eps
    return _Norm(_gain(module), float(eps))


def _gain(module: Any) -> Tensor:
    """Which of the two conventions for the gain a norm follows, asked of the module itself."""
    weight = module.weight
    probe = torch.linspace(-2.0, 2.0, weight.shape[0], device=weight.device, dtype=weight.dtype)[None]
    wanted = module(probe)
    eps = getattr(module, "variance_epsilon", None) or module.eps
    candidates = (weight, 1.0 + weight)
    errors = [float((F.rms_norm(probe, gain.shape, gain, eps) - wanted).abs().max()) for gain in candidates]
    return candidates[errors.index(min(errors))]


def _head_norms(attention: Any) -> tuple[Tensor | None, float]:
    if not hasattr(attention, "q_norm"):
        return None, 0.0
    query, key = _norm(attention.q_norm), _norm(attention.k_norm)
    width = attention.head_dim
    query_heads, key_heads = (
        attention.q_proj.weight.shape[0] // width,
        attention.k_proj.weight.shape[0] // width,
    )
    return torch.cat((query.gain.expand(query_heads, width), key.gain.expand(key_heads, width))), query.eps
