"""Before, during, after: what the preflight said of a run, what its monitor said, and whether both were right.

A sentence here is computed from the three and repeats none of them: the numbers stand below it.
"""

from opdkit.report import foretold, preflight
from opdkit.report.change import scores
from opdkit.report.read import Run
from opdkit.report.stories import progress
from opdkit.report.text import percent, shown
from opdkit.report.timeline import Told, last_step, of_run
from opdkit.report.words import Tone, Verdict, accuracy

LATE = 0.4  # of the steps: a problem told later than this has cost most of the run


def before(run: Run) -> Verdict | None:
    """What the preflight said; None where it was not asked."""
    return preflight.verdict(run.check) if run.check else None


def during(run: Run) -> Verdict | None:
    """What was found on the way; None where nobody watched and nothing was found."""
    found = [it for it in of_run(run, 0) if it.severity != "info"]
    if not run.findings and run.config.get("health.enabled") is not True:
        return None
    steps = len(run.metrics)
    if not found:
        notes = f" {len(run.findings)} note{'s' * (len(run.findings) != 1)} besides." if run.findings else ""
        return Verdict(
            "Nothing found", f"{shown(steps)} step{'s' * (steps != 1)} without a warning.{notes}", "good"
        )
    errors = [it for it in found if it.severity == "error"]
    tone: Tone = "bad" if errors else "weak"
    return Verdict(_counted(errors, found), f"{_listed(errors or found)}{_when(errors or found, run)}", tone)


def whole(run: Run) -> Verdict | None:
    """The three in one line; None where there is only the run itself, which speaks below."""
    said, monitor = before(run), during(run)
    if (said is None and monitor is None) or not run.ran:
        return None
    came, tone = _came(run)
    if said is None:
        return _without_preflight(came, tone, monitor)
    name = preflight.name_of(run.check)
    title = _title(name, tone)
    sentence = " ".join(
        part for part in (f"{came}.", foretold.kept_promise(run), _monitor(monitor, tone)) if part
    )
    return Verdict(title, sentence, tone)


def _title(name: str, tone: Tone) -> str:
    """What was said against what came."""
    if tone == "plain":
        return "Too early to judge the preflight"
    if name == "go":
        return (
            "As the preflight said, it worked"
            if tone == "good"
            else "The preflight said go, and it did not work"
        )
    if name in preflight.TITLES:
        did = "it worked all the same" if tone == "good" else "and so it came"
        return f"The preflight said “{preflight.TITLES[name][0].lower()}”: {did}"
    return "It worked" if tone == "good" else "It did not work"


def _came(run: Run) -> tuple[str, Tone]:
    """What became of the run: by its accuracy where an evaluation can tell, else by what its story is for."""
    score, moved = accuracy(run), progress(run)
    if len(scores(run)) > 1 and score.tone in ("good", "bad"):
        did = "rose" if score.tone == "good" else "fell"
        return f"Accuracy {did} ({score.title})", score.tone
    reading = f"It reads “{moved.title.lower()}”"
    if len(scores(run)) > 1:
        tone: Tone = "plain" if moved.title == "Too short to read" else "weak"
        return f"{reading}, and accuracy did not clearly change ({score.title})", tone
    return f"{reading}; accuracy was not measured before and after", moved.tone


def _without_preflight(came: str, tone: Tone, monitor: Verdict | None) -> Verdict:
    title = {"good": "It worked", "weak": "It did not clearly work", "bad": "It did not work"}.get(
        tone, "Too early to tell"
    )
    return Verdict(title, " ".join(part for part in (f"{came}.", _monitor(monitor, tone)) if part), tone)


def _monitor(monitor: Verdict | None, tone: Tone) -> str:
    """Whether the monitor saw it coming."""
    if monitor is None:
        return ""
    if monitor.tone == "good":
        return (
            "On the way nothing was found."
            if tone == "good"
            else "On the way nothing was found: read the curves."
        )
    return (
        "The findings on the way did not come true."
        if tone == "good" and monitor.tone == "bad"
        else "See the findings on the way."
    )


def _counted(errors: list[Told], found: list[Told]) -> str:
    warnings = len(found) - len(errors)
    parts = [(len(errors), "error"), (warnings, "warning")]
    return ", ".join(f"{count} {noun}{'s' * (count != 1)}" for count, noun in parts if count)


def _listed(found: list[Told]) -> str:
    """Their names, each once, the first three."""
    names = list(dict.fromkeys(it.name for it in found))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _when(found: list[Told], run: Run) -> str:
    steps = [it.step for it in found if it.step is not None]
    if not steps:
        return ", before the first step."
    share = min(steps) / last_step(run)
    late = "" if share <= LATE else ", late in it"
    return f"; first at step {shown(min(steps))}, {percent(share)} of the way{late}."
