"""The probe: rollouts and one pass of each model over them, as numbers with intervals.

Everything is kept as sums per rollout, so that pieces of any size add up: a long file is read in pieces, a
stopped reading goes on, and intervals resample whole prompts (responses to one prompt are not independent).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from opdkit.diagnostics import (
    Measures,
    auroc,
    by_position,
    overlap_chance,
    repetition_fraction,
    success_slope,
)
from opdkit.models.pair import Reader, Reading, read_pair
from opdkit.train.evaluate import pass_at_k
from opdkit.types import Rollout, Tally

KS = (1, 4, 16, 64)
K = 16
BINS = 8
DEPTHS = 10
CURVES = (
    "overlap_ratio",
    "overlap_mass_student",
    "overlap_mass_teacher",
    "overlap_advantage",
    "entropy_student",
    "entropy_teacher",
    "entropy_gap",
    "reverse_kl",
    "top1_agreement",
    "teachable_share",
    "stop_student_elsewhere",
    "stop_teacher_elsewhere",
)
"""What is told by position and by depth."""
RESAMPLES = 400
LEVEL = 0.95


@dataclass(frozen=True)
class Row:
    """One rollout: what came of it, and name → (sum, count) over its positions."""

    prompt: str
    length: int
    truncated: bool | None  # None where nobody said how the response ended
    score: float | None
    repetition: float | None
    sums: Mapping[str, Sequence[float]]

    def total(self, name: str) -> float:
        return self.sums.get(name, (0.0, 0.0))[0]

    @property
    def reward(self) -> float | None:
        """r̄ = mean over tokens of log q − log p, in nats."""
        total, count = self.sums.get("reverse_kl_sampled", (0.0, 0.0))
        return -total / count if count else None


@dataclass(frozen=True)
class Piece:
    """Some rollouts, read. Pieces add."""

    rows: tuple[Row, ...] = ()
    by_position: Tally = field(default_factory=Tally)
    by_depth: Tally = field(default_factory=Tally)

    def __add__(self, other: Piece) -> Piece:
        return Piece(
            self.rows + other.rows, self.by_position + other.by_position, self.by_depth + other.by_depth
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "rows": [asdict(row) for row in self.rows],
            "by_position": dict(self.by_position.entries),
            "by_depth": dict(self.by_depth.entries),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Piece:
        first, second = (
            Tally({k: (v[0], v[1]) for k, v in data[name].items()}) for name in ("by_position", "by_depth")
        )
        return Piece(tuple(Row(**row) for row in data["rows"]), first, second)


@dataclass(frozen=True)
class Number:
    """A mean over `count` things, with a 95 % interval over prompts where there is one."""

    value: float
    count: int
    low: float | None = None
    high: float | None = None


Numbers = Mapping[str, Number]
AT_ONCE = 64
"""Rollouts read at once."""


def read(
    rollouts: Sequence[Rollout], *, student: Reader, teacher: Reader, max_tokens: int, bins: int = BINS
) -> Piece:
    """Read some rollouts with both models. Position bins are of equal width over `max_tokens`."""
    rollouts = [r for r in rollouts if r.length]
    if not rollouts:
        return Piece()
    rows = min(student.head.rows, teacher.head.rows)
    widths = [k for k in KS if k <= rows]
    seen = read_pair(rollouts, student=student, teacher=teacher, k=min(K, rows), ks=widths)
    told = {name: pair for name, pair in seen.measures.items() if name in CURVES}
    inside = ~seen.after_end
    return Piece(
        rows=tuple(_rows(rollouts, seen)),
        by_position=by_position(told, seen.depth, bins=bins, max_tokens=max_tokens, keep=inside),
        by_depth=by_position(told, _tenths(seen, rollouts), bins=DEPTHS, max_tokens=DEPTHS, keep=inside),
    )


def read_all(rollouts: Sequence[Rollout], *, student: Reader, teacher: Reader, max_tokens: int) -> Piece:
    """The same of any number of rollouts, so many at a time that memory stays bounded."""
    piece = Piece()
    for begin in range(0, len(rollouts), AT_ONCE):
        some = rollouts[begin : begin + AT_ONCE]
        piece += read(some, student=student, teacher=teacher, max_tokens=max_tokens)
    return piece


def _tenths(seen: Reading, rollouts: Sequence[Rollout]) -> torch.Tensor:
    """Which tenth of its response a position lies in."""
    lengths = torch.tensor([r.length for r in rollouts])[seen.row]
    return (seen.depth * DEPTHS // lengths).clamp(max=DEPTHS - 1)


def _rows(rollouts: Sequence[Rollout], seen: Reading) -> list[Row]:
    measures = seen.measures | _first_token(seen)
    parts = [torch.stack([pair[i] for pair in measures.values()]).cpu().double() for i in (0, 1)]
    empty = torch.zeros(len(measures), len(rollouts), dtype=torch.float64)
    totals, counts = (empty.index_add(1, seen.row, part).T.tolist() for part in parts)
    return [
        Row(
            prompt=r.prompt.id,
            length=r.length,
            truncated={"length": True, "stop": False}.get(r.finish_reason),
            score=None if r.grade is None else r.grade.score,
            repetition=repetition_fraction(r.response_ids),
            sums={n: (t, c) for n, t, c in zip(measures, total, count, strict=True) if c},
        )
        for r, total, count in zip(rollouts, totals, counts, strict=True)
    ]


def _first_token(seen: Reading) -> Measures:
    """The very first position alone: a template or a thinking mode that differs shows there."""
    names = {"first_token_agreement": "top1_agreement", "first_token_overlap": "overlap_ratio"}
    found: Measures = {}
    for new, old in names.items():
        total, count = seen.measures[old]
        first = (seen.depth == 0).to(total.device)
        found[new] = torch.where(first, total, 0.0), torch.where(first, count, 0.0)
    return found


# --- from sums to numbers -----------------------------------------------------------------------------------


def numbers(piece: Piece, *, vocabulary: int, seed: int = 0) -> dict[str, Number]:
    """Every metric of the probe. Means are over positions; of what concerns whole responses, over rollouts."""
    rows = piece.rows
    means = Means([row.prompt for row in rows], seed=seed)
    names = sorted({name for row in rows for name in row.sums})
    found = {name: means.of([row.sums.get(name, (0.0, 0.0)) for row in rows]) for name in names}
    for name, values in _of_responses(rows).items():
        if any(value is not None for value in values):
            found[name] = means.of([(0.0, 0.0) if v is None else (v, 1.0) for v in values])
    if any(row.score is not None for row in rows):
        found |= _scored([row for row in rows if row.score is not None], seed=seed)
    chances = {k: overlap_chance(k=k, size=vocabulary) for k in KS if k <= vocabulary}
    return found | {f"overlap_chance_at_{k}": Number(chance, 1) for k, chance in chances.items()}


def _of_responses(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    return {
        "response_length": [float(row.length) for row in rows],
        "truncated_fraction": [None if row.truncated is None else float(row.truncated) for row in rows],
        "repetition_fraction": [row.repetition for row in rows],
        "sequence_reward": [row.reward for row in rows],
        "accuracy": [row.score for row in rows],
    }


class Means:
    """Means of sums and counts, with intervals from prompts drawn with replacement, the same draws for all."""

    def __init__(self, prompts: Sequence[str], *, seed: int):
        place = {name: i for i, name in enumerate(dict.fromkeys(prompts))}
        self.where = np.array([place[name] for name in prompts])
        self.size = len(place)
        generator = np.random.Generator(np.random.Philox(seed))
        self.drawn = generator.multinomial(self.size, np.full(self.size, 1 / self.size), size=RESAMPLES)

    def of(self, pairs: Sequence[Sequence[float]]) -> Number:
        sums = np.zeros((self.size, 2))
        np.add.at(sums, self.where, np.asarray(pairs, dtype=float))
        total, count = sums.sum(0)
        value = float(total / count)
        if self.size < 2:
            return Number(value, round(count))
        again = self.drawn @ sums
        again = again[again[:, 1] > 0]
        low, high = np.quantile(again[:, 0] / again[:, 1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Number(value, round(count), float(low), float(high))


@dataclass(frozen=True)
class _Graded:
    """Graded rollouts as arrays; `prompt` numbers their prompts."""

    score: np.ndarray
    reward: np.ndarray
    lead: np.ndarray  # Σ_t δ_t + KL_t
    variance: np.ndarray  # Σ_t Var_p(log q − log p)
    prompt: np.ndarray

    def take(self, index: np.ndarray, prompt: np.ndarray) -> _Graded:
        return _Graded(self.score[index], self.reward[index], self.lead[index], self.variance[index], prompt)


def _scored(rows: Sequence[Row], *, seed: int) -> dict[str, Number]:
    """What scores allow: pass@n, whether the teacher's opinion of a response tells right from wrong, the slope."""
    place = {name: i for i, name in enumerate(dict.fromkeys(row.prompt for row in rows))}
    graded = _Graded(
        score=np.array([row.score for row in rows], dtype=float),
        reward=np.array([np.nan if row.reward is None else row.reward for row in rows]),
        lead=np.array([row.total("reverse_kl") - row.total("reverse_kl_sampled") for row in rows]),
        variance=np.array([row.total("log_ratio_variance") for row in rows]),
        prompt=np.array([place[row.prompt] for row in rows]),
    )
    most = int(np.bincount(graded.prompt).min())
    widths = [1 << i for i in range(1, most.bit_length()) if 1 << i <= most]
    wanted: dict[str, Statistic] = {f"pass_at_{n}": _pass_at(n) for n in widths}
    wanted |= {"sequence_reward_auroc": _auroc, "success_slope": _slope}
    found = {name: _resampled(graded, of, seed=seed) for name, of in wanted.items()}
    return {name: number for name, number in found.items() if number is not None}


Statistic = Callable[[_Graded], float | None]


def _auroc(graded: _Graded) -> float | None:
    return auroc(torch.from_numpy(graded.reward), torch.from_numpy(graded.score >= 0.5))


def _slope(graded: _Graded) -> float | None:
    columns = (graded.lead, graded.variance, graded.score, graded.prompt)
    return success_slope(*columns)


def _pass_at(n: int) -> Statistic:
    def of(graded: _Graded) -> float | None:
        total = np.bincount(graded.prompt)
        right = np.bincount(graded.prompt, weights=graded.score >= 0.5)
        chances = [pass_at_k(int(t), int(c), n) for t, c in zip(total, right, strict=True) if t >= n]
        return sum(chances) / len(chances) if chances else None

    return of


def _resampled(graded: _Graded, of: Statistic, *, seed: int) -> Number | None:
    """A statistic of all rollouts, with an interval over prompts drawn with replacement; one drawn twice is two."""
    value = of(graded)
    if value is None:
        return None
    members = [np.flatnonzero(graded.prompt == i) for i in range(int(graded.prompt.max()) + 1)]
    generator = np.random.Generator(np.random.Philox(seed))
    again = []
    for _ in range(RESAMPLES // 2 if len(members) > 1 else 0):
        drawn = [members[i] for i in generator.integers(0, len(members), len(members))]
        labels = np.repeat(np.arange(len(drawn)), [len(mine) for mine in drawn])
        again.append(of(graded.take(np.concatenate(drawn), labels)))
    known = [x for x in again if x is not None]
    if not known:
        return Number(value, len(graded.score))
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Number(value, len(graded.score), float(low), float(high))


def curves(tally: Tally, *, scale: float = 1.0) -> dict[str, dict[str, dict[str, float]]]:
    """start → name → value and count, of bins that hold something; a `scale` turns bin numbers into depths."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for key, (total, count) in tally.entries.items():
        _, start, name = key.split("/", 2)
        if count > 0:
            place = start if scale == 1.0 else f"{int(start) * scale:.1f}"
            found.setdefault(place, {})[name] = {"value": total / count, "count": round(count)}
    return found


def positions(piece: Piece) -> int:
    return sum(row.length for row in piece.rows)
