"""Whether gradients of single positions add up or cancel, within a response and between responses.

g_t is the gradient of one response position's own loss, G_s = Σ_t g_t that of response s. Of vectors v_1 … v_n, either the g_t
of one response or the G_s of all:

ratio     1   ‖Σ v‖ / Σ ‖v‖                       1 all the same way, 0 they cancel; orthogonal ones of a length: 1/√n
growth    1   ‖Σ v‖ / √(Σ ‖v‖²)                   orthogonal 1, coherent > 1 (at most √n), cancelling < 1: whatever n is
cosine    1   mean over pairs i ≠ j of v_i·v_j / (‖v_i‖ ‖v_j‖), which is (‖Σ u‖² − n) / (n (n − 1)) with u = v / ‖v‖

name                       unit            mean over
gradient_ratio_within      1               responses that have a gradient
gradient_growth_within     1               the same
gradient_cosine_within     1               responses with two positions or more that have a gradient, each its own mean of pairs
gradient_*_between         1               one number of all responses; told with how many of them have a gradient
gradient_norm_position     nats / weight   positions: ‖g_t‖

Vectors of length 0 have no direction: they are in no cosine, and change neither ratio nor growth. Responses of different
length compare by growth and cosine; the ratio falls with n by itself.

Source: arXiv 2604.13016, 6.2, whose authors suppose, and did not verify, that the gradients of a teacher that fails point in
inconsistent directions and cancel.

Letters: N vectors, T positions of one response, D parameters, or the dimensions they were projected to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

KINDS = ("ratio", "growth", "cosine")
COLUMNS = 8192


@dataclass(frozen=True)
class Coherence:
    """How some vectors add up; None where nothing can be said: no vector has a length, or one alone a cosine."""

    ratio: float | None
    growth: float | None
    cosine: float | None
    lengths: float  # Σ ‖v‖
    count: int  # vectors
    directed: int  # of them, with a length above 0


@torch.no_grad()
def coherence(vectors: Float[Tensor, "N D"]) -> Coherence:
    """The table's three numbers of these vectors; added up in float64.

    >>> coherence(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    Coherence(ratio=0.7142857142857143, growth=1.0, cosine=0.0, lengths=7.0, count=2, directed=2)
    """
    squares = vectors.new_zeros(len(vectors), dtype=torch.float64)
    for block in _blocks(vectors):
        squares += block.square().sum(-1)
    lengths = squares.sqrt()
    directed = lengths > 0.0
    n, total = int(directed.sum()), float(lengths.sum())
    if n == 0:
        return Coherence(None, None, None, total, len(vectors), 0)
    whole = _combined(vectors, torch.ones_like(lengths))
    units = _combined(vectors, torch.where(directed, 1.0 / lengths, 0.0))
    return Coherence(
        ratio=math.sqrt(whole) / total,
        growth=math.sqrt(whole / float(squares.sum())),
        cosine=None if n == 1 else (units - n) / (n * (n - 1)),
        lengths=total,
        count=len(vectors),
        directed=n,
    )


def _combined(vectors: Float[Tensor, "N D"], weights: Float[Tensor, " N"]) -> float:
    """‖Σ w v‖²."""
    return sum(float((weights @ block).square().sum()) for block in _blocks(vectors))


def _blocks(vectors: Float[Tensor, "N D"]) -> Iterator[Float[Tensor, "N d"]]:
    """Some columns at a time in float64: a wide copy of millions of columns costs more than the sums."""
    return (block.double() for block in vectors.split(COLUMNS, dim=-1))


def within(said: Iterable[Coherence]) -> dict[str, tuple[float, int]]:
    """name → (mean, over how many) of responses, each a `coherence` of its positions; a name with nothing behind it is absent."""
    said = list(said)
    found = {
        f"gradient_{kind}_within": [value for one in said if (value := getattr(one, kind)) is not None]
        for kind in KINDS
    }
    means = {name: (sum(values) / len(values), len(values)) for name, values in found.items() if values}
    positions = sum(one.count for one in said)
    if positions:
        means["gradient_norm_position"] = (sum(one.lengths for one in said) / positions, positions)
    return means


def between(said: Coherence) -> dict[str, tuple[float, int]]:
    """name → (value, responses with a gradient) of the `coherence` of responses' sums."""
    values: Mapping[str, float | None] = {kind: getattr(said, kind) for kind in KINDS}
    return {f"gradient_{kind}_between": (v, said.directed) for kind, v in values.items() if v is not None}


def gradient_coherence(
    gradients: Float[Tensor, "N D"], row: Int[Tensor, " N"]
) -> dict[str, tuple[float, int]]:
    """The whole table, name → (value, over how many), from the gradient of every position and the response it is of.

    >>> g = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> told = gradient_coherence(g, torch.tensor([0, 0, 1]))
    >>> told["gradient_ratio_within"], told["gradient_cosine_within"], told["gradient_cosine_between"]
    ((1.0, 2), (1.0, 1), (0.0, 2))
    """
    parts = [gradients[row == s] for s in torch.unique(row)]
    sums = [part.sum(0, dtype=torch.float64) for part in parts]
    everything = torch.stack(sums) if sums else gradients
    return within(map(coherence, parts)) | between(coherence(everything))
