"""Tiny models and a tiny tokenizer, built from seeds in milliseconds: no download, no file.

Kinds: llama, qwen2, qwen3, mistral, gemma, gemma2, gemma3, smollm (a tied Llama with SmolLM2's settings), and
gpt2, bloom, mamba for refusals.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from opdkit.models.load import LoadedModel, describe

SPECIALS = ["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PAD, END_OF_TEXT, IM_START, IM_END = range(4)
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CACHED = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3", "smollm")

_LLAMA_LIKE: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
_OWN: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 6},
    "gemma": {"head_dim": 16},
    "gemma2": {
        "head_dim": 16,
        "sliding_window": 6,
        "query_pre_attn_scalar": 12,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        "head_dim": 16,
        "sliding_window": 6,
        "query_pre_attn_scalar": 12,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "smollm": {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
}
_TYPES = {"smollm": "llama", "gemma3": "gemma3_text"}


@lru_cache
def tiny_tokenizer(*, vocab: int = 384, seed: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level BPE of exactly `vocab` tokens (260 or more), trained on sums; ids 0-3 are SPECIALS."""
    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_sentence(rng) for _ in range(500)), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIALS[PAD], eos_token=SPECIALS[IM_END], padding_side="left"
    )
    fast.chat_template = CHAT_TEMPLATE
    assert len(fast) == vocab, len(fast)
    return fast


def _sentence(rng: random.Random) -> str:
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    name, thing = rng.choice(["Ada", "Ben", "Cleo", "Dan"]), rng.choice(["apples", "coins", "books"])
    return rng.choice(
        [
            f"{name} has {a} {thing} and buys {b} more. How many {thing} are left? The answer is {a + b}.",
            f"Compute {a} + {b} * 3. First multiply {b} by 3 to get {b * 3}, so the result is {a + b * 3}.",
            f"Is {a} larger than {b}? {'Yes' if a > b else 'No'}, because {a} minus {b} equals {a - b}.",
        ]
    )


def tiny_model(
    kind: str,
    *,
    seed: int = 0,
    tokenizer: Any = None,
    vocab_size: int | None = None,
    hidden: int = 32,
    layers: int = 2,
    tie: bool | None = None,
    dtype: torch.dtype = torch.float32,
    spread: float = 0.2,
    **settings: Any,
) -> Any:
    """A random causal LM in eval mode. `tie` None keeps the kind's own habit; `settings` go to its config.

    `spread` is the standard deviation of the weights: 0.2 makes next-token distributions far from uniform and
    every position matter, so that a wrong mask shows. At 0.3 a float32 forward is itself 1e-5 nats from a
    float64 one. Vectors (norms, biases) are drawn too. The global generator is untouched.
    """
    tokenizer = tokenizer or tiny_tokenizer()
    settings = _settings(kind, tokenizer, vocab_size, hidden, layers, tie) | settings
    config = AutoConfig.for_model(_TYPES.get(kind, kind), **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32).to(dtype)
            parameter.add_(0.1 * noise) if parameter.ndim < 2 else parameter.copy_(spread * noise)
    return model.eval()


def _settings(
    kind: str, tokenizer: Any, vocab_size: int | None, hidden: int, layers: int, tie: bool | None
) -> dict[str, Any]:
    common: dict[str, Any] = {
        "vocab_size": vocab_size or len(tokenizer),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if tie is not None or kind in ("smollm", "qwen3"):
        common["tie_word_embeddings"] = True if tie is None else tie
    if kind not in _OWN:
        return common | {"num_attention_heads": 4} if kind != "mamba" else common
    return (
        common | _LLAMA_LIKE | {"intermediate_size": 3 * hidden, "max_position_embeddings": 256} | _OWN[kind]
    )


def tiny_loaded(
    kind: str, *, seed: int = 0, tokenizer: Any = None, name: str | None = None, **settings: Any
) -> LoadedModel:
    """`tiny_model` as the rest of the package sees models."""
    tokenizer = tokenizer or tiny_tokenizer()
    return describe(
        tiny_model(kind, seed=seed, tokenizer=tokenizer, **settings), tokenizer, name=name or f"tiny-{kind}"
    )
