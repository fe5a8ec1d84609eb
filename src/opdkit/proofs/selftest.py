"""All proofs, one document: data → checks → a table. Nothing is drawn from the global generator.

A preset added to the records is looped over by itself. Another proof is a function that yields `Check`s, in one of the
tuples below.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from opdkit.proofs.heads import HEADS
from opdkit.proofs.invariances import INVARIANCES
from opdkit.proofs.metrics import METRICS
from opdkit.proofs.objectives import combination_rows, preset_rows
from opdkit.proofs.oracle import NotCovered
from opdkit.proofs.ranks import TwoProcesses
from opdkit.proofs.records import Check, ObjectiveRow, Proof
from opdkit.proofs.steps import STEPS
from opdkit.types import UserError

PARTS = ("objectives", "invariances", "metrics")
Say = Callable[[str], None]


def selftest(*, only: Iterable[str] = (), say: Say = lambda _: None) -> dict[str, Any]:
    """The document of `opd selftest --json`. `only` names the parts that are wanted; all, if none is."""
    wanted = _wanted(only)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "opd selftest starts its second process itself", hint="opd selftest, without torchrun"
        )
    start = time.monotonic()
    objectives: list[ObjectiveRow] = []
    checks: dict[str, list[Check]] = {"invariances": [], "metrics": []}
    with contextlib.ExitStack() as stack, _one_thread():
        two = stack.enter_context(TwoProcesses()) if "invariances" in wanted else None
        if "objectives" in wanted:
            say("objectives: every preset, then every combination, against the oracle")
            objectives = [*preset_rows(), *combination_rows()]
        if "metrics" in wanted:
            say("metrics: every name against its loop")
            checks["metrics"] = [check for proof in METRICS for check in shown(proof)]
        if two is not None:
            for proof in (*INVARIANCES, *HEADS, *STEPS, two.proof):
                say(f"invariances: {_title(proof)}")
                checks["invariances"] += shown(proof)
    return document(objectives, checks, seconds=time.monotonic() - start, parts=wanted)


def _wanted(only: Iterable[str]) -> tuple[str, ...]:
    named = tuple(only)
    for name in named:
        if name not in PARTS:
            raise UserError(
                f"there is no part {name!r}", hint="opd selftest --only objectives  # or invariances, metrics"
            )
    return tuple(part for part in PARTS if part in named or not named)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Small tensors: a second thread costs more than it does, and the two processes have use for the core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shown(proof: Proof) -> list[Check]:
    """What a proof yields; one that raises is one that does not hold."""
    try:
        return list(proof())
    except NotCovered as error:
        return [Check(_title(proof), covered=False, reason=f"no loop for {error}")]
    except Exception as error:
        return [Check(_title(proof), reason=f"raised {type(error).__name__}: {error}")]


def _title(proof: Proof) -> str:
    name = proof.__name__.replace("_", " ")
    return "two processes against one" if name == "proof" else name


def document(
    objectives: list[ObjectiveRow], checks: dict[str, list[Check]], *, seconds: float, parts: Iterable[str]
) -> dict[str, Any]:
    told = {name: [_plain(c) | {"said": c.said} for c in found] for name, found in checks.items()}
    rows = [_plain(row) for row in objectives]
    everything: list[ObjectiveRow | Check] = [
        *objectives,
        *(check for found in checks.values() for check in found),
    ]
    return {
        "holds": all(row.holds is not False for row in everything),
        "parts": list(parts),
        "objectives": rows,
        "groups": groups(objectives),
        **told,
        "failures": [f"{row.name}: {_why(row)}" for row in everything if row.holds is False],
        "not_covered": [f"{row.name}: {_why(row)}" for row in everything if row.holds is None]
        + [
            f"{check.name}: {', '.join(check.left_out)}"
            for check in everything
            if isinstance(check, Check) and check.left_out
        ],
        "seconds": round(seconds, 2),
        "versions": versions(),
    }


def _why(row: ObjectiveRow | Check) -> str:
    return row.reason if isinstance(row, ObjectiveRow) else row.said


def _plain(row: ObjectiveRow | Check) -> dict[str, Any]:
    """As JSON has it: no infinity and no nan; the reason tells of them."""
    values = {"holds": row.holds, **asdict(row)}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def groups(rows: Iterable[ObjectiveRow]) -> list[dict[str, Any]]:
    """The combinations by support and whether they are unbiased, each with its worst member."""
    members: dict[str, list[ObjectiveRow]] = {}
    for row in rows:
        if row.kind == "combination":
            members.setdefault(row.group, []).append(row)
    return [_group(name, found) for name, found in members.items()]


def _group(name: str, rows: list[ObjectiveRow]) -> dict[str, Any]:
    proven = [row for row in rows if row.formula_error is not None]
    biases = [row.bias for row in proven if row.bias is not None]
    errors = [row.relative_error for row in proven if row.relative_error is not None]
    worst = max(rows, key=_badness)
    return {
        "name": name,
        "members": len(rows),
        "holds": None if not proven and not worst.reason else all(row.holds is not False for row in rows),
        "worst": worst.name,
        "formula_error": _largest(row.formula_error for row in proven),
        "relative_error": _largest(errors),
        "bias": [min(biases), max(biases)] if biases and all(map(math.isfinite, biases)) else None,
        "cosine": min(
            (row.cosine for row in proven if row.cosine is not None and math.isfinite(row.cosine)),
            default=None,
        ),
    }


def _badness(row: ObjectiveRow) -> tuple[bool, float]:
    """What fails before what holds; then by the error that has to be small, or by the bias."""
    error = row.relative_error if row.unbiased else row.bias
    return row.holds is False, math.inf if error is None or math.isnan(error) else error


def _largest(errors: Iterable[float | None]) -> float | None:
    largest = max((error for error in errors if error is not None), default=None)
    return largest if largest is None or math.isfinite(largest) else None


def versions() -> dict[str, str]:
    import transformers

    from opdkit import __version__

    return {
        "opdkit": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
