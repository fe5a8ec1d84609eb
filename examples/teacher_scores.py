"""What a teacher sends: hidden states with its head lent, or log-probs at ids. Two payloads, the same numbers.

    python examples/teacher_scores.py

With hidden states the learner can ask anything of the teacher (whole rows, a chunk at a time). A scoring server has no
head to lend: it answers for the ids it was asked for, and for nothing else.
"""

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from opdkit.models.load import describe
from opdkit.models.teacher import LocalTeacher, teacher_dist
from opdkit.types import Needs, Prompt, Rollout

VOCABULARY = 256


def tiny_teacher():
    """A random Llama over 256 made-up words."""
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = LlamaConfig.from_dict(shape | {"num_hidden_layers": 2, "initializer_range": 0.2})
    return describe(LlamaForCausalLM(config).eval(), tokenizer, name="tiny")


def main():
    loaded = tiny_teacher()
    rollout = Rollout(Prompt(id="a", ids=(5, 6, 7)), response_ids=(8, 9, 10, 11), finish_reason="length")
    sampled = torch.tensor(rollout.response_ids)
    ids = torch.tensor([[8, 1, 2], [9, 3, 4], [10, 5, 6], [11, 7, 0]])  # [T, S]; in a run the student's top-k

    lender, server = LocalTeacher(loaded, payload="hidden"), LocalTeacher(loaded, payload="ids")
    (lent,) = lender.score([rollout], needs=Needs(full=True))
    (sent,) = server.score([rollout], needs=Needs(sampled=True, at_ids=True, entropy=True), ids=[ids])
    rows = teacher_dist(lent, lender.head, part=slice(None), sampled_ids=sampled)
    stored = teacher_dist(sent, None, part=slice(None), sampled_ids=sampled)

    pairs = ((rows.at(ids), stored.at(ids)), (rows.sampled, stored.sampled), (rows.entropy, stored.entropy))
    worst = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
    print(f"log-probs at {ids.numel()} ids, of sampled tokens, entropies: {worst:.1e} nats apart at most")
    sizes = loaded.model.config.hidden_size, ids.shape[-1] + 2
    print("numbers per position: {} as hidden states, {} as log-probs and entropy".format(*sizes))
    print(f"any other id, from hidden states: {rows.at(ids + 100)[0, 0]:.3f}; from log-probs: ", end="")
    try:
        print(stored.at(ids + 100))
    except LookupError as refusal:  # a number that was not sent is never made up
        print(refusal)
        return {"worst": worst, "refused": True}
    return {"worst": worst, "refused": False}


if __name__ == "__main__":
    main()
