"""The prompts: do they fit, are they many or few in disguise, and are the evaluation's among them?"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from opdkit.recipes.static_read import PROBES, Side, Subject, counted, prompts_command, render
from opdkit.tasks import encode
from opdkit.train.privileged import read_by_teacher
from opdkit.types import Finding, Prompt, UserError

REPEATED = 0.01  # share of repeated prompts from which a file is worth a look; generators repeat by nature


def prompt_findings(subject: Subject) -> list[Finding]:
    return [
        *subject.task.findings,
        *_empty(subject),
        *_repeated(subject),
        *_answers(subject),
        *_overlap(subject),
        *_special_text(subject),
        *_contexts(subject),
        *_read(subject),
    ]


# --- texts --------------------------------------------------------------------------------------------------


def said(prompt: Prompt) -> str:
    """All that a prompt says, roles included."""
    if prompt.messages is None:
        return prompt.text or ""
    return json.dumps([[m["role"], m["content"]] for m in prompt.messages], ensure_ascii=False)


def normalised(prompt: Prompt) -> str:
    """The same but for case, kinds of letters and space: near-duplicates fall together."""
    return " ".join(unicodedata.normalize("NFKC", said(prompt)).casefold().split())


def _all(subject: Subject) -> list[Prompt]:
    return [*subject.task.train, *subject.task.evaluation]


def _where(prompts: Sequence[Prompt], most: int = 3) -> str:
    names = [p.source or p.id for p in prompts]
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")


def _excerpt(prompt: Prompt, most: int = 60) -> str:
    text = prompt.text if prompt.text is not None else said(prompt)
    return repr(text if len(text) <= most else text[: most - 1] + "…")


def _empty(subject: Subject) -> list[Finding]:
    """A prompt whose last words are none: files refuse an empty row, a conversation may end in silence."""

    def last(prompt: Prompt) -> str:
        return prompt.messages[-1]["content"] if prompt.messages else prompt.text or ""

    empty = [p for p in _all(subject) if not last(p).strip()]
    if not empty:
        return []
    return [
        Finding(
            name="prompts_empty",
            severity="warning",
            message=f"{counted(len(empty), 'prompt')} whose last message is empty, so that nothing is "
            f"asked: {_where(empty)}",
            numbers={"prompts": len(empty)},
            rule="a prompt says something",
        )
    ]


def _repeated(subject: Subject) -> list[Finding]:
    """Rows beyond the first of each: word for word, and those that differ in case and space only."""
    train = subject.task.train
    exact = _repeats(train, said)
    near = _repeats(train, normalised) - exact
    return [
        _repeated_finding(subject, name, [train[i] for i in sorted(again)], how)
        for name, again, how in (
            ("prompts_duplicated", exact, "word for word"),
            ("prompts_nearly_duplicated", near, "but for case and space"),
        )
        if again
    ]


def _repeats(prompts: Sequence[Prompt], key: Callable[[Prompt], str]) -> set[int]:
    """Indices of prompts that say what one before them says."""
    seen: set[str] = set()
    again = set()
    for i, prompt in enumerate(prompts):
        value = key(prompt)
        if value in seen:
            again.add(i)
        seen.add(value)
    return again


def _repeated_finding(subject: Subject, name: str, again: Sequence[Prompt], how: str) -> Finding:
    count = len(subject.task.train)
    worth = len(again) / count >= REPEATED and subject.config.task.type == "file"
    return Finding(
        name=name,
        severity="warning" if worth else "info",
        message=f"{len(again)} of {count} training prompts repeat another {how}: {_where(again)}, "
        f"{_excerpt(again[0])}",
        numbers={"repeated": len(again), "prompts": count},
        remedy=_cleaned(subject) if worth else "",
        rule=f"repeated prompts ≥ {REPEATED:.0%} of a file" if worth else "",
        source="our choice" if worth else "",
    )


def _answers(subject: Subject) -> list[Finding]:
    """One question with two answers: one of them is graded wrong."""
    answers: dict[str, set[str]] = {}
    for prompt in _all(subject):
        if prompt.answer is not None:
            answers.setdefault(said(prompt), set()).add(prompt.answer)
    torn = {text: found for text, found in answers.items() if len(found) > 1}
    if not torn:
        return []
    prompt = next(p for p in _all(subject) if said(p) in torn)
    told = " and ".join(repr(a) for a in sorted(torn[said(prompt)])[:2])
    return [
        Finding(
            name="answers_conflict",
            severity="warning",
            message=f"{counted(len(torn), 'prompt')} with two answers: {_excerpt(prompt)} has {told} "
            f"({_where([prompt])})",
            numbers={"prompts": len(torn)},
            rule="a prompt has one answer",
        )
    ]


def _overlap(subject: Subject) -> list[Finding]:
    train, exam = subject.task.train, subject.task.evaluation
    exact = {said(p) for p in train}
    near = {normalised(p) for p in train}
    seen = [p for p in exam if normalised(p) in near]
    if not seen:
        return []
    alike = sum(said(p) in exact for p in seen)
    return [
        Finding(
            name="train_eval_overlap",
            severity="warning",
            message=f"{len(seen)} of {len(exam)} evaluation prompts are training prompts too ({alike} word "
            "for "
            f"word, the others but for case and space): {_where(seen)}, {_excerpt(seen[0])}; accuracy would "
            "tell what was memorised. Remove them from one of the two files",
            numbers={"overlapping": len(seen), "word_for_word": alike, "evaluation_prompts": len(exam)},
            remedy=_cleaned(subject),
            rule="no evaluation prompt is trained on",
        )
    ]


def _cleaned(subject: Subject) -> str:
    """The command that takes equal prompts out; nearness is left out, for what is near is a matter of judgement."""
    return prompts_command(subject.config, subject.source, "prompts.near=1", "prompts.templates=false")


def _special_text(subject: Subject) -> list[Finding]:
    """Prompts that hold the template's own tokens as text: rendered once already, or hostile."""
    if not subject.templated:
        return []
    tokens = _written(subject.renderer)
    hits: Counter[str] = Counter()
    first: dict[str, Prompt] = {}
    for prompt in _all(subject):
        text = said(prompt)
        for token in tokens:
            if token in text:
                hits[token] += 1
                first.setdefault(token, prompt)
    if not hits:
        return []
    token, count = hits.most_common(1)[0]
    return [
        Finding(
            name="prompt_holds_special_tokens",
            severity="warning",
            message=f"{counted(count, 'prompt')} with {token!r} as text, which the chat template writes "
            "itself: they were "
            f"templated before, or end a turn where no turn ends ({_where([first[token]])}, "
            f"{_excerpt(first[token])})",
            numbers={"prompts": count},
            remedy=subject.again("task.chat_template=false") if count == len(_all(subject)) else "",
            rule="no prompt holds a token of the template",
        )
    ]


def _written(side: Side) -> list[str]:
    """Special tokens that the template writes around a question."""
    text = render(side, PROBES["question"], ask=True) if side.has_template else ""
    ids = side.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [side.tokenizer.convert_ids_to_tokens(i) for i in sorted({*ids} & side.special_ids)]


# --- lengths ------------------------------------------------------------------------------------------------


def _contexts(subject: Subject) -> list[Finding]:
    student, teacher = subject.student, subject.teacher
    if teacher is None or student.context <= teacher.context:
        return []
    return [
        Finding(
            name="student_context_longer",
            severity="info",
            message=f"the student reads {student.context:,} tokens, the teacher {teacher.context:,}: "
            "nothing can "
            "be taught beyond the teacher's",
            numbers={"student_context": student.context, "teacher_context": teacher.context},
        )
    ]


def _read(subject: Subject) -> list[Finding]:
    """Prompts as tokens: each can be rendered and read, and leaves room for a longest response."""
    if subject.templated and not subject.renderer.has_template:
        return []  # told by the check of templates
    sampling, exam = subject.config.sampling, subject.config.eval
    responses = 0 if subject.config.story == "sft" else sampling.max_tokens
    found: list[Finding] = []
    for kind, key, prompts, length in (
        ("training", "sampling.max_tokens", subject.task.train, responses),
        (
            "evaluation",
            "eval.max_tokens" if exam.max_tokens else "sampling.max_tokens",
            subject.task.evaluation,
            exam.max_tokens or sampling.max_tokens,
        ),
    ):
        try:
            encoded = _encoded(subject, prompts)
            reading = _encoded(subject, prompts, teacher=True) if kind == "training" else []
        except UserError as error:
            return [*found, _unreadable(error)]
        found += _unknown(subject, encoded)
        found += _fits(subject, encoded, subject.student, kind=kind, key=key, length=length)
        if subject.teacher is not None and reading and _narrower(subject):
            found += _fits(subject, reading, subject.teacher, kind=kind, key=key, length=length)
    return found


def _narrower(subject: Subject) -> bool:
    """Whether the teacher may lack room where the student has it."""
    cfg, teacher = subject.config.teacher, subject.teacher
    more = cfg is not None and cfg.context is not None
    return teacher is not None and (more or teacher.context < subject.student.context)


def _encoded(subject: Subject, prompts: Sequence[Prompt], *, teacher: bool = False) -> list[Prompt]:
    """With ids, as the student reads them or, with its context, the teacher."""
    context, bare = None, [replace(p, ids=()) for p in prompts]
    if teacher and subject.config.teacher is not None:
        context = read_by_teacher(subject.config.teacher.context, bare)
    return encode(
        bare,
        subject.student.tokenizer,
        subject.config.task,
        system=context,
        renderer=subject.renderer.tokenizer,
    )


def _unreadable(error: UserError) -> Finding:
    return Finding(
        name="prompts_unreadable",
        severity="error",
        message=f"prompts cannot be written for the models: {error}; {error.hint}",
        rule="every prompt can be rendered",
    )


def _unknown(subject: Subject, prompts: Sequence[Prompt]) -> list[Finding]:
    """A token of a prompt, mostly one that the template writes, that one model has no row for."""
    bad = [p for p in prompts if max(p.ids) >= subject.rows]
    if not bad:
        return []
    token = max(bad[0].ids)
    who = next(side.who for side in subject.sides if side.rows <= token)
    off = subject.templated and all(p.text for p in prompts)
    return [
        Finding(
            name="prompt_token_unknown",
            severity="error",
            message=f"{counted(len(bad), 'prompt')} with {subject.student.token(token)}, first "
            f"{_where(bad, 1)}: the {who} "
            f"has no such token, the two share ids below {subject.rows} only",
            numbers={"prompts": len(bad), "token": token, "rows": subject.rows},
            remedy=subject.again("task.chat_template=false") if off else "",
            rule="both models know every token of a prompt",
        )
    ]


def _fits(
    subject: Subject, prompts: Sequence[Prompt], side: Side, *, kind: str, key: str, length: int
) -> list[Finding]:
    """Room for a response of `length` tokens in the context of one model; others are left out."""
    long = [p for p in prompts if len(p.ids) + length > side.context]
    if not long:
        return []
    longest = max(len(p.ids) for p in prompts)
    room = side.context - longest
    none_fits = len(long) == len(prompts)
    if none_fits and room <= 0:
        room = side.context - min(len(p.ids) for p in prompts)
    told = "no" if none_fits else f"{len(long)} of {len(prompts)}"
    rest = "leave" if none_fits else "leave no"
    return [
        Finding(
            name="context_too_short" if none_fits else "prompts_too_long",
            severity="error" if none_fits else "warning",
            message=f"{told} {kind} prompts {rest} room for a response of {length} tokens ({key}) in the "
            f"{side.who}'s context of {side.context}: {_where(long)}, up to {longest} tokens"
            + ("" if none_fits else "; they would be left out"),
            numbers={
                "prompts": len(long),
                "longest_prompt": longest,
                "max_tokens": length,
                "context": side.context,
            },
            remedy=subject.again(f"{key}={room}") if room > 0 and length else "",
            rule="prompt + max_tokens ≤ context",
        )
    ]
