"""A rollout token by token: what either model gave the token taken, and what it would rather have said.

The sign is the loss's: log-ratio = log q(teacher) − log p(student), in nats. Above 0 the teacher wants the
token more than the student does; below 0, less.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from opdkit.report.read import Row
from opdkit.report.text import number

# A factor is what a person can picture: a quarter more, twice, ten times the probability.
LEVELS = (math.log(1.25), math.log(2), math.log(10))
NEGLIGIBLE = 1e-4  # a candidate that neither model gives more is no candidate
LEAST = -99.0  # nats; a log-prob below it is as good as −∞, and a sum of two stays a number
FURTHEST = 8  # characters a token's text is looked for ahead, where a split character put the two out of step
DISPUTED = 5  # tokens listed under a rollout


@dataclass(frozen=True)
class Candidate:
    """A token either model could have said here, and its probability under both."""

    text: str
    student: float
    teacher: float


@dataclass(frozen=True)
class Token:
    """One token taken. `gap` is what stands before it in the response and belongs to no token."""

    text: str
    student_logp: float | None
    teacher_logp: float | None
    candidates: Sequence[Candidate] = ()
    gap: str = ""

    @property
    def log_ratio(self) -> float | None:
        if self.student_logp is None or self.teacher_logp is None:
            return None
        return self.teacher_logp - self.student_logp

    @property
    def level(self) -> int:
        """−3 … 3: how much less or more the teacher wants it; 0 = about as much, or not known.

        >>> [Token("a", -1.0, -1.0 + x).level for x in (0.1, 0.3, 1.0, 9.0, -0.7)]
        [0, 1, 2, 3, -2]
        """
        ratio = self.log_ratio or 0.0
        size = sum(abs(ratio) >= threshold for threshold in LEVELS)
        return size if ratio >= 0 else -size


def tokens_of(row: Row) -> list[Token]:
    """Tokens of a rollout's row; none where the run did not look at them. Short or odd lists leave gaps."""
    told: Any = row.get("tokens")
    if not isinstance(told, dict) or not isinstance(told.get("text"), list):
        return []
    texts = [text if isinstance(text, str) else "" for text in told["text"]]
    lists = (_list(told.get(key)) for key in ("student_logp", "teacher_logp", "student_top", "teacher_top"))
    rows = list(zip_longest(texts, *(values[: len(texts)] for values in lists)))
    found = [Token(t, _logp(p), _logp(q), _candidates(mine, other)) for t, p, q, mine, other in rows]
    response = row.get("response")
    gaps = gaps_between(texts, response if isinstance(response, str) else "")
    return [replace(token, gap=gap) for token, gap in zip(found, gaps, strict=True)]


def gaps_between(texts: Sequence[str], response: str) -> list[str]:
    """White space before each token that no token holds: a tokenizer of words leaves out what joins them.

    A token that is not in the response (an end token, a piece of a character) stands where it is. The same
    holds for what comes after it until a text is found again.

    >>> gaps_between(["run", "so", "4", "8", "<done>"], "run so 48")
    ['', ' ', ' ', '', ' ']
    >>> gaps_between(["caf", "\\ufffd", "\\ufffd", " au"], "café au")
    ['', '', '', '']
    """
    place = 0
    gaps: list[str] = []
    for text in texts:
        after_space = place + len(response[place:]) - len(response[place:].lstrip())
        if text and response.startswith(text, place):
            gap, place = "", place + len(text)
        elif text and response.startswith(text, after_space):
            gap, place = response[place:after_space], after_space + len(text)
        else:
            ahead = response.find(text, place, place + FURTHEST + len(text)) if text.strip() else -1
            place = ahead + len(text) if ahead >= 0 else place
            gap = " " if any(gaps) else ""
        gaps.append(gap)
    return gaps


def disputed(tokens: Sequence[Token]) -> list[tuple[int, Token]]:
    """Where the two models differ most, at least twofold: (place, token), the widest ratio first."""
    wide = [(place, token) for place, token in enumerate(tokens) if abs(token.level) >= 2]
    return sorted(wide, key=lambda pair: -abs(pair[1].log_ratio or 0.0))[:DISPUTED]


def favourite(token: Token) -> Candidate | None:
    """What the teacher would rather have said."""
    return max(token.candidates, key=lambda candidate: candidate.teacher, default=None)


def _candidates(*tops: Any) -> list[Candidate]:
    """Both models' lists as one, the most probable under either first; a token in both is told once."""
    found: dict[tuple[str, float, float], Candidate] = {}
    for entry in (entry for top in tops for entry in _list(top)):
        candidate = _candidate(entry)
        if candidate and max(candidate.student, candidate.teacher) >= NEGLIGIBLE:
            key = (candidate.text, round(candidate.student, 3), round(candidate.teacher, 3))
            found.setdefault(key, candidate)
    return sorted(found.values(), key=lambda c: -max(c.student, c.teacher))


def _candidate(entry: Any) -> Candidate | None:
    if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[0], str):
        return None
    student, teacher = _logp(entry[1]), _logp(entry[2])
    if student is None or teacher is None:
        return None
    return Candidate(entry[0], math.exp(student), math.exp(teacher))


def _logp(value: Any) -> float | None:
    """Between LEAST and 0: −∞ is known, it is a probability of 0; a rounded log-prob may stand a little above 0."""
    found = LEAST if value == -math.inf else number(value)
    return None if found is None else max(LEAST, min(found, 0.0))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
