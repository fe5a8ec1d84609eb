"""How large the token signal is and whether it knows what the outcome will be: by depth, on the student's own prefixes.

name               unit  formula                                              mean over
reward_up_right    1     [log q(y) − log p(y) > 0]                            tokens of right responses
reward_up_wrong    1     the same                                             tokens of wrong ones
sign_reliability   1     ½ + ½ (reward_up_right − reward_up_wrong)            derived: ½ knows nothing, 1 everything
advantage_size     nats  |log q(y) − log p(y)|                                all tokens

The difference of the two shares, not the share of agreeing signs: most signs are negative, whatever the response is worth (arXiv
2608.31046), so agreement would measure how many responses are wrong. arXiv 2604.13016, 6: supervision decays with depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opdkit.diagnostics.alignment import Measures

RIGHT = 0.5
"""A score of at least this is of a right response, as in `accuracy` of the paper's tasks."""


@torch.no_grad()
def reliability(
    student_logp: Float[Tensor, " N"],
    teacher_logp: Float[Tensor, " N"],
    row: Int[Tensor, " N"],
    scores: Sequence[float | None],
) -> Measures:
    """The size of the signal per position, and both shares where any response has a score.

    >>> said = reliability(torch.zeros(3), torch.tensor([1.0, -1.0, 2.0]), torch.tensor([0, 0, 1]), [1.0, 0.0])
    >>> {name: (s.tolist(), c.tolist()) for name, (s, c) in said.items() if name != "advantage_size"}
    {'reward_up_right': ([1.0, 0.0, 0.0], [1.0, 1.0, 0.0]), 'reward_up_wrong': ([0.0, 0.0, 1.0], [0.0, 0.0, 1.0])}
    >>> said["advantage_size"][0].tolist()
    [1.0, 1.0, 2.0]
    """
    size = (teacher_logp - student_logp).abs().float()
    measures: Measures = {"advantage_size": (size, torch.ones_like(size))}
    if all(score is None for score in scores):
        return measures
    right = torch.tensor([score is not None and score >= RIGHT for score in scores])[row]
    wrong = torch.tensor([score is not None and score < RIGHT for score in scores])[row]
    up = teacher_logp > student_logp
    return measures | {
        "reward_up_right": ((up & right).float(), right.float()),
        "reward_up_wrong": ((up & wrong).float(), wrong.float()),
    }
