"""A PEFT adapter folder as a model: which base it is of, whether its files are sound, and the base with it merged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from opdkit.config import LoraConfig
from opdkit.models.adapter import WEIGHTS, require_peft
from opdkit.types import UserError

ADAPTER_CONFIG = "adapter_config.json"
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),  # others change the base
}
_HARMLESS = {
    *(
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "inference_mode",
        "lora_alpha",
        "lora_dropout",
    ),
    *("megatron_core", "peft_version", "qalora_group_size", "r", "revision", "target_modules", "task_type"),
}
"""An adapter that is trained on is W + alpha / rank · B A and nothing else: it says what is plain, and of all keys that are not
known to be harmless nothing. Dropout is left out, as opd always does."""


class ModelRef(Protocol):
    """What names a model in a config: `ModelConfig`, `LocalTeacher`."""

    @property
    def model(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def dtype(self) -> Any: ...


@dataclass(frozen=True)
class AdapterFolder:
    """What `adapter_config.json` says."""

    folder: Path
    base: str  # Hub id or folder
    revision: str | None  # of the base
    said: Mapping[str, Any]


def adapter_folder(model: str) -> AdapterFolder | None:
    """The adapter at `model`, or None where it is a whole model, a Hub id, or not there. UserError for one without a base."""
    folder = Path(model)
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file():
        return None
    try:
        said = json.loads((folder / ADAPTER_CONFIG).read_text())
        base = said.get("base_model_name_or_path")
    except (ValueError, AttributeError, OSError):
        raise UserError(f"{folder / ADAPTER_CONFIG} is damaged", hint=f"copy {folder} again") from None
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{folder / ADAPTER_CONFIG} names no base_model_name_or_path: an adapter alone is no model",
            hint=f"write the base's folder or Hub id into {folder / ADAPTER_CONFIG}",
        )
    revision = said.get("revision")
    return AdapterFolder(folder, _found(base, folder), revision if isinstance(revision, str) else None, said)


@dataclass(frozen=True)
class BaseRef:
    """The base of an adapter folder, as a `ModelRef`."""

    model: str
    revision: str | None
    dtype: Any


def base_of(ref: ModelRef) -> tuple[ModelRef, AdapterFolder | None]:
    """Where `ref`'s weights are, and the adapter on them where it is an adapter folder."""
    adapter = adapter_folder(ref.model)
    return (ref, None) if adapter is None else (BaseRef(adapter.base, adapter.revision, ref.dtype), adapter)


def _found(base: str, folder: Path) -> str:
    """As it is named, from here or from the adapter's folder. UserError where a folder is meant that is not there."""
    if Path(base).is_dir():
        return base
    if (folder / base).is_dir():
        return str(folder / base)
    if base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise UserError(
            f"{folder} is an adapter of {base}, which is not there",
            hint=f"put the base there, or write where it is into {folder / ADAPTER_CONFIG}",
        )
    return base


def check_adapter(adapter: AdapterFolder) -> None:
    """UserError where peft or the adapter's weights are missing, pickled or cut short. Reads a header only."""
    from safetensors import SafetensorError, safe_open

    require_peft()
    path = adapter.folder / WEIGHTS
    if not path.is_file():
        pickled = (adapter.folder / "adapter_model.bin").is_file()
        why = (
            "only pickled weights, and a pickle can run code: opd opens none" if pickled else f"no {WEIGHTS}"
        )
        raise UserError(
            f"{adapter.folder} holds {why}", hint=f"save the adapter again, with peft, into {WEIGHTS}"
        )
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError:
        raise UserError(f"{path} is damaged or cut short", hint=f"copy {adapter.folder} again") from None


def two_models(name: str) -> UserError:
    """For a place with a whole model and an adapter: transformers would take one or both, by whether peft is there."""
    return UserError(
        f"{name} holds a whole model and an adapter, and which is meant it does not say",
        hint="put adapter_config.json and adapter_model.safetensors into a folder of their own, and name one of the two",
    )


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Of the adapter, by the names in the file; copies, so that the file may go."""
    from safetensors.torch import load_file

    return {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}


def refuse_another_shape(adapter: AdapterFolder, cfg: LoraConfig) -> None:
    """UserError where the adapter is not what `student.lora` describes, or is more than a product of two factors."""
    for key, value in sorted(adapter.said.items()):
        if value not in _PLAIN[key] if key in _PLAIN else value and key not in _HARMLESS:
            raise UserError(
                f"{adapter.folder} has {key} = {value!r}, which opd merges but does not train on",
                hint="student.lora=unset trains all weights of the merged model",
            )
    rank, alpha = adapter.said.get("r"), adapter.said.get("lora_alpha")
    if (rank, alpha) != (cfg.rank, cfg.alpha):
        raise UserError(
            f"{adapter.folder} has rank {rank} and alpha {alpha}, student.lora has {cfg.rank} and {cfg.alpha:g}",
            hint=f"student.lora.rank={rank} student.lora.alpha={alpha}",
        )


def merged_onto(model: Any, adapter: AdapterFolder) -> Any:
    """The base with the adapter in its weights: any kind that peft can merge. UserError where the two are not of one kind."""
    peft = require_peft()
    tensors = read_tensors(adapter.folder)
    try:
        config = peft.PeftConfig.from_pretrained(str(adapter.folder))
        config.base_model_name_or_path = None  # found above; peft would warn that it is called otherwise here
        with torch.random.fork_rng(devices=[]):  # peft draws what the file then replaces
            wrapped = peft.get_peft_model(model, config)
        wanted = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False).keys()
        if odd := sorted(wanted ^ tensors.keys()):
            raise ValueError(f"{odd[0]} is {'in the file only' if odd[0] in tensors else 'not in the file'}")
        peft.set_peft_model_state_dict(wrapped, tensors)
        return wrapped.merge_and_unload()
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise UserError(
            f"{adapter.folder} cannot be merged onto {adapter.base}: {reason[:200]}",
            hint=f"name the base it was made for in {adapter.folder / ADAPTER_CONFIG}",
        ) from None
