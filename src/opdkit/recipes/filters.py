"""Which of a teacher's responses are imitated, each dropped one with its reason.

The rules on text are those of the released rollout script of arXiv 2604.13016 (no boxed answer, repeated lines, windows and
blocks); the general one counts n-grams of tokens, which finds loops in any language and in text without lines.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opdkit.config import FilterConfig, TaskConfig
from opdkit.diagnostics import repetition_fraction
from opdkit.tasks.stated import stated_answer

LINE, LINES = 20, 5
WINDOW, STRIDE, WINDOWS = 100, 10, 3
LONG, BLOCK, BLOCKS = 5000, 50, 3
REASONS = ("truncated", "empty", "no_answer", "repeated_text", "repeated_ngrams", "wrong")
"""In the order of looking: a row that fails several is counted under the first."""

Answered = Callable[[str], bool]
Row = Mapping[str, Any]


def sort_rows(
    rows: Sequence[Row], cfg: FilterConfig, *, answered: Answered | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, int]]:
    """(kept, dropped with `reason`, reason → count). `answered` says whether a text states an answer; None: nobody knows."""
    kept, dropped = [], []
    for row in rows:
        reason = reason_against(row, cfg, answered=answered)
        if reason is None:
            kept.append(dict(row))
        else:
            dropped.append({**row, "reason": reason})
    counts = Counter(row["reason"] for row in dropped)
    return kept, dropped, {name: counts[name] for name in REASONS if counts[name]}


def reason_against(row: Row, cfg: FilterConfig, *, answered: Answered | None) -> str | None:
    """Why a response is not imitated, or None. A row has `text`, `response_ids`, `finish_reason`, maybe `score`."""
    text = str(
        row.get("text", row["response"])
    )  # rows written before there was a text have their end token in it
    if cfg.truncated and row["finish_reason"] != "stop":
        return "truncated"
    said = len(row["response_ids"]) - (row["finish_reason"] == "stop")
    if said < 1 or not text.strip():
        return "empty"
    if cfg.no_answer and answered is not None and not answered(text):
        return "no_answer"
    if cfg.repetitive and repeats_text(text):
        return "repeated_text"
    share = repetition_fraction(row["response_ids"], n=cfg.ngram)
    if share is not None and share > cfg.ngram_share:
        return "repeated_ngrams"
    score = row.get("score")
    if cfg.wrong and (score is None or score < 0.5):
        return "wrong"
    return None


def answer_test(cfg: FilterConfig, task: TaskConfig) -> Answered | None:
    """How an answer is recognised: the pattern given, a `math` task's stated answer, a regex grader's pattern, or not at all."""
    if cfg.answer is not None:
        return _holds(cfg.answer)
    if task.type == "math" or (task.type == "file" and task.grader.type == "math"):
        return lambda text: stated_answer(text) is not None
    if task.type == "file" and task.grader.type == "regex":
        return _holds(task.grader.pattern)
    return None


def _holds(pattern: str) -> Answered:
    found = re.compile(pattern)
    return lambda text: found.search(text) is not None


def repeats_text(text: str) -> bool:
    """A line, a window or a block that comes again and again.

    >>> repeats_text("the same line of text\\n" * 5), repeats_text("the same line of text\\n" * 4)
    (True, False)
    """
    return _repeated_line(text) or _repeated_window(text) or _repeated_block(text)


def _repeated_line(text: str) -> bool:
    lines = Counter(line.strip() for line in text.splitlines() if len(line.strip()) >= LINE)
    return max(lines.values(), default=0) >= LINES


def _repeated_window(text: str) -> bool:
    windows = Counter(text[i : i + WINDOW] for i in range(0, len(text) - WINDOW + 1, STRIDE))
    return max(windows.values(), default=0) >= WINDOWS


def _repeated_block(text: str) -> bool:
    """A block of 50 characters three times in a row, which is a text that equals itself 50 characters on, 100 times running."""
    if len(text) <= LONG:
        return False
    running = 0
    for here, later in zip(text, text[BLOCK:], strict=False):
        running = running + 1 if here == later else 0
        if running >= BLOCK * (BLOCKS - 1):
            return True
    return False
