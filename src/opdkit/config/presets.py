"""Published objectives as records: what they set, where they come from, what their gradient is (tests/test_objectives.py).

A recipe's other parts (how rollouts are drawn, masks, stages) belong to other tables of the configuration and are not in here;
`Recipe.without` names them.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Preset = Literal[
    "paper",
    "paper-eq5",
    "sampled",
    "full",
    "teacher-top-k",
    "gkd",
    "distillm",
    "tt-opd",
    "vopd",
    "power-opd",
    "reopold",
    "eopd",
]

_PLAIN = {
    "divergence": "reverse_kl",
    "normalisation": "none",
    "estimator": "score_function",
    "weights": "student",
}


@dataclass(frozen=True)
class Recipe:
    """`keys` of the objective; `gradient` against ∇KL(p‖q) over the vocabulary, at fixed prefixes."""

    keys: dict[str, Any]
    what: str
    source: str
    gradient: str
    cost: str  # log-probs per response position that a teacher sends
    without: str = field(default="")


RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        {"support": "student_top_k", "k": 16, **_PLAIN, "normalisation": "weights"},
        "the released code: weights renormalised over the student's top 16, log-ratio not",
        "arXiv 2604.13016, released code",
        "biased: ∇KL(p̄‖q̄) + [KL(p̄‖q̄) + log(P_S/Q_S)]·∇log P_S",
        "k at the student's ids",
    ),
    "paper-eq5": Recipe(
        {"support": "student_top_k", "k": 16, **_PLAIN, "normalisation": "both", "estimator": "exact"},
        "both distributions renormalised over the student's top 16, differentiated",
        "arXiv 2604.13016, Eq. 5",
        "biased: ∇KL(p̄‖q̄) alone, which moves no mass into or out of S",
        "k at the student's ids",
    ),
    "sampled": Recipe(
        {"support": "sampled", "k": 1, **_PLAIN},
        "one log-ratio at the sampled token",
        "arXiv 2604.13016, Eq. 3; Lu 2025",
        "unbiased",
        "1",
    ),
    "full": Recipe(
        {"support": "full", "k": 1, **_PLAIN, "estimator": "exact"},
        "the whole vocabulary",
        "arXiv 2604.13016, Eq. 4",
        "exact",
        "hidden states",
    ),
    "teacher-top-k": Recipe(
        {"support": "teacher_top_k", "k": 16, **_PLAIN, "normalisation": "both", "estimator": "exact"},
        "both renormalised over the teacher's top 16: local support matching",
        "arXiv 2603.25562",
        "biased: ∇KL(p̄‖q̄) alone",
        "its own top k",
        "top-p rollouts (sampling.top_p), masked special tokens",
    ),
    "gkd": Recipe(
        {"support": "full", "k": 1, **_PLAIN, "divergence": "js", "beta": 0.5, "estimator": "exact"},
        "generalised Jensen-Shannon over the vocabulary",
        "arXiv 2306.13649",
        "exact, of another divergence",
        "hidden states",
        "its share of fixed data",
    ),
    "distillm": Recipe(
        {
            "support": "full",
            "k": 1,
            **_PLAIN,
            "divergence": "skewed_reverse_kl",
            "skew": 0.1,
            "estimator": "exact",
        },
        "skewed reverse KL over the vocabulary",
        "arXiv 2402.03898",
        "exact, of another divergence",
        "hidden states",
        "reuse of earlier samples",
    ),
    "tt-opd": Recipe(
        {"support": "student_top_k", "k": 16, **_PLAIN, "normalisation": "tail_sampled"},
        "the sum over the student's top 16, and the sampled token where it is outside",
        "arXiv 2609.34447",
        "unbiased",
        "k at the student's ids, and 1",
    ),
    "vopd": Recipe(
        {"support": "sampled", "k": 16, **_PLAIN, "baseline": "kl_top_k"},
        "the sampled token, with the position's KL as a baseline",
        "arXiv 2605.07865",
        "unbiased, of less variance than `sampled`",
        "k at the student's ids, and 1",
    ),
    "power-opd": Recipe(
        {"support": "sampled", "k": 1, **_PLAIN, "shaping": "power", "shaping_value": 5.0},
        "a difference of powers in place of the log-ratio",
        "arXiv 2606.17199",
        "biased, bounded",
        "1",
        "the window of early positions",
    ),
    "reopold": Recipe(
        {"support": "sampled", "k": 1, **_PLAIN, "shaping": "floor", "shaping_value": 0.17},
        "the log-ratio bounded below by a mixture's",
        "arXiv 2603.11137",
        "biased: what the teacher rejects costs at most 1.6 nats",
        "1",
        "entropy mask and stages",
    ),
    "eopd": Recipe(
        {"support": "sampled", "k": 1, **_PLAIN, "forward_gate": 1.0, "gate_k": 16, "gate_entropy": 0.8},
        "`sampled`, and a forward KL on the teacher's top 16 where its entropy is above .8 nats",
        "arXiv 2603.07079",
        "unbiased for the sum of both",
        "1, its own top 16, its entropy",
    ),
}

PRESETS: dict[str, dict[str, Any]] = {name: recipe.keys for name, recipe in RECIPES.items()}
"""Preset → the keys it sets."""
