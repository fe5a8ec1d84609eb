"""The objective as a record: support, divergence, normalisation, estimator, weights: five independent things.

The maths is in `opdkit.objectives`. Presets are just records; a key given beside `preset` replaces that one.
"""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from opdkit.config.base import Record
from opdkit.config.presets import PRESETS, Preset
from opdkit.config.signal import SignalConfig

SupportKind = Literal[
    "sampled",
    "student_top_k",
    "teacher_top_k",
    "overlap",
    "union",
    "symmetric_difference",
    "student_mass",
    "full",
]
STUDENT_SETS = ("student_top_k", "overlap", "union", "symmetric_difference", "student_mass")
TEACHER_SETS = ("teacher_top_k", "overlap", "union", "symmetric_difference")
"""Supports that are made of the student's top k, of the teacher's, or of both."""
Divergence = Literal["reverse_kl", "forward_kl", "js", "skewed_reverse_kl", "skewed_forward_kl"]
Normalisation = Literal["none", "weights", "both", "tail_bucket", "tail_sampled"]
Estimator = Literal["score_function", "exact"]
Weights = Literal["student", "teacher", "uniform"]
Shaping = Literal["none", "clip", "log", "power", "floor"]
Baseline = Literal["none", "kl", "kl_top_k"]
Target = Literal["teacher", "extrapolated", "difference", "bridge", "sign_flipped"]


class ObjectiveConfig(Record):
    """Which tokens are compared, by which divergence, through which estimator, with which weight."""

    preset: Preset = "paper"
    """Where the other keys come from unless they are given; the published recipes are in the table of presets."""
    support: SupportKind = "student_top_k"
    """The token set per position: `sampled`; the `student_top_k`, the `teacher_top_k`, their `overlap`, `union` or
    `symmetric_difference`; `student_mass`, the fewest tokens that hold a share of the student's mass; `full`."""
    k: int = Field(default=16, ge=1)
    """Width of a top-k support, the most tokens of `student_mass`; not read for `sampled` and `full`."""
    mass: float = Field(default=0.98, gt=0, le=1)
    """The share that `student_mass` holds."""
    divergence: Divergence = "reverse_kl"
    """`reverse_kl` KL(student‖teacher), `forward_kl` KL(teacher‖student), `js` generalised Jensen-Shannon;
    `skewed_reverse_kl`, `skewed_forward_kl` against a mixture with the first (DistiLLM)."""
    skew: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share α of the first distribution that a skewed divergence mixes into the second (arXiv 2402.03898: .1)."""
    beta: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Mixture weight of the teacher in `js` (GKD, arXiv 2306.13649): js/beta → forward KL as beta → 0,
    js/(1 − beta) → reverse KL as beta → 1."""
    normalisation: Normalisation = "weights"
    """`none` raw probabilities, `weights` weights sum to 1 over the support, `both` p and q do (Eq. 5); `tail_bucket`
    one more slot holds what is outside, `tail_sampled` the sampled token stands for it where it is outside (unbiased)."""
    estimator: Estimator = "score_function"
    """`score_function` detached advantage × log-prob for every candidate; `exact` differentiate the value."""
    weights: Weights = "student"
    """Candidate weights of the score function: student's or teacher's probability, or uniform."""

    shaping: Shaping = "none"
    """What is done to log q − log p before it trains: `clip` to ± value nats, `log` sign·log(1+|A|), `power` qᵃ − pᵃ,
    `floor` at log(λ/(1−λ)). Bounded signals, biased ones."""
    shaping_value: float | None = Field(default=None, gt=0)
    """Nats of `clip`, exponent of `power`, λ of `floor` (below 1); unset: 5, 5, .17."""
    baseline: Baseline = "none"
    """For `sampled`: add the position's detached KL(p‖q) to the advantage, which does not change its mean and lowers its
    variance (vOPD, arXiv 2605.07865): over the vocabulary (`kl`) or the student's top k (`kl_top_k`)."""

    target: Target = "teacher"
    """Whom the student is compared with: the `teacher` q; `extrapolated` q^λ·ref^(1−λ), past the teacher and away from what it
    was before its RL (G-OPD, arXiv 2602.12125); the `difference` p₀·(q/ref)^s, what that RL changed laid over the student's
    start (arXiv 2607.15161); a `bridge` q·p^b between both (Veto, arXiv 2601.07155); the control `sign_flipped` p²/q."""
    target_scale: float | None = Field(default=None, gt=0)
    """λ, s or b; unset: 1.25, 1, 1."""
    target_decay: int = Field(default=0, ge=0)
    """Steps over which the b of a bridge falls to 0; 0 = it stays."""
    anchor: float = Field(default=0.0, ge=0)
    """Add this times the same divergence from the student's own start, p₀ (StableOPD, arXiv 2604.08527)."""
    merge_ends: bool = False
    """All end tokens count as one, by the sum of their probabilities, in both models: a student and a teacher that stop with
    different ones otherwise unlearn to stop (arXiv 2609.20511)."""
    mask_special: bool = False
    """What the student's tokenizer calls special, but for end tokens, does not train and is in no set (arXiv 2603.25562)."""
    forward_gate: float = Field(default=0.0, ge=0)
    """Add this times a forward KL on the teacher's `gate_k` likeliest tokens where its entropy is above `gate_entropy`:
    the reverse KL alone leaves students too sure there (EOPD, arXiv 2603.07079: 1, 16 and .8 nats)."""
    gate_k: int = Field(default=16, ge=1)
    """Tokens of the gated forward KL."""
    gate_entropy: float = Field(default=0.8, ge=0)
    """Nats of the teacher's entropy above which it acts."""

    signal: SignalConfig = SignalConfig()
    """What couples positions: weights, selection, credit for the future, a task's reward."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        if isinstance(data, str):  # objective = "sampled"
            data = {"preset": data}
        if isinstance(data, dict):
            preset = data.get("preset", "paper")
            filled = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
            return {**filled, **data, **_filled(filled.get("signal"), data.get("signal"))}
        return data

    @model_validator(mode="after")
    def _refuse_what_is_not_an_objective(self) -> Self:
        """Combinations whose gradient is missing or points the wrong way are not offered."""
        if self.support == "sampled" and self.estimator == "exact":
            raise ValueError(
                'support = "sampled" cannot be differentiated directly: the gradient of log p(y) − log q(y) '
                'at a sampled token has mean zero (use estimator = "score_function")'
            )
        if self.normalisation == "both" and (
            self.support == "sampled"
            or (self.k == 1 and self.support in ("student_top_k", "teacher_top_k", "overlap", "student_mass"))
        ):
            raise ValueError(
                'normalisation = "both" over one token is identically 0, Eq. 5 at k = 1: both distributions '
                'are 1 there (use normalisation = "weights", or k >= 2)'
            )
        self._refuse_shapes()
        self._refuse_targets()
        self._refuse_signals()
        if self.normalisation.startswith("tail"):
            self._refuse_tails()
        if self.weights != "student" and (
            self.estimator != "score_function" or self.divergence != "reverse_kl"
        ):
            raise ValueError(
                'weights = "teacher" or "uniform" belong to the score function of the reverse KL; elsewhere '
                'the weight is part of the divergence (use weights = "student")'
            )
        if self.support == "sampled" and self.weights != "student":
            raise ValueError(
                'support = "sampled" has one candidate, drawn from the student: its weight is 1 '
                '(use weights = "student")'
            )
        if self.support == "sampled" and self.divergence != "reverse_kl":
            raise ValueError(
                'support = "sampled" gives an unbiased signal for the reverse KL only: other divergences '
                'weight the token by the unbounded ratio q/p (use divergence = "reverse_kl")'
            )
        return self

    def _refuse_shapes(self) -> None:
        """Shaping acts on the advantage of the reverse KL; a baseline on the sampled token's."""
        if self.shaping != "none" and (self.estimator != "score_function" or self.divergence != "reverse_kl"):
            raise ValueError(
                f'shaping = "{self.shaping}" acts on the advantage log q − log p, which only the score function of '
                'the reverse KL has (use estimator = "score_function" and divergence = "reverse_kl")'
            )
        if self.shaping == "floor" and self.shaping_value is not None and self.shaping_value >= 1.0:
            raise ValueError("shaping_value is a mixture share for the floor (use shaping_value < 1)")
        if self.baseline != "none" and self.support != "sampled":
            raise ValueError(
                f'baseline = "{self.baseline}" lowers the variance of one sampled token; a set of candidates has none '
                '(use support = "sampled")'
            )

    def _refuse_targets(self) -> None:
        """Targets made of several models are known up to a factor, but over whole rows."""
        if self.target_decay and self.target != "bridge":
            raise ValueError(
                f'target_decay is of a bridge, not of target = "{self.target}" (use target = "bridge")'
            )
        if self.target == "sign_flipped" and self.target_scale is not None:
            raise ValueError('target = "sign_flipped" has no scale (use target_scale = unset)')
        if self.target != "teacher" and self.divergence != "reverse_kl":
            raise ValueError(
                f'target = "{self.target}" is the optimum of a reward under a reverse KL (use divergence = "reverse_kl")'
            )
        if self.target != "teacher" and self.forward_gate > 0.0:
            raise ValueError(
                f'forward_gate reads the teacher, and the target is "{self.target}" (use forward_gate = 0.0)'
            )
        if self.merge_ends and self.support == "full" and self.weights == "uniform":
            raise ValueError(
                'weights = "uniform" over the vocabulary counts every end token (use weights = "student" with merge_ends)'
            )

    def _refuse_signals(self) -> None:
        """Credit to sampled tokens is that of the reverse KL; controls replace a sampled token's."""
        signal = self.signal
        if signal.reads_log_ratios and self.merge_ends:
            raise ValueError(
                "merge_ends adds up end tokens, but the signal reads log-ratios of single tokens, as they were sent "
                "(use merge_ends = false, or a signal without discount, prefix weights, gate, control, modulating reward)"
            )
        if signal.discount > 0.0 and self.divergence != "reverse_kl":
            raise ValueError(
                "signal.discount credits a token with later log-ratios, the reward of the reverse KL only "
                '(use divergence = "reverse_kl")'
            )
        if signal.control != "none" and self.support != "sampled":
            raise ValueError(
                f'signal.control = "{signal.control}" is about one log-ratio per position (use support = "sampled")'
            )
        if signal.reads_candidates and self.target != "teacher":
            raise ValueError(
                f'signal.select = "{signal.select}" compares student and teacher, and the target is "{self.target}" '
                '(use target = "teacher")'
            )

    def _refuse_tails(self) -> None:
        """A tail is what a set leaves out, and the sampled token stands for it in one estimator only."""
        if self.support in ("sampled", "full"):
            raise ValueError(
                f'support = "{self.support}" has no tail to correct for (use normalisation = "none")'
            )
        if self.weights != "student":
            raise ValueError(
                f'normalisation = "{self.normalisation}" weighs by the student\'s probability, or it is no '
                'divergence (use weights = "student")'
            )
        if self.normalisation == "tail_sampled" and self.estimator == "exact":
            raise ValueError(
                'normalisation = "tail_sampled" with the exact estimator adds ∇P_S, which nothing outside cancels '
                '(use estimator = "score_function")'
            )
        if self.normalisation == "tail_sampled" and self.divergence == "forward_kl":
            raise ValueError(
                'normalisation = "tail_sampled" weighs the token outside by the unbounded ratio q/p in the forward KL '
                '(use normalisation = "tail_bucket", or divergence = "skewed_forward_kl")'
            )

    @property
    def shape(self) -> float:
        """The number that the divergence has: β of `js`, α of the skewed ones; the others read none."""
        return self.skew if self.divergence.startswith("skewed") else self.beta

    @property
    def scale(self) -> float:
        """`target_scale`, or what stands for it."""
        return self.target_scale or (1.25 if self.target == "extrapolated" else 1.0)

    @property
    def others(self) -> tuple[str, ...]:
        """Models beside student and teacher: `reference`, the teacher before its RL; `start`, the student of step 0."""
        of_target = {"extrapolated": ("reference",), "difference": ("reference", "start")}.get(
            self.target, ()
        )
        return (*of_target, "start") if self.anchor > 0.0 and "start" not in of_target else of_target

    @property
    def whole_rows(self) -> bool:
        """Whether every model's whole rows are needed, beside a full support."""
        one = self.support == "sampled" and self.baseline == "none"
        mixed = self.target != "teacher" and not one
        return self.support == "full" or self.baseline == "kl" or mixed or self.merge_ends

    @property
    def of_student(self) -> bool:
        """Whether the student's top k is compared, alone or with the teacher's, or for a baseline."""
        return self.support in STUDENT_SETS or self.baseline == "kl_top_k"

    @property
    def of_teacher(self) -> bool:
        """The same for the teacher's."""
        return self.support in TEACHER_SETS


def _filled(preset: Any, given: Any) -> dict[str, Any]:
    """{"signal": …} where a preset has one and a table lies over it, key by key."""
    if isinstance(preset, dict) and (given is None or isinstance(given, dict)):
        return {"signal": {**preset, **(given or {})}}
    return {}
