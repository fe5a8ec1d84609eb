"""A cold start before on-policy distillation: the teacher answers, the student imitates, and hands over when it is ready."""

from typing import Literal, Self

from pydantic import Field, model_validator

from opdkit.config.base import Record


class FilterConfig(Record):
    """Which of the teacher's responses are not imitated (the released rules of arXiv 2604.13016, 5.1, and a general one)."""

    no_answer: bool = True
    """Drop what states no answer: no complete box and no "Answer:" line in a `math` task; else by `answer`, or by the
    pattern of a regex grader. Where there is neither, nothing is dropped."""
    answer: str | None = None
    """A pattern that a response with an answer has somewhere; unset takes what the task's grader reads."""
    truncated: bool = True
    """Drop what ran into the length limit: it would teach not to end."""
    repetitive: bool = True
    """Drop loops of text: a line of 20 or more characters that occurs 5 times, a window of 100 characters (every tenth) that
    occurs 3 times, beyond 5,000 characters a block of 50 that stands 3 times in a row."""
    ngram: int = Field(default=4, ge=1)
    """Tokens of an n-gram of the general test, which sees loops that have no lines."""
    ngram_share: float = Field(default=0.5, ge=0, le=1)
    """Drop where more than this share of n-grams occurred before in the same response; 1 = off."""
    wrong: bool = False
    """Drop wrong answers as well; needs a grader."""


class UntilConfig(Record):
    """When the student is handed over to distillation."""

    steps: int | None = Field(default=None, ge=1)
    """After so many steps, whatever the probes say: no adaptive hand-over."""
    overlap: float | None = Field(default=None, gt=0, le=1)
    """At this `overlap_ratio` (of the top 16, as in `opd check`) on the student's own held-out rollouts."""
    mass: float | None = Field(default=None, gt=0, le=1)
    """At this `overlap_mass_teacher_before_end` there: how much of what the teacher would say lies in the shared set."""
    patience: int = Field(default=4, ge=1)
    """Or when the last so many probes did not rise by `rise` above the best before them."""
    rise: float = Field(default=0.01, gt=0)
    """What counts as rising, in `overlap_ratio`."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.steps is not None and (self.overlap is not None or self.mass is not None):
            raise ValueError(
                "steps is a fixed hand-over, overlap and mass are measured ones "
                "(use until = { overlap = 0.8 } or { steps = 400 })"
            )
        return self


class ColdstartConfig(Record):
    """`opd coldstart`: rollouts of the teacher → filters → SFT with probes → hand-over → distillation."""

    prompts: int = Field(default=0, ge=0)
    """Training prompts that the teacher answers; 0 = all that are not held out."""
    responses: int = Field(default=1, ge=1)
    """Responses of the teacher per prompt."""
    temperature: float = Field(default=0.7, gt=0)
    """Of the teacher's answers; the paper's 0.7."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus of the teacher's answers; the paper's 0.95."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest answer of the teacher; unset takes sampling.max_tokens."""
    filters: FilterConfig = FilterConfig()
    """What is not imitated."""
    warm_up: Literal["likelihood", "forward_kl"] = "likelihood"
    """`likelihood` of the teacher's tokens (plain SFT), or `forward_kl` from the teacher's whole distribution at the states of
    its own text, which needs the teacher's rows."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate of the SFT, constant after warm-up: nobody knows beforehand when it ends. Unset: ten times `optim.lr`, as
    in the paper (1e-5 beside 1e-6). The rest is `optim`'s."""
    warmup_steps: int = Field(default=10, ge=0)
    """Linear warm-up of the SFT."""
    prompts_per_step: int = Field(default=64, ge=1)
    """Demonstrations per step."""
    steps: int = Field(default=1000, ge=1)
    """Most steps of the SFT."""
    least: int = Field(default=100, ge=0)
    """No hand-over before this step: the first steps lose the old style before the new one is learned."""
    until: UntilConfig = UntilConfig()
    """When the student is handed over; without a target, when overlap stops rising."""
    probe_every: int = Field(default=50, ge=1)
    """Steps between probes."""
    probe_prompts: int = Field(default=64, ge=8)
    """Training prompts held out for the probes: the teacher's answers to them are never imitated."""
    probe_responses: int = Field(default=2, ge=1)
    """Responses of the student to each of them."""

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        most = self.until.steps if self.until.steps is not None else self.steps
        if self.until.steps is not None and self.until.steps > self.steps:
            raise ValueError(
                f"until.steps lies beyond the most steps, {self.steps} (use coldstart.steps={self.until.steps})"
            )
        if self.until.steps is None and self.least > most:
            raise ValueError(f"least lies beyond the most steps (use coldstart.steps={self.least} or more)")
        return self
