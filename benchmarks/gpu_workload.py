"""What benchmarks/gpu.py works on, all from seeds: two Qwen3 by their sizes, a tokenizer that is a list of words, prompts.

Nothing is downloaded. Weights are drawn on the device they are used on, so they differ between a CPU and a GPU, and all
that is measured here (time and memory at forced lengths) does not depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from opdkit.models.load import LoadedModel, describe
from opdkit.types import Prompt

PAD, END, FIRST_WORD = 0, 1, 2  # ids; prompts are made of words, never of the first two
STUDENT, TEACHER = 1, 2  # seeds of the weights


@dataclass(frozen=True)
class Shape:
    """Sizes of one workload. Lengths in tokens."""

    vocabulary: int
    prompt_tokens: int
    lengths: tuple[int, ...]  # of responses, unless --lengths says otherwise
    checkpoint_from: int  # responses of this length and longer are trained with gradient checkpointing
    prompts: int
    responses: int  # per prompt
    micro_tokens: int  # at most so many padded tokens in one training forward, on both sides of a comparison
    student: Mapping[str, int]
    teacher: Mapping[str, int]

    @property
    def context(self) -> int:
        return 4 * max(self.lengths)


def _size(hidden: int, layers: int, heads: int, key_heads: int, width: int, inner: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": width,
        "intermediate_size": inner,
    }


SHAPES = {
    # The layer counts and widths of Qwen2.5-0.5B and Qwen2.5-1.5B, with Qwen3's layers: 0.49 and 1.5 billion parameters.
    "0.5b": Shape(
        vocabulary=151_936,
        prompt_tokens=128,
        lengths=(2048, 8192),
        checkpoint_from=4096,
        prompts=8,
        responses=4,
        micro_tokens=16_640,
        student=_size(896, 24, 14, 2, 64, 4864),
        teacher=_size(1536, 28, 12, 2, 128, 8960),
    ),
    # For a look at the code path on a CPU, in seconds; heads of 32, the narrowest vLLM knows there.
    "tiny": Shape(
        vocabulary=512,
        prompt_tokens=6,
        lengths=(8, 12),
        checkpoint_from=12,
        prompts=2,
        responses=2,
        micro_tokens=40,
        student=_size(32, 2, 4, 2, 32, 64),
        teacher=_size(48, 2, 4, 2, 32, 96),
    ),
}


def open_tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    """Word i is w<i>: every id is a text of its own, so text and ids turn into one another without loss.

    The first two have names apart: a special token is found inside words too, and w1 is inside w17.
    """
    words = {"<pad>": PAD, "<end>": END} | {f"w{i}": i for i in range(FIRST_WORD, shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )


def make_model(shape: Shape, size: Mapping[str, int], *, seed: int, dtype: torch.dtype, device: torch.device) -> Any:  # fmt: skip
    """A random Qwen3 on the device, head and embedding tied. The global generators are left alone."""
    config = Qwen3Config(
        **size,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def open_student(shape: Shape, tokenizer: Any, device: torch.device) -> LoadedModel:
    """Float32 masters; arithmetic is narrowed where they are used."""
    model = make_model(shape, shape.student, seed=STUDENT, dtype=torch.float32, device=device)
    return describe(model, tokenizer, name="student")


def open_teacher(shape: Shape, tokenizer: Any, device: torch.device) -> LoadedModel:
    model = make_model(shape, shape.teacher, seed=TEACHER, dtype=torch.bfloat16, device=device)
    return describe(model.requires_grad_(False), tokenizer, name="teacher")


def make_prompts(shape: Shape, *, count: int, step: int) -> list[Prompt]:
    """The prompts of one step, from its number: random words, all of one length, so that no side pads."""
    generator = torch.Generator().manual_seed(step)
    size = (count, shape.prompt_tokens)
    ids = torch.randint(FIRST_WORD, shape.vocabulary, size, generator=generator).tolist()
    return [
        Prompt(id=f"{step}-{i}", text=" ".join(f"w{j}" for j in row), ids=tuple(row))
        for i, row in enumerate(ids)
    ]
