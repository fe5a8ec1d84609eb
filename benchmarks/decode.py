"""Decoding: transformers' generate against LocalSampler on one thread, with a random 0.85 M Qwen3.

    python benchmarks/decode.py [--repeats 5] [--prompts 32] [--tokens 64] [--ragged-tokens 256]

Prints one JSON line. `equal`: prompts of 32 tokens, exactly --tokens each, no end token. `ragged`: prompts of
8 to 32 tokens, and an end token that comes after about 50 (a bias in the head, so both sides see the same
model). `shared`: 4 responses to each of a quarter of the prompts. Sides alternate; times are medians in
seconds, and per generated token where lengths differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from opdkit.config import SamplingConfig
from opdkit.models.load import LoadedModel, describe
from opdkit.models.sampler import LocalSampler
from opdkit.types import Prompt

VOCABULARY, PAD, END = 512, 0, 1


def build(end_bias: float) -> LoadedModel:
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w2")), pad_token="w0", eos_token="w1"
    )
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, intermediate_size=384, max_position_embeddings=1024,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=END, pad_token_id=PAD,
        initializer_range=0.05,
    )  # fmt: skip
    torch.manual_seed(1)
    model = Qwen3ForCausalLM(config).eval()
    model.lm_head.bias = nn.Parameter(torch.zeros(VOCABULARY))
    with torch.no_grad():
        model.lm_head.bias[PAD] = -1e4 if end_bias else 0.0  # so that HF's padding can be told from tokens
        model.lm_head.bias[END] = end_bias
    return describe(model, tokenizer, name="bench")


def make_prompts(count: int, *, shortest: int, longest: int) -> list[Prompt]:
    lengths = [shortest + (7 * i) % (longest - shortest + 1) for i in range(count)]
    return [
        Prompt(id=str(i), ids=tuple(2 + (31 * i + 17 * j) % 500 for j in range(n)))
        for i, n in enumerate(lengths)
    ]


def generate(
    loaded: LoadedModel, prompts: list[Prompt], *, responses: int, tokens: int, end: int | None
) -> int:
    """transformers' own sampling over all rows at once; tokens made."""
    width = max(len(p.ids) for p in prompts)
    ids = torch.tensor([[PAD] * (width - len(p.ids)) + list(p.ids) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts])
    with torch.inference_mode():
        out = loaded.model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=tokens,
            eos_token_id=end, pad_token_id=PAD, num_return_sequences=responses,
        )  # fmt: skip
    made = out[:, width:]
    return int((made != PAD).sum()) if end is not None else made.numel()


def ours(
    sampler: LocalSampler, prompts: list[Prompt], *, responses: int, tokens: int, end: int | None, step: int
) -> int:
    sampling = SamplingConfig(responses=responses, max_tokens=tokens, batch_rows=len(prompts) * responses)
    made = sampler.sample(
        prompts, sampling=sampling, seed=0, step=step, stop_ids=[] if end is None else [end]
    )
    return sum(r.length for r in made)


def compare(
    end_bias: float, repeats: int, *, prompts: list[Prompt], responses: int, tokens: int
) -> dict[str, Any]:
    loaded = build(end_bias)
    sampler = LocalSampler(loaded)
    end = END if end_bias else None
    settings: dict[str, Any] = {"prompts": prompts, "responses": responses, "tokens": tokens, "end": end}
    sides: dict[str, Callable[[int], int]] = {
        "generate": lambda _: generate(loaded, **settings),
        "ours": lambda step: ours(sampler, step=step, **settings),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    made: dict[str, int] = dict.fromkeys(sides, 0)
    for repeat in range(-1, repeats):
        for name, side in sides.items():
            begin = time.process_time()
            count = side(repeat + 1)
            if repeat >= 0:
                seconds[name].append(time.process_time() - begin)
                made[name] += count
    return _summary(seconds, made)


def _summary(seconds: dict[str, list[float]], made: dict[str, int]) -> dict[str, Any]:
    per_token = {name: sum(times) / made[name] for name, times in seconds.items()}
    found: dict[str, Any] = {
        "seconds_" + name: round(statistics.median(times), 4) for name, times in seconds.items()
    }
    found |= {"microseconds_per_token_" + name: round(1e6 * value, 1) for name, value in per_token.items()}
    return found | {"ratio_per_token": round(per_token["generate"] / per_token["ours"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--ragged-tokens", type=int, default=256)
    given = parser.parse_args()
    torch.set_num_threads(1)
    equal = make_prompts(given.prompts, shortest=32, longest=32)
    ragged = make_prompts(given.prompts, shortest=8, longest=32)
    result = {
        "equal": compare(0.0, given.repeats, prompts=equal, responses=1, tokens=given.tokens),
        "ragged": compare(2.5, given.repeats, prompts=ragged, responses=1, tokens=given.ragged_tokens),
        "shared": compare(
            0.0, given.repeats, prompts=equal[: given.prompts // 4], responses=4, tokens=given.tokens
        ),
    }
    print(json.dumps({"torch": torch.__version__, "threads": 1} | result))


if __name__ == "__main__":
    main()
