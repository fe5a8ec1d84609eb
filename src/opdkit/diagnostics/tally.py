"""From measures per position to sums: over all positions, per bin of response position, and per sequence.

All sums are float64 of the same values, so bins add to the whole up to float64 rounding, counts exactly.

Letters: M measured positions, N names, R bins or sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opdkit.diagnostics.alignment import Measures
from opdkit.types import Tally


def tally(measures: Measures, *, keep: Bool[Tensor, " M"] | None = None) -> Tally:
    """name → (Σ sum, Σ count) over the kept positions (all, if nothing is said)."""
    sums, counts = _stacked(measures, keep)
    pairs = zip(measures, sums.sum(-1).tolist(), counts.sum(-1).tolist(), strict=True)
    return Tally({name: (total, count) for name, total, count in pairs})


def by_position(
    measures: Measures,
    depth: Int[Tensor, " M"],
    *,
    bins: int,
    max_tokens: int,
    keep: Bool[Tensor, " M"] | None = None,
) -> Tally:
    """`by_position/START/NAME` per bin of equal width over the response. Empty bins are there with count 0.

    Every rank and every step thus has the same names. Positions beyond `max_tokens` fall into the last bin.
    """
    starts = bin_starts(bins=bins, max_tokens=max_tokens)
    edges = torch.tensor(starts[1:], dtype=torch.long)
    which = torch.bucketize(depth.cpu().long(), edges, right=True)
    sums, counts = (_grouped(values, which, len(starts)).tolist() for values in _stacked(measures, keep))
    return Tally(
        {
            f"by_position/{start}/{name}": (sums[n][b], counts[n][b])
            for b, start in enumerate(starts)
            for n, name in enumerate(measures)
        }
    )


BY_TEACHER = (
    "reverse_kl",
    "reverse_kl_sampled",
    "overlap_ratio",
    "overlap_mass_student",
    "overlap_mass_teacher",
    "entropy_teacher",
    "entropy_gap",
)
"""What is told of each of several teachers."""


def by_teacher(
    measures: Measures, row: Int[Tensor, " M"], *, teachers: Sequence[str], keep: Bool[Tensor, " M"]
) -> Tally:
    """`by_teacher/NAME/MEASURE` over each teacher's positions, and `by_teacher/NAME/share`: of all rollouts.

    `teachers` names who scored each rollout; nothing is told where nobody has a name (there is one teacher).
    """
    some = {name: measures[name] for name in BY_TEACHER if name in measures}
    names = sorted({name for name in teachers if name})
    parts: dict[str, tuple[float, float]] = {}
    for name in names:
        mine = torch.tensor([teacher == name for teacher in teachers])
        found = tally(some, keep=keep & mine[row]).entries
        parts |= {f"by_teacher/{name}/{measure}": pair for measure, pair in found.items()}
        parts[f"by_teacher/{name}/share"] = (float(mine.sum()), float(len(teachers)))
    return Tally(parts)


def bin_starts(*, bins: int, max_tokens: int) -> list[int]:
    """First response position of each bin; never more bins than positions.

    >>> bin_starts(bins=4, max_tokens=10)
    [0, 3, 5, 8]
    """
    bins = min(bins, max_tokens)
    return [-(-index * max_tokens // bins) for index in range(bins)]


def by_sequence(
    measures: Measures, row: Int[Tensor, " M"], *, rows: int, keep: Bool[Tensor, " M"] | None = None
) -> dict[str, Float[Tensor, " R"]]:
    """Means per sequence (float64, on the CPU); nan where nothing was measured."""
    if not measures:
        return {}
    sums, counts = (_grouped(values, row.cpu().long(), rows) for values in _stacked(measures, keep))
    means = torch.where(counts > 0, sums / counts, torch.nan)
    return dict(zip(measures, means, strict=True))


def concatenate(pieces: Sequence[Measures]) -> Measures:
    """Measures of several chunks one after another. What one could not measure counts 0 there."""
    names = {name: pair for piece in reversed(pieces) for name, pair in piece.items()}
    if not names:
        return {}
    assert all(pieces), "a chunk measured nothing at all: how many positions it has is unknown"
    return {name: _joined(pieces, name) for name in names}


def derived(means: Tally) -> dict[str, float]:
    """The tally's means, with the numbers that follow from means only, globally and per bin.

    `entropy_gap_of_means` = |mean H(q) − mean H(p)|: the other reading of Eq. 8. `sign_reliability`: diagnostics/reliability.py.
    """
    values = means.means()
    for name in [name for name in values if name.rpartition("/")[2] == "entropy_student"]:
        prefix = name.removesuffix("entropy_student")
        teacher = values.get(f"{prefix}entropy_teacher")
        if teacher is not None:
            values[f"{prefix}entropy_gap_of_means"] = abs(teacher - values[name])
    for name in [name for name in values if name.rpartition("/")[2] == "reward_up_right"]:
        prefix = name.removesuffix("reward_up_right")
        wrong = values.get(f"{prefix}reward_up_wrong")
        if wrong is not None:
            values[f"{prefix}sign_reliability"] = 0.5 + 0.5 * (values[name] - wrong)
    return values


def _stacked(
    measures: Measures, keep: Bool[Tensor, " M"] | None
) -> tuple[Float[Tensor, "N M"], Float[Tensor, "N M"]]:
    """Sums and counts in float64 on the CPU (one transfer, additions in a fixed order); 0 where not kept."""
    if not measures:
        return torch.zeros(0, 0, dtype=torch.float64), torch.zeros(0, 0, dtype=torch.float64)
    sums = torch.stack([total for total, _ in measures.values()]).cpu().double()
    counts = torch.stack([count for _, count in measures.values()]).cpu().double()
    if keep is None:
        return sums, counts
    return torch.where(keep.cpu(), sums, 0.0), torch.where(keep.cpu(), counts, 0.0)


def _grouped(values: Float[Tensor, "N M"], which: Int[Tensor, " M"], groups: int) -> Float[Tensor, "N R"]:
    if not len(values):
        return values.new_zeros(0, groups)
    return values.new_zeros(len(values), groups).index_add_(1, which, values)


def _joined(pieces: Sequence[Measures], name: str) -> tuple[Tensor, Tensor]:
    pairs = [piece.get(name) or _nothing(piece) for piece in pieces]
    return torch.cat([total for total, _ in pairs]), torch.cat([count for _, count in pairs])


def _nothing(piece: Measures) -> tuple[Tensor, Tensor]:
    total, _ = next(iter(piece.values()))
    return torch.zeros_like(total), torch.zeros_like(total)
