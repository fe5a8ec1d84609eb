"""One model in memory, two in the loop: an adapter (LoRA) learns from its own base at a lower temperature.

    python examples/adapter_on_its_base.py

An adapted linear map computes W x + (alpha / rank) · B A x; A and B train, W does not. With the adapter off it is the base
again, so the base can be the teacher without a second copy. Others get the merged weights W + (alpha / rank) · B A.
"""

from dataclasses import replace

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from opdkit.config import LearnerConfig, LoraConfig, ObjectiveConfig, OptimConfig, SamplingConfig
from opdkit.models.adapter import adapt
from opdkit.models.load import describe
from opdkit.models.sampler import LocalSampler
from opdkit.models.student import Student
from opdkit.models.teacher import LocalTeacher
from opdkit.objectives import Objective
from opdkit.run.world import World
from opdkit.train.collate import collate
from opdkit.train.learner import Learner, Part
from opdkit.types import Needs, Prompt

STEPS, PROMPTS = 20, [Prompt(id=str(i), ids=(i, i + 1, i + 2)) for i in range(1, 9)]
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


def main():
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({f"w{i}": i for i in range(64)})))
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, initializer_range=0.2, **SIZES)).eval()
    loaded, base = describe(model, words, name="toy"), {n: w.clone() for n, w in model.state_dict().items()}
    adapt(model, LoraConfig(rank=4, alpha=8.0), seed=0)
    teacher = LocalTeacher(replace(loaded, bare=True), temperature=0.5, frozen=False)  # adapter off
    objective, world = Objective(ObjectiveConfig(preset="full")), World(torch.device("cpu"))
    settings = {"optim": OptimConfig(lr=2e-2), "learner": LearnerConfig(), "steps": STEPS}
    learner, losses = Learner(Student(loaded), world=world, **settings), []
    for step in range(STEPS):
        sampling = SamplingConfig(responses=4, max_tokens=16)
        rows = LocalSampler(loaded).sample(PROMPTS, sampling=sampling, seed=0, step=step, stop_ids=[])
        batch = collate(rows, {"teacher": teacher.score(rows, needs=Needs(sampled=True))})
        part = Part(batch, objective.prepare(batch), objective)
        update = learner.update(part, heads={"teacher": teacher.head}, step=step)
        losses.append(update.tally.means()["loss"])
    held = {n.replace(".base_layer", ""): w for n, w in model.state_dict().items()}
    same, merged = all(held[n].equal(w) for n, w in base.items()), learner.weights()
    moved = [n for n, w in base.items() if not merged[n].equal(w)]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{trained} numbers train beside {sum(w.numel() for w in base.values())} that do not")
    print(f"KL to the base at temperature 0.5: {losses[0]:.3f} at first, {losses[-1]:.3f} at the end")
    print(f"the base is as it was: {same}; merged, {len(moved)} of its {len(base)} tensors differ")
    return {"losses": losses, "same": same, "moved": moved, "shared": teacher.loaded.model is model}


if __name__ == "__main__":
    main()
