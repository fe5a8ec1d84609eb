"""What the predictor of gap recovery reads: eight numbers of `opd check`, known before training, each with its expected sign.

Written down with their signs before any pair of the factory was checked or run (`opdkit.studies.factory`). No feature is about
one kind of trouble alone, such as end tokens: of a kind of teacher that was left out, such a feature would have been a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from opdkit.diagnostics.sequence import MIN_GAP

Metrics = Mapping[str, float]
NEARLY_NONE = 1e-4
"""Nats: below such a divergence a logarithm says nothing more."""


@dataclass(frozen=True)
class Feature:
    """`sign` +1: more of it, more of the gap is recovered. `says`: what it is in words."""

    name: str
    sign: int
    says: str
    needs: tuple[str, ...]
    of: Callable[[Metrics], float]

    @property
    def rehearsed(self) -> bool:
        """Whether some steps have to be trained for it, on a copy."""
        return any(name.startswith("rehearsed_") for name in self.needs)

    def read(self, metrics: Metrics) -> float | None:
        """None where a number it needs is missing or is none."""
        if not all(math.isfinite(metrics.get(name, math.nan)) for name in self.needs):
            return None
        return self.of(metrics)


def _loss_fall(m: Metrics) -> float:
    """ln(first ÷ last); a fall to a twentieth and one to a hundredth are both complete."""
    return min(3.0, -math.log(max(m["rehearsed_loss_ratio"], NEARLY_NONE)))


def _first_order_share(m: Metrics) -> float:
    """Success that a step to the teacher's distribution would gain if the first slope held, as a share of the lead (F35).

    Slope is per √nat of a whole response, hence √(nats a token × tokens). Within ±2: far from 0 a slope is no forecast.
    """
    way = math.sqrt(max(0.0, m["reverse_kl"] * m["response_length"]))
    return max(-2.0, min(2.0, m["success_slope"] * way / max(m["teacher_lead"], MIN_GAP)))


def _above_chance(m: Metrics) -> float:
    """0 at chance, 1 where both rank the same tokens highest, whatever the vocabulary."""
    chance = m["overlap_chance_at_16"]
    return (m["overlap_ratio"] - chance) / max(1.0 - chance, NEARLY_NONE)


# fmt: off
FEATURES = (
    Feature("loss_fall", +1, "how far the loss falls in the rehearsal", ("rehearsed_loss_ratio",), _loss_fall),
    Feature("teachable_share", +1, "how much of the disagreement is in the student's reach", ("teachable_share",),
            lambda m: m["teachable_share"]),
    Feature("success_slope", +1, "what a small step to the teacher gains", ("success_slope",), lambda m: m["success_slope"]),
    Feature("first_order_share", +1, "that gain, all the way, as a share of the lead",
            ("success_slope", "reverse_kl", "response_length", "teacher_lead"), _first_order_share),
    Feature("log_reverse_kl", -1, "how far apart the two are", ("reverse_kl",),
            lambda m: math.log(max(m["reverse_kl"], NEARLY_NONE))),
    Feature("overlap_above_chance", +1, "the overlap of their candidates", ("overlap_ratio", "overlap_chance_at_16"),
            _above_chance),
    Feature("overlap_mass_teacher", +1, "the teacher's mass on shared candidates", ("overlap_mass_teacher",),
            lambda m: m["overlap_mass_teacher"]),
    Feature("sequence_reward_auroc", +1, "whether the teacher likes right answers better than wrong ones",
            ("sequence_reward_auroc",), lambda m: m["sequence_reward_auroc"]),
)
# fmt: on
READ = tuple(feature for feature in FEATURES if not feature.rehearsed)
"""Of pairs that were not rehearsed."""
SETS: Mapping[str, tuple[Feature, ...]] = {"rehearsed": FEATURES, "read": READ}
"""The two models that are fitted: whichever of them has all it needs foretells, in this order."""


def features_table() -> list[str]:
    """All features as a Markdown table."""
    head = ["| feature | expected | made of | what it says |", "|---|---|---|---|"]
    return head + [
        f"| `{f.name}` | {'more' if f.sign > 0 else 'less'} is better | {', '.join(f'`{n}`' for n in f.needs)} | {f.says} |"
        for f in FEATURES
    ]
