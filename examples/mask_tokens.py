"""Tokens the student did not write must not train it: what a tool returned in the middle of a response.

    python examples/mask_tokens.py

`Rollout.trained` says which response tokens train. The mean is over those: masking is not the same as a loss of 0 that
still counts. `collate` packs responses one after another (N positions), `Objective.prepare` turns the mask to weights.
"""

import torch

from opdkit.config import ObjectiveConfig
from opdkit.objectives import Objective
from opdkit.support import RowDist
from opdkit.train.collate import collate
from opdkit.types import Prompt, Rollout

VOCABULARY = 40
OBJECTIVE = Objective(ObjectiveConfig(preset="paper", k=4))


def step(batch, student_logits, teacher_logits):
    """(mean loss per trained token, d mean / d logits [N, V]) of one batch, as the learner has it."""
    leaf = student_logits.clone().requires_grad_()
    student, teacher = RowDist(leaf), RowDist(teacher_logits)
    support = OBJECTIVE.support(student, teacher, sampled_ids=batch.sampled_ids)
    weight = OBJECTIVE.prepare(batch).weight  # N, 0 where the token does not train
    loss = torch.where(weight != 0, weight * OBJECTIVE.local(student, teacher, support), 0.0)
    mean = loss.sum() / batch.num_trained
    return float(mean.detach()), torch.autograd.grad(mean, leaf)[0]


def main():
    prompt = Prompt(id="sum", ids=(3, 4, 5))
    called = Rollout(
        prompt,
        response_ids=(10, 11, 30, 31, 32, 12, 1),
        finish_reason="stop",
        trained=(True, True, False, False, False, True, True),  # 30, 31, 32 are the tool's words
    )
    plain = Rollout(prompt, response_ids=(10, 13, 1), finish_reason="stop")  # None: all of them train
    batch = collate([called, plain], scores={})  # without scores: this example brings its own teacher
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, len(batch.row), VOCABULARY, generator=generator, dtype=torch.float64)
    mean, gradient = step(batch, p, q)

    elsewhere = torch.where(
        batch.trained[:, None], q, 100 * q.flip(-1)
    )  # another teacher at the tool's words
    same, untouched = step(batch, p, elsewhere)
    reached = gradient.abs().sum(-1) > 0
    print(f"{batch.num_trained} of {len(batch.row)} tokens train, in order: {batch.trained.int().tolist()}")
    print(f"mean loss per trained token {mean:.4f}; positions a gradient reaches: {reached.int().tolist()}")
    print(f"another teacher at the masked tokens changes the loss by {same - mean:.1g}", end="")
    print(f" and the gradient by {(untouched - gradient).abs().max():.1g}")
    return {"trained": batch.trained, "reached": reached, "changed": same - mean, "mean": mean}


if __name__ == "__main__":
    main()
