"""Rollouts as rows of a body, and the states that predict their tokens.

    plain     p p p y y y -      one row per rollout, right-padded: causal attention never sees padding
              p p y y - - -
    shared    p p p              each prompt once; its keys and values stand before those of its responses
              y y y -            rows of response tokens only, at the positions they have after their prompt
              y - - -
    joined    p p p y y p p y      all rows in one, each at positions of its own: no padding (models/joined.py)

The last response token is left out: nobody asks what comes after it. Shared rows go through the model's own body, as
decoding does, with a cache that hands out the prompt's keys and values, gradient and all. Which bodies reproduce
themselves in which way is found out by trying (`ways_of`).

Letters: P prompts, L tokens of the longest, B rows, T response tokens, C = L + T columns, N packed positions, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opdkit.models.batching import WAYS, Way
from opdkit.models.cache import Prefilled, Prefixed
from opdkit.models.decode import added_to_scores, layer_windows
from opdkit.models.joined import joined_states
from opdkit.types import Prefix

_STEP, _ADDED = 8, 2
"""A width is raised to a multiple of 8 where that adds at most 2 columns: on a CPU a forward of 94 or 95 columns takes
longer than one of 96, the vectors do not come out even (2 % a token)."""


@dataclass(frozen=True)
class Layout:
    """`gather` points into the flattened states, the prompts' [P·L] before the rows' [B·T] where prompts are shared.

    `lengths` of rows that stand end to end in one.
    """

    input_ids: Int[Tensor, "B L"]
    gather: Int[Tensor, " N"]
    prefix: Prefix | None = None
    lengths: tuple[int, ...] = ()


def lay_out(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    way: Way,
    device: torch.device,
) -> Layout:
    """Rows for one forward; entry n of `gather` is the state that predicts packed response token n."""
    return {"plain": _plain, "shared": _shared, "joined": _joined}[way](prompts, responses, device)


def _plain(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: torch.device
) -> Layout:
    rows = [[*prompt, *response[:-1]] for prompt, response in zip(prompts, responses, strict=True)]
    ids = _right_padded(rows)
    first = [b * ids.shape[1] + len(prompt) - 1 for b, prompt in enumerate(prompts)]
    gather = _runs(first, [len(response) for response in responses])
    return Layout(ids.to(device), gather.to(device))


def _joined(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: torch.device
) -> Layout:
    rows = [[*prompt, *response[:-1]] for prompt, response in zip(prompts, responses, strict=True)]
    lengths = tuple(map(len, rows))
    ends = accumulate(lengths)
    counts = [len(response) for response in responses]
    ids = torch.tensor([[token for row in rows for token in row]])
    gather = _runs([end - count for end, count in zip(ends, counts, strict=True)], counts)
    return Layout(ids.to(device), gather.to(device), lengths=lengths)


def _shared(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: torch.device
) -> Layout:
    place = {prompt: p for p, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    of = [place[tuple(prompt)] for prompt in prompts]
    heads, tails = _right_padded(list(place)), _right_padded([list(response[:-1]) for response in responses])
    width, pieces = tails.shape[1], []
    for b, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        pieces.append(torch.tensor([of[b] * heads.shape[1] + len(prompt) - 1]))
        pieces.append(torch.arange(len(response) - 1) + heads.numel() + b * width)
    prefix = Prefix(
        heads.to(device),
        torch.tensor([len(p) for p in place], device=device),
        torch.tensor(of, device=device),
    )
    return Layout(tails.to(device), torch.cat(pieces).to(device), prefix)


def _right_padded(rows: Sequence[Sequence[int]]) -> Int[Tensor, "B L"]:
    longest = max([1, *map(len, rows)])
    missing = -longest % _STEP
    width = longest + (missing if missing <= _ADDED else 0)
    ids = torch.zeros(max(len(rows), 1), width, dtype=torch.long)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row)
    return ids


def _runs(first: Sequence[int], counts: Sequence[int]) -> Int[Tensor, " N"]:
    """Runs of consecutive numbers, one after another.

    >>> _runs([5, 20], [3, 2]).tolist()
    [5, 6, 7, 20, 21]
    """
    parts = [torch.arange(start, start + count) for start, count in zip(first, counts, strict=True)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)


def packed_states(body: Any, layout: Any) -> Float[Tensor, "N D"]:
    """The body's states at the packed positions; `layout` is a `Layout` or a `MicroBatch`."""
    if layout.lengths:
        states = joined_states(body, layout.input_ids, layout.lengths)
    elif layout.prefix is None:
        states = body(input_ids=layout.input_ids, use_cache=False).last_hidden_state.flatten(0, 1)
    else:
        states = torch.cat(_through_prompts(body, layout.input_ids, layout.prefix))
    packed: Tensor = states.index_select(0, layout.gather)
    return packed


def _through_prompts(body: Any, input_ids: Int[Tensor, "B T"], prefix: Prefix) -> list[Tensor]:
    read = Prefilled()
    heads = body(input_ids=prefix.input_ids, past_key_values=read, use_cache=True).last_hidden_state
    length = prefix.lengths[prefix.of][:, None]  # [B, 1]
    after = torch.arange(input_ids.shape[1], device=input_ids.device)
    tails = body(
        input_ids=input_ids,
        attention_mask=_masks(body, prefix.input_ids.shape[1], length, after),
        position_ids=length + after,
        past_key_values=Prefixed(read.states, prefix.of),
        use_cache=True,
    ).last_hidden_state
    return [heads.flatten(0, 1), tails.flatten(0, 1)]


def _masks(body: Any, width: int, length: Int[Tensor, "B 1"], after: Int[Tensor, " T"]) -> Any:
    """One mask, or one per kind of layer where a body has several."""
    windows = layer_windows(body.config)
    masks = {kind: _mask(body, _seen(width, length, after, window)) for kind, window in windows.items()}
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _seen(
    width: int, length: Int[Tensor, "B 1"], after: Int[Tensor, " T"], window: int | None
) -> Bool[Tensor, "B 1 T C"]:
    """True where a response token looks: at its prompt (not its padding), at the response up to itself, the last
    `window` of these."""
    columns = torch.arange(width, device=after.device).expand(len(length), -1)
    position = torch.cat([columns, length + after], -1)  # [B, C]
    there = torch.cat([columns < length, torch.ones_like(length + after, dtype=torch.bool)], -1)
    distance = (length + after)[:, :, None] - position[:, None, :]  # [B, T, C]
    seen = there[:, None, :] & (distance >= 0)
    return (seen if window is None else seen & (distance < window))[:, None]


def _mask(body: Any, seen: Tensor) -> Tensor:
    if body.config._attn_implementation != "eager":
        return seen
    dtype = next(body.parameters()).dtype  # eager attention adds its mask to the scores
    return added_to_scores(seen, dtype)


def ways_of(body: Any, *, vocabulary: int, device: torch.device) -> frozenset[Way]:
    """In which ways beside plain rows the body gives the states of plain ones, of those that pay on this device."""
    return frozenset(way for way in WAYS if device.type in WAYS[way] and can(body, way, vocabulary, device))


def can(body: Any, way: Way, vocabulary: int, device: torch.device) -> bool:
    """Whether rows laid out in this way give the states of plain ones, on four rollouts of two prompts."""
    prompts = [[(7 * i + 3 * p) % vocabulary for i in range(n)] for p, n in enumerate((9, 9, 5, 5))]
    prompts[1], prompts[3] = prompts[0], prompts[2]
    responses = [[(5 * i + r * r + 1) % vocabulary for i in range(n)] for r, n in enumerate((6, 9, 4, 7))]
    try:
        with torch.no_grad():
            wanted = packed_states(body, lay_out(prompts, responses, way="plain", device=device)).float()
            found = packed_states(body, lay_out(prompts, responses, way=way, device=device)).float()
    except (
        Exception
    ):  # whatever a body raises when it meets a cache, a mask or an attention that it was not written for
        return False
    narrow = next(body.parameters()).dtype in (torch.bfloat16, torch.float16)
    error = float((found - wanted).abs().max() / wanted.abs().max())
    return error <= (5e-2 if narrow else 1e-5)
