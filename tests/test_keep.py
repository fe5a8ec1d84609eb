"""Notes beside large tensors: copies that share a block and nothing else."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from opdkit.models.keep import Keep

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), max_size=12))
def test_what_is_kept_is_equal_and_no_longer_the_same(asked):
    keep = Keep()
    given_ = [torch.arange(torch.Size(shape).numel()).view(shape).to(dtype) for dtype, shape in asked]
    wanted = [tensor.clone() for tensor in given_]
    kept = [keep(tensor) for tensor in given_]
    for tensor in given_:
        tensor.zero_()
    for copy, tensor in zip(kept, wanted, strict=True):
        assert copy.dtype == tensor.dtype and copy.shape == tensor.shape and torch.equal(copy, tensor)


def test_a_full_block_is_followed_by_another_and_a_large_tensor_gets_its_own():
    keep = Keep()
    parts = [torch.full((n,), float(i)) for i, n in enumerate((200_000, 200_000, 1_000_000, 3))]
    kept = [keep(part) for part in parts]
    assert all(torch.equal(a, b) for a, b in zip(kept, parts, strict=True))
    blocks = [copy.untyped_storage().data_ptr() for copy in kept]
    assert len(set(blocks)) == 4, (
        "800 kB, 800 kB and 4 MB do not fit into a block of 1 MB; after the large one none is left"
    )


def test_no_gradient_is_kept_and_what_is_noted_shares_a_block():
    keep = Keep()
    first, second = (keep(torch.ones(3, requires_grad=True) * 2) for _ in range(2))
    assert not first.requires_grad
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
