"""Data beside own rollouts, in the same step."""

from typing import Self

from pydantic import Field, model_validator

from opdkit.config.base import FilePath, Record
from opdkit.config.objective import ObjectiveConfig


class MixConfig(Record):
    """Demonstrations that every step of `distill` learns from as well (GKD, arXiv 2306.13649; DistiLLM-2, 2503.07067; golden
    responses, 2604.08527)."""

    demonstrations: int = Field(default=0, ge=0)
    """How many beside the step's own rollouts; 0 = none. GKD's share λ of own text is P·G / (P·G + this)."""
    path: FilePath | None = None
    """JSONL or parquet with `prompt` and `response`; unset takes the responses that the task's own rows have."""
    weight: float = Field(default=1.0, gt=0)
    """Of their loss per token, beside 1 for own tokens; the mean is over both."""
    objective: ObjectiveConfig | None = None
    """A divergence from the teacher on their tokens: DistiLLM-2 has `skewed_forward_kl` here. Unset: their likelihood, as in
    `sft`."""

    @model_validator(mode="after")
    def _nobody_sampled_them(self) -> Self:
        if self.objective is not None and (why := refused_of_demonstrations(self.objective)):
            raise ValueError(f"{why[0]} (use {why[1]} in mix.objective)")
        return self


def refused_of_demonstrations(spec: ObjectiveConfig) -> tuple[str, str] | None:
    """Why an objective cannot be learned from text that the student did not draw, and what could; None where it can."""
    if spec.support == "sampled" or spec.normalisation == "tail_sampled":
        return (
            "one sampled token stands for what the student would draw, and demonstrations were drawn by somebody else",
            'support = "full" or "teacher_top_k"',
        )
    signal = spec.signal
    if signal.reads_log_ratios or signal.reads_candidates or signal.reads_grades or signal.pushes:
        return (
            "the signal of demonstrations knows their positions only",
            "window, half_life, first, last or random",
        )
    return None
