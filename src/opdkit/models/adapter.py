"""Low-rank adapters (LoRA, arXiv 2106.09685) on a causal LM: y = W x + s · B (A x), s = alpha / rank; only A and B train.

peft wraps the linear maps in place, so the model stays the transformers model it was: its body, head, names and hooks. Head and
embedding are never adapted (models/head.py reads the head's weight itself). What others read (a checkpoint's model, an engine,
a copy) gets the merged weights W + s · B A under the base's own names; the base itself is never written to.

Letters: D_in, D_out of a linear map, r its rank.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opdkit.config import LoraConfig
from opdkit.types import UserError

NAME = "default"  # peft's word for the only adapter there is
PREFIX = "base_model.model."  # what peft puts before a module's name in a file
WEIGHTS = "adapter_model.safetensors"


def require_peft() -> Any:
    """The module. UserError where it is not installed."""
    try:
        import peft
    except ImportError:
        raise UserError(
            "adapters need peft, which is not installed", hint="pip install 'opdkit[lora]'"
        ) from None
    return peft


def adapt(model: Any, cfg: LoraConfig, *, seed: int, name: str = "the student") -> None:
    """Put a fresh adapter on `model`, in place: B = 0, so that nothing changes yet; A from a generator of `seed`.

    A is uniform within 1 / sqrt(D_in), as peft has it. Adapters are float32 where the weights are narrower: they are masters.
    """
    peft = require_peft()
    config = peft.LoraConfig(
        r=cfg.rank,
        lora_alpha=int(cfg.alpha) if cfg.alpha.is_integer() else cfg.alpha,
        target_modules=_targets(model, cfg.targets, name),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):  # peft draws, on the CPU; what it drew is replaced
        peft.inject_adapter_in_model(config, model, adapter_name=NAME)
    generator = torch.Generator().manual_seed(seed)
    for layer in adapted(model).values():
        wide = torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
        layer.lora_A.to(wide)
        layer.lora_B.to(wide)
        a, b = _factors(layer)
        with torch.no_grad():
            drawn = torch.rand(a.shape, generator=generator) * 2.0 - 1.0
            a.copy_(drawn / math.sqrt(a.shape[-1]))
            b.zero_()


def adapted(model: nn.Module) -> dict[str, Any]:
    """Name → adapted linear map; empty for a model without an adapter."""
    return {name: module for name, module in model.named_modules() if is_adapted(module)}


def is_adapted(module: Any) -> bool:
    """Whether it is a linear map with a low-rank adapter. Asked of peft's layers by their parts: peft is an extra."""
    factors = getattr(module, "lora_A", None)
    return isinstance(factors, nn.ModuleDict) and type(module.get_base_layer()) is nn.Linear


def train_adapter_only(model: nn.Module) -> None:
    """Gradients for the adapter alone; for every parameter of a model without one."""
    layers = adapted(model)
    model.requires_grad_(not layers)
    for layer in layers.values():
        for factor in _factors(layer):
            factor.requires_grad_(True)


def effective_weight(module: Any) -> Float[Tensor, "D_out D_in"]:
    """What the module multiplies with as it is now: W + s · B A, W where its adapter is off, its own of a plain linear map."""
    if not is_adapted(module):
        weight: Tensor = module.weight
        return weight
    base: Tensor = module.get_base_layer().weight
    return base if module.disable_adapters else _merged(base, *_factors(module), scale=module.scaling[NAME])


def merged_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` (a whole `state_dict` of `model`) under the base's names, with adapters merged into copies; as it is without."""
    merged = dict(state)
    for name, layer in adapted(model).items():
        factors = [merged.pop(f"{name}.lora_{letter}.{NAME}.weight") for letter in "AB"]
        base = merged.pop(f"{name}.base_layer.weight")
        merged[f"{name}.weight"] = _merged(base, *factors, scale=layer.scaling[NAME])
        if f"{name}.base_layer.bias" in merged:
            merged[f"{name}.bias"] = merged.pop(f"{name}.base_layer.bias")
    return merged


def merge(model: Any) -> Any:
    """The model without its adapter, which its weights now hold; in place, so of a model that is nobody else's."""
    for name, layer in adapted(model).items():
        base = layer.get_base_layer()
        with torch.no_grad():
            base.weight.copy_(effective_weight(layer))
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, base)
    return model


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The base alone; afterwards, whatever happens, each adapter is on, off and trained as before."""
    layers = list(adapted(model).values())
    before = [
        (layer, layer.disable_adapters, [(p, p.requires_grad) for p in layer.parameters()])
        for layer in layers
    ]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer, off, trained in before:
            layer.enable_adapters(not off)
            for parameter, wanted in trained:
                parameter.requires_grad_(wanted)


# --- the adapter's own tensors ------------------------------------------------------------------------------------------


def adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's tensors out of a whole `state_dict`, under the names peft has in a file; empty without one."""
    return {
        f"{PREFIX}{name}.lora_{letter}.weight": state[f"{name}.lora_{letter}.{NAME}.weight"]
        for name in adapted(model)
        for letter in "AB"
    }


def write_adapter(
    folder: Path, model: Any, tensors: Mapping[str, Tensor], *, base: str, revision: str | None
) -> None:
    """A folder in peft's format: it opens with peft on `base`, and in every tool that takes such folders."""
    from safetensors.torch import save_file

    folder.mkdir()
    config = model.peft_config[NAME]
    told = {
        **config.to_dict(),
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(_plain(told), indent=2, sort_keys=True) + "\n")
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"}
    )


def take_up(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Fill the adapter that is on `model` from tensors of a file. UserError where they are of another adapter."""
    layers = adapted(model)
    ours = {f"{PREFIX}{name}.lora_{letter}.weight" for name in layers for letter in "AB"}
    if odd := sorted(ours ^ tensors.keys()):
        where = (
            "has and student.lora does not ask for"
            if odd[0] in tensors
            else "lacks and student.lora asks for"
        )
        found = sorted({name.removesuffix(".weight").split(".")[-2] for name in tensors if ".lora_" in name})
        raise UserError(
            f"{source} {where}: {odd[0].removeprefix(PREFIX)}",
            hint=f"student.lora.targets='{json.dumps(found)}', or leave student.lora out to merge it",
        )
    for name, layer in layers.items():
        for letter, factor in zip("AB", _factors(layer), strict=True):
            held = tensors[f"{PREFIX}{name}.lora_{letter}.weight"]
            if held.shape != factor.shape:
                rank = held.shape[0 if letter == "A" else 1]
                raise UserError(
                    f"{source} has {name}.lora_{letter} of shape {tuple(held.shape)}, here it is {tuple(factor.shape)}",
                    hint=f"student.lora.rank={rank}, and the base that the adapter was made for",
                )
            with torch.no_grad():
                factor.copy_(held)


# --- parts ----------------------------------------------------------------------------------------------------------------


def _factors(layer: Any) -> tuple[Float[Tensor, "r D_in"], Float[Tensor, "D_out r"]]:
    return layer.lora_A[NAME].weight, layer.lora_B[NAME].weight


def _merged(base: Tensor, a: Tensor, b: Tensor, *, scale: float) -> Tensor:
    """W + s · B A, summed in the wider dtype of the two; in W's. Read for others: no gradient passes."""
    with torch.no_grad():
        return (base.detach() + scale * (b.detach() @ a.detach())).to(base.dtype)


def _targets(model: Any, asked: str | Sequence[str], name: str) -> list[str]:
    """Last parts of the names of the linear maps that are adapted. UserError for names that are none, and for the head."""
    head = model.get_output_embeddings()
    linear = [n for n, m in model.named_modules() if type(m) is nn.Linear and m is not head]
    known = sorted({n.rpartition(".")[2] for n in linear})
    wanted = known if isinstance(asked, str) else list(asked)
    for target in wanted:
        if not any(n == target or n.endswith(f".{target}") for n in linear):
            raise UserError(
                f"{name} has no linear map {target!r} that can be adapted (the head and the embedding cannot)",
                hint=f"student.lora.targets='{json.dumps(known)}', or student.lora.targets=all-linear",
            )
    return wanted


def _plain(value: Any) -> Any:
    """As JSON has it: peft's records hold sets and enumerations."""
    if isinstance(value, dict):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, set | list | tuple):
        return sorted(map(str, value)) if isinstance(value, set) else [_plain(held) for held in value]
    return getattr(value, "value", value)
