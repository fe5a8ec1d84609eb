"""The demo in plain words. Sentences follow the numbers: where they do not show what was expected, it is said."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opdkit.studies.demo import Outcome, Score

RECOVERED, NOTHING = 0.7, 0.2  # gap recovery of a success, and of a failure
ROSE = 0.04  # overlap


def demo_lines(outcomes: Sequence[Outcome], page: Path) -> list[str]:
    """What a person reads at the end of `opd demo`."""
    working, failing, control = outcomes
    steps = "the same student, the same prompts, the same budget; accuracy at T = 0.7, top-p 0.95"
    return [
        "",
        f"Two teachers and a control: {steps}.",
        "",
        *_table(outcomes),
        "",
        "What happened",
        *_wrapped(_scores(working, failing)),
        "",
        "Why",
        *_wrapped(_why(working)),
        *_wrapped(_why_not(failing)),
        *_wrapped(_calm(working, failing)),
        *_wrapped(_kinds(working, failing)),
        *_wrapped(_control(working, control)),
        "",
        f"The page with every curve and the rollouts, token by token: {page}",
    ]


def demo_data(outcomes: Sequence[Outcome], page: Path, *, seed: int, base: int) -> dict[str, Any]:
    """The same for machines: `pairs` with before, teacher, after, gap_recovery; `control`; `report`."""
    told = [_plain(o) for o in outcomes]
    return {"pairs": told[:2], "control": told[2], "report": str(page), "seed": seed, "base": base}


def _plain(o: Outcome) -> dict[str, Any]:
    return {
        "name": o.arm.name,
        "title": o.arm.title,
        "run": str(o.run),
        "before": o.before.value,
        "teacher": None if o.teacher is None else o.teacher.value,
        "after": o.after.value,
        "gap_recovery": o.gap_recovery,
        "greedy": dict(o.greedy),
        "scores": {
            name: None if score is None else asdict(score)
            for name, score in (("before", o.before), ("teacher", o.teacher), ("after", o.after))
        },
        "watched": {name: list(ends) for name, ends in o.watched.items()},
        "seconds": o.seconds,
    }


# --- the table ----------------------------------------------------------------------------------------------

_ROWS = (
    ("overlap of the top 16", "overlap_ratio", "{:.3f} → {:.3f}"),
    ("mass on the shared tokens", "overlap_mass_student", "{:.3f} → {:.3f}"),
    ("difference there, Eq. 7", "overlap_advantage", "{:.4f} → {:.4f}"),
    ("entropy gap, nats", "entropy_gap", "{:.3f} → {:.3f}"),
    ("loss, nats", "loss", "{:.3f} → {:.3f}"),
    ("gradient norm", "grad_norm", "{:.2f} → {:.2f}"),
)


def _table(outcomes: Sequence[Outcome]) -> list[str]:
    rows = [["", *(o.arm.title for o in outcomes)]]
    rows.append(["student before", *(_interval(o.before) for o in outcomes)])
    rows.append(["teacher", *("-" if o.teacher is None else _interval(o.teacher) for o in outcomes)])
    rows.append(["student after", *(_interval(o.after) for o in outcomes)])
    rows.append(
        ["  greedy: before → after", *("{before:.3f} → {after:.3f}".format(**o.greedy) for o in outcomes)]
    )
    rows.append(["gap recovery", *(_share(o.gap_recovery) for o in outcomes)])
    for word, name, form in _ROWS:
        shown = [form.format(*o.watched[name]) if name in o.watched and o.teacher else "-" for o in outcomes]
        rows.append([word, *shown])
    rows.append(["seconds", *(f"{o.seconds:.0f}" for o in outcomes)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "   ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _interval(score: Score) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


# --- sentences ----------------------------------------------------------------------------------------------


def _scores(working: Outcome, failing: Outcome) -> str:
    assert working.teacher is not None and failing.teacher is not None
    lead = failing.teacher.value - failing.before.value
    first = (
        f"Both teachers score well above the student ({working.teacher.value:.3f} and "
        f"{failing.teacher.value:.3f} against {working.before.value:.3f}). From the first it recovered "
        f"{_share(working.gap_recovery)} of the gap, from the second, {lead:.3f} better than itself, "
        f"{_share(failing.gap_recovery)}."
    )
    expected = (working.gap_recovery or 0) >= RECOVERED and (failing.gap_recovery or 0) <= NOTHING
    return (
        first
        if expected
        else first
        + (
            f" That is not the contrast this demo is for (at least {RECOVERED:.0%} against at most {NOTHING:.0%}): "
            "look at the curves before you believe either."
        )
    )


def _why(o: Outcome) -> str:
    overlap, loss, advantage = (o.watched[n] for n in ("overlap_ratio", "loss", "overlap_advantage"))
    rose = overlap[1] - overlap[0] >= ROSE
    agrees = "agrees more and more" if rose else "hardly agrees more than before"
    return (
        f"The pair that works {agrees} on the tokens the student would say: overlap "
        f"{overlap[0]:.3f} → {overlap[1]:.3f}, the shared tokens hold {o.watched['overlap_mass_student'][1]:.1%} of the "
        f"student's mass, on them the difference |Eq. 7| fell {_fold(advantage)} and the loss {_fold(loss)}, "
        f"the entropy gap {_fold(o.watched['entropy_gap'])}."
    )


def _why_not(o: Outcome) -> str:
    """What the teacher is better at is read off the kinds of problem."""
    assert o.teacher is not None
    overlap, loss, advantage = (o.watched[n] for n in ("overlap_ratio", "loss", "overlap_advantage"))
    teacher, before = o.teacher.kinds, o.before.kinds
    kind = max(teacher, key=lambda k: teacher[k] - before[k])
    return (
        f"With the other teacher overlap is {overlap[0]:.3f} → {overlap[1]:.3f}, |Eq. 7| changed {_fold(advantage)}, "
        f"the loss {_fold(loss)}. What this teacher does better are problems of kind “{kind}” ({teacher[kind]:.2f} "
        f"against {before[kind]:.2f}); the student went {before[kind]:.2f} → {o.after.kinds[kind]:.2f} on them: "
        + (
            "its own states do not carry that."
            if o.after.kinds[kind] - before[kind] < 0.1
            else "it took some of that over."
        )
    )


def _calm(working: Outcome, failing: Outcome) -> str:
    w, f = working.watched, failing.watched
    calm = f["loss"][0] <= 1.5 * w["loss"][0] and f["grad_norm"][0] <= 2 * w["grad_norm"][0]
    told = (
        f"first loss {f['loss'][0]:.3f} against {w['loss'][0]:.3f}, gradient norm {f['grad_norm'][0]:.2f} "
        f"against {w['grad_norm'][0]:.2f}, mass on shared tokens {f['overlap_mass_student'][1]:.1%}"
    )
    if calm:
        return f"The failing run looks calm ({told}): nothing but the missing fall gives it away."
    return f"The failing run is not calm here ({told})."


def _kinds(working: Outcome, failing: Outcome) -> str:
    def parts(o: Outcome) -> str:
        return ", ".join(
            f"{k} {o.before.kinds[k]:.2f} → {o.after.kinds[k]:.2f}" for k in sorted(o.before.kinds)
        )

    return f"By kind of problem: with the first teacher {parts(working)}; with the second {parts(failing)}."


def _control(working: Outcome, control: Outcome) -> str:
    gain, without = working.after.value - working.before.value, control.after.value - control.before.value
    verdict = (
        "so it is the teacher that taught" if without < gain / 4 else "so part of the gain needs no teacher"
    )
    return (
        f"Pushing the least likely fifth of tokens down without any teacher changed accuracy by {without:+.3f} "
        f"where the first teacher changed it by {gain:+.3f}, {verdict}."
    )


def _fold(ends: tuple[float, float]) -> str:
    first, last = abs(ends[0]), abs(ends[1])
    if last <= 0 or first <= 0:
        return f"from {first:.3g} to {last:.3g}"
    return f"{first / last:.1f}-fold" if first >= last else f"up {last / first:.1f}-fold"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, width=100, initial_indent="  ", subsequent_indent="  ")
