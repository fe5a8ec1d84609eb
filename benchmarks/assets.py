"""The fixed workload of the benchmarks, made from seeds: a tokenizer of 512 tokens, two random Qwen3, prompts of 32 tokens.

    python benchmarks/assets.py FOLDER

Writes FOLDER/student (0.85 M parameters), FOLDER/teacher (4.85 M) and FOLDER/prompts.jsonl, or leaves them as they
are. The same seeds give the same bytes, so a loss can be compared between machines and trainers. Needs opdkit's
dependencies only, not opdkit.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIALS = ["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY, PROMPTS, PROMPT_TOKENS = 512, 512, 32
SIZES: dict[str, dict[str, int]] = {
    "student": {
        "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 384,
    },
    "teacher": {
        "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4,
        "intermediate_size": 768,
    },
}  # fmt: skip
NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gia", "Hal", "Ivy", "Jon"]
THINGS = ["apples", "pears", "coins", "cards", "books", "pens", "stamps", "shells", "beads", "nuts"]
CHAT_TEMPLATE = (  # TRL wants one with {% generation %}; prompts are plain text and never go through it
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_assets(folder: Path, *, seed: int = 0) -> Path:
    """The folder with everything in it. The prompts are written last: they say that the rest is complete."""
    if (folder / "prompts.jsonl").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(seed)
    for offset, (name, size) in enumerate(SIZES.items(), start=1):
        make_model(tokenizer, seed=seed + offset, **size).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = make_prompts(tokenizer, seed=seed + 3)
    partial = folder / "prompts.partial"
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    partial.rename(folder / "prompts.jsonl")
    return folder


def read_prompts(folder: Path) -> list[dict[str, Any]]:
    """Rows of `prompt` (text) and `ids`."""
    return [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((sentence(rng) for _ in range(4000)), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIALS[0], eos_token=SPECIALS[3], padding_side="left"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(tokenizer: Any, *, seed: int, **size: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        **size,
        vocab_size=len(tokenizer),
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).float()
    model.generation_config.do_sample = True
    return model


def make_prompts(tokenizer: Any, *, seed: int, count: int = PROMPTS) -> list[dict[str, Any]]:
    """Texts that come back from decode and encode with exactly PROMPT_TOKENS tokens."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        text = " ".join(sentence(rng) for _ in range(3))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:PROMPT_TOKENS]
        prompt = tokenizer.decode(ids)
        if tokenizer(prompt, add_special_tokens=False)["input_ids"] == ids:
            rows.append({"prompt": prompt, "ids": ids})
    return rows


def sentence(rng: random.Random) -> str:
    """A made-up school sum. The order of draws is part of the workload: another order is another corpus."""
    a, b, c = (rng.randint(2, 99) for _ in range(3))
    name, other, thing = rng.choice(NAMES), rng.choice(NAMES), rng.choice(THINGS)
    ordered = " ".join(str(n) for n in sorted((a, b, c)))
    return rng.choice(
        [
            f"{name} has {a} {thing} and buys {b} more, then gives {c} to {other}. "
            f"How many {thing} are left? The answer is {a + b - c}.",
            f"Compute {a} + {b} * {c}. First multiply {b} by {c} to get {b * c}, then add {a}, "
            f"so the result is {a + b * c}.",
            f"Is {a} larger than {b}? {'Yes' if a > b else 'No'}, because {a} minus {b} equals {a - b}.",
            f"Sort the list {a} {b} {c}. The sorted list is {ordered}.",
            f"{name} shares {a * b} {thing} equally among {b} friends, so every friend gets {a} {thing}, "
            f"says {other}.",
        ]
    )


if __name__ == "__main__":
    print(make_assets(Path(sys.argv[1])))
