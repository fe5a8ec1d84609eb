"""Which tokens carry it (arXiv 2604.13016, 4.2, Fig. 7): the student's candidates, those it shares with the teacher, or the rest.

The expectations were committed before the first run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opdkit.studies.study import Expectation, Rows, Study, recovery

NEAR = 0.1  # of gap recovery


def _arm(**keys: Any) -> Mapping[str, Any]:
    return {"objective": {"preset": "paper", **keys}}


def _near(rows: Rows, *arms: str) -> bool | None:
    """Whether all arms recover as much as the student's top k, within NEAR, on average over seeds."""
    found = [recovery(rows, arm) for arm in ("student top-k", *arms)]
    if any(value is None for value in found):
        return None
    first, *others = [value for value in found if value is not None]
    return all(abs(value - first) <= NEAR for value in others)


def _rest_gives_little(rows: Rows) -> bool | None:
    """Whether tokens that only one of the two likes recover less than half of what the shared ones do."""
    shared = recovery(rows, "overlap")
    rest = [recovery(rows, arm) for arm in ("rest, raw", "rest, renormalised")]
    if shared is None or any(value is None for value in rest):
        return None
    return all(value < 0.5 * shared for value in rest if value is not None)


WHICH_TOKENS = Study(
    name="which-tokens",
    question="Which tokens carry on-policy distillation: the student's candidates, the shared ones, or the rest?",
    claim="4.2, Fig. 7: training on the shared tokens alone matches the student's top k; the others alone fail",
    student="student",
    teacher="improved",
    arms={
        "student top-k": _arm(),
        "overlap": _arm(support="overlap"),
        "rest, raw": _arm(support="symmetric_difference", normalisation="none"),
        "rest, renormalised": _arm(support="symmetric_difference", normalisation="weights"),
        "teacher top-k": _arm(support="teacher_top_k"),
        "union": _arm(support="union"),
        "full": {"objective": {"preset": "full"}},
    },
    expected=(
        Expectation(
            "overlap",
            f"the shared tokens alone recover as much as the student's top 16, within {NEAR:.0%} of the gap",
            lambda rows: _near(rows, "overlap"),
        ),
        Expectation(
            "rest",
            "tokens that only one of the two likes, raw or renormalised, recover less than half of what the shared ones do",
            _rest_gives_little,
        ),
        Expectation(
            "wider",
            f"the teacher's top 16, the union and the vocabulary recover as much as the student's top 16, within {NEAR:.0%}",
            lambda rows: _near(rows, "teacher top-k", "union", "full"),
        ),
    ),
)
