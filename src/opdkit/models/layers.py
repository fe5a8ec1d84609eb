"""One decoding step of a Llama-like body without the body's own Python, which costs a small model dearly.

Binds the module's weights when a call of `sample` begins (views of them, or copies where a joint or narrower
one is faster) and is dropped with it, so nothing outlives a change of the weights. `fast_layers` returns None
for what it does not recognise; that what it recognises is computed rightly is measured (`decode.check`).

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

from opdkit.models.adapter import effective_weight, is_adapted
from opdkit.models.cache import KVCache

_JOINT_WEIGHTS = 1 << 20  # weights of up to so many entries are joined: one product costs less than three


class _Norm:
    """Root-mean-square norm over the last axis: x / hypot(|x|, sqrt(D eps)) · sqrt(D) gain."""

    def __init__(self, gain: Tensor, eps: float):
        self.gain, self.eps = gain, eps
        width = gain.shape[-1]
        # Four operators instead of torch's eight on a CPU; a GPU has one kernel, bf16 needs its sums.
        self.by_hand = gain.device.type == "cpu" and gain.itemsize >= 4
        self.scaled_gain, self.floor = gain * width**0.5, gain.new_tensor((width * eps) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        if not (self.by_hand and x.dtype == self.gain.dtype):
            return F.rms_norm(x, x.shape[-1:], None, self.eps) * self.gain
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self.floor)
        return (x / length).mul_(self.scaled_gain)


@dataclass(frozen=True)
class _Linear:
    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        if self.bias is not None or residual.dtype != x.dtype:
            return residual + self(x)
        return torch.addmm(residual, x, self.weight.T)


@dataclass(frozen=True)
class _Layer:
    attention_norm: _Norm
    query_key_value: tuple[_Linear, ...]  # one joint product, or three
    head_norm: _Norm | None  # gain [H + h, d]: Qwen3's norms of queries and keys
    scaling: float
    out: _Linear
    mlp_norm: _Norm
    gate: _Linear
    up: _Linear
    down: _Linear
    activation: Callable[[Tensor], Tensor]


class FastLayers:
    """The body's step for one token per row.

    Residuals stay in the embedding's dtype, products are made in `dtype`, as under autocast.
    """

    def __init__(self, body: Any, *, dtype: torch.dtype):
        attention = body.layers[0].self_attn
        self.embed, self.rotary, self.norm = body.embed_tokens, body.rotary_emb, body.norm
        self.layers = [_read(layer, dtype) for layer in body.layers]
        self.dtype = dtype
        self.head_width = int(attention.head_dim)
        self.key_heads = int(attention.k_proj.weight.shape[0]) // self.head_width
        self._table: tuple[Tensor, Tensor] | None = None

    def step(
        self,
        tokens: Int[Tensor, " R"],
        cache: KVCache,
        *,
        position: Int[Tensor, "R 1"] | int,
        seen: Bool[Tensor, "R 1 1 C"] | None,
    ) -> Float[Tensor, "R D"]:
        """Hidden states after the final norm; writes the cache's current column.

        `position` of the new tokens; an int where all rows have the same. `seen` None: every row sees all
        columns.
        """
        hidden, rows = self.embed(tokens), tokens.shape[0]
        cos, sin = self._rotation(position, hidden, reach=cache.column + 1)
        for index, layer in enumerate(self.layers):
            x = self._narrowed(layer.attention_norm(hidden))
            query, key, value = self._projected(layer, x, cos, sin)
            keys, values = cache.write(index, key, value)
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=layer.scaling)
            hidden = layer.out.added_to(hidden, mixed.reshape(rows, -1))
            x = self._narrowed(layer.mlp_norm(hidden))
            hidden = layer.down.added_to(hidden, layer.activation(layer.gate(x)).mul_(layer.up(x)))
        return self.norm(hidden)

    def _narrowed(self, x: Tensor) -> Tensor:
        return x if x.dtype == self.dtype else x.to(self.dtype)

    def _projected(self, layer: _Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [R, h, H / h, d], keys and values [R, h, d]; queries and keys normed and turned together.

        The queries that share a key head count as its query positions, so keys need not be repeated.
        """
        parts = [linear(x) for linear in layer.query_key_value]
        joint = (parts[0] if len(parts) == 1 else torch.cat(parts, -1)).view(x.shape[0], -1, self.head_width)
        turned, value = joint[:, : -self.key_heads], joint[:, -self.key_heads :]
        if layer.head_norm is not None:
            turned = layer.head_norm(turned)
        # `sin` is signed, so a roll does rotate_half's work.
        turned = self._narrowed(torch.addcmul(turned * cos, turned.roll(self.head_width // 2, -1), sin))
        query, key = turned[:, : -self.key_heads], turned[:, -self.key_heads :]
        return query.view(x.shape[0], self.key_heads, -1, self.head_width), key, value

    def _rotation(self, position: Tensor | int, like: Tensor, *, reach: int) -> tuple[Tensor, Tensor]:
        """cos and signed sin at `position`, [R, 1, d] or [d], from a table that grows with the sequences."""
        if self._table is None or self._table[0].shape[0] < reach:
            table = torch.arange(reach + 512, device=like.device)[None]
            cos, sin = (part[0] for part in self.rotary(like[None], table))
            first, second = sin.chunk(2, -1)
            self._table = cos, torch.cat((-first, second), -1)
        cos, sin = self._table
        return cos[position], sin[position]


@torch.no_grad()
def fast_layers(body: Any, *, dtype: torch.dtype) -> FastLayers | None:
    """The body's layers if they are like a Llama's (Qwen2, Qwen3, Mistral, Gemma, SmolLM), else None."""
    try:
        return FastLayers(body, dtype=dtype)
    except (AttributeError, TypeError):  # a part is missing, or is not what it is in a Llama
        return None


def _read(layer: Any, dtype: torch.dtype) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    projections = [_linear(m, dtype) for m in (attention.q_proj, attention.k_proj, attention.v_proj)]
    return _Layer(
        attention_norm=_norm(layer.input_layernorm),
        query_key_value=_joined(projections),
        head_norm=_head_norm(attention),
        scaling=float(attention.scaling),
        out=_linear(attention.o_proj, dtype),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate=_linear(mlp.gate_proj, dtype),
        up=_linear(mlp.up_proj, dtype),
        down=_linear(mlp.down_proj, dtype),
        activation=mlp.act_fn,
    )


def _linear(module: Any, dtype: torch.dtype) -> _Linear:
    """The module's own tensors, or copies in another dtype; with a low-rank adapter, a copy that has it merged.

    TypeError for one that is wrapped otherwise (a quantised weight).
    """
    if type(module) is not nn.Linear and not is_adapted(module):
        raise TypeError(type(module).__name__)
    return _Linear(effective_weight(module).to(dtype), None if module.bias is None else module.bias.to(dtype))


def _joined(linears: list[_Linear]) -> tuple[_Linear, ...]:
    biases = [linear.bias for linear in linears if linear.bias is not None]
    large = sum(linear.weight.numel() for linear in linears) > _JOINT_WEIGHTS
    if large or len(biases) not in (0, len(linears)):
        return tuple(linears)
    weight = torch.cat([linear.weight for linear in linears])
    return (_Linear(weight, torch.cat(biases) if biases else None),)


def _norm(module: Any) -> _Norm:
    """The module's norm, its gain as the module means it: Gemma stores the difference from 1."""
    weight = module.weight
    eps = float(getattr(module, "variance_epsilon", None) or module.eps)
    probe = torch.linspace(-2.0, 2.0, weight.shape[0], device=weight.device, dtype=weight.dtype)[None]
    candidates = [_Norm(weight, eps)]
    if weight.itemsize >= 4:  # Gemma adds its 1 in float32; a narrower sum would not be the body's
        candidates.append(_Norm(1.0 + weight, eps))
    wanted = module(probe)
    return min(candidates, key=lambda norm: float((norm(probe) - wanted).abs().max()))


def _head_norm(attention: Any) -> _Norm | None:
    if not hasattr(attention, "q_norm"):
        return None
    query, key, width = _norm(attention.q_norm), _norm(attention.k_norm), attention.head_dim
    heads = [m.weight.shape[0] // width for m in (attention.q_proj, attention.k_proj)]
    return _Norm(torch.cat((query.gain.expand(heads[0], width), key.gain.expand(heads[1], width))), query.eps)
