"""The graders, as functions of a response's text. They run only in the child (see `child`), because a pattern
may backtrack for ever, a power tower may fill the memory, and some of the libraries used evaluate what they
are given.

A score is in [0, 1]. `cut` says that the text is the end of something longer: then it is no exact answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

Reply = dict[str, Any]  # of the child, to one request
Answer = Callable[[dict[str, Any]], Reply]
Judge = Callable[[str, str, bool], float]  # (text, answer, cut) -> score


def score(value: float) -> Reply:
    """The reply with a score. Raises ValueError for one that a grade cannot hold."""
    number = float(value)
    if not (math.isfinite(number) and 0.0 <= number <= 1.0):
        raise ValueError(f"score {number} is not in [0, 1]")
    return {"score": number}


def grader(type_: str, *, pattern: str) -> Judge:
    """The grader of that name; `math` loads math-verify."""
    if type_ == "exact":
        return exact
    if type_ == "regex":
        compiled = re.compile(pattern)
        return lambda text, answer, cut: float(same(last_group(compiled, text), answer))
    assert type_ == "math", type_
    return math_grader()


def exact(text: str, answer: str, cut: bool = False) -> float:
    """1 when both are the same but for white space.

    >>> exact(" a  b\\n", "a b"), exact("a", "b")
    (1.0, 0.0)
    """
    return float(not cut and _spaced(text) == _spaced(answer))


def last_group(pattern: re.Pattern[str], text: str) -> str | None:
    """First group of the last match; None without a match.

    >>> last_group(re.compile(r"= (\\d+)"), "1 + 1 = 2, so = 3")
    '3'
    """
    found = None
    for match in pattern.finditer(text):
        found = match.group(1)
    return found


def same(found: str | None, answer: str) -> bool:
    """Equal as numbers if both are numbers, else as text but for white space. Nothing found is not the same.

    >>> same("7.0", "7"), same("1,000", "1000"), same("seven", "7"), same(None, "7")
    (True, True, False, False)
    """
    if found is None:
        return False
    left, right = _number(found), _number(answer)
    return left == right if left is not None and right is not None else _spaced(found) == _spaced(answer)


def math_grader() -> Judge:
    """math-verify's parse and verify. What it cannot parse in a response is wrong; what it cannot parse in an
    answer, or a comparison that raises, is a failure. Its own time limits are off: the parent's is the one
    that kills."""
    import logging

    from math_verify import parse, verify

    logging.disable(logging.WARNING)  # it warns once that its time limits are off

    def judge(text: str, answer: str, cut: bool = False) -> float:
        delimited = "$" in answer or "\\boxed" in answer or "\\(" in answer
        gold = parse(answer if delimited else f"${answer}$", parsing_timeout=None)
        if not gold:
            raise ValueError(f"math-verify reads nothing in the answer {answer[:80]!r}")
        found = parse(text, parsing_timeout=None)
        return float(verify(gold, found, timeout_seconds=None, raise_on_error=True))

    judge("$\\frac{1}{2}$", "1/2")  # builds its tables (0.3 s) before the clock of the first item runs
    return judge


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _number(text: str) -> Decimal | None:
    plain = text.strip()
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?", plain):
        plain = plain.replace(",", "")
    try:
        number = Decimal(plain)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
