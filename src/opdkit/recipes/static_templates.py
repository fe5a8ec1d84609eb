"""The chat templates of both models on probe conversations, side by side; and their thinking modes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opdkit.recipes.static_read import PROBES, REFUSED, Side, Subject, render
from opdkit.report.text import common_start
from opdkit.types import Finding

PAPER = "arXiv 2604.13016, 5.2"  # prompts in the teacher's template


@dataclass(frozen=True)
class Rendering:
    """A probe in both models' words. `first` is the first character at which they differ, None if nowhere."""

    probe: str
    thinking: bool | None  # what enable_thinking was; None leaves it out
    student: str
    teacher: str
    first: int | None


def template_findings(subject: Subject) -> list[Finding]:
    if not subject.templated:
        return _unused(subject)
    if not subject.renderer.has_template:
        return [_missing(subject)]
    thinking = _thinking(subject)
    return [*_teacher_without(subject), *thinking, *_differing(subject, thinking), *_splits(subject)]


def renderings(subject: Subject, settings: Sequence[bool | None] = (None, True, False)) -> list[Rendering]:
    """Each probe up to where an answer begins; settings that change nothing are left out."""
    rows: list[Rendering] = []
    other = subject.teacher or subject.student
    for probe, messages in PROBES.items():
        seen: set[tuple[str, str]] = set()
        for setting in settings:
            ours = render(subject.student, messages, thinking=setting, ask=True)
            theirs = render(other, messages, thinking=setting, ask=True)
            if (ours, theirs) not in seen:
                seen.add((ours, theirs))
                rows.append(Rendering(probe, setting, ours, theirs, _first_difference(ours, theirs)))
    return rows


def _first_difference(ours: str, theirs: str) -> int | None:
    """
    >>> _first_difference("abc", "abd"), _first_difference("ab", "abc"), _first_difference("", "")
    (2, 2, None)
    """
    return None if ours == theirs else common_start(ours, theirs)


def side_by_side(row: Rendering, *, before: int = 24, after: int = 48) -> str:
    """Both texts near their first difference, which ▶ marks; control characters are written out."""
    first = row.first or 0

    def near(text: str) -> str:
        start, end = max(0, first - before), first + after
        same, other = repr(text[start:first])[1:-1], repr(text[first:end])[1:-1]
        return f"{'…' if start else ''}{same}▶{other}{'…' if end < len(text) else ''}"

    return f"student: {near(row.student)}   teacher: {near(row.teacher)}"


# --- templates ----------------------------------------------------------------------------------------------


def _unused(subject: Subject) -> list[Finding]:
    having = [side.who for side in subject.sides if side.has_template]
    if not having:
        return []
    return [
        Finding(
            name="template_unused",
            severity="info",
            message=f"task.chat_template is false: prompts are read as plain text, though the "
            f"{' and the '.join(having)} {'has' if len(having) == 1 else 'have'} a chat template",
            remedy=subject.again("task.chat_template=true"),
        )
    ]


def _missing(subject: Subject) -> Finding:
    """Nobody to render with: refused by the run."""
    who, teacher = subject.renderer.who, subject.teacher
    other = subject.student if who == "teacher" else teacher
    with_other = other is not None and other.has_template
    remedy = f"task.render={'student' if who == 'teacher' else 'teacher'}"
    return Finding(
        name="template_missing",
        severity="error",
        message=f"the {who} has no chat template, and task.chat_template asks for one"
        + (f"; the {other.who} has one" if other is not None and with_other else ""),
        remedy=subject.again(remedy if with_other else "task.chat_template=false"),
        rule="whoever renders has a template",
        source=PAPER,
    )


def _teacher_without(subject: Subject) -> list[Finding]:
    if subject.teacher is None or subject.teacher.has_template:
        return []
    return [
        Finding(
            name="teacher_template_missing",
            severity="warning",
            message="the teacher has no chat template: nothing says that it has ever read the format in "
            "which "
            "the student's template writes prompts",
            remedy=subject.again("task.chat_template=false"),
            rule="both have a template",
            source=PAPER,
        )
    ]


def _differing(subject: Subject, thinking: Sequence[Finding]) -> list[Finding]:
    """The first probe that the templates render differently, of a kind that the prompts have if there is."""
    if subject.teacher is None or not all(side.has_template for side in subject.sides):
        return []
    settings: list[bool | None] = [subject.config.task.thinking]
    if any(f.name == "thinking_differs" for f in thinking):  # the default is what differs: is there more?
        settings = [True, False]
        if any(all(row.first is None for row in renderings(subject, [s])) for s in settings):
            return []
    rows = renderings(subject, settings)
    kinds = _kinds(subject)
    apart = sorted((r for r in rows if r.first is not None), key=lambda r: r.probe not in kinds)
    return [_differs(subject, apart[0], used=apart[0].probe in kinds)] if apart else []


def _kinds(subject: Subject) -> set[str]:
    """Which probes are like the prompts."""
    config, kinds = subject.config, set()
    context = config.teacher.context if config.teacher is not None else None
    for prompt in (*subject.task.train, *subject.task.evaluation):
        roles = [m["role"] for m in prompt.messages or ()]
        system = "system" in roles or config.task.system or context
        kinds |= {"system" if system else "question"} | ({"turns"} if "assistant" in roles else set())
    return kinds


def _differs(subject: Subject, row: Rendering, *, used: bool) -> Finding:
    theirs = subject.renderer is subject.teacher
    refused = row.teacher.startswith(REFUSED)
    if theirs:
        end = "; prompts are written in the teacher's (task.render=teacher)"
    else:
        end = "" if used else "; no prompt here is of that kind"
    return Finding(
        name="chat_template_differs",
        severity="warning" if used and not theirs else "info",
        message=f"the chat templates write the same conversation ({row.probe!r}) differently, from character "
        f"{row.first} on: {side_by_side(row)}{end}",
        numbers={"first_difference": row.first or 0},
        remedy=subject.again("task.render=teacher") if used and not theirs and not refused else "",
        rule="rendered texts are equal",
        source=PAPER,
    )


def _splits(subject: Subject) -> list[Finding]:
    """The same map, but text is cut into other tokens: the teacher never saw such sequences."""
    student, teacher = subject.student, subject.teacher
    if teacher is None or subject.differing_ids:
        return []
    texts = [render(subject.renderer, probe, ask=True) for probe in PROBES.values()]
    texts += [p.text for p in subject.task.train[:64] if p.text]
    for text in texts:
        ours, theirs = (s.tokenizer(text, add_special_tokens=False)["input_ids"] for s in (student, teacher))
        if ours != theirs and max(ours + theirs) < subject.rows:  # tokens of one side are told elsewhere
            return [_split(student, teacher, ours, theirs)]
    return []


def _split(student: Side, teacher: Side, ours: list[int], theirs: list[int]) -> Finding:
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
    cut = [
        " ".join(repr(t) for t in side.tokenizer.convert_ids_to_tokens(ids[first : first + 4]))
        for side, ids in ((student, ours), (teacher, theirs))
    ]
    return Finding(
        name="text_splits_differ",
        severity="warning",
        message="the two tokenizers have the same tokens but cut the same text differently: student "
        f"{cut[0]} | teacher {cut[1]}; the teacher reads the student's tokens, which it would not write "
        "itself",
        numbers={"first_difference": first},
        rule="both tokenizers give the same ids",
    )


# --- thinking -----------------------------------------------------------------------------------------------


def default_thinking(side: Side) -> bool | None:
    """What the template does when enable_thinking is not given; None if it does not react to it."""
    unset, on, off = (
        render(side, PROBES["question"], thinking=setting, ask=True) for setting in (None, True, False)
    )
    return None if on == off else unset != off


def _thinking(subject: Subject) -> list[Finding]:
    setting, teacher = subject.config.task.thinking, subject.teacher
    modes: dict[str, bool | None] = {
        side.who: default_thinking(side) for side in subject.sides if side.has_template
    }
    if setting is not None and modes.get(subject.renderer.who) is None:
        return [_ignored(subject, setting, other=any(mode is not None for mode in modes.values()))]
    if setting is not None or not any(mode is not None for mode in modes.values()):
        return []
    if len(modes) == 2 and teacher is not None and modes["student"] != modes["teacher"]:
        return [] if subject.renderer is teacher else [_modes_differ(subject, modes)]
    return (
        [_unset(subject, modes[subject.renderer.who])] if modes.get(subject.renderer.who) is not None else []
    )


def _ignored(subject: Subject, setting: bool, *, other: bool) -> Finding:
    who = subject.renderer.who
    fixable = other and who == "student"
    return Finding(
        name="thinking_ignored",
        severity="warning" if other else "info",
        message=f"task.thinking={str(setting).lower()} changes nothing: the {who}'s chat template, which "
        "writes "
        "the prompts, never reads enable_thinking" + (", the other model's does" if other else ""),
        remedy=subject.again("task.render=teacher") if fixable else "",
        rule="the template that renders reads enable_thinking" if other else "",
    )


_MODES = {None: "has no thinking mode", True: "thinks", False: "does not think"}


def _modes_differ(subject: Subject, modes: dict[str, bool | None]) -> Finding:
    """Unset, one thinks and the other does not: they part at the first token of the answer."""
    changes = ["task.thinking=false"]
    if modes["student"] is None:
        changes = ["task.render=teacher", *changes]
    return Finding(
        name="thinking_differs",
        severity="warning",
        message=f"task.thinking is unset: by its template the student {_MODES[modes['student']]}, the "
        "teacher "
        f"{_MODES[modes['teacher']]}, so they may part at the first token of an answer",
        remedy=subject.again(*changes),
        rule="both templates have the same thinking mode",
        source="arXiv 2604.13016, 3.1",
    )


def _unset(subject: Subject, mode: bool | None) -> Finding:
    return Finding(
        name="thinking_unset",
        severity="info",
        message=f"task.thinking is unset; by the {subject.renderer.who}'s template the model {_MODES[mode]}",
        remedy=subject.again(f"task.thinking={str(not mode).lower()}"),
    )
