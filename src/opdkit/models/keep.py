"""Small tensors that outlive large ones, in memory that was taken before these.

A loss in chunks notes a few numbers of every piece between tensors of many megabytes. On the heap of glibc each note would lie in
a hole that a large tensor left; the next one of that size finds none of its own and the heap grows, at a vocabulary of 151,936 by
17 MB a piece, without end. A device with an allocator of its own keeps small and large apart and needs none of this.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BYTES, _ALIGNED = 1 << 20, 16


class Keep:
    """Copies of CPU tensors in blocks; others come back as they are."""

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._used = 0
        self._more(_BYTES)

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor.device.type != "cpu":
            return tensor.detach()
        size = tensor.numel() * tensor.element_size()
        if self._used + size > len(self._block):
            self._more(max(_BYTES, size))
        kept = self._block[self._used : self._used + size].view(tensor.dtype).view(tensor.shape)
        self._used += -(-size // _ALIGNED) * _ALIGNED
        return kept.copy_(tensor.detach())

    def _more(self, size: int) -> None:
        self._block, self._used = torch.empty(size, dtype=torch.uint8), 0
