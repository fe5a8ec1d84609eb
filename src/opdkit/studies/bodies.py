"""Tiny Hugging Face models from a seed: a world's tokenizer, random weights, every end token of the world."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from opdkit.tasks.word_tokenizer import word_tokenizer


@dataclass(frozen=True)
class Body:
    """Sizes of a model. `spread` is the standard deviation of its first weights."""

    width: int
    inner: int
    spread: float
    kind: Literal["qwen3", "llama"] = "qwen3"
    layers: int = 2
    heads: int = 4
    context: int = 64  # tokens of prompt and response


def write_body(folder: Path, body: Body, *, world: Any, seed: int) -> None:
    """A model with random weights as a folder that `from_pretrained` opens."""
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = word_tokenizer(world.vocabulary, ends=world.ends)
    with torch.random.fork_rng(devices=[]):  # transformers draws weights from the global generator
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_config(body, tokenizer))
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.convert_tokens_to_ids(end) for end in world.ends],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _config(body: Body, tokenizer: Any) -> Any:
    """Untied: with tied tables a model of this size learns one problem in thirty (docs/testbed.md)."""
    from transformers import LlamaConfig, Qwen3Config

    return {"qwen3": Qwen3Config, "llama": LlamaConfig}[body.kind](
        vocab_size=len(tokenizer),
        hidden_size=body.width,
        intermediate_size=body.inner,
        num_hidden_layers=body.layers,
        num_attention_heads=body.heads,
        num_key_value_heads=body.heads,
        head_dim=body.width // body.heads,
        max_position_embeddings=body.context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        initializer_range=body.spread,
    )


def rounded_copy(source: Path, folder: Path) -> int:
    """The same model in bfloat16: half the bytes, and what is shipped is what is studied. How many parameters."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, use_safetensors=True)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return model.num_parameters()
