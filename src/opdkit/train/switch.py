"""When a sequential reward takes over from the teacher: at a step, or once evaluation is flat (arXiv 2609.04108)."""

from __future__ import annotations

from collections.abc import Sequence

from opdkit.config import Config
from opdkit.config.signal import SignalConfig
from opdkit.types import Finding


def flat_at(scores: Sequence[float], *, window: int, margin: float) -> int | None:
    """Index of the first evaluation that ends `window` evaluations none of which beats the best before them by `margin`.

    >>> flat_at([0.1, 0.3, 0.4, 0.41, 0.4, 0.39], window=3, margin=0.02)
    5
    >>> flat_at([0.1, 0.3, 0.4, 0.5], window=2, margin=0.02) is None
    True
    """
    for end in range(window, len(scores)):
        before, lately = scores[: end - window + 1], scores[end - window + 1 : end + 1]
        if max(lately) <= max(before) + margin:
            return end
    return None


def switch_step(config: Config, evaluations: Sequence[tuple[int, float]]) -> int | None:
    """The step (from 0) from which only the reward teaches; None while the teacher does.

    A function of (step, score) rows of the evaluations so far, so that a resumed run switches where it did.
    """
    signal: SignalConfig = config.objective.signal
    if config.story != "distill" or signal.reward != "sequential":
        return None
    if signal.switch_step:
        return signal.switch_step
    found = flat_at(
        [score for _, score in evaluations], window=signal.flat_evaluations, margin=signal.flat_margin
    )
    return None if found is None else evaluations[found][0]


def switch_finding(config: Config, at: int, *, step: int) -> Finding:
    """What is told of it, once."""
    why = "as configured" if config.objective.signal.switch_step else "evaluation is flat"
    return Finding(
        name="reward_switch",
        severity="info",
        message=f"from step {at + 1} on the task's reward teaches alone ({why})",
        numbers={"step": at},
        step=step,
        source="arXiv 2609.04108",
    )
