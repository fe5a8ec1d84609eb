"""Rows of different lengths end to end, without padding: one row for the body, several for its attention.

    input      p p p y y | p p y | p p p p y
    position   0 1 2 3 4 | 0 1 2 | 0 1 2 3 4

A body looks its attention up by name at every call, and hands on what it does not know: with the lengths of the rows comes an
attention that is causal within each, through the same kernel. What that does not know (capped scores, sinks, other masks) it
refuses by raising, and the body is then read in padded rows (`models/rows.py`, `ways_of`).

Letters: N tokens of all rows, H query heads, h key heads, d their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

NAME = "opdkit_rows"
_IGNORED = frozenset(("position_ids", "cache_position", "use_cache", "output_attentions", "is_causal"))
"""What bodies hand on that changes nothing here."""


def joined_states(body: Any, input_ids: Int[Tensor, "1 N"], lengths: Sequence[int]) -> Float[Tensor, "N D"]:
    """The body's states of rows of these lengths. Raises whatever it raises when it does not take them."""
    prepare(body)
    position = torch.cat([torch.arange(n, device=input_ids.device) for n in lengths])[None]
    handed_on = input_ids.new_empty(
        1, 1, 0, 0
    )  # bodies build no mask of the positions where one of four axes is given
    found = body(
        input_ids=input_ids,
        attention_mask=handed_on,
        position_ids=position,
        use_cache=False,
        row_lengths=tuple(lengths),
    )
    states: Tensor = found.last_hidden_state[0]
    return states


def prepare(body: Any) -> None:
    """Puts our attention in the place of `sdpa`, for good: it is that one for whoever gives no rows, so threads that read the
    same body need not know of each other. TypeError where the body's is another."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if body.config._attn_implementation == NAME:
        return
    if body.config._attn_implementation != "sdpa":
        raise TypeError(f"rows end to end are not read with {body.config._attn_implementation} attention")
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    body.config._attn_implementation = NAME


def attention(*given: Any, row_lengths: Sequence[int] | None = None, **others: Any) -> Any:
    """What a body calls: transformers' own where no rows are given."""
    if row_lengths is not None:
        return within_rows(*given, row_lengths=row_lengths, **others)
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS["sdpa"](*given, **others)


def within_rows(
    module: Any,
    query: Float[Tensor, "1 H N d"],
    key: Float[Tensor, "1 h N d"],
    value: Float[Tensor, "1 h N d"],
    mask: Tensor | None,
    *,
    row_lengths: Sequence[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "1 N H d"], None]:
    """Causal within each row, the last `sliding_window` tokens where there is one. TypeError for anything else."""
    asked = {name for name, wanted in others.items() if wanted is not None} - _IGNORED
    if asked or (mask is not None and mask.numel()) or dropout or not getattr(module, "is_causal", True):
        raise TypeError(f"rows end to end are not read with {', '.join(sorted(asked)) or 'such a mask'}")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # the CPU's kernel wants as many
        key, value = (state.repeat_interleave(groups, 1) for state in (key, value))
    runs = [
        (length, len(list(run))) for length, run in groupby(row_lengths)
    ]  # rows of one length are a batch
    # one split, not a slice a run: the gradient of each slice would be a tensor of the whole
    pieces = [state.split([length * count for length, count in runs], 2) for state in (query, key, value)]
    parts = [
        _within(*some, count=count, scaling=scaling, window=sliding_window)
        for (_, count), *some in zip(runs, *pieces, strict=True)
    ]
    return torch.cat(parts, 1), None


def _within(
    *states: Float[Tensor, "1 H n d"], count: int, scaling: float | None, window: int | None
) -> Float[Tensor, "1 n H d"]:
    """Query, key and value of `count` rows of one length."""
    query, key, value = (s[0].unflatten(1, (count, -1)).transpose(0, 1) if count > 1 else s for s in states)
    length = query.shape[2]
    near = None if window is None or window >= length else _near(length, window, query.device)
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=near, is_causal=near is None, scale=scaling
    )
    return mixed.transpose(1, 2).flatten(0, 1)[None]


def _near(length: int, window: int, device: torch.device) -> Tensor:
    """[L, L], True where a token looks: at itself and the `window` − 1 before it."""
    at = torch.arange(length, device=device)
    back = at[:, None] - at
    return (back >= 0) & (back < window)
