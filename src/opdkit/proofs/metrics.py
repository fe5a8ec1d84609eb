"""Every metric of `opdkit.diagnostics` against its loop, on random pairs of models in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from opdkit.diagnostics import (
    auroc,
    bin_starts,
    by_position,
    derived,
    extremes,
    measure,
    repetition_fraction,
    sequence_reward,
    tally,
    teachable,
)
from opdkit.proofs.metric_oracle import (
    mann_whitney,
    reference,
    reference_extremes,
    reference_repetition,
    reference_teachable,
)
from opdkit.proofs.records import Check, Worst, largest
from opdkit.support import RowDist

KS = (1, 2, 3, 4, 64)
SHAPES = tuple((size, k) for size in (2, 5, 9, 40) for k in (1, 3, 5))
"""(vocabulary, k): widths above the vocabulary among them, which measure less."""
POSITIONS = 6


def dists(seed: int, *, vocabulary: int, positions: int = POSITIONS) -> tuple[RowDist, RowDist]:
    """A student and a teacher that half agree, with sampled tokens."""
    generator = torch.Generator().manual_seed(seed)
    shape = (positions, vocabulary)
    student = torch.randn(shape, generator=generator, dtype=torch.float64) * 2.0
    teacher = 0.5 * student + torch.randn(shape, generator=generator, dtype=torch.float64) * 2.0
    sampled = torch.randint(vocabulary, (positions,), generator=generator)
    return RowDist(student, sampled_ids=sampled), RowDist(teacher, sampled_ids=sampled)


def _each() -> Iterator[tuple[RowDist, RowDist, int, str]]:
    for seed, (vocabulary, k) in enumerate(SHAPES):
        student, teacher = dists(seed, vocabulary=vocabulary)
        yield student, teacher, k, f"V = {vocabulary}, k = {k}"


def off(found: float, wanted: float) -> float:
    """|found − wanted|, relative where the wanted number is above 1."""
    return abs(found - wanted) / max(1.0, abs(wanted))


def per_position() -> Iterator[Check]:
    """One row per name that `measure` or its loop knows; sums and counts, position by position."""
    seen: dict[str, Worst] = {}
    reasons: dict[str, str] = {}
    for student, teacher, k, where in _each():
        measured = measure(student, teacher, k=k, ks=KS)
        loops = reference(student, teacher, k=k, ks=KS)
        for name in measured.keys() - loops[0].keys():
            reasons[name] = f"no loop for it at {where}"
        for name in loops[0].keys() - measured.keys():
            seen.setdefault(name, Worst()).see(math.inf, f"{where}: not measured")
        for name in measured.keys() & loops[0].keys():
            total, count = measured[name]
            worst = seen.setdefault(name, Worst())
            for n, position in enumerate(loops):
                counted = float(count[n]) == len(position[name])
                error = off(float(total[n]), sum(position[name])) if counted else math.inf
                worst.see(error, where if counted else f"{where}: counts {float(count[n]):g}")
    for name in sorted(seen.keys() | reasons.keys()):
        if name in reasons:
            yield Check(name, covered=False, reason=reasons[name])
        else:
            yield seen[name].check(name)


def over_positions() -> Iterator[Check]:
    """Bins, the gap of mean entropies, extremes, what is teachable."""
    bins, gap, ends, reach = Worst(), Worst(), Worst(), Worst()
    for student, teacher, k, where in _each():
        measured, loops = measure(student, teacher, k=k, ks=KS), reference(student, teacher, k=k, ks=KS)
        depth = [(5 * n) % 9 for n in range(POSITIONS)]
        found = by_position(measured, torch.tensor(depth), bins=3, max_tokens=7).means()
        for name, wanted in _binned(loops, depth, bin_starts(bins=3, max_tokens=7)).items():
            bins.see(off(found.get(name, math.inf), wanted), f"{where}, {name}")
        gap.see(off(derived(tally(measured))["entropy_gap_of_means"], abs(_mean_gap(loops))), where)
        if k <= student.logits.shape[-1]:
            both = extremes(student, teacher, k=k)
            assert both is not None
            for end, trio in zip(
                (both.largest, both.smallest), reference_extremes(student, teacher, k=k), strict=True
            ):
                ends.see(largest(map(off, (end.advantage, end.student_p, end.teacher_p), trio)), where)
        for name, wanted in reference_teachable(student, teacher).items():
            total, count = teachable(student, teacher)[name]
            reach.see(off(float(total.sum() / count.sum()), wanted), f"{where}, {name}")
    yield bins.check("by_position/START/NAME")
    yield gap.check("entropy_gap_of_means")
    yield ends.check("advantage_max, advantage_min")
    yield reach.check("teachable_share, log_ratio_variance")


def _mean_gap(loops: Sequence[dict[str, list[float]]]) -> float:
    teacher, student = (sum(loop[f"entropy_{who}"][0] for loop in loops) for who in ("teacher", "student"))
    return (teacher - student) / len(loops)


def _binned(
    loops: Sequence[dict[str, list[float]]], depth: Sequence[int], starts: Sequence[int]
) -> dict[str, float]:
    """Means per bin and name, where there is something to average; the last bin has no end."""
    means = {}
    for start, end in zip(starts, [*starts[1:], math.inf], strict=True):
        inside = [loop for loop, d in zip(loops, depth, strict=True) if start <= d < end]
        for name in loops[0]:
            values = [value for loop in inside for value in loop[name]]
            if values:
                means[f"by_position/{start}/{name}"] = sum(values) / len(values)
    return means


def over_sequences() -> Iterator[Check]:
    """The mean log-ratio of a response, how well it tells right from wrong, and repetition."""
    reward, told, repeated = Worst(), Worst(), Worst()
    generator = torch.Generator().manual_seed(0)
    for trial in range(20):
        lengths = torch.randint(1, 6, (4,), generator=generator).tolist()
        p, q = torch.randn(2, sum(lengths), generator=generator, dtype=torch.float64)
        row = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
        found = sequence_reward(p, q, row, rows=4)
        for r, (ours, theirs) in enumerate(zip(p.split(lengths), q.split(lengths), strict=True)):
            wanted = sum(b - a for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)) / lengths[r]
            reward.see(off(float(found[r]), wanted), f"trial {trial}")
        scores, right = _scored(generator)
        ranked = list(zip(map(int, scores.tolist()), right.tolist(), strict=True))
        told.see(off(_number(auroc(scores, right)), mann_whitney(ranked)), f"trial {trial}")
        ids = torch.randint(2, (12,), generator=generator).tolist()
        repeated.see(off(_number(repetition_fraction(ids)), reference_repetition(ids, n=4)), f"trial {trial}")
    yield reward.check("sequence_reward")
    yield told.check("sequence_reward_auroc")
    yield repeated.check("repetition_fraction")


def _scored(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scores with ties of ten responses, the first right, the last wrong."""
    scores = torch.randint(-3, 4, (10,), generator=generator).double()
    right = torch.randint(2, (10,), generator=generator).bool()
    right[0], right[-1] = True, False
    return scores, right


def _number(value: float | None) -> float:
    return math.nan if value is None else value


METRICS = (per_position, over_positions, over_sequences)
