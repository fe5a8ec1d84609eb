"""The nouns of the house: frozen records that travel between rooms. Verbs are functions elsewhere.

Shape letters, the same in every file: B rows, T response positions, N packed valid response positions (all rollouts
one after another), S support slots, K top-k width, V vocabulary, D hidden width, P prompts, G responses per prompt.

Units: log-probabilities in nats, lengths in tokens, times in seconds.
This module imports no torch at run time, so the command line and the task room stay light.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class UserError(ValueError):
    """The user's input is wrong. Shown as two lines, `error: …` and `hint: …`, with exit code 2, never a traceback."""

    def __init__(self, message: str, *, hint: str):
        super().__init__(message)
        self.hint = hint


class RunError(RuntimeError):
    """A run that began rightly had to stop (exit code 1). What was saved stays; the hint says how to go on."""

    def __init__(self, message: str, *, hint: str):
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Prompt:
    """One thing to be answered. Text or messages as given; `ids` after templating (see `opdkit.tasks.encode`)."""

    id: str
    text: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    answer: str | None = None  # ground truth, if the task has one
    response: str | None = None  # a demonstration: text to imitate
    group: str | None = None  # key for a router or for per-group metrics
    source: str = ""  # file and line, or generator and index
    extra: Mapping[str, Any] = field(default_factory=dict)  # what a grader needs beyond `answer`
    ids: tuple[int, ...] = ()  # token ids after templating; empty before

    @property
    def given(self) -> str | list[dict[str, str]]:
        """What was asked, as a row of a file holds it: a text, or messages."""
        return self.text if self.text is not None else [dict(m) for m in self.messages or ()]


@dataclass(frozen=True)
class Grade:
    """A grader's word on one response. `failed` is a grader that hung or raised: counted, never a 0 that trains."""

    score: float | None  # in [0, 1]; None when ungraded or failed
    failed: str | None = None  # why there is no score: "timeout", "error: …"


FinishReason = Literal["stop", "length", "cut", "unknown"]
"""By itself · at the length limit · by the horizon, before the limit: neither ended nor truncated, and not graded · read from a
file that does not say."""


@dataclass(frozen=True)
class Rollout:
    """A prompt and one response to it. `response_ids` include the end token iff `finish_reason` is "stop".

    `behaviour_logp` [T] is under the distribution sampled from (temperature, top-p, top-k); `logp` [T] under the
    untruncated distribution at `temperature`. `topk_ids`/`topk_logp` [T, K] and `entropy` [T] (nats, untruncated,
    same temperature) are there when asked for.
    """

    prompt: Prompt
    response_ids: tuple[int, ...]
    finish_reason: FinishReason
    text: str = ""
    grade: Grade | None = None
    sample: int = 0  # which of the G responses to this prompt
    trained: tuple[bool, ...] | None = None  # None = all; tool and environment tokens are not trained on
    teacher_prompt_ids: tuple[int, ...] | None = None  # where the teacher reads another context
    temperature: float = 1.0
    behaviour_logp: Float[Tensor, " T"] | None = None
    logp: Float[Tensor, " T"] | None = None
    topk_ids: Int[Tensor, "T K"] | None = None
    topk_logp: Float[Tensor, "T K"] | None = None
    entropy: Float[Tensor, " T"] | None = None
    policy_version: int = 0
    sampler: str = ""

    @property
    def length(self) -> int:
        return len(self.response_ids)


@dataclass(frozen=True)
class Needs:
    """What an objective or a diagnostic asks of one model. `a | b` asks for both."""

    sampled: bool = False  # log-prob of the sampled token
    top_k: int = 0  # own top-k ids and log-probs, of this width
    at_ids: bool = False  # log-probs at given ids (another model's candidates)
    entropy: bool = False
    full: bool = False  # every log-prob of a row: a local model's hidden states and head

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            sampled=self.sampled or other.sampled,
            top_k=max(self.top_k, other.top_k),
            at_ids=self.at_ids or other.at_ids,
            entropy=self.entropy or other.entropy,
            full=self.full or other.full,
        )

    def unmet(self, offers: Needs) -> list[str]:
        """Names of what is asked for and not offered; `offers.full` offers everything that can be computed from a row."""
        if offers.full:
            return []
        return [
            name
            for name, missing in (
                ("sampled-token log-probs", self.sampled and not offers.sampled),
                (f"top-{self.top_k} log-probs", self.top_k > offers.top_k),
                ("log-probs at given ids", self.at_ids and not offers.at_ids),
                ("entropy", self.entropy and not offers.entropy),
                ("full rows", self.full),
            )
            if missing
        ]


@dataclass(frozen=True)
class Scores:
    """What a teacher gave for one rollout: exactly the fields asked for, per response position.

    For full-vocabulary work `hidden` [T, D] plus the teacher's head (held by the teacher, see `models.head`), never logits.
    """

    fingerprint: str  # of the tokenizer the teacher reads with
    temperature: float = 1.0
    sampled: Float[Tensor, " T"] | None = None
    topk_ids: Int[Tensor, "T K"] | None = None
    topk_logp: Float[Tensor, "T K"] | None = None
    at_ids: Int[Tensor, "T S"] | None = None
    at_logp: Float[Tensor, "T S"] | None = None
    entropy: Float[Tensor, " T"] | None = None
    hidden: Float[Tensor, "T D"] | None = None
    teacher: str = ""  # which of several gave it


@dataclass(frozen=True)
class Support:
    """The token ids per position on which both models are compared, and which slots count. `ids` is None for `full`."""

    ids: Int[Tensor, "N S"] | None
    keep: Bool[Tensor, "N S"] | None
    source: Literal["sampler", "student_forward", "teacher", "full"] = "student_forward"
    version: int = 0

    @property
    def is_full(self) -> bool:
        return self.ids is None


@dataclass(frozen=True)
class Signal:
    """Only what couples positions, detached: one weight per packed position (0 = its loss does not train), and, where asked
    for, an advantage of the token that was sampled there.

    A policy gradient's weights are its advantages, of either sign.
    """

    weight: Float[Tensor, " N"]
    advantage: Float[Tensor, " N"] | None = None


@dataclass(frozen=True)
class Batch:
    """One step's rollouts with what the teacher said of them, response positions packed one rollout after another.

    Arrays [N] run over all response positions of all rollouts, in rollout order. `support` is there only when the ids had
    to be known before the learner's forward (a teacher that sends log-probs at ids).
    """

    rollouts: tuple[Rollout, ...]
    scores: Mapping[str, tuple[Scores, ...]]  # by model name: "teacher", "reference", "start"; maybe none
    row: Int[Tensor, " N"]  # which rollout
    depth: Int[Tensor, " N"]  # response position, 0 for the first response token
    sampled_ids: Int[Tensor, " N"]
    trained: Bool[Tensor, " N"]
    measured: Bool[Tensor, " N"]  # where diagnostics look
    sampler_logp: Float[Tensor, " N"] | None = (
        None  # the sampler's untruncated log-prob of each sampled token
    )
    support: Support | None = None

    @property
    def num_trained(self) -> int:
        return int(self.trained.sum())


@dataclass(frozen=True)
class Prefix:
    """Prompts that are read once for several rows of response tokens: see `models/rows.py`."""

    input_ids: Int[Tensor, "P L"]  # right-padded
    lengths: Int[Tensor, " P"]
    of: Int[Tensor, " B"]  # which prompt each row continues


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a batch, laid out for one forward: padded ids for the body, packed positions for the head.

    `gather` points into the flattened hidden states: entry n is the state that predicts sampled token n.
    """

    input_ids: Int[Tensor, "B L"]
    gather: Int[Tensor, " N"]
    sampled_ids: Int[Tensor, " N"]
    weight: Float[Tensor, " N"]
    measured: Bool[Tensor, " N"]
    index: Int[Tensor, " N"]  # position of each entry in the step's packed order
    advantage: Float[Tensor, " N"] | None = None
    sampler_logp: Float[Tensor, " N"] | None = None
    support: Support | None = None
    scores: Mapping[str, Scores] = field(default_factory=dict)  # by model name, each packed over N
    prefix: Prefix | None = None  # where rows hold response tokens only
    lengths: tuple[int, ...] = ()  # of rows that stand end to end in one


@dataclass(frozen=True)
class Tally:
    """name → (sum, count). Adds over micro-batches, ranks, position bins and steps; divided only when written.

    >>> (Tally({"loss": (3.0, 2)}) + Tally({"loss": (1.0, 2)})).means()
    {'loss': 1.0}
    """

    entries: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        merged = dict(self.entries)
        for name, (total, count) in other.entries.items():
            old_total, old_count = merged.get(name, (0.0, 0.0))
            merged[name] = (old_total + total, old_count + count)
        return Tally(merged)

    @staticmethod
    def total(tallies: Iterable[Tally]) -> Tally:
        result = Tally()
        for tally in tallies:
            result = result + tally
        return result

    def means(self) -> dict[str, float]:
        """Names with a count of 0 are left out: a mean of nothing is not a number."""
        return {name: total / count for name, (total, count) in self.entries.items() if count > 0}


@dataclass(frozen=True)
class Finding:
    """Something worth saying: what was seen, the numbers behind it, and the remedy as a command that can be typed.

    `rule` is the comparison that fired, with its threshold; `source` where that threshold comes from. "error" is
    what makes a run or a pair hopeless as it stands.
    """

    name: str
    severity: Literal["info", "warning", "error"]
    message: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    remedy: str = ""
    step: int | None = None
    rule: str = ""  # "teachable_share < 0.7"
    source: str = ""  # "arXiv 2604.13016, Fig. 18", "docs/testbed.md"

    @property
    def line(self) -> str:
        """As a terminal shows it. "error:" is how a command ends, so a finding of that severity is critical."""
        word = "critical" if self.severity == "error" else self.severity
        return f"{word}: {self.message}" + (f"  [{self.remedy}]" if self.remedy else "")


VerdictName = Literal["go", "cold_start", "align_prompts", "change_teacher", "nothing_to_learn", "fix_first"]


@dataclass(frozen=True)
class Verdict:
    """What to do with a student, a teacher and prompts; `because` names the findings that decided, first the first."""

    name: VerdictName
    reason: str  # one sentence with the numbers
    remedy: str  # a command
    because: tuple[Finding, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 go · 3 something comes first · 4 do not, with this teacher."""
        return {"go": 0, "fix_first": 3, "cold_start": 3, "align_prompts": 3}.get(self.name, 4)
