"""A run in sentences. What the paper teaches about reading the numbers is here, and nowhere else.

The order of reading is the order of evidence in arXiv 2604.13016 (section 4.1, Figs. 6 and 19): the fall of
the loss and of |Eq. 7| first, because they separate success from stagnation; overlap second, because it can
rise with a teacher that teaches nothing and stay flat in a success from another lineage; accuracy only from
an evaluation.
"""

from dataclasses import dataclass, replace
from typing import Literal

from opdkit.report.change import Change, apart, by_group, change, gap_recovery, moved, scores, skipped
from opdkit.report.read import Run
from opdkit.report.text import percent

FEWEST_STEPS = 10  # below it, first and last are single, noisy steps
SMALL_LOSS = 0.1  # nats; failing pairs start below it, successes several times above

Tone = Literal["good", "weak", "bad", "plain"]


@dataclass(frozen=True)
class Verdict:
    """One reading of a run: a few words, the sentence behind them, and how they are coloured."""

    title: str
    sentence: str
    tone: Tone


def alignment(run: Run) -> Verdict:
    """Loss and |Eq. 7| together, in words."""
    what, loss = read_first(run)
    advantage = eq7(run)
    if loss is None:
        why = "Fewer than two steps logged a loss, so there is no change to read."
        return Verdict("Too short to read", why, "plain")
    both = "; ".join([told(what, loss)] + ([told("|Eq. 7|", advantage)] if advantage else []))
    if loss.count < FEWEST_STEPS:
        why = f"{both}, over {loss.count} steps: too few to tell a trend from noise."
        return Verdict("Too short to read", why, "plain")
    if loss.rose:
        why = "the student is moving away from the teacher. Look at grad_norm and entropy_student."
        return Verdict("Moving away", f"{both}: {why}", "bad")
    if loss.fell and advantage is None:
        return Verdict(
            "Loss falls", f"{both}. Eq. 7 was not measured: half of the evidence is missing.", "plain"
        )
    if loss.fell and advantage and advantage.fell:
        return Verdict("Aligning", f"{both}: the student is aligning with the teacher.", "good")
    if loss.still and not (advantage and (advantage.fell or advantage.rose)):
        return Verdict("Stagnating", f"{both}: {_why_still(loss)}", "weak")
    why = "They do not both fall threefold: neither a clear alignment nor a clear stagnation."
    return Verdict("Unclear", f"{both}. {why}", "plain")


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
    both = f"avg_at_k {before.words} at step {before.step} → {after.words} at step {after.step}"
    if not (before.has_interval and after.has_interval):
        return Verdict(title, f"{both}. Without intervals, how much of this is chance is not known.", "plain")
    if not apart(before, after):
        return Verdict(title, f"{both}. The 95 % intervals overlap: this may be chance.", "weak")
    if after.value > before.value:
        return Verdict(title, f"{both}. The 95 % intervals do not overlap: accuracy rose.", "good")
    why = " Imitation can undo what a student had (Fig. 5)." if run.taught else ""
    return Verdict(title, f"{both}. The 95 % intervals do not overlap: accuracy fell.{why}", "bad")


def details(run: Run, *, recovery: bool = True) -> list[str]:
    """The rest of the story, in reading order; a metric that was not logged is not spoken of.

    `recovery` is off where the gap recovery was told already, beside what was predicted.
    """
    parts = (_together, _groups, _overlap, _entropy, _recovery, _optimiser, _lengths, _skipped)
    asked = [part for part in parts if recovery or part is not _recovery]
    return [sentence for part in asked if (sentence := part(run))]


def told(what: str, it: Change) -> str:
    """The change of `what` as a clause: "The loss fell 25-fold (0.5 → 0.02)"."""
    return f"{what} {moved(it)}"


def eq7(run: Run) -> Change | None:
    """|Eq. 7|: the overlap advantage is never positive, and it is its size that falls."""
    it = change(run, "overlap_advantage")
    return replace(it, first=abs(it.first), last=abs(it.last)) if it else None


def read_first(run: Run) -> tuple[str, Change | None]:
    """The loss; reverse_kl where a one-sample loss changed sign, because a ratio of it would mean nothing."""
    loss, kl = change(run, "loss"), change(run, "reverse_kl")
    unusable = loss is None or loss.fold is None
    return ("reverse_kl", kl) if unusable and kl else ("The loss", loss)


def _why_still(loss: Change) -> str:
    if abs(loss.first) < SMALL_LOSS:
        return "a small loss that moves so little is a weak signal, not success."
    return "what the teacher says is not taken up. Check lr and grad_norm first."


def _together(run: Run) -> str:
    """Alignment without a rise is the paper's second condition showing: the teacher may hold nothing new."""
    found = scores(run)
    if not run.taught or alignment(run).title != "Aligning" or len(found) < 2 or accuracy(run).tone == "good":
        return ""
    return (
        "It aligned, yet accuracy did not clearly rise: the teacher may know nothing new on these problems."
    )


def _groups(run: Run) -> str:
    """Accuracy by kind of problem, where the evaluation told it: a mean can hide that one kind was lost."""
    tables = [table for row in run.evals if (table := by_group(row))]
    told = [
        f"{name} {percent(tables[0].get(name))} → {percent(tables[-1][name])}"
        if len(tables) > 1
        else f"{name} {percent(tables[-1][name])}"
        for name in (tables[-1] if tables else ())
    ]
    return f"By kind of problem: {', '.join(told)}." if told else ""


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
    clauses = "; ".join(told(name, it) for name, it in changes.items() if it)
    student = changes["entropy_student"]
    warning = " A student whose entropy rises this much is often on the way to a collapse."
    return f"{clauses}.{warning if student and student.rose else ''}" if clauses else ""


def _recovery(run: Run) -> str:
    recovered = gap_recovery(run)
    if recovered is None:
        return ""
    if recovered < 0:
        return f"It moved away from its teacher's score: gap recovery {percent(recovered)}."
    return f"It recovered {percent(recovered)} of its gap to the teacher."


def _optimiser(run: Run) -> str:
    norm = change(run, "grad_norm")
    return f"{told('grad_norm', norm)}." if norm else ""


def _lengths(run: Run) -> str:
    length, cut = change(run, "response_length"), change(run, "truncated_fraction")
    told = [f"response_length {length.words} tokens"] if length else []
    told += [f"truncated_fraction {cut.percents}"] if cut else []
    return f"{', '.join(told)}." if told else ""


def _skipped(run: Run) -> str:
    count = skipped(run)
    return f"{count} step{'s' * (count != 1)} skipped for non-finite numbers." if count else ""
