"""Do both models mean the same token by an id, and has every id in use a row in both embeddings?"""

from __future__ import annotations

from collections.abc import Sequence

from opdkit.recipes.static_read import PROBES, REFUSED, Side, Subject, counted, render
from opdkit.types import Finding


def token_findings(subject: Subject) -> list[Finding]:
    found = [f for side in subject.sides for f in _rows(side)]
    if subject.teacher is not None:
        found += _maps(subject, subject.student, subject.teacher)
        found += _added(subject, subject.student, subject.teacher)
        found += _added(subject, subject.teacher, subject.student)
        found += _padding(subject.student, subject.teacher)
    return found + _widths(subject)


# --- maps ---------------------------------------------------------------------------------------------------


def _maps(subject: Subject, student: Side, teacher: Side) -> list[Finding]:
    differing = subject.differing_ids
    if not differing:
        return []
    ours, theirs = student.vocabulary, teacher.vocabulary
    permuted = ours.keys() == theirs.keys()
    special = all(i in student.special_ids or i in teacher.special_ids for i in differing)
    kind = "both have the same tokens under other ids" if permuted else "the tokenizers are of two families"
    if special and not permuted:
        kind = "only special and added tokens differ"
    return [
        Finding(
            name="vocabulary_permuted" if permuted else "token_ids_differ",
            severity="error",
            message=f"{counted(len(differing), 'id')} mean one thing to the student and another to the "
            f"teacher ({kind}): "
            f"{_samples(student, teacher, differing)}; the teacher would score other words than were "
            "written. "
            "Take a teacher of the student's family, with the same tokenizer",
            numbers={
                "differing_ids": len(differing),
                "student_tokens": len(ours),
                "teacher_tokens": len(theirs),
            },
            rule="every shared id is the same token",
        )
    ]


def _samples(student: Side, teacher: Side, ids: Sequence[int], most: int = 3) -> str:
    def name(side: Side, i: int) -> str:
        return repr(side.tokenizer.convert_ids_to_tokens(i))

    told = [f"id {i} is {name(student, i)} | {name(teacher, i)}" for i in ids[:most]]
    return "; ".join(told) + (" …" if len(ids) > most else "")


def _added(subject: Subject, having: Side, lacking: Side) -> list[Finding]:
    """Tokens of one side only, behind the ids that are shared. They matter where a template writes them."""
    others = lacking.vocabulary
    largest = max(others.values())
    extra = [(i, t) for t, i in having.vocabulary.items() if t not in others and i > largest]
    if not extra:
        return []
    extra.sort()
    written = [(i, t) for i, t in extra if subject.templated and _writes(having, t)]
    told = ", ".join(f"{t!r} (id {i})" for i, t in (written or extra)[:4])
    return [
        Finding(
            name="added_tokens_one_side",
            severity="warning" if written else "info",
            message=f"{counted(len(extra), 'token')} known to the {having.who} alone, {told}: never drawn, "
            "and "
            "nothing is learnt about them"
            + (f", though the {having.who}'s chat template writes {len(written)} of them" if written else ""),
            numbers={"tokens": len(extra), "first_id": extra[0][0], "in_template": len(written)},
            rule="a token that a chat template writes is known to both" if written else "",
        )
    ]


def _writes(side: Side, token: str) -> bool:
    """Whether the template puts the token into a probe, asked for an answer or answered, thinking or not."""
    texts = [
        render(side, probe, thinking=thinking, ask=True)
        for probe in PROBES.values()
        for thinking in (None, True, False)
    ]
    return any(token in text for text in texts if not text.startswith(REFUSED))


# --- rows ---------------------------------------------------------------------------------------------------


def _rows(side: Side) -> list[Finding]:
    """Tokens without an embedding row: ids that the model cannot read."""
    rows = int(side.config.get_text_config().vocab_size)
    beyond = sorted((i, t) for t, i in side.vocabulary.items() if i >= rows)
    if not beyond:
        return []
    eos, pad = side.tokenizer.eos_token_id, side.tokenizer.pad_token_id
    ends = eos is not None and eos >= rows
    name = (
        "end_token_without_row"
        if ends
        else "pad_token_without_row"
        if [i for i, _ in beyond] == [pad]
        else "tokens_without_row"
    )
    told = ", ".join(f"{t!r} (id {i})" for i, t in beyond[:4])
    return [
        Finding(
            name=name,
            severity="error" if ends else "warning",
            message=f"the {side.who}'s embedding has {rows} rows, but its tokenizer has {told} behind "
            "them: the "
            "model can neither read nor write "
            + ("its own end token" if ends else "them; opd never feeds a pad token, other tools would fail"),
            numbers={"tokens": len(beyond), "rows": rows},
            rule="every token has an embedding row",
        )
    ]


def _padding(student: Side, teacher: Side) -> list[Finding]:
    """Embeddings padded to a round number are the usual case and handled."""
    wide = {side.who: int(side.config.get_text_config().vocab_size) for side in (student, teacher)}
    if wide["student"] == wide["teacher"]:
        return []
    shared = min(student.rows, teacher.rows)
    return [
        Finding(
            name="rows_padded",
            severity="info",
            message=f"the embeddings have {wide['student']:,} (student) and {wide['teacher']:,} rows "
            "(teacher); "
            f"both use the first {shared:,}, the tokens they share, and the rest is neither drawn nor "
            "compared",
            numbers={
                "student_rows": wide["student"],
                "teacher_rows": wide["teacher"],
                "shared_rows": shared,
            },
        )
    ]


def _widths(subject: Subject) -> list[Finding]:
    """k and top_k beyond the vocabulary, which a plan refuses."""
    config = subject.config
    asked = {"diagnostics.k": config.diagnostics.k, "sampling.top_k": config.sampling.top_k}
    if config.objective.of_student or config.objective.of_teacher:
        asked["objective.k"] = config.objective.k
    wide = {key: k for key, k in asked.items() if k > subject.rows}
    if not wide or config.story != "distill":
        return []
    fits = min(16, subject.rows)
    told = " and ".join(f"{key} = {k}" for key, k in wide.items())
    return [
        Finding(
            name="wider_than_vocabulary",
            severity="error",
            message=f"{told} is more than the {subject.rows} tokens that student and teacher share",
            numbers={"rows": subject.rows, **wide},
            remedy=subject.again(*(f"{key}={fits}" for key in wide)),
            rule="k ≤ shared tokens",
        )
    ]
