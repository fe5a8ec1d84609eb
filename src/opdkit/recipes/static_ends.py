"""What ends a response, in each model's own files and between the two; also what begins a prompt.

Different end tokens are the best documented way to lose a run: the student is taught to stop with a token
that stops nothing, and responses grow to the limit.
"""

from __future__ import annotations

from opdkit.recipes.static_read import PROBES, REFUSED, Side, Subject, named, render
from opdkit.tasks import encode
from opdkit.types import Finding, Prompt, UserError

STUDY = "arXiv 2609.20511"  # base students and post-trained teachers end with different tokens


def end_findings(subject: Subject) -> list[Finding]:
    found = [f for side in subject.sides for f in (*_wrong_ids(side), *_unlike_tokenizer(side))]
    found += _stop_ids(subject)
    between = [] if subject.differing_ids else _between(subject)  # compared by id, which must mean the same
    found += between or _own_template(subject)
    return [*found, *_pad_is_end(subject), *_bos_doubled(subject), *_bos(subject)]


# --- one model's files --------------------------------------------------------------------------------------


def _wrong_ids(side: Side) -> list[Finding]:
    """An end token that is an ordinary word, or nothing: responses are cut there, or never end."""
    eos = side.tokenizer.eos_token_id
    wrong = [i for i in side.named_ends if i not in side.special_ids and i != eos]
    if not wrong:
        return []
    expected = (
        "the tokenizer has no end token" if eos is None else f"the tokenizer ends with {side.token(eos)}"
    )
    return [
        Finding(
            name="wrong_special_id",
            severity="error",
            message=f"the {side.who}'s {side.end_file} says eos_token_id = {', '.join(map(str, wrong))}, "
            "but that "
            f"is {' and '.join(side.token(i) for i in wrong)} and ends nothing; {expected}. Correct the file",
            numbers={"eos_token_id": wrong[0]} | ({} if eos is None else {"tokenizer_eos_token_id": eos}),
            rule="eos_token_id is a special token",
        )
    ]


def _unlike_tokenizer(side: Side) -> list[Finding]:
    """All named ends are special tokens, but none is one that the tokenizer or the template writes."""
    eos = side.tokenizer.eos_token_id
    named = [i for i in side.named_ends if i in side.special_ids]
    if not named or eos is None or {eos, side.template_end} & set(side.named_ends):
        return []
    return [
        Finding(
            name="generation_end_differs",
            severity="warning",
            message=f"the {side.who}'s {side.end_file} ends responses with "
            f"{' or '.join(side.token(i) for i in named)}, its tokenizer with {side.token(eos)}; opd stops "
            "at "
            "either, tools that read the first file alone will not stop at the second",
            numbers={"eos_token_id": named[0], "tokenizer_eos_token_id": eos},
            rule="eos_token_id holds the tokenizer's or the template's end token",
        )
    ]


def _pad_is_end(subject: Subject) -> list[Finding]:
    sides = [s for s in subject.sides if s.tokenizer.pad_token_id == s.tokenizer.eos_token_id is not None]
    if not sides:
        return []
    eos = sides[0].tokenizer.eos_token_id
    return [
        Finding(
            name="pad_is_end",
            severity="info",
            message=f"padding is the end token of the {named(sides)}, {sides[0].token(eos)}; opd masks by "
            "length and trains "
            "the end token, trainers that mask by id leave it out and unlearn stopping",
            numbers={"pad_token_id": eos},
        )
    ]


# --- what stops sampling ------------------------------------------------------------------------------------


def _stop_ids(subject: Subject) -> list[Finding]:
    """Nothing that stops, or ids that cannot be drawn."""
    student, asked = subject.student, subject.config.sampling.stop_ids or []
    beyond = [i for i in asked if not 0 <= i < subject.rows]
    if beyond:
        return [
            Finding(
                name="stop_ids_unknown",
                severity="error",
                message=f"sampling.stop_ids holds {beyond[0]}, but the shared ids go from 0 to "
                f"{subject.rows - 1}",
                numbers={"stop_id": beyond[0], "rows": subject.rows},
                remedy=subject.again(_stop_at(sorted({*asked} - {*beyond}) or sorted(student.ends))),
                rule="a stop id is a shared token",
            )
        ]
    if subject.stop_ids:
        return []
    end = student.template_end
    return [
        Finding(
            name="no_end_token",
            severity="error",
            message="nothing ends a response: neither the student's tokenizer nor its generation config "
            "names an "
            "end token that both models know",
            remedy="" if end is None or end >= subject.rows else subject.again(_stop_at([end])),
            rule="at least one end token",
        )
    ]


def _stop_at(ids: list[int]) -> str:
    return f"sampling.stop_ids=[{', '.join(map(str, ids))}]"


def _own_template(subject: Subject) -> list[Finding]:
    """The student's template closes its turns with a token at which sampling goes on."""
    end = subject.student.template_end
    if not subject.templated or end is None or end in subject.stop_ids or end >= subject.rows:
        return []
    if not subject.stop_ids:  # told already
        return []
    stops = sorted(subject.stop_ids)
    return [
        Finding(
            name="end_token_not_stopping",
            severity="warning",
            message=f"the student's chat template closes an answer with {subject.student.token(end)}, but "
            "sampling "
            f"stops only at {_tokens(subject.student, stops)}: a student that answers as the template does "
            "runs on",
            numbers={"template_end": end},
            remedy=subject.again(_stop_at([*stops, end])),
            rule="the template's end token stops sampling",
            source=STUDY,
        )
    ]


def _tokens(side: Side, ids: list[int]) -> str:
    return " or ".join(side.token(i) for i in ids) or "nothing"


# --- student and teacher ------------------------------------------------------------------------------------


def _between(subject: Subject) -> list[Finding]:
    """How each ends its answers, and whether the other knows of it."""
    student, teacher = subject.student, subject.teacher
    if teacher is None or teacher.natural_end is None:
        return []
    ours, theirs = student.natural_end, teacher.natural_end
    if theirs >= subject.rows or (ours is not None and ours >= subject.rows):
        return [_unknown_end(subject, teacher)]
    if theirs not in subject.stop_ids:
        return [_not_stopping(subject, teacher, theirs)]
    return [] if ours is None or ours == theirs else [_two_ends(student, teacher, ours, theirs)]


def _unknown_end(subject: Subject, teacher: Side) -> Finding:
    student, rows = subject.student, subject.rows
    who, other = (teacher, student) if (teacher.natural_end or 0) >= rows else (student, teacher)
    end = who.natural_end or 0
    return Finding(
        name="end_token_unknown",
        severity="error",
        message=f"the {who.who} ends answers with {who.token(end)}, which the {other.who} does not have: "
        "the two "
        f"share ids below {rows} only, so stopping cannot be taught. Take a teacher with the student's end "
        "token",
        numbers={"end_token": end, "rows": rows},
        rule="both know both end tokens",
        source=STUDY,
    )


def _not_stopping(subject: Subject, teacher: Side, end: int) -> Finding:
    stops = sorted(subject.stop_ids)
    return Finding(
        name="end_tokens_differ",
        severity="error",
        message=f"the teacher ends answers with {teacher.token(end)}, but sampling stops only at "
        f"{_tokens(subject.student, stops)}: the student is taught to stop with a token that stops "
        "nothing, and "
        "responses run to the limit",
        numbers={"teacher_end": end} | ({"student_end": stops[0]} if stops else {}),
        remedy=subject.again(_stop_at([*stops, end])),
        rule="the teacher's end token stops sampling",
        source=STUDY,
    )


def _two_ends(student: Side, teacher: Side, ours: int, theirs: int) -> Finding:
    """Sampling stops at both; the loss still sees two tokens."""
    known = ours in teacher.ends
    return Finding(
        name="end_tokens_differ",
        severity="info" if known else "warning",
        message=f"the student ends answers with {student.token(ours)}, the teacher with "
        f"{teacher.token(theirs)}. "
        "Sampling stops at both, but the loss compares them as two tokens (end tokens are not merged yet): "
        "the "
        "student first unlearns its own" + (", which the teacher also ends with" if known else ""),
        numbers={"student_end": ours, "teacher_end": theirs},
        rule="both end with the same token",
        source=STUDY,
    )


# --- beginnings ---------------------------------------------------------------------------------------------


def _bos_doubled(subject: Subject) -> list[Finding]:
    """The template writes the begin token twice, or writes it and the tokenizer adds it again."""
    twice = [side for side in subject.sides if subject.templated and _begins_twice(side, adding=True)]
    if not twice:
        return []
    itself = [side for side in twice if _begins_twice(side, adding=False)]
    side = (itself or twice)[0]
    bos = side.tokenizer.bos_token_id
    how = "writes it twice" if itself else "writes it and the tokenizer adds it again"
    return [
        Finding(
            name="bos_doubled",
            severity="warning" if itself else "info",
            message=f"the chat template of the {named(itself or twice)} begins with {side.token(bos)} and "
            f"{how}; "
            "opd keeps one, tools that feed two make the model read something else",
            numbers={"bos_token_id": bos},
            rule="one begin token" if itself else "",
        )
    ]


def _begins_twice(side: Side, *, adding: bool) -> bool:
    """A rendered question as tokens, with or without those that the tokenizer adds."""
    bos, text = side.tokenizer.bos_token_id, render(side, PROBES["question"], ask=True)
    if bos is None or not text or text.startswith(REFUSED):
        return False
    return side.tokenizer(text, add_special_tokens=adding)["input_ids"][:2] == [bos, bos]


def _bos(subject: Subject) -> list[Finding]:
    """The teacher at home begins with a token that prompts lack here, or the other way round."""
    teacher = subject.teacher
    if teacher is None or subject.differing_ids:
        return []
    here = _first_ids(subject, subject.student, subject.renderer)
    home = _first_ids(subject, teacher, teacher)
    ours, theirs = subject.student.tokenizer.bos_token_id, teacher.tokenizer.bos_token_id
    if not here or not home:
        return []
    lacking = home[0] == theirs and here[0] != theirs
    if not lacking and not (here[0] == ours and home[0] != ours):
        return []
    token = teacher.token(home[0]) if lacking else subject.student.token(here[0])
    return [
        Finding(
            name="bos_differs",
            severity="warning",
            message=f"the teacher's own prompts begin with {token}, those of this run do not"
            if lacking
            else f"prompts of this run begin with {token}, the teacher's own do not",
            numbers={"first_id": here[0], "teacher_first_id": home[0]},
            remedy=subject.again("task.render=teacher") if subject.templated and teacher.has_template else "",
            rule="both begin with the same token",
        )
    ]


def _first_ids(subject: Subject, side: Side, renderer: Side) -> tuple[int, ...]:
    """A plain question as `side` reads it."""
    bare = subject.config.task.model_copy(update={"system": None, "prefix": ""})
    try:
        return encode(
            [Prompt(id="probe", text="What is 2 + 3?")], side.tokenizer, bare, renderer=renderer.tokenizer
        )[0].ids
    except UserError:  # no template, or it refuses: told by the checks of templates
        return ()
