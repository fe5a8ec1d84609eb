"""Guard rails from the field's accidents: what a configuration says of itself, told with its number before the run.

What has to be measured on the way (mass outside the support, bounds that act) is a condition of health.
"""

from __future__ import annotations

from collections.abc import Iterator

from opdkit.config import Config
from opdkit.config.objective import STUDENT_SETS, TEACHER_SETS
from opdkit.types import Finding

CHANCE = 0.5
"""Share of the vocabulary that k may be: above it two unrelated models share more than half of their candidates by chance."""


def guard_rails(config: Config, rows: int) -> tuple[Finding, ...]:
    """Warnings about a distillation over a vocabulary of `rows`."""
    return tuple(_warnings(config, rows))


def _warnings(config: Config, rows: int) -> Iterator[Finding]:
    assert config.teacher is not None
    spec, cfg = config.objective, config.sampling
    if cfg.temperature != config.teacher.temperature:
        yield _warning(
            "temperatures_differ",
            f"the student is read at temperature {cfg.temperature:g}, the teacher at {config.teacher.temperature:g}: "
            "equal models would have a loss",
            {"student": cfg.temperature, "teacher": config.teacher.temperature},
            f"teacher.temperature={cfg.temperature:g}",
            "arXiv 2604.13016: both 1",
        )
    k = spec.k if spec.support in {*STUDENT_SETS, *TEACHER_SETS} else 0
    if k / rows > CHANCE:
        yield _warning(
            "k_near_vocabulary",
            f"objective.k = {k} of {rows} tokens: two unrelated models share {k / rows:.0%} of their candidates by chance",
            {"k": k, "vocabulary": rows, "chance": k / rows},
            f"objective.k={max(1, rows // 8)}, or objective.support=full",
            "chance overlap k / V",
        )
    truncated = cfg.top_p < 1.0 or cfg.top_k > 0
    one_token = spec.support == "sampled" or spec.normalisation == "tail_sampled" or spec.signal.pushes
    if truncated and one_token:
        kept = " and ".join(
            text
            for text, on in ((f"top_p {cfg.top_p:g}", cfg.top_p < 1.0), (f"top_k {cfg.top_k}", cfg.top_k > 0))
            if on
        )
        yield _warning(
            "sampled_from_less",
            f"tokens are drawn with {kept}, and the sampled token then stands for what could be drawn, not for the student: "
            "the estimate is biased",
            {"top_p": cfg.top_p, "top_k": cfg.top_k},
            "sampling.top_p=1.0 sampling.top_k=0, or objective.support=student_top_k",
            "E over p is what makes the sampled token unbiased (Eq. 3)",
        )


def _warning(name: str, message: str, numbers: dict[str, float], remedy: str, source: str) -> Finding:
    return Finding(
        name=name, severity="warning", message=message, numbers=numbers, remedy=remedy, source=source
    )
