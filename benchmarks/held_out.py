"""What both sides learnt from the same number of tokens: the exact reverse KL to the teacher on held-out rollouts.

Rollouts of both trained students on prompts that neither saw, drawn by one sampler with one seed, put together; KL(p‖q) over
the whole vocabulary at every response token, by plain autograd-free PyTorch that has nothing of the fused head.
"""

from __future__ import annotations

from typing import Any

import torch

from opdkit.config import SamplingConfig
from opdkit.models.load import LoadedModel, describe
from opdkit.models.sampler import LocalSampler
from opdkit.types import Prompt, Rollout
from record import digits
from weights import Weights
from work import SEED, Work


@torch.inference_mode()
def before_and_after(work: Work, weights: Weights, theirs: Any, ours: LoadedModel) -> dict[str, Any]:
    """Nats per token on the same rollouts for both; `before` is the untrained student on the same."""
    tokenizer = weights.tokenizer()
    rows = weights.prompts()[: work.held_out]
    prompts = [Prompt(id=f"held-out-{i}", ids=tuple(row["ids"])) for i, row in enumerate(rows)]
    trained = describe(theirs.eval(), tokenizer, name="theirs")
    rollouts = [r for side in (trained, ours) for r in _draw(side, prompts, work)]
    teacher = _logp(weights.teacher(), rollouts)
    models = {"before": weights.student(), "theirs": theirs, "ours": ours.model.eval()}
    found = {name: digits(_reverse_kl(_logp(m, rollouts), teacher), 5) for name, m in models.items()}
    return found | {"rollouts": len(rollouts), "trained_tokens": sum(map(work.tokens, range(work.steps)))}


def _draw(side: LoadedModel, prompts: list[Prompt], work: Work) -> list[Rollout]:
    length = work.new_tokens
    sampling = SamplingConfig(responses=1, max_tokens=length, min_tokens=length)
    return LocalSampler(side).sample(prompts, sampling=sampling, seed=SEED + 1, step=0)


def _logp(model: Any, rollouts: list[Rollout]) -> torch.Tensor:
    """[R, T, V]: all rollouts have one length. Small enough to hold: a few rows of a benchmark."""
    ids = torch.tensor([[*r.prompt.ids, *r.response_ids] for r in rollouts])
    first = len(rollouts[0].prompt.ids) - 1
    return model(input_ids=ids).logits[:, first:-1].float().log_softmax(-1)


def _reverse_kl(p: torch.Tensor, q: torch.Tensor) -> float:
    return float((p.exp() * (p - q)).sum(-1).mean())
