"""What diagnostics on 256 positions cost: a whole training step with them over one without.

    python benchmarks/diagnostics_cost.py [--pairs 11]

small   the workload of benchmarks/assets.py: V = 512, 32 prompts of 32 tokens, 64 new tokens each
large   V = 49,152 and width 576, SmolLM2's, but two layers instead of 30, random weights: the head is real, the body
        is a stub, so the ratio is an upper bound for the real model. Prompts and responses as above.

One process, one thread, objective `paper`. Per pair: sample and score, then two updates on that same batch, one that
measures 256 positions (drawn for the step, as in a run) and one that measures none; which comes first alternates.

    ratio = (sample + score + update with) / (sample + score + update without)

An update runs from `collate` to the step's row of metrics. Processor seconds: the effect is smaller than what another
process takes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from machine import one_core
from opdkit.types import Prompt, Rollout, Scores
from ours import Ours
from record import ratio, spread
from weights import Weights
from work import Work

WARM_UP, LARGE_SHARE = 1, 4  # the large one takes fifteen times as long and gets a quarter of the pairs
VOCABULARY, WIDTH = 49_152, 576


class Stub:
    """`Weights` of random models at a large vocabulary."""

    def tokenizer(self) -> Any:
        words = {f"w{i}": i for i in range(VOCABULARY)}
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w2")),
            pad_token="w0",
            eos_token="w1",
        )

    def student(self) -> Any:
        return _random(1)

    def teacher(self) -> Any:
        return _random(2)

    def prompts(self) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(2, VOCABULARY, (32, 32), generator=generator).tolist()
        return [{"ids": row} for row in ids]


def _random(seed: int) -> Any:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        intermediate_size=1536,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config).eval()


def compare(name: str, weights: Any, work: Work, *, pairs: int) -> dict[str, Any]:
    ours = Ours(work, weights)
    rows = weights.prompts()
    prompts = [Prompt(id=str(i), ids=tuple(row["ids"])) for i, row in enumerate(rows)]
    both, off = [], []
    for pair in range(pairs + WARM_UP):
        taken = [prompts[(pair * work.rows + i) % len(prompts)] for i in range(work.rows)]
        began = time.process_time()
        rollouts = ours.sampler.sample(taken, sampling=ours.sampling, seed=0, step=pair)
        scores = ours.score(rollouts)
        rest = time.process_time() - began
        seconds = {}
        for measuring in (True, False) if pair % 2 else (False, True):
            seconds[measuring] = update(ours, rollouts, scores, pair, measuring=measuring)
        both.append(rest + seconds[True])
        off.append(rest + seconds[False])
    return {
        "name": f"diagnostics/{name}",
        "what": f"step with {ours.diagnostics.positions} measured positions / without, {work.models}, `{work.preset}`",
        "work": work.facts(),
        "ratio": ratio(both[WARM_UP:], off[WARM_UP:], of="with / without", better="lower"),
        "seconds": {"with": spread(both[WARM_UP:]), "without": spread(off[WARM_UP:])},
    }


def update(
    ours: Ours, rollouts: list[Rollout], scores: Sequence[Scores], step: int, *, measuring: bool
) -> float:
    """Processor seconds."""
    began = time.process_time()
    batch = ours.batch(rollouts, scores, step)
    if not measuring:
        batch = replace(batch, measured=torch.zeros_like(batch.measured))
    ours.record(ours.update(batch, step), rollouts, step)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, default=Path(".cache/bench"))
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--row", default="diagnostics", help=argparse.SUPPRESS)
    parser.add_argument("--records", action="store_true", help="lines of JSON (the only form there is)")
    parser.add_argument("--short", action="store_true", help="without the large one")
    given = parser.parse_args()
    one_core()
    small = Work("diagnostics", preset="paper", lr=1e-6, pairs=2 * given.pairs)
    print(json.dumps(compare("small", Weights(small, given.assets), small, pairs=given.pairs)), flush=True)
    if not given.short:
        large = replace(small, models="random 49k")
        pairs = -(-given.pairs // LARGE_SHARE)
        print(json.dumps(compare("large", Stub(), large, pairs=pairs)), flush=True)


if __name__ == "__main__":
    main()
