"""Open a model folder or Hub id: weights (safetensors only), tokenizer, head, end tokens.

Also what two tokenizers share, and which device there is.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opdkit.models.adapter import adapters_off
from opdkit.models.adapter_folder import (
    ADAPTER_CONFIG,
    ModelRef,
    adapter_folder,
    base_of,
    check_adapter,
    merged_onto,
    two_models,
)
from opdkit.models.head import Head
from opdkit.types import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model ready to use, with the facts other rooms ask of it."""

    name: str
    model: Any  # a transformers causal LM, in eval mode (dropout off), on its device
    tokenizer: Any
    head: Head
    stop_ids: tuple[int, ...]  # any of these ends a response
    fingerprint: str  # of the tokenizer: same fingerprint, same ids for the same tokens
    max_length: int  # tokens the positions reach
    bare: bool = False  # read with its adapters off: the base of a student that is trained beside it

    @property
    def body(self) -> nn.Module:
        """The decoder without its head; its output has `last_hidden_state`."""
        return self.model.base_model

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def reading(self) -> AbstractContextManager[None]:
        """Around every forward that is meant to be this model's: its module may be another's with adapters."""
        return adapters_off(self.model) if self.bare else nullcontext()


def pick_device(name: str) -> torch.device:
    """`auto` = cuda if present else cpu. UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{name!r} is no device", hint="device=auto, device=cpu or device=cuda:0") from None
    try:
        torch.zeros(1, device=device).item()  # reading it back: `meta` holds no numbers
    except (RuntimeError, AssertionError) as error:
        reason = "" if "backend" in str(error) else f": {_first_line(error)}"
        raise UserError(f"device {name!r} is not there{reason}", hint="device=auto or device=cpu") from None
    return device


def open_model(
    ref: ModelRef, *, device: torch.device, rows: int | None = None, merge: bool = True
) -> LoadedModel:
    """Load weights and tokenizer; `rows` limits the vocabulary further (what two tokenizers share).

    An adapter folder is its base with the adapter merged; without `merge`, its base alone.
    Raises UserError when the model is missing, needs remote code, has no safetensors or not all that its
    config asks for, or is an architecture whose logits are not a linear head over its hidden states.
    """
    tokenizer = open_tokenizer(ref)
    base, adapter = base_of(ref)
    model = _from_pretrained(base)
    if merge and adapter is not None:
        model = merged_onto(model, adapter)
    model = model.to(device).eval()
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
        stop_ids=_stop_ids(model.generation_config, tokenizer, head.rows),
        fingerprint=fingerprint(tokenizer),
        max_length=context_length(model.config),
    )


def open_tokenizer(ref: ModelRef) -> Any:
    """Of an adapter folder its own, if it has one, else its base's."""
    base, adapter = base_of(ref)
    own = adapter is not None and (adapter.folder / "tokenizer_config.json").is_file()
    return _opened(ref if own else base, "tokenizer", "AutoTokenizer")


def open_config(ref: ModelRef) -> Any:
    """The model's config alone: sizes and type, read before any weight."""
    return _opened(base_of(ref)[0], "config", "AutoConfig")


def _opened(ref: ModelRef, what: str, opener: str) -> Any:
    import transformers

    if adapter_folder(ref.model) is None:
        _check_folder(ref.model)
    try:
        auto = getattr(transformers, opener)
        return auto.from_pretrained(ref.model, revision=ref.revision, trust_remote_code=False)
    except Exception as error:  # whatever a parser says of a damaged file
        raise _cannot_open(ref.model, what, error) from None


def check_weights(ref: ModelRef) -> None:
    """UserError where a folder's weights are missing, pickled or cut short.

    Reads headers only, so that it comes before anything expensive; the Hub is asked when a model is loaded.
    """
    ref, adapter = base_of(ref)
    if adapter is not None:
        check_adapter(adapter)
    folder = Path(ref.model)
    if not folder.is_dir():
        return
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        _check_file(single)
        return
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index} is damaged", hint=_again(folder)) from None
    for name in names:
        _check_file(folder / name)


def _check_file(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    folder = path.parent
    if not path.is_file():
        pickled = next((p.name for p in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*"))), None)
        if pickled is None:
            raise UserError(f"{folder} holds no weights: {path.name} is not there", hint=_again(folder))
        raise UserError(
            f"{folder} holds pickled weights only ({pickled}), and a pickle can run code: opd opens none",
            hint="convert it where you trust it: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)",
        )
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise UserError(
            f"{path} is damaged or cut short: {_first_line(error)}", hint=_again(folder)
        ) from None


def _again(folder: Path) -> str:
    return f"copy or download {folder} again, or name another model"


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

    Embeddings padded wider than the tokenizer (Qwen2.5: 151,936 and 152,064 rows, 151,665 tokens) are the
    usual case and are reduced to the shared ids. One tokenizer may have further tokens behind those that are
    shared. A different map is refused.
    """
    return shared_ids(
        student,
        teacher.get_vocab(),
        ours=vocabulary_rows(student, student_config),
        theirs=vocabulary_rows(teacher, teacher_config),
    )


def shared_ids(student: Any, vocabulary: Mapping[str, int], *, ours: int, theirs: int) -> int:
    """The same for a teacher of which only the `vocabulary` (token → id) and its number of rows are known."""
    differing = _first_differences(student.get_vocab(), vocabulary)
    if differing:
        raise UserError(
            f"student and teacher read ids differently: {'; '.join(differing)}",
            hint="take a teacher of the student's family, with the same tokenizer",
        )
    shared = min(ours, theirs)
    if student.eos_token_id is not None and student.eos_token_id >= shared:
        raise UserError(
            f"the student's end token {student.eos_token!r} (id {student.eos_token_id}) is unknown to "
            "the teacher",
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


# --- loading ------------------------------------------------------------------------------------------------


def _from_pretrained(ref: ModelRef) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            ref.model,
            revision=ref.revision,
            dtype=DTYPES[ref.dtype],
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise
        raise _cannot_open(ref.model, "model", error) from None
    except Exception as error:  # safetensors raises its own class for a broken file
        if type(error).__module__.startswith("safetensors"):
            raise _cannot_open(ref.model, "model", error) from None
        raise
    model, seen = loaded
    if getattr(model, "_hf_peft_config_loaded", False):
        raise two_models(ref.model)
    _refuse_partial(ref.model, model, seen)
    return model


def _refuse_partial(name: str, model: Any, seen: Mapping[str, Any]) -> None:
    """transformers draws at random what a file does not hold, and leaves out layers beyond config.json's."""
    layers = f"{model.base_model_prefix}.layers."
    left_out = [key for key in seen["unexpected_keys"] if key.startswith(layers) and "inv_freq" not in key]
    problems: list[tuple[str, Sequence[str]]] = [
        ("asks for weights that are not there", seen["missing_keys"]),
        ("and the weights disagree about the shape of", [key for key, *_ in seen["mismatched_keys"]]),
        ("leaves out weights that are there", left_out),
    ]
    for problem, keys in problems:
        if keys:
            first = ", ".join(sorted(keys)[:2]) + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")
            raise UserError(
                f"{name}/config.json {problem}: {first}",
                hint="config and weights must be of one model: copy or download both again",
            )


def _check_folder(name: str) -> None:
    """A folder that is named but not there would be asked for on the Hub; say what is near instead."""
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            inner = _model_within(path)
            hint = f"did you mean {inner}?" if inner else "name a folder that save_pretrained wrote"
            raise UserError(f"{name} holds no config.json, so it is no model folder", hint=hint)
        if (path / ADAPTER_CONFIG).is_file():
            raise two_models(name)
        return
    if path.is_file():
        hint = f"did you mean {path.parent}?" if (path.parent / "config.json").is_file() else _ANY_MODEL
        raise UserError(f"{name} is a file, not a model folder", hint=hint)
    near = _near_folder(path)
    in_a_folder = path.parent.is_dir() and (str(path.parent) != "." or near is not None)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or in_a_folder:
        raise UserError(f"no model folder at {name}", hint=near or _ANY_MODEL)


_ANY_MODEL = "give an existing folder, or a Hub id such as Qwen/Qwen3-1.7B-Base"


def _near_folder(path: Path) -> str | None:
    parent = path.parent if path.parent.is_dir() else Path(".")
    names = [p.name for p in parent.iterdir() if (p / "config.json").is_file()]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {parent / near[0]}?" if near else None


def _model_within(path: Path) -> Path | None:
    """The model folder of a checkpoint, or of a run's last checkpoint."""
    found = [
        p.parent
        for p in [*path.glob("model/config.json"), *path.glob("checkpoints/step_*/model/config.json")]
    ]
    return max(found, key=lambda p: (len(p.parent.name), p.parent.name), default=None)


def _cannot_open(name: str, what: str, error: Exception) -> UserError:
    if isinstance(error, MemoryError):
        raise error
    text = str(error)
    if "trust_remote_code" in text:
        return UserError(
            f"{name} needs code from its own repository, which opd does not run",
            hint="convert it to a type transformers knows",
        )
    folder = Path(name)
    if not folder.is_dir():
        reason, hint = _first_line(error), f"{_ANY_MODEL} that can be reached"
    elif what == "tokenizer" and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return UserError(
            f"{name} holds no tokenizer",
            hint=f"copy tokenizer.json and tokenizer_config.json of its model into {name}",
        )
    else:
        reason, hint = f"{type(error).__name__}: {_first_line(error)}", _again(folder)
    return UserError(f"cannot open the {what} of {name}: {reason}", hint=hint)


_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)


def _first_line(error: BaseException) -> str:
    return next(
        (line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__
    )


def open_stop_ids(ref: ModelRef, tokenizer: Any, *, rows: int) -> tuple[int, ...]:
    """Any of these ends a response; read before any weight."""
    from transformers import GenerationConfig

    try:
        base, _ = base_of(ref)
        named: Any = GenerationConfig.from_pretrained(base.model, revision=base.revision or "main")
    except OSError:  # many have none: then it is what the model's config says
        named = open_config(ref)
    return _stop_ids(named, tokenizer, rows)


def _stop_ids(named_by: Any, tokenizer: Any, rows: int) -> tuple[int, ...]:
    named = getattr(named_by, "eos_token_id", None)
    ids = [] if named is None else list(named) if isinstance(named, list | tuple) else [named]
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return tuple(sorted({int(i) for i in ids if 0 <= int(i) < rows}))


def context_length(config: Any) -> int:
    """Tokens that the positions reach; a very large number where they have no end."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)


def _head(model: Any, name: str, *, rows: int) -> Head:
    """Read the head of an architecture and check it against the model's own logits on four tokens."""
    config = model.config.get_text_config()
    output = model.get_output_embeddings()
    if output is None or not isinstance(getattr(output, "weight", None), torch.Tensor):
        raise _no_head(model, name, "it has no output embedding")
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
        getattr(config, "logits_scaling", None) or 1.0
    )
    head = Head(
        output=output, rows=rows, scale=scale, softcap=getattr(config, "final_logit_softcapping", None)
    )
    ids = torch.arange(4, device=head.weight.device)[None] % rows
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        ours, theirs = head.logits(hidden), model(input_ids=ids, use_cache=False).logits[0, :, :rows]
    wide = hidden.dtype in (torch.float32, torch.float64)
    tolerance = 1e-4 if wide and not torch.is_autocast_enabled(hidden.device.type) else 5e-2
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
