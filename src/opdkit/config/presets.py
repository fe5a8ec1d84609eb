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
    "exopd",
    "delta-opd",
    "veto",
    "minillm",
    "gamma-opd",
    "token-grpo",
    "iw-opd",
    "prefix-opd",
    "ta-opd",
    "tip",
    "log-opd",
    "sign-gate",
    "kdrl",
    "opd-then-rl",
    "paced",
    "stable-opd",
    "one-end",
]

_PLAIN = {
    "divergence": "reverse_kl",
    "normalisation": "none",
    "estimator": "score_function",
    "weights": "student",
}


_ONE = {"support": "sampled", "k": 1, **_PLAIN}


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
        {
            "support": "teacher_top_k",
            "k": 16,
            **_PLAIN,
            "normalisation": "both",
            "estimator": "exact",
            "mask_special": True,
        },
        "both renormalised over the teacher's top 16, special tokens masked: local support matching",
        "arXiv 2603.25562",
        "biased: ∇KL(p̄‖q̄) alone",
        "its own top k",
        "top-p rollouts (sampling.top_p)",
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
    "exopd": Recipe(
        {**_ONE, "target": "extrapolated", "target_scale": 1.25},
        "`sampled` towards q^1.25·ref^−.25: past the teacher, away from what it was before its RL",
        "arXiv 2602.12125",
        "unbiased, for the extrapolated target",
        "1, and 1 of the reference",
    ),
    "delta-opd": Recipe(
        {**_ONE, "target": "difference", "target_scale": 1.0},
        "`sampled` towards p₀·q/ref: what the teacher's RL changed, laid over the student's start",
        "arXiv 2607.15161",
        "unbiased, for that target",
        "1, 1 of the reference, 1 of the start",
    ),
    "veto": Recipe(
        {"support": "full", "k": 1, **_PLAIN, "estimator": "exact", "target": "bridge", "target_scale": 1.0},
        "the whole vocabulary, towards q·p between both models",
        "arXiv 2601.07155",
        "exact, for a target that moves with the student",
        "hidden states",
        "its schedule (objective.target_decay)",
    ),
    "minillm": Recipe(
        {"support": "full", "k": 1, **_PLAIN, "estimator": "exact", "signal": {"discount": 1.0}},
        "the position's reverse KL in closed form, and all that follows credited to the sampled token",
        "arXiv 2306.08543",
        "unbiased, for the sequence's KL",
        "hidden states, and 1",
        "teacher-mixed sampling, length normalisation",
    ),
    "gamma-opd": Recipe(
        {**_ONE, "signal": {"discount": 0.99}},
        "`sampled`, what follows credited with .99 per token",
        "arXiv 2609.16937",
        "unbiased, for the discounted sum",
        "1",
        "mixing with the verifier (signal.reward)",
    ),
    "token-grpo": Recipe(
        {**_ONE, "signal": {"token_rewards": "standardised", "discount": 1.0}},
        "log-ratios standardised over all responses to a prompt, summed from each token on",
        "arXiv 2604.13016, released code",
        "scaled: of the sequence's KL, by each prompt's spread",
        "1",
    ),
    "iw-opd": Recipe(
        {**_ONE, "signal": {"positions": "prefix", "positions_value": 1.5}},
        "`sampled`, weighted by the share of disagreement still ahead, 1.5 at the start to 1",
        "arXiv 2606.22600",
        "weighted by position",
        "1",
    ),
    "prefix-opd": Recipe(
        {**_ONE, "signal": {"window": 100}},
        "`sampled` on the first 100 tokens of every response",
        "arXiv 2605.27028",
        "weighted by position: 1, then 0",
        "1",
        "short rollouts (sampling.max_tokens)",
    ),
    "ta-opd": Recipe(
        {
            "support": "full",
            "k": 16,
            **_PLAIN,
            "estimator": "exact",
            "signal": {"select": "teachable", "share": 0.05},
        },
        "the 5 % of positions with the most disagreement that the student can follow",
        "arXiv 2605.26844",
        "exact, on the positions selected",
        "hidden states, and k at the student's ids",
    ),
    "tip": Recipe(
        {
            "support": "full",
            "k": 16,
            **_PLAIN,
            "estimator": "exact",
            "signal": {"select": "uncertain_or_wrong", "share": 0.5},
        },
        "the half of the positions where the student is uncertain or far from the teacher",
        "arXiv 2604.14084",
        "exact, on the positions selected",
        "hidden states, and k at the student's ids",
    ),
    "log-opd": Recipe(
        {**_ONE, "shaping": "log"},
        "`sampled`, the log-ratio compressed to sign·log(1 + |A|)",
        "arXiv 2607.13399",
        "biased, order preserving",
        "1",
    ),
    "sign-gate": Recipe(
        {**_ONE, "signal": {"gate": "verifier"}},
        "`sampled` where its sign agrees with the grade",
        "arXiv 2606.09304, 2608.24696",
        "gated by the grade: cannot pass the teacher, nor follow it into what is wrong",
        "1",
    ),
    "kdrl": Recipe(
        {**_ONE, "signal": {"reward": "additive"}},
        "`sampled`, and the group-relative advantage of the grade",
        "arXiv 2506.02208",
        "unbiased, for −reward + KL at fixed prefixes",
        "1",
    ),
    "opd-then-rl": Recipe(
        {**_ONE, "signal": {"reward": "sequential", "switch_step": 60}},
        "`sampled` for 60 steps, the grade alone after them (switch_step = 0: once evaluation is flat)",
        "arXiv 2609.04108",
        "unbiased, for one after the other",
        "1",
    ),
    "paced": Recipe(
        {**_ONE, "signal": {"prompts": "pass_rate"}},
        "`sampled`, prompts weighted by r(1 − r) of their pass rate",
        "arXiv 2603.11178",
        "weighted by prompt",
        "1",
    ),
    "stable-opd": Recipe(
        {**_ONE, "anchor": 0.1},
        "`sampled`, and a tenth of the divergence from the student's start",
        "arXiv 2604.08527; the weight is ours",
        "unbiased, for the sum of both",
        "1, and 1 of the start",
        "golden responses (mix.demonstrations)",
    ),
    "one-end": Recipe(
        {"support": "full", "k": 1, **_PLAIN, "estimator": "exact", "merge_ends": True},
        "`full`, all end tokens of both models counted as one",
        "arXiv 2609.20511",
        "exact, over the merged vocabulary",
        "hidden states",
    ),
}

PRESETS: dict[str, dict[str, Any]] = {name: recipe.keys for name, recipe in RECIPES.items()}
"""Preset → the keys it sets."""
