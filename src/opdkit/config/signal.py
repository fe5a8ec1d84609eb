"""What couples positions: weights, selection, credit for the future, a task's reward. The maths is in `opdkit.objectives.signal`.

Everything here acts on the token signal of own rollouts and is detached. δ is log target(y) − log p(y) of the sampled token, with
the target's log-probs as the teacher sent them and the student's as the sampler knew them.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from opdkit.config.base import Record

Positions = Literal["none", "prefix", "half_life"]
Select = Literal["none", "teachable", "uncertain_or_wrong", "random", "first", "last"]
TokenRewards = Literal["raw", "centred", "standardised"]
Reward = Literal["none", "additive", "modulating", "sequential"]
Control = Literal["none", "shuffled", "random_sign"]


class SignalConfig(Record):
    """Which positions train, how much, and what is credited to a sampled token beside the divergence at its position."""

    window: int = Field(default=0, ge=0)
    """Only the first so many response tokens learn from the teacher; 0 = all. The mean is still over all of them. Later tokens
    are worse supervised (arXiv 2604.13016, 6; 2605.27028), and this is the plainest answer."""
    positions: Positions = "none"
    """Weight by position: `prefix` 1 + (w − 1)·(share of Σ|δ| still ahead), w in `positions_value` (IW-OPD, arXiv 2606.22600);
    `half_life` falls by half every so many tokens."""
    positions_value: float | None = Field(default=None, gt=0)
    """Largest weight of `prefix` (unset: 1.5), tokens of `half_life` (unset: 512)."""
    select: Select = "none"
    """Train a share of the positions: `teachable` large disagreement that the student can follow (TA-OPD, arXiv 2605.26844);
    `uncertain_or_wrong` high entropy or large disagreement (TIP, arXiv 2604.14084); as controls `random`, and the `first` or
    `last` of every response."""
    share: float = Field(default=0.2, gt=0, le=1)
    """The share that is selected (TA-OPD: .05, TIP: .2 to .5)."""
    gate: Literal["none", "verifier"] = "none"
    """`verifier`: only tokens at which the sign of δ agrees with the grade, up in right responses and down in wrong ones."""

    discount: float = Field(default=0.0, ge=0, le=1)
    """γ: a sampled token is also credited with Σ γ^(s−t) δ_s of the tokens after it. 0 credits each with its own position
    only, 1 is the gradient of the sequence's KL (arXiv 2306.08543, 2609.16937)."""
    token_rewards: TokenRewards = "raw"
    """δ over all responses to a prompt: `centred` on their mean, `standardised` by their deviation as well. With discount = 1 the
    released code's `token_grpo` (arXiv 2604.13016)."""

    prompts: Literal["none", "pass_rate", "row"] = "none"
    """`pass_rate`: weight r(1 − r), r the share of a prompt's responses in the step that are right (PACED, arXiv 2603.11178) ·
    `row`: the same from before the run, `opd.weight` of the row as `opd prompts` writes it."""
    reward: Reward = "none"
    """A grade as a signal beside the teacher's: its group-relative advantage A is `additive`; or `modulating`, A times a
    bounded function of δ in place of the divergence; or `sequential`, the teacher first, A alone after the switch
    (arXiv 2609.04108)."""
    reward_weight: float = Field(default=1.0, gt=0)
    """Factor of A."""
    reward_scale: Literal["std", "none"] = "std"
    """A is the score − mean of its prompt's responses, over their standard deviation or not."""
    reward_clip: float = Field(default=0.2, gt=0, lt=1)
    """`modulating`: exp(sign(A) δ) is held within 1 ± this."""
    switch_step: int = Field(default=0, ge=0)
    """`sequential`: switch after so many steps; 0 = when evaluation is flat."""
    flat_evaluations: int = Field(default=3, ge=1)
    """Flat: the last so many evaluations are no better than the best before them, by `flat_margin`."""
    flat_margin: float = Field(default=0.01, ge=0)
    """Of avg@k."""

    control: Control = "none"
    """What a claim has to beat: `shuffled` gives each token another's δ of the same step, `random_sign` a sign by chance."""

    @model_validator(mode="after")
    def _grades_of_a_group(self) -> Self:
        if self.token_rewards != "raw" and self.discount == 0.0:
            raise ValueError(
                f'token_rewards = "{self.token_rewards}" without a discount only adds a constant to each token '
                "(use discount = 1.0)"
            )
        if self.control != "none" and (self.reward != "none" or self.discount > 0.0):
            raise ValueError(
                f'control = "{self.control}" is about the teacher\'s signal alone (use reward = "none" and discount = 0.0)'
            )
        return self

    @property
    def reads_log_ratios(self) -> bool:
        """Whether δ has to be known before the learner's forward."""
        return (
            self.positions == "prefix"
            or self.gate == "verifier"
            or self.discount > 0.0
            or self.reward == "modulating"
            or self.control != "none"
        )

    @property
    def reads_candidates(self) -> bool:
        """Whether both models' log-probs at the student's top k have to be."""
        return self.select in ("teachable", "uncertain_or_wrong")

    @property
    def reads_grades(self) -> bool:
        return self.gate == "verifier" or self.reward != "none" or self.prompts == "pass_rate"

    @property
    def pushes(self) -> bool:
        """Whether a sampled token gets an advantage beside the divergence at its position."""
        return self.discount > 0.0 or self.reward != "none" or self.control != "none"
