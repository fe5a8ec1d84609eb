"""Sampled rollouts for reading: what the grader said, and each token as both models saw it."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from opdkit.report.notes import facts, text
from opdkit.report.read import Row, Run
from opdkit.report.text import NBSP, number, percent, shown
from opdkit.report.tokens import Token, disputed, favourite, tokens_of

SHOWN_FACTS = ("group", "length", "sequence_reward")  # verdict and finish are told by the marks
MARKS = ("right", "wrong", "cut", "finished")  # what rollouts are filtered by; our words, never the run's
SHOWN_ROLLOUTS = 8  # of a step; the rest are folded, until a filter asks for them
PAGE_TOKENS = 16_000  # with candidates, of all rollouts on a page together: about 2 MB
FEWEST_TOKENS = 200  # of a rollout, however many there are
OPEN_CHARS = 600  # a response shorter than this is shown without a click


@dataclass(frozen=True)
class Dispute:
    """A token on which the models differ at least twofold: where it is, and what each says."""

    place: int
    cells: Sequence[str]


@dataclass(frozen=True)
class Sample:
    """One rollout on the page. `number` counts them over the page, and is part of its tokens' ids."""

    number: int
    marks: Sequence[str]
    facts: Sequence[tuple[str, str]]
    prompt: str
    response: str
    tokens: Sequence[Token]
    rest: str  # of the response, after the last of `tokens`
    disputes: Sequence[Dispute]
    more: Sequence[tuple[str, str]]
    is_open: bool

    @property
    def places(self) -> set[int]:
        """Of tokens that something on the page leads to."""
        return {dispute.place for dispute in self.disputes}


@dataclass(frozen=True)
class Group:
    """Rollouts of one step of one run."""

    run: int
    step: int
    samples: Sequence[Sample]
    summary: str


@dataclass(frozen=True)
class Filter:
    """A choice above the rollouts: radio buttons of one `name`, each (value, words, how many it leaves)."""

    name: str
    legend: str
    choices: Sequence[tuple[str, str, int]]  # the first leaves everything, and is chosen when the page opens


def groups(runs: Sequence[Run]) -> list[Group]:
    """All sampled rollouts, run by run and step by step."""
    places = [(index, step, rows) for index, run in enumerate(runs) for step, rows in run.rollouts.items()]
    limit = max(FEWEST_TOKENS, PAGE_TOKENS // max(1, sum(len(rows) for _, _, rows in places)))
    found, first = [], 0
    for index, step, rows in places:
        samples = [_sample(row, first + i, limit, is_first=i == 0) for i, row in enumerate(rows)]
        found.append(Group(index, step, samples, _summary(samples)))
        first += len(rows)
    return found


def filters(groups: Sequence[Group]) -> list[Filter]:
    """The choices that leave something out: by what became of a rollout, and by step."""
    marks = Counter(mark for group in groups for sample in group.samples for mark in sample.marks)
    count = sum(len(group.samples) for group in groups)
    names = dict(zip(MARKS, ("correct", "wrong", "truncated", "finished"), strict=True))
    by_mark = [("all", "all", count), *((mark, names[mark], marks[mark]) for mark in MARKS if marks[mark])]
    found = [Filter("mark", "Show", by_mark)] if count else []
    by_place = Counter({place: 0 for place in ("first", "last")})
    for group in groups:
        by_place[place_of(group, groups)] += len(group.samples)
    if by_place["first"]:
        words = {"first": "first sampled", "last": "last sampled"}
        by_step = [("all", "both", count), *((place, words[place], by_place[place]) for place in words)]
        found.append(Filter("step", "Step", by_step))
    return found


def place_of(group: Group, groups: Iterable[Group]) -> str:
    """Whether the group is of its run's first or last sampled step; an only one is the last."""
    return "last" if group.step == max(g.step for g in groups if g.run == group.run) else "first"


def payload(groups: Iterable[Group]) -> dict[str, Any]:
    """What `tokens.js` shows on hover. Texts stand in one list and are told by their place in it.

    rollouts[number][token] = [student_logp, teacher_logp, [[text, student's probability, teacher's], …]]
    """
    places: dict[str, int] = {}
    rollouts = [
        [
            [
                _round(token.student_logp),
                _round(token.teacher_logp),
                [
                    [places.setdefault(c.text, len(places)), _round(c.student), _round(c.teacher)]
                    for c in token.candidates
                ],
            ]
            for token in sample.tokens
        ]
        for group in groups
        for sample in group.samples
    ]
    return {"texts": list(places), "rollouts": rollouts}


def _sample(row: Row, number_: int, limit: int, *, is_first: bool) -> Sample:
    response, told = text(row.get("response", "")), tokens_of(row)
    tokens = told[:limit]
    apart = {"step", "prompt", "response", *SHOWN_FACTS}
    return Sample(
        number=number_,
        marks=_marks(row),
        facts=facts({key: row[key] for key in SHOWN_FACTS if key in row}),
        prompt=text(row.get("prompt", "")),
        response=response,
        tokens=tokens,
        rest="".join(token.gap + token.text for token in told[limit:]),
        disputes=[_dispute(place, token) for place, token in disputed(tokens)],
        more=facts({key: value for key, value in row.items() if key not in apart}),
        is_open=is_first or len(response) < OPEN_CHARS,
    )


def _marks(row: Row) -> list[str]:
    score, finish = number(row.get("score")), row.get("finish_reason")
    graded = [] if score is None else ["right" if score >= 0.5 else "wrong"]
    return graded + {"length": ["cut"], "stop": ["finished"]}.get(
        finish if isinstance(finish, str) else "", []
    )


def _dispute(place: int, token: Token) -> Dispute:
    best = favourite(token)
    other = f"{best.text} ({probability(best.teacher)})" if best and best.text != token.text else "the same"
    both = [probability_of(token.student_logp), probability_of(token.teacher_logp)]
    return Dispute(place, [token.text, *both, other if best else "–"])


def _summary(samples: Sequence[Sample]) -> str:
    marks = Counter(mark for sample in samples for mark in sample.marks)
    told = [f"{len(samples)} rollouts"]
    told += [f"{marks['right']} correct"] if marks["right"] or marks["wrong"] else []
    told += [f"{marks['cut']} truncated"] if marks["cut"] else []
    ratios = [r for s in samples for token in s.tokens if (r := token.log_ratio) is not None]
    told += [f"mean log-ratio {shown(sum(ratios) / len(ratios))} nats per token"] if ratios else []
    return ", ".join(told)


def probability_of(logp: float | None) -> str:
    return "–" if logp is None else probability(math.exp(min(logp, 0.0)))


def probability(value: float) -> str:
    """
    >>> probability(0.5), probability(0.00031), probability(0.000031), probability(0.0)
    ('50.0\\xa0%', '0.03\\xa0%', '<\\xa00.01\\xa0%', '0.0\\xa0%')
    """
    if 0 < value < 0.00005:
        return f"<{NBSP}0.01{NBSP}%"
    return f"{100 * value:.2f}{NBSP}%" if 0 < value < 0.001 else percent(value)


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
