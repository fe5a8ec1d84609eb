"""From hidden states to logits: the only file where a positions × V tensor may exist, one chunk at a time.

`fused_loss`     walks the packed positions in chunks; per chunk builds logits, the loss and its gradient,
                 turns that into d hidden and d weight, drops the logits. Never stored, never recomputed.
`columns_loss`   gathers only the support's rows of the head: for losses in which both distributions are
                 renormalised there, log p̄(v) = z_v − logsumexp_S z, so the vocabulary's normaliser cancels.
`read`           the same chunks without gradient: log-probs at ids, top-k, entropy.

`Ahead`          a frozen head's logits for those chunks.

Letters: N positions, n positions of one chunk or piece, S slots, V rows of the head in use, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from opdkit.support import RowDist
from opdkit.types import Needs, Scores

CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
"""Logits of one chunk, at least. Small on a CPU, where the memory saved matters more than the width of a GEMM, but not
below 32 MB: glibc gives such a tensor pages of its own and returns them; smaller ones left the heap in pieces (3 × the
peak)."""

CHUNK_ROWS = {"cpu": 224, "cuda": 16}
"""Positions of one chunk, at least. Every product with the head reads and packs all of its weight: at a vocabulary of
151,936 and width 896 the four products of a chunk cost, per position and on one CPU core, 1.36 times as much with 56
positions as with 448, 1.18 with 112, 1.05 with 224."""

PIECE_BYTES = {"cpu": 4 << 20}
"""Logits that loss and gradient look at together. A chunk is as large as its products want; the passes between them run
over pieces that stay in cache. A GPU takes the chunk whole."""


@dataclass(frozen=True)
class Head:
    """How one architecture makes logits: z = cap(scale · (h Wᵀ + b)) / temperature, first `rows` ids.

    Holds the module, not its weight: under FSDP2 the weight is whole only inside the module's own forward.
    """

    output: nn.Module  # has .weight [V_all, D], maybe .bias [V_all]
    rows: int  # ids that tokenizers share; embedding rows beyond are padding
    scale: float = 1.0  # Cohere's logit_scale, 1 / Granite's logits_scaling
    softcap: float | None = None  # Gemma 2's final_logit_softcapping, c·tanh(z / c)
    temperature: float = 1.0

    @property
    def weight(self) -> Tensor:
        weight = self.output.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.output, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    def at_temperature(self, temperature: float) -> Head:
        return replace(self, temperature=temperature)

    def used(self, dtype: torch.dtype) -> tuple[Float[Tensor, "V D"], Float[Tensor, " V"] | None]:
        """Weight and bias of the rows in use, in the dtype of the arithmetic."""
        bias = self.bias
        return self.weight[: self.rows].to(dtype), None if bias is None else bias[: self.rows].to(dtype)

    def raw(self, hidden: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
        """h Wᵀ + b over the rows in use, in the dtype of `hidden`."""
        return nn.functional.linear(hidden, *self.used(hidden.dtype))

    def finish(self, raw: Tensor) -> Tensor:
        """Scale, cap, temperature; float32 or wider from here on."""
        logits = raw.float() if raw.dtype in (torch.bfloat16, torch.float16) else raw
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits if self.temperature == 1.0 else logits / self.temperature

    def logits(self, hidden: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
        """Logits of a few positions (a decoding step's rows, one chunk). The caller keeps n small."""
        return self.finish(self.raw(hidden))

    def columns(self, hidden: Float[Tensor, "n D"], ids: Int[Tensor, "n S"]) -> Float[Tensor, "n S"]:
        """Logits at some ids per position from the gathered rows of the head; no [n, V] tensor."""
        raw = torch.einsum("nd,nsd->ns", hidden, self.weight[ids].to(hidden.dtype))
        bias = self.bias
        return self.finish(raw if bias is None else raw + bias[ids].to(hidden.dtype))

    def chunk_rows(self, given: int = 0, *, of: int, least: int | None = None) -> int:
        """Positions per chunk, `of` so many: `given`, or about the fewest that reach `least` (CHUNK_ROWS) and, in float32,
        CHUNK_BYTES, in chunks of one size: a short last one would pack the whole weight for a few positions."""
        kind = self.weight.device.type if self.weight.device.type in CHUNK_BYTES else "cuda"
        wanted = max(least or CHUNK_ROWS[kind], math.ceil(CHUNK_BYTES[kind] / (4 * self.rows)))
        return given or max(1, math.ceil(of / max(1, round(of / wanted))))

    def piece_rows(self) -> int | None:
        """Positions per piece of a chunk, or None for all of them."""
        budget = PIECE_BYTES.get(self.weight.device.type)
        return None if budget is None else max(1, budget // (4 * self.rows))


ChunkLoss = Callable[[Float[Tensor, "n V"], slice], Float[Tensor, ""]]
"""(finished logits of a piece of a chunk, which positions) → summed loss. May note measures, keeps no logits."""


def fused_loss(
    hidden: Float[Tensor, "N D"], head: Head, loss: ChunkLoss, *, chunk_rows: int = 0
) -> Float[Tensor, ""]:
    """Σ over chunks of `loss`, differentiable to `hidden` and to the head's weight and bias, once."""
    weight, bias = _wanted(head)
    return _Fused.apply(hidden, weight, bias, head, loss, head.chunk_rows(chunk_rows, of=len(hidden)))


def columns_loss(
    hidden: Float[Tensor, "N D"], head: Head, ids: Int[Tensor, "N S"], loss: ChunkLoss, *, chunk_rows: int = 0
) -> Float[Tensor, ""]:
    """Like `fused_loss`, but `loss` sees [n, S] logits at `ids`; only those rows are read and pushed."""
    gathered = 4 * ids.shape[-1] * hidden.shape[-1]
    rows = chunk_rows or max(16, CHUNK_BYTES["cpu"] // (2 * gathered))
    weight, bias = _wanted(head)
    return _Columns.apply(hidden, weight, bias, head, ids, loss, rows)


def _wanted(head: Head) -> tuple[Tensor, Tensor | None]:
    """Weight and bias as the loss takes them: under no_grad nobody will ask for their gradients, so none are built."""
    if torch.is_grad_enabled():
        return head.weight, head.bias
    return head.weight.detach(), None if head.bias is None else head.bias.detach()


def chunks(count: int, rows: int) -> Iterator[slice]:
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, loss: ChunkLoss, rows: int
    ) -> Tensor:
        grads = _Gradients(ctx, hidden, weight, bias, filled=head.rows if len(hidden) else 0)
        used, used_bias = head.used(hidden.dtype)  # cast once, not once a chunk
        total = hidden.new_zeros((), dtype=_wide(hidden.dtype))
        with torch.autocast(hidden.device.type, enabled=False):
            for part in chunks(hidden.shape[0], rows):
                raw = nn.functional.linear(hidden[part], used, used_bias)
                value, d_raw = _in_pieces(raw, head, loss, part, wants_grad=grads.any)
                total += value
                if grads.hidden is not None:
                    torch.mm(d_raw, used, out=grads.hidden[part])
                if grads.weight is not None:
                    filled = float(part.start > 0)  # the first chunk writes, the others add to it
                    pushed = d_raw.T.to(weight.dtype)
                    grads.weight[: head.rows].addmm_(pushed, hidden[part].to(weight.dtype), beta=filled)
                if grads.bias is not None:
                    grads.bias[: head.rows] += d_raw.sum(0).to(grads.bias.dtype)
                del raw, d_raw  # freed before the next is made
        grads.keep(ctx)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return (*_scaled(ctx, grad_outputs[0]), None, None, None)


class _Columns(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        ids: Tensor,
        loss: ChunkLoss,
        rows: int,
    ) -> Tensor:
        grads = _Gradients(ctx, hidden, weight, bias)
        total = hidden.new_zeros((), dtype=_wide(hidden.dtype))
        with torch.autocast(hidden.device.type, enabled=False):
            for part in chunks(hidden.shape[0], rows):
                gathered = weight[ids[part]].to(hidden.dtype)  # n S D
                raw = torch.einsum("nd,nsd->ns", hidden[part], gathered)
                raw = raw if bias is None else raw + bias[ids[part]].to(raw.dtype)
                value, d_raw = _value_and_grad(raw, head, loss, part, wants_grad=grads.any)
                total += value
                if grads.hidden is not None:
                    torch.bmm(d_raw[:, None, :], gathered, out=grads.hidden[part][:, None, :])
                if grads.weight is not None:
                    pushed = torch.mul(d_raw[:, :, None], hidden[part][:, None, :], out=gathered)
                    grads.weight.index_add_(0, ids[part].flatten(), pushed.flatten(0, 1).to(weight.dtype))
                if grads.bias is not None:
                    grads.bias.index_add_(0, ids[part].flatten(), d_raw.flatten().to(grads.bias.dtype))
        grads.keep(ctx)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return (*_scaled(ctx, grad_outputs[0]), None, None, None, None)


class _Gradients:
    """Buffers for those of hidden, weight, bias that want a gradient; a frozen head builds none."""

    def __init__(self, ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, *, filled: int = 0):
        """`filled`: rows of the weight's that will be written before they are added to; the others start at 0."""
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        self.hidden = torch.empty_like(hidden) if wants_hidden else None
        self.weight = torch.empty_like(weight) if wants_weight else None
        if self.weight is not None:
            self.weight[filled:].zero_()
        self.bias = torch.zeros_like(bias) if wants_bias and bias is not None else None

    @property
    def any(self) -> bool:
        return not (self.hidden is None and self.weight is None and self.bias is None)

    def keep(self, ctx: Any) -> None:
        ctx.grads = (self.hidden, self.weight, self.bias)


def _scaled(ctx: Any, grad_output: Tensor) -> list[Tensor | None]:
    """The stored gradients times the incoming scalar, in place: they are handed on once and never copied."""
    if ctx.grads is None:
        raise RuntimeError("the fused loss was differentiated twice; its gradients are handed on once")
    grads, ctx.grads = ctx.grads, None
    return [g if g is None else g.mul_(grad_output.to(g.dtype)) for g in grads]


def _in_pieces(
    raw: Tensor, head: Head, loss: ChunkLoss, part: slice, *, wants_grad: bool
) -> tuple[Tensor, Tensor]:
    """`_value_and_grad` of a chunk, piece by piece: the gradient takes the place of the logits."""
    rows = head.piece_rows() or len(raw)
    if len(raw) <= rows:
        return _value_and_grad(raw, head, loss, part, wants_grad=wants_grad)
    total = raw.new_zeros((), dtype=_wide(raw.dtype))
    for here in chunks(len(raw), rows):
        at = slice(part.start + here.start, part.start + here.stop)
        value, d_piece = _value_and_grad(raw[here], head, loss, at, wants_grad=wants_grad)
        total += value
        if wants_grad:
            raw[here] = d_piece
    return total, raw


def _value_and_grad(
    raw: Tensor, head: Head, loss: ChunkLoss, part: slice, *, wants_grad: bool
) -> tuple[Tensor, Tensor]:
    """The loss of one chunk and its gradient with respect to h Wᵀ + b; no graph outlives this call."""
    if not wants_grad:
        return loss(head.finish(raw), part), raw
    with torch.enable_grad():
        leaf = raw.detach().requires_grad_()
        value = loss(head.finish(leaf), part)
        (d_raw,) = torch.autograd.grad(value, leaf)
    return value.detach(), d_raw


class Ahead:
    """Logits of a frozen head at slices of packed positions that are asked for in order: made a chunk at a time."""

    def __init__(self, hidden: Float[Tensor, "N D"], head: Head, *, chunk_rows: int = 0):
        self.hidden, self.head = hidden, head
        self.rows = head.chunk_rows(chunk_rows, of=len(hidden))
        self.made: tuple[int, Tensor] = (0, hidden.new_empty(0, 0))

    def logits(self, part: slice) -> Float[Tensor, "n V"]:
        """A view: good until the next chunk is asked for."""
        start, logits = self.made
        if not (len(logits) and start <= part.start and part.stop <= start + len(logits)):
            del logits
            self.made = (0, self.hidden.new_empty(0, 0))  # freed before the next is made
            start, stop = part.start, max(part.stop, part.start + self.rows)
            logits = self.head.logits(self.hidden[start:stop])
            self.made = (start, logits)
        return logits[part.start - start : part.stop - start]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


@torch.no_grad()
def read(
    hidden: Float[Tensor, "N D"],
    head: Head,
    *,
    needs: Needs,
    sampled_ids: Int[Tensor, " N"] | None = None,
    ids: Int[Tensor, "N S"] | None = None,
    fingerprint: str = "",
    chunk_rows: int = 0,
) -> Scores:
    """Exactly the fields asked for at N positions: log-probs at the head's temperature, float32 or wider."""
    columns: dict[str, list[Tensor]] = {}
    ahead = Ahead(hidden, head, chunk_rows=chunk_rows)
    rows = min(head.piece_rows() or ahead.rows, ahead.rows)
    for part in list(chunks(hidden.shape[0], rows)) or [slice(0, 0)]:  # N = 0: empty fields
        row = RowDist(ahead.logits(part), sampled_ids=None if sampled_ids is None else sampled_ids[part])
        found: dict[str, Tensor] = {}
        if needs.sampled:
            found["sampled"] = row.sampled
        if needs.top_k:
            found["topk_ids"], found["topk_logp"] = row.topk(needs.top_k)
        if needs.at_ids:
            assert ids is not None, "ids are needed to read log-probs at ids"
            found["at_ids"], found["at_logp"] = ids[part], row.at(ids[part])
        if needs.entropy:
            found["entropy"] = row.entropy
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
    packed: dict[str, Any] = {name: torch.cat(pieces) for name, pieces in columns.items()}
    return Scores(fingerprint=fingerprint, temperature=head.temperature, **packed)
