"""How deep the teacher is listened to, measured while the run goes on. The decisions are in `opdkit.train.horizon`."""

from typing import Literal

from pydantic import Field

from opdkit.config.base import Record

By = Literal["sign_reliability", "overlap_ratio", "entropy"]

THRESHOLDS: dict[By, float] = {"sign_reliability": 0.5, "overlap_ratio": 0.8, "entropy": 1.3}
"""Where `threshold` is unset. At sign reliability ½ the signs of the token signal know nothing of the outcome (arXiv
2608.31046: they go against it for a third to a half of the tokens). Overlap is compared with the response's own first bin,
because its size depends on k and on the vocabulary. 1.3 × the teacher's entropy is what health calls a blow-up."""


class HorizonConfig(Record):
    """The reliable depth of `distill`: later tokens are not trained (`mask`), or not drawn either (`shorten`)."""

    mode: Literal["off", "mask", "shorten"] = "off"
    """`mask`: tokens beyond the horizon are drawn and measured, and do not learn from the teacher. `shorten`: they are not
    drawn; cheaper, but what lies beyond is not seen, so the horizon grows by trying."""
    by: By = "sign_reliability"
    """What is measured per position bin; the horizon ends where all that comes later is, on balance, beyond the threshold:
    `sign_reliability` against the grade; `overlap_ratio` of the bin over that of the first; the student's `entropy` over the
    teacher's."""
    every: int = Field(default=10, ge=1)
    """Decide every so many steps, from the rows of these steps."""
    start: int = Field(default=0, ge=0)
    """Tokens at the first step; 0 = sampling.max_tokens, unless a collapse shortens it."""
    floor: int = Field(default=32, ge=1)
    """Never fewer tokens than this: with too few there is too little supervision (arXiv 2604.13016, Fig. 11a)."""
    growth: float = Field(default=2.0, ge=1)
    """Largest factor by which a decision makes it longer; shorter it gets at once. 1 = never longer."""
    threshold: float | None = Field(default=None, gt=0)
    """Of what `by` names; unset: 0.5, 0.8 of the first bin, 1.3 × the teacher's."""


class PruneConfig(Record):
    """Responses that are drawn no further once the teacher no longer knows the state (arXiv 2605.07804)."""

    every: int = Field(default=0, ge=0)
    """Look after so many tokens of every response; 0 = never. Both models read the text again at a look."""
    overlap: float = Field(default=0.5, gt=0, le=1)
    """Least mean overlap ratio of the tokens since the last look, at diagnostics.k candidates: below it the response is cut."""


class PrefixConfig(Record):
    """Responses that the teacher begins and the student ends (arXiv 2605.13643): states the student would not reach alone."""

    tokens: int = Field(default=0, ge=0)
    """The teacher writes so many first tokens, which are not trained; 0 = none."""
    share: float = Field(default=0.5, gt=0, le=1)
    """Of the step's prompts, at the first step."""
    until: int = Field(default=0, ge=0)
    """The share falls to 0 over so many steps; 0 = it stays."""
