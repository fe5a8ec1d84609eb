"""What one rank does in tests/test_ranks.py; started by torchrun. Writes losses and gradients as JSON + safetensors.

torchrun --nproc-per-node 2 tests/ranks.py OUT tied|untied always|never WHAT…, a preset of the objective, or sft, or grpo.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))

from models import tiny_loaded
from opdkit.config import LearnerConfig, LoraConfig, ObjectiveConfig, OptimConfig
from opdkit.models.adapter import adapt, adapted
from opdkit.models.load import LoadedModel
from opdkit.models.student import Student
from opdkit.models.teacher import LocalTeacher
from opdkit.objectives import Likelihood, Objective, group_relative, imitation
from opdkit.run.world import World, whole
from opdkit.train.collate import collate
from opdkit.train.learner import Learner, Part
from opdkit.types import Grade, Needs, Prompt, Rollout

LIKELIHOODS = {"sft": Likelihood(imitation), "grpo": Likelihood(group_relative)}
LENGTHS = [
    (5, 9),
    (3, 4),
    (8, 1),
    (4, 7),
    (6, 12),
    (2, 3),
]  # (prompt, response) tokens, two responses per prompt


def rollouts(vocabulary: int) -> list[Rollout]:
    """Ragged responses with fixed tokens; two of each prompt."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i, (prompt_tokens, response_tokens) in enumerate(LENGTHS):
        ids = torch.randint(4, vocabulary, (prompt_tokens,), generator=generator).tolist()
        for g in range(2):
            response = torch.randint(4, vocabulary, (response_tokens + g,), generator=generator).tolist()
            found.append(Rollout(Prompt(id=str(i), ids=tuple(ids)), tuple(response), "length", sample=g))
    return found


def graded(rows: list[Rollout]) -> list[Rollout]:
    """The first of two responses is better, worse or just as good; the second of prompt 3 got no score."""
    scores = [1.0, 0.0, 0.25, 1.0, 0.7, 0.7, 1.0, None, 0.0, 1.0, 1.0, 0.5]
    return [
        replace(row, finish_reason="stop", grade=Grade(score))
        for row, score in zip(rows, scores, strict=True)
    ]


def with_adapter(loaded: LoadedModel, *, seed: int = 0) -> LoadedModel:
    """An adapter that is not 0: a fresh one would hide an adapter that is left out."""
    adapt(loaded.model, LoraConfig(rank=3, alpha=6.0), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in adapted(loaded.model).values():
        b = layer.lora_B["default"].weight
        with torch.no_grad():
            b.copy_(0.1 * torch.randn(b.shape, generator=generator))
    return loaded


def torchrun(*what: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Two ranks of a script or a module (`-m`, name) with its arguments; asserts the launcher's exit code."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == code, done.stderr[-4000:]
    return done


def learn(
    world: World, *, tie: bool, what: str, shard: Any = "auto", steps: int = 3
) -> tuple[list[float], list[float], dict, dict]:
    """`steps` updates on this rank's share; losses, gradient norms, final weights, gradients of a first backward."""
    student = tiny_loaded("llama", seed=1, tie=tie, dtype=torch.float64)
    if what.startswith("lora-"):
        with_adapter(student)
    what = what.removeprefix("lora-")
    teacher = LocalTeacher(tiny_loaded("llama", seed=2, dtype=torch.float64, hidden=48))
    learner = Learner(
        Student(student, k=4),
        optim=OptimConfig(lr=1e-2, clip=0.5),
        learner=LearnerConfig(batch_tokens=40, shard=shard),
        steps=steps,
        world=world,
        max_tokens=16,
    )
    alone = LIKELIHOODS.get(what)
    objective = alone or Objective(ObjectiveConfig.model_validate({"preset": what}))
    everything = graded(rollouts(student.head.rows))
    mine = [r for r in everything if int(r.prompt.id) % world.size == world.rank]  # groups stay on one rank
    batch = collate(mine, {} if alone else {"teacher": teacher.score(mine, needs=Needs(sampled=True))})
    part, heads = Part(batch, objective.prepare(batch), objective), {"teacher": teacher.head}
    learner._backward([part], heads, learner._global_count([part]))
    gradients = {
        n: whole(p.grad).clone() for n, p in learner.student.model.named_parameters() if p.grad is not None
    }
    learner.optimizer.zero_grad()
    losses, norms = [], []
    for step in range(steps):
        update = learner.update(part, heads=heads, step=step)
        losses.append(update.tally.means()["loss"])
        norms.append(update.grad_norm)
    weights = {n: w.clone() for n, w in learner.weights().items()}
    if tie:
        model = learner.student.model
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight, (
            "tied weights came apart"
        )
    return losses, norms, weights, gradients


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, tie, shard = Path(sys.argv[1]), sys.argv[2] == "tied", sys.argv[3]
    world = World(torch.device("cpu"))
    for what in sys.argv[4:]:
        losses, norms, weights, gradients = learn(world, tie=tie, what=what, shard=shard)
        if world.main:
            place = out / what
            place.mkdir()
            told = {"losses": losses, "norms": norms, "size": world.size}
            (place / "losses.json").write_text(json.dumps(told))
            save_file(weights, place / "weights.safetensors")
            save_file(gradients, place / "gradients.safetensors")
    world.close()
    sys.stdout.flush()
    os._exit(0)  # as `opd` does under torchrun: gloo's threads abort some teardowns
