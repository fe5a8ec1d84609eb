"""Draw responses and check who drew them: each has a random stream of its own, and carries log-probs one can verify.

    python examples/sample_rollouts.py

A response depends on its prompt, the weights, (seed, step, prompt id, number) and nothing else. What the sampler says of
its tokens is what a second reading of them says (`sampler_mismatch` of a run), here to rounding.
"""

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from opdkit.config import SamplingConfig
from opdkit.models.load import describe
from opdkit.models.sampler import LocalSampler
from opdkit.models.teacher import LocalTeacher
from opdkit.types import Needs, Prompt

SAMPLING = SamplingConfig(responses=3, max_tokens=16, top_p=0.9)


def tiny_student():
    """A random Llama over 24 made-up words; word 0 ends a response."""
    words = {f"w{i}": i for i in range(24)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w1")), eos_token="w0"
    )
    torch.manual_seed(0)
    shape = {"vocab_size": 24, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    rest = {"num_hidden_layers": 2, "initializer_range": 0.2, "eos_token_id": 0}
    config = LlamaConfig.from_dict(shape | rest)
    return describe(LlamaForCausalLM(config).eval(), tokenizer, name="tiny")


def main():
    student = tiny_student()
    prompts = [Prompt(id="a", ids=(5, 6, 7)), Prompt(id="b", ids=(9, 8))]
    needs = Needs(sampled=True, entropy=True)

    def draw(some):
        return LocalSampler(student).sample(some, sampling=SAMPLING, seed=0, step=0, needs=needs)

    rollouts, alone = draw(prompts), draw(prompts[1:])
    again = LocalTeacher(student, payload="ids", frozen=False).score(rollouts, needs=Needs(sampled=True))
    pairs = list(zip(rollouts, again, strict=True))
    mismatch = max(float((r.logp - s.sampled).abs().max()) for r, s in pairs)
    gain = torch.cat([r.behaviour_logp - r.logp for r in rollouts])
    for r in rollouts:
        print(f"{r.prompt.id}{r.sample}: {r.length:2} tokens, {r.finish_reason:6}", end="  ")
        print(f"entropy {r.entropy.mean():.2f} nats  {r.text[:40]}")
    same = [r.response_ids for r in rollouts[3:]] == [r.response_ids for r in alone]
    print(f"prompt b asked for alone gives the same three responses: {same}")
    print(f"log p of the sampler and of a second reading differ by {mismatch:.1e} nats at most")
    print(f"top_p = 0.9 drew tokens {gain.mean():.3f} nats likelier than the untruncated p (never less)")
    return {"rollouts": rollouts, "same": same, "mismatch": mismatch, "gain": gain}


if __name__ == "__main__":
    main()
