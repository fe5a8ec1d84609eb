"""A count sketch: long vectors as short ones whose lengths and angles are nearly theirs, and whose sums are exactly sums.

    (Sx)_d = Σ_{i: h(i) = d} s(i) x_i            h(i) ∈ {1 … D} and s(i) = ±1, drawn once per entry

Linear, so Σ S g_t = S Σ g_t. ⟨Sx, Sy⟩ is ⟨x, y⟩ on average; of unit vectors with cosine c its standard deviation is at most
√((1 + c²) / D): 0.016 to 0.022 at D = 4096, and that of a length 1.1 % (Charikar, Chen, Farach-Colton 2002; Weinberger et
al., arXiv 0902.2206). What cosines of many pairs have in common does not average out: the error of a mean is of this size too.

Letters: P entries of all tensors, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Sketch:
    """h and s as one number per entry, below D where s = 1, else D higher: four bytes an entry."""

    places: tuple[Tensor, ...]  # of each tensor's entries, int32
    dimensions: int

    def __call__(self, tensors: Sequence[Tensor | None]) -> Float[Tensor, " D"]:
        """None stands for a tensor of zeros."""
        first = self.places[0]
        both = torch.zeros(2 * self.dimensions, dtype=torch.float64, device=first.device)
        for places, tensor in zip(self.places, tensors, strict=True):
            if tensor is not None:
                both.index_add_(0, places, tensor.detach().flatten().double())
        return both[: self.dimensions] - both[self.dimensions :]


def count_sketch(sizes: Sequence[int], *, dimensions: int, seed: int, device: torch.device) -> Sketch:
    """A sketch of tensors with so many entries each. Drawn on the CPU: the same on every device.

    >>> cut = count_sketch([3, 2], dimensions=4, seed=0, device=torch.device("cpu"))
    >>> x = [torch.tensor([1.0, -2.0, 0.5]), None]
    >>> torch.equal(cut(x) + cut(x), cut([2 * x[0], None]))
    True
    """
    generator = torch.Generator().manual_seed(seed)
    places = [
        torch.randint(2 * dimensions, (size,), generator=generator, dtype=torch.int32).to(device)
        for size in sizes
    ]
    return Sketch(tuple(places), dimensions)
