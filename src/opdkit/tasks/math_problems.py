"""Problems for `task.type = "math"`: each training problem once, benchmarks in turns, and what is worth
saying of either before a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

from opdkit.tasks.math_source import Source, open_source
from opdkit.types import Finding, Prompt, UserError

if TYPE_CHECKING:
    from opdkit.config import MathTask

T = TypeVar("T")


def training_problems(cfg: MathTask) -> tuple[tuple[Prompt, ...], tuple[Finding, ...]]:
    """(prompts, findings): each problem once, the first row of it, at most `cfg.train_size` of them.

    DAPO's file on the Hub has every problem about a hundred times. Rows with different demonstrations of one
    problem are all kept. Raises UserError for unknown names, missing files and columns.
    """
    source = open_source(cfg.train, cfg, key="task.train")
    kept: list[Prompt] = []
    seen: set[tuple[str, str | None]] = set()
    rows = 0
    for prompt, problem in source.problems(cfg.wrapper, answered=False, stream=cfg.train_size > 0):
        rows += 1
        if (problem, prompt.response) not in seen:
            seen.add((problem, prompt.response))
            kept.append(prompt)
            if len(kept) == cfg.train_size:
                break
    if not kept:
        raise _no_rows(source, "task.train")
    return _distinct(kept), (*_repeated(source, rows, len(kept)), *_unanswered(source, kept))


def benchmark_problems(cfg: MathTask) -> tuple[tuple[Prompt, ...], tuple[Finding, ...]]:
    """(prompts, findings): all rows of each benchmark, `group` its name; benchmarks take turns."""
    sets: list[tuple[Prompt, ...]] = []
    findings: list[Finding] = []
    for name in cfg.eval:
        source = open_source(name, cfg, key="task.eval")
        found = [p for p, _ in source.problems(cfg.eval_wrapper, answered=True, group=source.name)]
        if not found:
            raise _no_rows(source, "task.eval")
        if any(source.name == done[0].group for done in sets):
            raise UserError(
                f"task.eval: two benchmarks are called {source.name!r}", hint="rename one of the files"
            )
        sets.append(_distinct(found))
        findings += _unusual(source, len(found))
    return tuple(_in_turns(sets)), tuple(findings)


def _distinct(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """Ids made unique by their place: the two AIMEs of a year may both number from 1."""
    seen: set[str] = set()
    unique = []
    for place, prompt in enumerate(prompts, start=1):
        clash = prompt.id in seen
        seen.add(prompt.id)
        unique.append(replace(prompt, id=f"{prompt.id}#{place}") if clash else prompt)
    return tuple(unique)


def _in_turns(sets: Sequence[Sequence[T]]) -> list[T]:
    """One of each, again and again, until all are through.

    >>> "".join(_in_turns(["aaa", "b"]))
    'abaa'
    """
    nothing: Any = object()
    return [item for turn in zip_longest(*sets, fillvalue=nothing) for item in turn if item is not nothing]


# --- what is told -------------------------------------------------------------------------------------------


def _no_rows(source: Source, key: str) -> UserError:
    where = source.files[0] if source.files else source.name
    return UserError(f"{key}: {where} holds no problems", hint=f"another file or name in {key}")


def _repeated(source: Source, rows: int, kept: int) -> list[Finding]:
    if rows == kept:
        return []
    return [
        Finding(
            name="problems_repeated",
            severity="info",
            message=f"{rows - kept} of {rows} rows of {source.name} repeat a problem that stands before "
            f"them, and were left out; {kept} are left",
            numbers={"rows": rows, "dropped": rows - kept, "kept": kept},
        )
    ]


def _unanswered(source: Source, kept: Sequence[Prompt]) -> list[Finding]:
    without = sum(p.answer is None for p in kept)
    if not without:
        return []
    return [
        Finding(
            name="training_ungraded",
            severity="info",
            message=f"{without} of {len(kept)} problems of {source.name} have no answer, so responses to "
            "training prompts get no score",
            numbers={"without_answer": without, "prompts": len(kept)},
        )
    ]


def _unusual(source: Source, count: int) -> list[Finding]:
    usual = None if source.known is None else source.known.problems
    if usual is None or usual == count:
        return []
    return [
        Finding(
            name="benchmark_size",
            severity="warning",
            message=f"the number of problems of {source.name} is {count} here, not its usual {usual}: "
            "accuracy on it is not comparable with published ones",
            numbers={"problems": count, "usual": usual},
            rule=f"problems = {usual}",
            source="arXiv 2604.13016",
        )
    ]
