"""The world of ranks: one process, or several under torchrun (FSDP2). One is the same path, no traffic."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class World:
    """Who we are among the ranks, and the few reductions the learner needs."""

    def __init__(self, device: torch.device):
        self.device = device
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.size > 1:
            if device.type == "cuda":
                self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
                torch.cuda.set_device(self.device)
            if "TORCHELASTIC_RUN_ID" in os.environ:
                end_with_parent()
            if not dist.is_initialized():
                dist.init_process_group(
                    "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=10)
                )

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks, float64."""
        return self._reduce(values.to(torch.float64), dist.ReduceOp.SUM)

    def max(self, values: Tensor) -> Tensor:
        return self._reduce(values.to(torch.float64), dist.ReduceOp.MAX)

    def any(self, flag: bool) -> bool:
        """Whether it is true on at least one rank."""
        return bool(self.max(torch.tensor([float(flag)])).item())

    def _reduce(self, values: Tensor, op: Any) -> Tensor:
        if self.size == 1:
            return values
        moved = values.to(self.device)
        dist.all_reduce(moved, op=op)
        return moved.to(values.device)

    def gather(self, value: Any) -> list[Any]:
        """JSON data of every rank, in rank order; travels as bytes of JSON, not as pickles."""
        if self.size == 1:
            return [value]
        data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
        width = int(self.max(torch.tensor([len(data)])).item())
        padded = torch.zeros(width, dtype=torch.uint8, device=self.device)
        padded[: len(data)] = data.to(self.device)
        everyone = [torch.zeros_like(padded) for _ in range(self.size)]
        dist.all_gather(everyone, padded)
        return [json.loads(bytes(part.cpu().tolist()).rstrip(b"\0")) for part in everyone]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients of parameters that every rank holds whole become their sum over ranks, in one message per dtype.

        A parameter without a gradient anywhere keeps none: the optimizer leaves it alone, as in one process.
        """
        if self.size == 1:
            return
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
        for dtype, some in by_dtype.items():
            present = torch.tensor([p.grad is not None for p in some], dtype=dtype, device=self.device)
            flat = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in some]
            message = torch.cat([*flat, present])
            dist.all_reduce(message)
            *sums, anywhere = message.split([*(p.numel() for p in some), len(some)])
            for p, total, there in zip(some, sums, anywhere.tolist(), strict=True):
                p.grad = total.view_as(p) if there else None

    def shard(self, module: nn.Module, layers: Iterable[nn.Module]) -> nn.Module:
        """FSDP2: each layer a unit, the rest (embedding, norm, head; tied or not) the root. One process is
        left as it is.

        Gradients are summed over ranks: the learner has already divided by the global token count.
        """
        if self.size == 1:
            return module
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        for layer in layers:
            _summed(fully_shard(layer, mesh=mesh))
        return _summed(fully_shard(module, mesh=mesh))


def end_with_parent() -> None:
    """On Linux: SIGTERM when the launcher dies, however it does, so that ranks save and end."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # 1 = PR_SET_PDEATHSIG


def _summed(module: Any) -> Any:
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)  # a factor of 1 as a plain sum: gloo knows no other
    return module


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one (a collective: every rank must call it); a plain tensor as it is."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


def like(full: Tensor, target: Tensor) -> Tensor:
    """`full` laid out as `target` is: sharded the same way, or plain."""
    mesh = getattr(target, "device_mesh", None)
    if mesh is None:
        return full.to(device=target.device, dtype=full.dtype)
    from torch.distributed.tensor import distribute_tensor

    placements = target.placements  # type: ignore[attr-defined]
    return distribute_tensor(full.to(target.device), mesh, placements)
