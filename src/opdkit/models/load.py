"""Open a model folder or Hub id: weights (safetensors only), tokenizer, head, end tokens, and what the tokenizers share."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from opdkit.models.head import Head
from opdkit.types import UserError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class ModelRef(Protocol):
    """What names a model in a config: `ModelConfig`, `LocalTeacher`."""

    @property
    def model(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def dtype(self) -> Any: ...


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model ready to use, with the facts other rooms ask of it."""

    name: str
    model: Any                      # a transformers causal LM, in eval mode (dropout off), on its device
    tokenizer: Any
    head: Head
    stop_ids: tuple[int, ...]       # any of these ends a response
    fingerprint: str                # of the tokenizer: same fingerprint, same ids for the same tokens
    max_length: int                 # tokens the positions reach

    @property
    def body(self) -> nn.Module:
        """The decoder without its head; its output has `last_hidden_state`."""
        return self.model.base_model

    @property
    def device(self) -> torch.device:
        return self.head.weight.device


def pick_device(name: str) -> torch.device:
    """`auto` = cuda if present else cpu. UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"device {name!r} is not there: {reason}", hint="use device=auto, or device=cpu") from None
    return device


def open_model(ref: ModelRef, *, device: torch.device, rows: int | None = None) -> LoadedModel:
    """Load weights and tokenizer; `rows` limits the vocabulary further (what two tokenizers share).

    Raises UserError when the model is missing, needs remote code, has no safetensors, or is an architecture whose logits
    are not a linear head over its hidden states.
    """
    tokenizer = open_tokenizer(ref)
    model = _from_pretrained(ref).to(device).eval()
    return describe(model, tokenizer, name=ref.model, rows=rows)


def describe(model: Any, tokenizer: Any, *, name: str, rows: int | None = None) -> LoadedModel:
    """The facts of a model that is in memory."""
    vocabulary = vocabulary_rows(tokenizer, model.config)
    head = _head(model, name, rows=min(vocabulary, rows or vocabulary))
    return LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        head=head,
        stop_ids=_stop_ids(model, tokenizer, head.rows),
        fingerprint=fingerprint(tokenizer),
        max_length=_max_length(model.config),
    )


def open_tokenizer(ref: ModelRef) -> Any:
    from transformers import AutoTokenizer

    _check_folder(ref.model)
    try:
        return AutoTokenizer.from_pretrained(ref.model, revision=ref.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _cannot_open(ref.model, "tokenizer", error) from None


def open_config(ref: ModelRef) -> Any:
    """The model's config alone: sizes and type, read before any weight."""
    from transformers import AutoConfig

    _check_folder(ref.model)
    try:
        return AutoConfig.from_pretrained(ref.model, revision=ref.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _cannot_open(ref.model, "config", error) from None


def fingerprint(tokenizer: Any) -> str:
    """sha256 over (token, id) pairs and special tokens."""
    facts = {
        "vocabulary": sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]),
        "special": {key: str(value) for key, value in sorted(tokenizer.special_tokens_map.items())},
    }
    return hashlib.sha256(json.dumps(facts, ensure_ascii=True).encode()).hexdigest()


def vocabulary_rows(tokenizer: Any, config: Any) -> int:
    """Ids that mean something: the tokenizer's largest id + 1, never more than the embedding has rows."""
    largest = max(tokenizer.get_vocab().values()) + 1
    return min(largest, int(config.get_text_config().vocab_size))


def shared_rows(student: Any, teacher: Any, *, student_config: Any, teacher_config: Any) -> int:
    """How many leading ids mean the same token to both tokenizers and have an embedding row in both models.

    Embeddings padded wider than the tokenizer (Qwen2.5: 151,936 and 152,064 rows for 151,665 tokens) are the usual case and
    are reduced to the shared ids. One tokenizer may have further tokens behind the shared ones. A different map is refused.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    differing = _first_differences(ours, theirs)
    if differing:
        raise UserError(
            f"student and teacher read ids differently: {'; '.join(differing)}",
            hint="take a teacher of the student's family, with the same tokenizer",
        )
    shared = min(vocabulary_rows(student, student_config), vocabulary_rows(teacher, teacher_config))
    if student.eos_token_id is not None and student.eos_token_id >= shared:
        raise UserError(
            f"the student's end token {student.eos_token!r} (id {student.eos_token_id}) is unknown to the teacher",
            hint="take a teacher whose tokenizer has the student's end token",
        )
    return shared


def _first_differences(ours: Mapping[str, int], theirs: Mapping[str, int], most: int = 3) -> list[str]:
    """Ids that both use for different tokens, in words, lowest first."""
    by_id = {i: token for token, i in theirs.items()}
    found = []
    for token, i in sorted(ours.items(), key=lambda item: item[1]):
        other = by_id.get(i)
        if other is not None and other != token:
            found.append(f"id {i} is {token!r} to the student and {other!r} to the teacher")
        if len(found) == most:
            break
    return found


# --- loading ----------------------------------------------------------------------------------------------------------


def _from_pretrained(ref: ModelRef) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(
            ref.model,
            revision=ref.revision,
            dtype=_DTYPES[ref.dtype],
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _cannot_open(ref.model, "model", error) from None
    except Exception as error:  # safetensors raises its own class for a broken file
        if type(error).__module__.startswith("safetensors"):
            raise _cannot_open(ref.model, "model", error) from None
        raise


def _check_folder(name: str) -> None:
    """A folder that is named but not there would be asked for on the Hub; say what is near instead."""
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{name} holds no config.json, so it is no model folder", hint="name a folder that save_pretrained wrote")
        return
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.parent.is_dir() and str(path.parent) != "."
    if looks_local:
        parent = path.parent if path.parent.is_dir() else Path(".")
        near = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir() if p.is_dir()], n=1)
        hint = f"did you mean {parent / near[0]}?" if near else "give an existing folder, or a Hub id such as Qwen/Qwen3-1.7B-Base"
        raise UserError(f"no model folder at {name}", hint=hint)


def _cannot_open(name: str, what: str, error: Exception) -> UserError:
    text = str(error)
    if "trust_remote_code" in text:
        return UserError(f"{name} needs code from its own repository, which opd does not run", hint="convert it to a type transformers knows")
    reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    hint = "give an existing folder, or a Hub id you can reach (offline: download it first)"
    if "safetensors" in text:
        hint = "convert the weights to safetensors: load them where you trust them and save_pretrained()"
    return UserError(f"cannot open the {what} of {name}: {reason[:300]}", hint=hint)


def _stop_ids(model: Any, tokenizer: Any, rows: int) -> tuple[int, ...]:
    named = getattr(model.generation_config, "eos_token_id", None)
    ids = [] if named is None else list(named) if isinstance(named, list | tuple) else [named]
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return tuple(sorted({int(i) for i in ids if 0 <= int(i) < rows}))


def _max_length(config: Any) -> int:
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)


def _head(model: Any, name: str, *, rows: int) -> Head:
    """Read the head of an architecture and check it against the model's own logits on four tokens."""
    config = model.config.get_text_config()
    output = model.get_output_embeddings()
    if output is None or not isinstance(getattr(output, "weight", None), torch.Tensor):
        raise _no_head(model, name, "it has no output embedding")
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    head = Head(output=output, rows=rows, scale=scale, softcap=getattr(config, "final_logit_softcapping", None))
    ids = torch.arange(4, device=head.weight.device)[None] % rows
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        ours, theirs = head.logits(hidden), model(input_ids=ids, use_cache=False).logits[0, :, :rows]
    tolerance = 1e-4 if hidden.dtype in (torch.float32, torch.float64) else 5e-2
    error = float((ours - theirs.to(ours.dtype)).abs().max() / theirs.abs().max().clamp(min=1.0))
    if not error <= tolerance:
        raise _no_head(model, name, f"logits rebuilt from its hidden states differ by {error:.2g}")
    return head


def _no_head(model: Any, name: str, why: str) -> UserError:
    return UserError(
        f"{type(model).__name__} ({name}) is an architecture whose head opdkit does not know: {why}",
        hint="known to work: Llama, Qwen2, Qwen3, Gemma, SmolLM and others with a linear head",
    )


def with_rows(loaded: LoadedModel, rows: int) -> LoadedModel:
    """The same model with its vocabulary reduced to the first `rows` ids."""
    head = replace(loaded.head, rows=min(rows, loaded.head.rows))
    return replace(loaded, head=head, stop_ids=tuple(i for i in loaded.stop_ids if i < head.rows))
