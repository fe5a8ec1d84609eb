"""How rollouts are drawn, against how they are scored."""

from __future__ import annotations

from opdkit.recipes.static_read import Subject
from opdkit.types import Finding


def sampling_findings(subject: Subject) -> list[Finding]:
    return [] if subject.config.teacher is None else [*_truncated(subject), *_temperatures(subject)]


def _truncated(subject: Subject) -> list[Finding]:
    """Drawn from a part of the distribution, compared over all of it."""
    sampling = subject.config.sampling
    cut = [
        f"top_{name} = {value:g}"
        for name, value, off in (("p", sampling.top_p, 1.0), ("k", sampling.top_k, 0))
        if value != off
    ]
    if not cut:
        return []
    return [
        Finding(
            name="sampling_truncated",
            severity="info",
            message=f"rollouts are drawn with {' and '.join(cut)}, but loss and metrics are over the whole "
            "distribution: unlikely tokens are never visited",
            numbers={"top_p": sampling.top_p, "top_k": sampling.top_k},
            remedy=subject.again("sampling.top_p=1.0", "sampling.top_k=0"),
        )
    ]


def _temperatures(subject: Subject) -> list[Finding]:
    """The student's logits are divided by one number, the teacher's by another."""
    teacher = subject.config.teacher
    ours = subject.config.sampling.temperature
    if teacher is None or teacher.temperature == ours:
        return []
    return [
        Finding(
            name="temperatures_differ",
            severity="info",
            message=f"the student is drawn and compared at temperature {ours:g}, the teacher at "
            f"{teacher.temperature:g}: a student that agrees with it is "
            f"{'sharper' if ours > teacher.temperature else 'flatter'} than the teacher's own distribution "
            "by "
            "their ratio",
            numbers={"student_temperature": ours, "teacher_temperature": teacher.temperature},
            remedy=subject.again(f"teacher.temperature={ours!r}"),
        )
    ]
