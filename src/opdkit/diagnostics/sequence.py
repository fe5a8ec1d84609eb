"""What can be said of whole responses: mean reward, whether it tells right from wrong, length and repetition.

Letters: N packed response positions, R sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opdkit.types import Rollout, Tally

REPETITION_N = 4
MIN_GAP = 0.05
"""A teacher less than this above the student leaves nothing to recover: the ratio would be noise."""


@torch.no_grad()
def sequence_reward(
    student_logp: Float[Tensor, " N"], teacher_logp: Float[Tensor, " N"], row: Int[Tensor, " N"], rows: int
) -> Float[Tensor, " R"]:
    """r̄(y) = (1/T) Σ_t [log q(y_t) − log p(y_t)] in nats per token (arXiv 2604.13016, section 6.2).

    float64; nan for a sequence without positions.
    """
    ratio = (teacher_logp - student_logp).double()
    sums = ratio.new_zeros(rows).index_add_(0, row.long(), ratio)
    return sums / torch.bincount(row.long(), minlength=rows)


def auroc(scores: Float[Tensor, " R"], positive: Bool[Tensor, " R"]) -> float | None:
    """P(score of a correct response > score of an incorrect one), ties counting half; exact.

    None when a class is empty. Sequences without a score (nan) are left out.
    """
    known = ~scores.isnan()
    scores, positive = scores[known].contiguous(), positive[known]
    negatives = scores[~positive].sort().values
    positives = scores[positive]
    pairs = len(positives) * len(negatives)
    if pairs == 0:
        return None
    below = torch.searchsorted(negatives, positives).sum()
    not_above = torch.searchsorted(negatives, positives, right=True).sum()
    return int(below + not_above) / (2 * pairs)


def repetition_fraction(ids: Sequence[int], n: int = REPETITION_N) -> float | None:
    """Share of the response's n-grams that already occurred in it; None when it is shorter than n.

    >>> repetition_fraction([1, 2, 1, 2, 1, 2], n=2)
    0.6
    """
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def truncated(rollout: Rollout) -> bool:
    """Whether the response ran into the length limit."""
    return rollout.finish_reason == "length"


def rollout_tally(rollouts: Sequence[Rollout]) -> Tally:
    """Shape and score of responses, one each: means are over rollouts, `accuracy` over those with a score.

    A grader that hung or raised is ungraded, never a 0; a response shorter than an n-gram has no repetition. Solving and stopping
    apart (arXiv 2609.37326): `closure_rate` of what could have ended, `accuracy_of_closed` of what did.
    """
    scores = [None if rollout.grade is None else rollout.grade.score for rollout in rollouts]
    repetitions = [repetition_fraction(rollout.response_ids) for rollout in rollouts]
    return Tally(
        {
            "response_length": _over([float(rollout.length) for rollout in rollouts]),
            "truncated_fraction": _over([float(truncated(rollout)) for rollout in rollouts]),
            "closure_rate": _over([_closed(rollout) for rollout in rollouts]),
            "accuracy_of_closed": _over(
                [score for score, r in zip(scores, rollouts, strict=True) if _closed(r) == 1.0]
            ),
            "repetition_fraction": _over(repetitions),
            "accuracy": _over(scores),
            "ungraded_fraction": _over([float(score is None) for score in scores]),
        }
    )


def _closed(rollout: Rollout) -> float | None:
    """1 where the response ended by itself, 0 at the length limit; None where nobody can say: cut by the horizon, or read."""
    return {"stop": 1.0, "length": 0.0}.get(rollout.finish_reason)


def gap_recovery(before: float, after: float, teacher: float) -> float | None:
    """(after − before) / (teacher − before); None where the teacher is not MIN_GAP above the student."""
    gap = teacher - before
    # 0.30 − 0.25 is 0.04999… in floats, and is a gap of 0.05
    return None if gap < MIN_GAP - 1e-9 else (after - before) / gap


def _over(values: Sequence[float | None]) -> tuple[float, int]:
    known = [value for value in values if value is not None]
    return float(sum(known)), len(known)
