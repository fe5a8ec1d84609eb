"""What can go wrong while a run runs, each as a visible record: window, thresholds, source, message, remedy.

A condition compares windows of metrics.jsonl: the `first` one of the run with the `last` one. Thresholds are relative
to the run's own first window, with floors in absolute units, so that another vocabulary or length moves none of them.

What separates success from failure is the fall of `loss` and of |`overlap_advantage`|; overlap need not rise in a
success between lineages, so stagnation never rests on overlap alone (docs/health.md has the runs).

Free of torch. Entropies and losses in nats, lengths in tokens, windows in steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from opdkit.diagnostics.seen import Seen, Unknown

Severity = Literal["info", "warning", "error"]
Limits = Mapping[str, float]
Numbers = dict[str, float]

TAUGHT = ("distill",)
SAMPLED = ("distill", "grpo", "push_down")
"""Stories whose rows are about the student's own rollouts of that very step."""
EVERY = ("distill", "sft", "grpo", "improve", "push_down")


# --- what each asks, as a sentence ---------------------------------------------------------------------------


def _stagnates(seen: Seen, at: Limits) -> Numbers | None:
    """Neither the loss nor |Eq. 7| falls, and the overlap does not rise. A converged or equal pair has no loss left."""
    loss, advantage = seen.kept("loss"), seen.kept("overlap_advantage")
    rise = seen.last("overlap_ratio") - seen.first("overlap_ratio")
    flat = at["loss"] < loss < at["high"] and advantage > at["advantage"] and rise < at["rise"]
    if not flat or seen.last("loss") <= at["floor"]:
        return None
    return _ends(seen, "loss", "overlap_advantage", "overlap_ratio")


def _overlap_falls(seen: Seen, at: Limits) -> Numbers | None:
    fall = seen.first("overlap_ratio") - seen.last("overlap_ratio")
    return (
        _ends(seen, "overlap_ratio", "loss") if fall > at["fall"] and seen.kept("loss") > at["loss"] else None
    )


def _loss_rises(seen: Seen, at: Limits) -> Numbers | None:
    rise = seen.last("loss") - seen.first("loss")
    return _ends(seen, "loss") if seen.kept("loss") > at["loss"] and rise > at["rise"] else None


def _advantage_flatters(seen: Seen, at: Limits) -> Numbers | None:
    """Eq. 7 is renormalised over shared tokens: it can be good while they hold little of what the models say."""
    mass = min(seen.last("overlap_mass_student"), seen.last("overlap_mass_teacher"))
    looks_good = (
        seen.kept("overlap_advantage") < at["advantage"] or abs(seen.last("overlap_advantage")) < at["small"]
    )
    stays = seen.kept("loss") > at["loss"] and seen.last("loss") > at["floor"]
    numbers = _ends(seen, "overlap_advantage", "loss") | {"overlap_mass": mass}
    return numbers if mass < at["mass"] and looks_good and stays else None


def _entropy_blows_up(seen: Seen, at: Limits) -> Numbers | None:
    """Far above where the student began and above what the teacher says of the same states, if there is one."""
    rise = seen.last("entropy_student") - seen.first("entropy_student")
    high = seen.kept("entropy_student") > at["ratio"] and rise > at["rise"]
    teacher = _or_none(seen, "entropy_teacher")
    above = teacher is None or seen.last("entropy_student") > at["teacher"] * teacher
    return _entropies(seen, teacher) if high and above else None


def _entropy_collapses(seen: Seen, at: Limits) -> Numbers | None:
    fall = seen.first("entropy_student") - seen.last("entropy_student")
    low = seen.kept("entropy_student") < at["ratio"] and fall > at["fall"]
    teacher = _or_none(seen, "entropy_teacher")
    below = teacher is None or seen.last("entropy_student") < at["teacher"] * teacher
    return _entropies(seen, teacher) if low and below else None


def _lengthens(seen: Seen, at: Limits) -> Numbers | None:
    rise = seen.last("response_length") - seen.first("response_length")
    longer = seen.kept("response_length") > at["ratio"] and rise > at["rise"]
    return _ends(seen, "response_length") if longer else None


def _cut_off(seen: Seen, at: Limits) -> Numbers | None:
    """From the start, so it is the limit or the end token; `lost_stopping` is about a student that changed."""
    share = seen.last("truncated_fraction")
    return (
        _ends(seen, "truncated_fraction")
        if min(share, seen.first("truncated_fraction")) > at["share"]
        else None
    )


def _repeats(seen: Seen, at: Limits) -> Numbers | None:
    rise = seen.last("repetition_fraction") - seen.first("repetition_fraction")
    return _ends(seen, "repetition_fraction") if rise > at["rise"] else None


def _stops_ending(seen: Seen, at: Limits) -> Numbers | None:
    rise = seen.last("truncated_fraction") - seen.first("truncated_fraction")
    return _ends(seen, "truncated_fraction") if rise > at["rise"] else None


def _tail_decays(seen: Seen, at: Limits) -> Numbers | None:
    """Entropy of the last third of the position bins rises while that of the first third stays."""
    starts = seen.starts("entropy_student")
    third = len(starts) // 3 or 1
    if len(starts) < 2:
        raise Unknown("position bins")
    head, tail = (_of_bins(seen, part) for part in (starts[:third], starts[-third:]))
    rises = tail[1] > at["tail"] * tail[0] and tail[1] - tail[0] > at["rise"]
    stays = head[1] < at["head"] * head[0]
    ends = {"tail_entropy_first": tail[0], "tail_entropy": tail[1]}
    return ends | {"head_entropy_first": head[0], "head_entropy": head[1]} if rises and stays else None


def _spikes(seen: Seen, at: Limits) -> Numbers | None:
    """Far above the steps before it, and above how the run began: a converged run's small norms may jump."""
    usual, now = seen.usual("grad_norm"), seen.now("grad_norm")
    spike = now > at["ratio"] * usual and now > at["start"] * seen.first("grad_norm")
    return {"grad_norm": now, "grad_norm_usual": usual} if spike else None


def _calm(seen: Seen, at: Limits) -> Numbers | None:
    """Small from the start, and it stays: what a failing run looks like (Fig. 19). No loss at all is a teacher that
    is the student."""
    small = at["floor"] < seen.first("loss") < at["small"]
    flat = seen.kept("loss") > at["loss"] and seen.last("overlap_ratio") < at["overlap"]
    return _ends(seen, "loss", "overlap_ratio") if small and flat else None


def _disagree(seen: Seen, at: Limits) -> Numbers | None:
    mismatch = seen.last("sampler_mismatch")
    return {"sampler_mismatch": mismatch} if mismatch > at["nats"] else None


def _skips(seen: Seen, at: Limits) -> Numbers | None:
    skipped = seen.now("skipped_steps")
    return {"skipped_steps": skipped} if skipped >= at["steps"] else None


def _leaves_out(seen: Seen, at: Limits) -> Numbers | None:
    """What no candidate holds is never compared, whatever its name (arXiv 2604.13016: .97 to .99 are inside)."""
    left = seen.last("mass_left_out")
    return {"mass_left_out": left} if left > at["mass"] else None


def _bound_acts(seen: Seen, at: Limits) -> Numbers | None:
    clipped = seen.last("clipped_fraction")
    return {"clipped_fraction": clipped} if clipped > at["share"] else None


def _copies(seen: Seen, at: Limits) -> Numbers | None:
    rise = seen.last("copied_fraction") - seen.first("copied_fraction")
    return _ends(seen, "copied_fraction") if rise > at["rise"] else None


def _gets_worse(seen: Seen, at: Limits) -> Numbers | None:
    """Graded responses: imitation can undo what a student had (Fig. 5), while every other number looks well."""
    fall = seen.first("accuracy") - seen.last("accuracy")
    sure = seen.errors("accuracy") < -at["errors"]
    worse = fall > at["fall"] and seen.kept("accuracy") < at["ratio"]
    return _ends(seen, "accuracy") if sure and worse else None


def _ends(seen: Seen, *names: str) -> Numbers:
    return {key: value for n in names for key, value in ((f"{n}_first", seen.first(n)), (n, seen.last(n)))}


def _or_none(seen: Seen, name: str) -> float | None:
    try:
        return seen.last(name)
    except Unknown:
        return None


def _entropies(seen: Seen, teacher: float | None) -> Numbers:
    return _ends(seen, "entropy_student") | ({} if teacher is None else {"entropy_teacher": teacher})


def _of_bins(seen: Seen, starts: Sequence[int]) -> tuple[float, float]:
    """First and last window's entropy over some position bins."""
    names = [f"by_position/{start}/entropy_student" for start in starts]
    return statistics.fmean(map(seen.first, names)), statistics.fmean(map(seen.last, names))


# --- the conditions ------------------------------------------------------------------------------------------

PAPER = "arXiv 2604.13016"
HERE = "measured here: docs/health.md"


@dataclass(frozen=True)
class Window:
    """`share` of the run's steps, but never below `least` nor above `most`: what is averaged at each end."""

    share: float
    least: int
    most: int

    def size(self, steps: int) -> int:
        """
        >>> [SLOW.size(steps) for steps in (20, 100, 1000)]
        [2, 10, 50]
        """
        return max(self.least, min(self.most, round(self.share * steps)))


SLOW = Window(0.1, least=2, most=50)
"""For what is told from a trend: scatter between steps has to average out."""
QUICK = Window(0.05, least=3, most=20)
"""For what ruins a run within some steps."""


@dataclass(frozen=True)
class Condition:
    """One thing that can go wrong. `rule` and `message` are templates: thresholds fill the one, numbers the other.

    `settles`: judged only once the run has had its patience (`health.patience`); the others as soon as windows are full.
    `remedy` is a command with {run} for the run folder, {config} for the file in it, {again} for another run folder,
    {lr} for a lower learning rate, {tokens} for a longer limit.
    """

    name: str
    severity: Severity
    holds: Callable[[Seen, Limits], Numbers | None]
    limits: Limits
    rule: str
    message: str
    remedy: str
    source: str
    window: Window = QUICK
    settles: bool = False
    stories: tuple[str, ...] = TAUGHT

    @property
    def told_rule(self) -> str:
        return self.rule.format_map({name: f"{value:g}" for name, value in self.limits.items()})


CONDITIONS: tuple[Condition, ...] = (
    Condition(
        name="overlap_stagnation",
        severity="warning",
        holds=_stagnates,
        limits={"loss": 0.75, "high": 1.25, "advantage": 0.5, "rise": 0.02, "floor": 0.01},
        window=SLOW,
        settles=True,
        rule="loss in {loss} to {high} × first and |overlap_advantage| > {advantage} × first and overlap_ratio < first + {rise}; "
        "loss > {floor}",
        message="the student learns nothing of the teacher: loss {loss_first:.3g} → {loss:.3g}, Eq. 7 "
        "{overlap_advantage_first:.2g} → {overlap_advantage:.2g}, overlap {overlap_ratio_first:.3f} → {overlap_ratio:.3f}",
        remedy="opd check {config}  # is it the teacher? another one, or a cold start: opd coldstart {config} run={again}",
        source=f"{PAPER}, Fig. 6; {HERE}",
    ),
    Condition(
        name="overlap_fall",
        severity="error",
        holds=_overlap_falls,
        limits={"fall": 0.1, "loss": 0.75},
        rule="overlap_ratio < first - {fall} and loss > {loss} × first",
        message="student and teacher agree on fewer tokens than at the start: overlap {overlap_ratio_first:.3f} → "
        "{overlap_ratio:.3f}, loss {loss_first:.3g} → {loss:.3g}",
        remedy="opd train {config} optim.lr={lr} run={again}",
        source=f"{PAPER}, 6.1 (a late collapse shows in overlap, entropy and gradient norm); {HERE}",
    ),
    Condition(
        name="loss_rise",
        severity="error",
        holds=_loss_rises,
        limits={"loss": 1.5, "rise": 0.05},
        rule="loss > {loss} × first and loss > first + {rise}",
        message="the student moves away from the teacher: loss {loss_first:.3g} → {loss:.3g}",
        remedy="opd train {config} optim.lr={lr} run={again}",
        source=HERE,
    ),
    Condition(
        name="low_mass_good_advantage",
        severity="warning",
        holds=_advantage_flatters,
        limits={"mass": 0.93, "advantage": 0.6, "small": 0.001, "loss": 0.75, "floor": 0.01},
        window=SLOW,
        rule="overlap mass of either model < {mass} and |overlap_advantage| < {advantage} × first (or < {small}) "
        "while loss > {loss} × first",
        message="Eq. 7 looks good ({overlap_advantage_first:.2g} → {overlap_advantage:.2g}) only because it leaves out what "
        "both models do not share: shared tokens hold {overlap_mass:.2f}, loss {loss_first:.3g} → {loss:.3g}",
        remedy="opd coldstart {config} run={again}  # opd report {run}: overlap mass by position shows where they differ",
        source=f"{PAPER}, 5.1 and C.2: Eq. 7 means something only together with overlap mass",
    ),
    Condition(
        name="entropy_blow_up",
        severity="error",
        holds=_entropy_blows_up,
        limits={"ratio": 1.5, "rise": 0.3, "teacher": 1.3},
        rule="entropy_student > {ratio} × first and > first + {rise} nats, and > {teacher} × entropy_teacher",
        message="the student's entropy blows up: {entropy_student_first:.2f} → {entropy_student:.2f} nats",
        remedy="opd train {config} optim.lr={lr} run={again}",
        source=f"{PAPER}, 6.1 (entropy spikes with the collapse); {HERE}",
        stories=SAMPLED,
    ),
    Condition(
        name="entropy_collapse",
        severity="error",
        holds=_entropy_collapses,
        limits={"ratio": 0.4, "fall": 0.1, "teacher": 0.6},
        rule="entropy_student < {ratio} × first and < first - {fall} nats, and < {teacher} × entropy_teacher",
        message="the student's entropy collapses: {entropy_student_first:.2f} → {entropy_student:.2f} nats; it stops exploring",
        remedy="opd train {config} optim.lr={lr} run={again}",
        source=HERE,
        stories=("distill", "grpo"),
    ),
    Condition(
        name="length_inflation",
        severity="warning",
        holds=_lengthens,
        limits={"ratio": 1.5, "rise": 8.0},
        rule="response_length > {ratio} × first and > first + {rise} tokens",
        message="responses grow: {response_length_first:.1f} → {response_length:.1f} tokens",
        remedy="opd report {run}  # read the last rollouts",
        source=f"{PAPER}, 6.1 (supervision decays with depth); {HERE}",
        stories=SAMPLED,
    ),
    Condition(
        name="truncation",
        severity="warning",
        holds=_cut_off,
        limits={"share": 0.75},
        rule="truncated_fraction > {share} in the first and in the last window",
        message="{truncated_fraction:.0%} of the responses are cut off at the limit, from the start on: no end is ever trained",
        remedy="opd train {config} sampling.max_tokens={tokens} run={again}",
        source=HERE,
        stories=SAMPLED,
    ),
    Condition(
        name="repetition",
        severity="warning",
        holds=_repeats,
        limits={"rise": 0.15},
        rule="repetition_fraction > first + {rise}",
        message="responses repeat themselves: {repetition_fraction_first:.0%} → {repetition_fraction:.0%} of their 4-grams "
        "occurred before in them",
        remedy="opd report {run}  # read the last rollouts",
        source=HERE,
        stories=SAMPLED,
    ),
    Condition(
        name="lost_stopping",
        severity="error",
        holds=_stops_ending,
        limits={"rise": 0.25},
        rule="truncated_fraction > first + {rise}",
        message="the student forgets how to stop: {truncated_fraction_first:.0%} → {truncated_fraction:.0%} of its responses "
        "run into the limit",
        remedy="opd check {config}  # do both models end in the same token?",
        source=f"docs/testbed.md (other end token); {HERE}",
        stories=SAMPLED,
    ),
    Condition(
        name="tail_first_decay",
        severity="warning",
        holds=_tail_decays,
        limits={"tail": 1.5, "rise": 0.2, "head": 1.25},
        rule="entropy_student of the last third of position bins > {tail} × first and > first + {rise} nats, of the first third "
        "< {head} × first",
        message="decay begins at the end of responses: entropy of late positions {tail_entropy_first:.2f} → "
        "{tail_entropy:.2f} nats, of early ones {head_entropy_first:.2f} → {head_entropy:.2f}",
        remedy="opd report {run}  # by position; then shorten: sampling.max_tokens",
        source=f"{PAPER}, 6.1, Fig. 13: instability starts at the last positions and spreads forward",
        stories=SAMPLED,
    ),
    Condition(
        name="gradient_spike",
        severity="info",
        holds=_spikes,
        limits={"ratio": 8.0, "start": 2.0},
        rule="grad_norm > {ratio} × median of the window before and > {start} × first",
        message="the gradient norm jumps to {grad_norm:.3g} from {grad_norm_usual:.3g}",
        remedy="opd report {run}  # if it comes with entropy or length, a lower optim.lr",
        source=f"{PAPER}, 6.1 and Fig. 16 (spikes come with the collapse); alone, healthy runs had it as well; {HERE}",
        window=SLOW,
        stories=EVERY,
    ),
    Condition(
        name="flat_small_loss",
        severity="warning",
        holds=_calm,
        limits={"small": 0.1, "floor": 0.005, "loss": 0.85, "overlap": 0.98},
        window=SLOW,
        settles=True,
        rule="loss of the first window in ({floor}, {small}) nats and loss > {loss} × first; overlap_ratio < {overlap}",
        message="calm is no success: the loss is small ({loss_first:.3g} nats) and flat ({loss:.3g}) from the start",
        remedy="opd check {config}  # does this teacher know anything that the student does not?",
        source=f"{PAPER}, Fig. 19: the failing run starts with a small loss that hardly changes",
    ),
    Condition(
        name="sampler_mismatch",
        severity="warning",
        holds=_disagree,
        limits={"nats": 0.05},
        rule="sampler_mismatch > {nats} nats",
        message="sampler and learner disagree about the tokens drawn by {sampler_mismatch:.2g} nats on average: the rollouts "
        "are another model's",
        remedy="opd train {config} learner.compute=float32 student.dtype=float32 run={again}",
        source=f"float32 here: 2e-7 to 3e-6; bfloat16 rounding: about 1e-2; {HERE}",
        stories=SAMPLED,
    ),
    Condition(
        name="mass_left_out",
        severity="warning",
        holds=_leaves_out,
        limits={"mass": 0.1},
        rule="mass_left_out > {mass}",
        message="{mass_left_out:.0%} of the student's mass is outside the tokens that are compared, and is not trained",
        remedy="opd train {config} objective.normalisation=tail_sampled run={again}  # or a larger objective.k",
        source=f"{PAPER}: a working set holds .97 to .99",
    ),
    Condition(
        name="clipped_signal",
        severity="warning",
        holds=_bound_acts,
        limits={"share": 0.05},
        rule="clipped_fraction > {share}",
        message="the bound of objective.shaping acts on {clipped_fraction:.0%} of the signal: how far tokens are apart is lost "
        "there",
        remedy="opd train {config} objective.shaping=log run={again}  # or a larger objective.shaping_value",
        source="arXiv 2607.13399: hard clipping loses the order beyond it; .05 is ours",
    ),
    Condition(
        name="skipped_steps",
        severity="warning",
        holds=_skips,
        limits={"steps": 1.0},
        rule="skipped_steps >= {steps}",
        message="{skipped_steps:.0f} of the updates so far was left out: loss or gradient was not finite",
        remedy="opd train {config} optim.lr={lr} learner.compute=float32 run={again}",
        source="any is one too many; learner.skip_limit in a row end the run",
        stories=EVERY,
    ),
    Condition(
        name="accuracy_fall",
        severity="warning",
        holds=_gets_worse,
        limits={"fall": 0.08, "ratio": 0.85, "errors": 4.0},
        window=SLOW,
        rule="accuracy < first - {fall} and < {ratio} × first, by more than {errors} standard errors",
        message="graded responses get worse: {accuracy_first:.1%} → {accuracy:.1%}; imitation can undo what a student had",
        remedy="opd check {config}  # does the teacher score better than the student on these prompts?",
        source=f"{PAPER}, 3.3, Fig. 5 (reverse distillation); {HERE}",
        stories=("distill", "grpo"),
    ),
    Condition(
        name="privileged_leak",
        severity="warning",
        holds=_copies,
        limits={"rise": 0.2},
        rule="copied_fraction > first + {rise}",
        message="responses copy what only the teacher was told: {copied_fraction_first:.0%} → {copied_fraction:.0%} hold a run "
        "of its tokens",
        remedy="opd report {run}  # read the last rollouts; then a teacher.context with the answer alone",
        source="arXiv 2603.24472 (what students lose by privileged teachers); the rise is ours",
    ),
)
