"""Runs inside vLLM's worker (`worker_extension_cls`): takes the learner's weights, all of them.

vLLM's own reload is used; what it leaves out is done after it. Its CPU build packs the output head for its GEMM when a model
is loaded, and a reload of a tied model goes past that copy: the engine would go on with the old head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NAME = "opdkit.engines.vllm_extension.Extension"


class Extension:
    """Methods that `collective_rpc` can call by name. No constructor: vLLM mixes it into its worker."""

    model_runner: Any

    def opd_load(self, weights: Mapping[str, Any] | str) -> int:
        """Load tensors, or a safetensors file both sides see. Returns how many there were."""
        tensors = dict(_read(weights) if isinstance(weights, str) else weights.items())
        self.model_runner.reload_weights(weights_iterator=iter(tensors.items()))
        _repack(self.model_runner.get_model())
        return len(tensors)

    def opd_version(self) -> str:
        """That the extension is there."""
        return "1"


def _read(path: str) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  not a mapping
            yield name, file.get_tensor(name)


def _repack(model: Any) -> None:
    """The packed copy of the head, made again. Only the CPU build has one."""
    head = getattr(model, "lm_head", None)
    if head is None or not hasattr(head, "cpu_linear"):
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    dispatch_cpu_unquantized_gemm(head, remove_weight=False)
