"""The pair factory: kinds of (student, teacher, prompts), each on every base, judged by `opd check` and then distilled twice.

What the predictor is fitted on (`opdkit.studies.predictor`). The kinds were committed before any of their checks and runs was
made, whatever becomes of them; some of their runs are arms of other questions too, and are shared with those. Every dial is
turned by one kind at least. `group` is what kind of teacher it is: the predictor is scored on groups that it never saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from opdkit.studies.estimate import Base, Rows, of
from opdkit.studies.study import Arm, Expectation, Study

Dial = Literal["style", "capability", "size", "errors", "mixture", "template", "depth", "ends"]
LEAD = 0.05
"""Below such a lead gap recovery is undefined."""
DRAWS = (0, 1)
CHECKED = 2
"""The check's own draw: its rehearsal must not be the first steps of a run that it foretells."""


@dataclass(frozen=True)
class Kind:
    """A kind of pair: names of models of `opdkit.studies.recipes`, and what its prompts and run have otherwise."""

    name: str
    group: str
    student: str
    teacher: str
    dials: tuple[Dial, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


KINDS = (
    Kind("improved", "improved copy", "student", "improved", ("capability",)),
    Kind("half improved", "improved copy", "student", "half_improved", ("capability", "errors")),
    Kind("unknown wording", "improved copy", "student", "one_wording", ("template",), {"task": {"template": 2}}),
    Kind("short teacher", "short teacher", "student", "short_only", ("depth",)),
    Kind("short teacher, deep prompts", "short teacher", "student", "short_only", ("depth",), {"task": {"lengths": (4,)}}),
    Kind("bigger", "bigger", "student", "bigger", ("size",)),
    Kind("bigger, young student", "bigger", "base", "bigger", ("size",)),
    Kind("bigger, improved", "bigger, improved", "student", "bigger_improved", ("size", "capability")),
    Kind("bigger, both improved", "bigger, improved", "improved", "bigger_improved", ("size",)),
    Kind("restyled", "other style", "student", "restyled", ("style",)),
    Kind("restyled, short start", "other style", "barely_started", "restyled", ("style", "mixture")),
    Kind("restyled, cold start", "other style", "cold_started", "restyled", ("style",)),
    Kind("restyled, mixed student", "other style", "mixed", "restyled", ("style", "mixture")),
    Kind("two styles", "two styles", "student", "two_styles", ("style", "mixture")),
    Kind("other end", "other end", "student", "other_end", ("ends",)),
    Kind("other end, started", "other end", "end_started", "other_end", ("ends", "mixture")),
    Kind("slipping", "slipping", "student", "slipping", ("errors",)),
    Kind("later self", "later self", "base", "student", ("capability",)),
)  # fmt: skip


def run_name(kind: Kind, draw: int) -> str:
    """Of an arm that distils.

    >>> [run_name(KINDS[0], draw) for draw in DRAWS]
    ['improved', 'improved, draw 1']
    """
    return f"{kind.name}, draw {draw}" if draw else kind.name


def check_name(kind: Kind) -> str:
    return f"{kind.name}, checked"


def _arms(kind: Kind) -> tuple[Arm, ...]:
    runs = [Arm(run_name(kind, d), kind.student, kind.teacher, kind.settings, draw=d) for d in DRAWS]
    check = Arm(check_name(kind), kind.student, kind.teacher, kind.settings, measured="check", draw=CHECKED)
    return (check, *runs)


OUTSIDE = (
    Kind("other lineage", "other lineage", "student", "stranger", ("capability",)),
    Kind("bigger, mixed student", "bigger", "mixed", "bigger", ("size", "mixture")),
)
"""Kinds that the predictor was neither made for nor fitted on, chosen when it had been fitted and before any of their runs."""


def _led(rows: Rows) -> Mapping[Base, float]:
    """How many of KINDS have a teacher that scores at least LEAD above the student, base by base."""
    names, found = {kind.name for kind in KINDS}, dict[Base, float]()
    for row in rows:
        if row["arm"] in names:
            base = row["family"], row["seed"]
            found[base] = found.get(base, 0.0) + (row["recovery"] is not None)
    return found


FACTORY = Study(
    name="pairs",
    question="Can it be known before training how much of its gap a pair will recover?",
    section="6, and none: no such predictor was published",
    figures=(),
    claim="thinking patterns that go together and new knowledge govern the outcome; nobody has made one number of the two and "
    "scored it on pairs that it had not seen",
    arms=tuple(arm for kind in KINDS for arm in _arms(kind)),
    expected=(
        Expectation(
            "led",
            f"at least six kinds a base have a teacher that scores {LEAD} or more above its student: sixty pairs on ten bases",
            _led,
            at_least=6.0,
            claim=False,
        ),
    ),
    differs="Nobody has one to differ from. `opd study fit` fits the predictor of `opd check` on this table.",
    curves=False,
)

BEYOND = Study(
    name="pairs-outside",
    question="What does the predictor say of kinds of pairs that it was not made for?",
    section="6, and none",
    figures=(),
    claim="a teacher of another lineage with the new capability teaches although its overlap is near chance (docs/check.md); "
    "a bigger teacher that was not improved gives nothing, whoever its student is",
    arms=tuple(arm for kind in OUTSIDE for arm in _arms(kind)),
    expected=(
        Expectation(
            "lineage",
            "the teacher of another lineage hands on half of its gap or more",
            of("other lineage", "recovery"),
            at_least=0.5,
            claim=False,
        ),
        Expectation(
            "bigger",
            "the bigger teacher of a mixed student hands on a fifth at most",
            of("bigger, mixed student", "recovery"),
            at_most=0.2,
            claim=False,
        ),
    ),
    differs="Not of the paper. Expected of the predictor: it tells too little of the other lineage, whose overlap is below what "
    "worked in its pairs; its 90 % intervals hold what came of at least eight in ten pairs of either kind; AUROC between the two "
    "is .9 or more.",
    curves=False,
)
