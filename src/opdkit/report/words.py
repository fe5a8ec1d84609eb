"""A run in sentences. What the paper teaches about reading the numbers is here, and nowhere else.

The order of reading is the order of evidence in arXiv 2604.13016 (section 4.1, Figs. 6 and 19): the fall of
the loss and of |Eq. 7| first, because they separate success from stagnation; overlap second, because it can
rise with a teacher that teaches nothing and stay flat in a success from another lineage; accuracy only from
an evaluation.
"""

from dataclasses import dataclass
from typing import Literal

from opdkit.report.change import Change, apart, change, gap_recovery, response_tokens, scores, skipped
from opdkit.report.read import Run
from opdkit.report.text import percent, shown

# A stagnating run drifts by less than a half, a success falls tenfold and more (0.455 → 0.017 in one
# reproduction): three is far from both, and the exact place does not matter.
CLEAR_FOLD = 3.0
STILL_FOLD = 1.5
HARDLY = 0.1  # a drift below a tenth is not worth a number
FEWEST_STEPS = 10  # below it, first and last are single, noisy steps
SMALL_LOSS = 0.1  # nats; failing pairs start below it, successes several times above

Tone = Literal["good", "weak", "bad", "plain"]


@dataclass(frozen=True)
class Verdict:
    """One reading of a run: a few words, the sentence behind them, and how they are coloured."""

    title: str
    sentence: str
    tone: Tone


def introduction(run: Run) -> str:
    """What was trained from what, on what, for how long."""
    config = run.config
    student = config.get("student.model") or config.get("student") or "an unnamed student"
    task = config.get("task.name") or config.get("task.path")
    objective = config.get("objective.preset")
    parts = [
        f"{student} was trained from {_teacher(run)}",
        f" on {task}" if task else "",
        f" with the objective “{objective}”" if objective else "",
        f": {_steps(run)}{_tokens(run)}.",
    ]
    return "".join(parts)


def alignment(run: Run) -> Verdict:
    """Loss and |Eq. 7| together, in words."""
    what, loss = _read_first(run)
    advantage = change(run, "overlap_advantage")
    if loss is None:
        why = "Fewer than two steps logged a loss, so there is no change to read."
        return Verdict("Too short to read", why, "plain")
    told = "; ".join([_told(what, loss)] + ([_told("|Eq. 7|", advantage)] if advantage else []))
    if loss.count < FEWEST_STEPS:
        why = f"{told}, over {loss.count} steps: too few to tell a trend from noise."
        return Verdict("Too short to read", why, "plain")
    if _rose(loss):
        why = "the student is moving away from the teacher. Look at grad_norm and entropy_student."
        return Verdict("Moving away", f"{told}: {why}", "bad")
    if _fell(loss) and advantage is None:
        return Verdict(
            "Loss falls", f"{told}. Eq. 7 was not measured: half of the evidence is missing.", "plain"
        )
    if _fell(loss) and advantage and _fell(advantage):
        return Verdict("Aligning", f"{told}: the student is aligning with the teacher.", "good")
    if _still(loss) and (advantage is None or _still(advantage)):
        return Verdict("Stagnating", f"{told}: {_why_still(loss)}", "weak")
    why = "They do not both fall threefold: neither a clear alignment nor a clear stagnation."
    return Verdict("Unclear", f"{told}. {why}", "plain")


def accuracy(run: Run) -> Verdict:
    """Before → after with intervals, or why that is not known."""
    found = scores(run)
    if not found and run.evals:
        return Verdict(
            "Not graded", "Evaluated without a grader, so this says nothing about accuracy.", "plain"
        )
    if not found:
        return Verdict("Not evaluated", "No evaluation, so this says nothing about accuracy.", "plain")
    before, after = found[0], found[-1]
    if len(found) == 1:
        why = f"Evaluated once, at step {before.step}: whether accuracy changed is not known."
        return Verdict(percent(before.value), why, "plain")
    title = f"{percent(before.value)} → {percent(after.value)}"
    told = f"avg_at_k {before.words} at step {before.step} → {after.words} at step {after.step}"
    if not (before.has_interval and after.has_interval):
        return Verdict(title, f"{told}. Without intervals, how much of this is chance is not known.", "plain")
    if not apart(before, after):
        return Verdict(title, f"{told}. The 95 % intervals overlap: this may be chance.", "weak")
    if after.value > before.value:
        return Verdict(title, f"{told}. The 95 % intervals do not overlap: accuracy rose.", "good")
    why = "accuracy fell. Imitation can undo what a student had (Fig. 5)."
    return Verdict(title, f"{told}. The 95 % intervals do not overlap: {why}", "bad")


def details(run: Run) -> list[str]:
    """The rest of the story, in reading order; a metric that was not logged is not spoken of."""
    parts = (_together, _overlap, _entropy, _recovery, _optimiser, _lengths, _skipped, _findings)
    return [sentence for part in parts if (sentence := part(run))]


def _teacher(run: Run) -> str:
    if run.config.get("teacher.type") == "self":
        return "its own earlier copy"
    return str(run.config.get("teacher.model") or run.config.get("teacher") or "an unnamed teacher")


def _steps(run: Run) -> str:
    planned, done = run.config.get("steps"), len(run.metrics)
    of_planned = f" of {planned}" if isinstance(planned, int) and planned != done else ""
    return f"{done}{of_planned} step{'s' * (done != 1)}"


def _tokens(run: Run) -> str:
    tokens = response_tokens(run)
    return f", about {shown(tokens)} response tokens" if tokens else ""


def _read_first(run: Run) -> tuple[str, Change | None]:
    """The loss; reverse_kl where a one-sample loss changed sign, because a ratio of it would mean nothing."""
    loss, kl = change(run, "loss"), change(run, "reverse_kl")
    unusable = loss is None or loss.fold is None
    return ("reverse_kl", kl) if unusable and kl else ("The loss", loss)


def _fell(it: Change) -> bool:
    return it.fold is not None and it.fold >= CLEAR_FOLD


def _rose(it: Change) -> bool:
    return it.fold is not None and it.fold <= 1 / STILL_FOLD


def _still(it: Change) -> bool:
    return it.first == it.last or (it.fold is not None and 1 / STILL_FOLD < it.fold < STILL_FOLD)


def _told(what: str, it: Change) -> str:
    """The change of `what` as a clause: "The loss fell 25-fold (0.5 → 0.02)"."""
    if it.first == it.last or (it.fold and abs(1 / it.fold - 1) < HARDLY):
        return f"{what} hardly moved ({it.words})"
    if it.fold is None:
        return f"{what} changed ({it.words})"
    verb, times = ("fell", it.fold) if it.fold > 1 else ("rose", 1 / it.fold)
    if _still(it):
        return f"{what} {verb} by {percent(abs(1 / it.fold - 1))} ({it.words})"
    return f"{what} {verb} {times:.{0 if times >= 10 else 1}f}-fold ({it.words})"


def _why_still(loss: Change) -> str:
    if abs(loss.first) < SMALL_LOSS:
        return "a small loss that moves so little is a weak signal, not success."
    return "what the teacher says is not taken up. Check lr and grad_norm first."


def _together(run: Run) -> str:
    """Alignment without a rise is the paper's second condition showing: the teacher may hold nothing new."""
    found = scores(run)
    if alignment(run).title != "Aligning" or len(found) < 2 or accuracy(run).tone == "good":
        return ""
    return (
        "It aligned, yet accuracy did not clearly rise: the teacher may know nothing new on these problems."
    )


def _overlap(run: Run) -> str:
    ratio = change(run, "overlap_ratio")
    if ratio is None:
        return ""
    caution = "it can rise with a useless teacher and stay flat in a success from another lineage"
    return f"overlap_ratio {ratio.percents}{_mass(run)}. Read it after loss and Eq. 7: {caution}."


def _mass(run: Run) -> str:
    masses = {who: change(run, f"overlap_mass_{who}") for who in ("student", "teacher")}
    told = [f"{percent(mass.last)} of the {who}'s" for who, mass in masses.items() if mass]
    return f"; at the end the shared tokens hold {' and '.join(told)} probability" if told else ""


def _entropy(run: Run) -> str:
    changes = {name: change(run, name) for name in ("entropy_gap", "entropy_student")}
    told = "; ".join(_told(name, it) for name, it in changes.items() if it)
    student = changes["entropy_student"]
    warning = " A student whose entropy rises this much is often on the way to a collapse."
    return f"{told}.{warning if student and _rose(student) else ''}" if told else ""


def _recovery(run: Run) -> str:
    recovered = gap_recovery(run)
    return f"It recovered {percent(recovered)} of its gap to the teacher." if recovered is not None else ""


def _optimiser(run: Run) -> str:
    norm = change(run, "grad_norm")
    return f"{_told('grad_norm', norm)}." if norm else ""


def _lengths(run: Run) -> str:
    length, cut = change(run, "response_length"), change(run, "truncated_fraction")
    told = [f"response_length {length.words} tokens"] if length else []
    told += [f"truncated_fraction {cut.percents}"] if cut else []
    return f"{', '.join(told)}." if told else ""


def _skipped(run: Run) -> str:
    count = skipped(run)
    return f"{count} step{'s' * (count != 1)} skipped for non-finite numbers." if count else ""


def _findings(run: Run) -> str:
    count = len(run.findings)
    return f"{count} finding{'s' * (count != 1)}, shown below." if count else ""
