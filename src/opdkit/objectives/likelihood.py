"""The likelihood of the tokens that were taken: −w·log p(y_t). What `w` is makes the method.

    imitation        w = 1                                   SFT, and expert iteration on what was right
    group_relative   w = (score − group mean) / group std    GRPO, arXiv 2402.03300, Eq. 3 with one update per
                                                             batch: the ratio is 1 and clipping has nothing to do
    push_down        w = A < 0 on the least likely tokens     the control without a teacher, arXiv 2608.31046

The value is a loss in nats per token for imitation only; for the others it is a surrogate whose gradient counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from opdkit.support import Dist
from opdkit.types import Batch, Needs, Rollout, Signal

EPSILON = 1e-4
"""Added to a group's standard deviation, as TRL does: a group that all but agrees is not blown up."""


@dataclass(frozen=True)
class Likelihood:
    """Push every token that was taken by its weight; no teacher is asked."""

    weigh: Callable[[Batch], Float[Tensor, " N"]]
    student_needs: Needs = field(default_factory=lambda: Needs(sampled=True))

    def at(self, step: int) -> Likelihood:
        """The same at every step."""
        return self

    def prepare(self, batch: Batch, moment: object = None) -> Signal:
        """One weight per packed response position; 0 where the token is not trained on. Not a matter of the `moment`."""
        return Signal(weight=torch.where(batch.trained, self.weigh(batch), 0.0))

    def local(self, student: Dist) -> Float[Tensor, " N"]:
        """−log p(y_t) in nats; the learner multiplies by the weight."""
        return -student.sampled


def imitation(batch: Batch) -> Float[Tensor, " N"]:
    """1 for every token."""
    return torch.ones(len(batch.row))


def group_relative(batch: Batch, *, scale: str = "std") -> Float[Tensor, " N"]:
    """Each token the advantage of its response: score − mean of its prompt's responses, over their spread.

    `scale` "std" divides by the group's sample standard deviation + 1e-4, "none" does not (Dr. GRPO, arXiv
    2503.20783). A response without a score gets 0 and is no part of its group.
    """
    return advantages(batch.rollouts, scale=scale)[batch.row]


def advantages(
    rollouts: Sequence[Rollout], *, scale: str = "std", dtype: torch.dtype = torch.float32
) -> Float[Tensor, " R"]:
    """One per rollout. A truncated response has not answered: it scores 0, as in evaluation."""
    result = torch.zeros(len(rollouts), dtype=dtype)
    for members in scored_groups(rollouts):
        scores = torch.tensor([score_of(rollouts[i]) for i in members], dtype=dtype)
        if (scores == scores[0]).all():
            continue  # their rounded mean may be a hair off, and AdamW makes any gradient a full step
        centred = scores - scores.mean()
        spread = scores.std() + EPSILON if scale == "std" and len(members) > 1 else 1.0
        result[members] = centred / spread
    return result


def scored_groups(rollouts: Sequence[Rollout]) -> list[list[int]]:
    """Numbers of the scored responses to each prompt."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, rollout in enumerate(rollouts):
        if rollout.grade is not None and rollout.grade.score is not None:
            groups[rollout.prompt.id].append(i)
    return list(groups.values())


def score_of(rollout: Rollout) -> float:
    """Of a scored response; a truncated one has not answered: 0, as in evaluation."""
    assert rollout.grade is not None and rollout.grade.score is not None
    return 0.0 if rollout.finish_reason == "length" else float(rollout.grade.score)


def push_down(batch: Batch, *, share: float = 0.2) -> Float[Tensor, " N"]:
    """F25: of the `share` of tokens with the lowest log p, A = −1/2 − (H − Hmin) / (2 (Hmax − Hmin)); else 0.

    H is the entropy where the token was drawn, its extremes over the tokens chosen. Only trained tokens are
    looked at; under several ranks each looks at its own.
    """
    logp, entropy = sampled_columns(batch.rollouts)
    result = torch.zeros(len(logp))
    count = int(share * batch.num_trained)
    if count == 0:
        return result
    chosen = torch.where(batch.trained, logp, torch.inf).topk(count, largest=False).indices
    high = entropy[chosen]
    spread = (high.max() - high.min()).clamp(min=1e-9)
    result[chosen] = -0.5 - (high - high.min()) / (2 * spread)
    return result


def sampled_columns(rollouts: Sequence[Rollout]) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """The sampler's log-prob of each token and its entropy there, packed in the order of rollouts."""
    logp, entropy = [torch.empty(0)], [torch.empty(0)]
    for rollout in rollouts:
        if rollout.length:
            assert rollout.logp is not None and rollout.entropy is not None, "the plan asked the sampler"
            logp.append(rollout.logp.float().cpu())
            entropy.append(rollout.entropy.float().cpu())
    return torch.cat(logp), torch.cat(entropy)
