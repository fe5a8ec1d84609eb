"""Two runs, and in words what differs: settings first, then what came of them, in the order of evidence.

What separates a success from a stagnation is the fall of the loss and of |Eq. 7| (arXiv 2604.13016, Figs. 6
and 19); the size of the loss, overlap, mass and the gradient are told with what they can and cannot show.
"""

from collections.abc import Sequence

from opdkit.report.change import Score, gain, moved, scores, teacher_score
from opdkit.report.points import capitalised, said, whose
from opdkit.report.read import Run
from opdkit.report.stories import progress
from opdkit.report.tables import differences
from opdkit.report.text import percent
from opdkit.report.words import Tone, Verdict, eq7, read_first

NOTABLE_POINTS = 0.02  # of an overlap, a mass, a score
BY_CHANCE = {"seed", "task.seed"}


def verdict(runs: Sequence[Run]) -> Verdict:
    """The comparison in one line and the evidence for it."""
    both = [progress(run) for run in runs]
    worked = [it.tone == "good" for it in both]
    tone: Tone = "good" if any(worked) else "plain"
    title, sentence = _title(runs, both), f"{_evidence(runs)}{_scored(runs)}"
    return Verdict(capitalised(title, runs), capitalised(sentence, runs), tone)


def _title(runs: Sequence[Run], both: Sequence[Verdict]) -> str:
    """Who did what; the one that worked first."""
    if both[0].title == both[1].title:
        return f"Both runs {_BOTH.get(both[0].title) or _did(both[0])}"
    pairs = sorted(zip(runs, both, strict=True), key=lambda pair: pair[1].tone != "good")
    return "; ".join(f"{said(run.name)} {_did(it)}" for run, it in pairs)


def _did(it: Verdict) -> str:
    return _DID.get(it.title, f"reads “{it.title}”")


def settings(runs: Sequence[Run]) -> str:
    """How many settings differ, and what that means for reading the rest."""
    if not all(run.config for run in runs):
        return (
            "The settings of at least one run are not known, so what made the difference is not known either."
        )
    keys = [str(row[0]) for row in differences(runs).rows]
    if not keys:
        return "No setting differs that the run folders know of: any difference below is chance, or the machine's."
    if set(keys) <= BY_CHANCE:
        return "Only the seed differs: whatever differs below is what chance does."
    many = f"{len(keys)} settings differ" if len(keys) > 1 else "One setting differs"
    blame = ", so it is what made the difference" if len(keys) == 1 else ""
    return f"{many}{blame}; everything else is the same."


# --- the line above all -------------------------------------------------------------------------------------

# A verdict's title as what a run did.
_DID = {
    "Aligning": "aligned with its teacher",
    "Stagnating": "stood still",
    "Moving away": "moved away from its teacher",
    "Loss falls": "lowered its loss",
    "Loss rises": "raised its loss",
    "Loss hardly moves": "hardly moved its loss",
    "Scores rise": "raised its scores",
    "Scores fall": "lowered its scores",
    "Scores hardly move": "hardly moved its scores",
    "Sharpened": "sharpened, as a control does",
    "Sharpened a little": "sharpened a little, as a control does",
    "Hardly sharpened": "hardly changed",
    "Unclear": "is unclear: neither a clear alignment nor a clear stagnation",
    "Too short to read": "is too short to read",
}
_BOTH = {
    "Aligning": "aligned with their teachers",
    "Moving away": "moved away from their teachers",
    "Unclear": "are unclear: neither a clear alignment nor a clear stagnation",
    "Too short to read": "are too short to read",
    "Loss falls": "lowered their losses",
    "Scores rise": "raised their scores",
}


def _evidence(runs: Sequence[Run]) -> str:
    """The falls of loss and |Eq. 7| of either run: "A’s loss fell 18-fold and its |Eq. 7| 25-fold; …"."""
    told = [_falls(run) for run in runs]
    if not all(told):
        return " ".join(f"{said(run.name)}: {progress(run).sentence}" for run in runs)
    why = (
        " These two falls, not the size of the loss, separate success from failure."
        if _told_apart(runs)
        else ""
    )
    return f"{'; '.join(told)}.{why}"


def _falls(run: Run) -> str:
    advantage = eq7(run)
    what, loss = read_first(run)
    if not run.taught or loss is None or advantage is None:
        return ""
    return (
        f"{whose(said(run.name))} {what.removeprefix('The ')} {moved(loss)}, its |Eq. 7| {moved(advantage)}"
    )


def _told_apart(runs: Sequence[Run]) -> bool:
    titles = {progress(run).title for run in runs}
    return "Aligning" in titles and len(titles) > 1


def _scored(runs: Sequence[Run]) -> str:
    """Whether accuracy says the same, and whether the better teacher explains it."""
    found = [scores(run) for run in runs]
    if not all(len(ends) > 1 for ends in found):
        return ""
    told = [
        f"{whose(said(run.name))} accuracy went {_from_to(ends)}"
        for run, ends in zip(runs, found, strict=True)
    ]
    return f" {'; '.join(told)}.{_teachers(runs)}"


def _from_to(ends: Sequence[Score]) -> str:
    return f"{percent(ends[0].value)} → {percent(ends[-1].value)}"


def _teachers(runs: Sequence[Run]) -> str:
    """A better teacher that teaches worse is the paper's point, and is said where the numbers show it."""
    teachers, gains = [teacher_score(run) for run in runs], [gain(run) for run in runs]
    first, second = teachers
    if first is None or second is None or None in gains:
        return ""
    levels = f"({percent(first)} and {percent(second)})"
    if abs(first - second) < NOTABLE_POINTS:
        return f" The teachers score alike {levels}: how good a teacher is did not decide this."
    better, gained_more = int(second > first), int((gains[1] or 0) > (gains[0] or 0))
    if better == gained_more:
        return f" The teacher of {said(runs[better].name)} also scores higher {levels}."
    return f" Yet the teacher of {said(runs[better].name)} scores higher {levels}: a better teacher is not what helped."
