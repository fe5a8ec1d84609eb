"""The diagnostics against loops over dictionaries of floats, and properties that hold for any numbers."""

from __future__ import annotations

import doctest
import importlib
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import opdkit.diagnostics as diagnostics
from opdkit.diagnostics import (
    Extremes,
    Measures,
    auroc,
    bin_starts,
    by_position,
    by_sequence,
    concatenate,
    derived,
    extremes,
    gap_recovery,
    measure,
    merge,
    overlap_chance,
    reliability,
    repetition_fraction,
    rollout_tally,
    sequence_reward,
    tally,
    truncated,
)
from opdkit.diagnostics.candidates import slots
from opdkit.proofs.metric_oracle import (
    mann_whitney,
    reference,
    reference_dist,
    reference_entries,
    reference_top,
)
from opdkit.support import ColumnDist, RowDist, StoredDist, in_set
from opdkit.types import Grade, Prompt, Rollout, Tally

KS = [1, 2, 3, 4, 64]


def rows(m: int, v: int, seed: int, *, scale: float = 2.0) -> tuple[RowDist, RowDist]:
    random = torch.Generator().manual_seed(seed)
    student = torch.randn(m, v, generator=random, dtype=torch.float64) * scale
    teacher = 0.5 * student + torch.randn(m, v, generator=random, dtype=torch.float64) * scale
    sampled = torch.randint(v, (m,), generator=random)
    return RowDist(student, sampled_ids=sampled), RowDist(teacher, sampled_ids=sampled)


def means(measures: Measures) -> dict[str, float]:
    return tally(measures).means()


def differing(left: Measures, right: Measures, **tolerance: Any) -> list[str]:
    """What torch.testing has against two sets of measures, by name; [] if they are the same."""
    found = [f"{name}: on one side only" for name in left.keys() ^ right.keys()]
    for name in left.keys() & right.keys():
        try:
            torch.testing.assert_close(left[name], right[name], **tolerance)
        except AssertionError as error:
            found.append(f"{name}: {error}")
    return found


shapes = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(0, 10_000))
widths = st.integers(1, 5)


# ------------------------------------------------------------------ against loops: opdkit.proofs.metric_oracle


@settings(max_examples=80, deadline=None)
@given(shapes, widths)
def test_every_quantity_equals_its_loop(shape: tuple[int, int, int], k: int) -> None:
    student, teacher = rows(*shape)
    measured, expected = measure(student, teacher, k=k, ks=KS), reference(student, teacher, k=k, ks=KS)
    assert measured.keys() == expected[0].keys()
    for name, (total, count) in measured.items():
        assert count.tolist() == [len(position[name]) for position in expected], name
        sums = [sum(position[name]) for position in expected]
        assert total.tolist() == pytest.approx(sums, rel=1e-8, abs=1e-9), name


@settings(max_examples=30, deadline=None)
@given(shapes, widths)
def test_extremes_equal_their_loop(shape: tuple[int, int, int], k: int) -> None:
    student, teacher = rows(*shape)
    found = extremes(student, teacher, k=k)
    if k > shape[1]:
        assert found is None
        return
    dists = [
        (reference_dist(z), reference_dist(w))
        for z, w in zip(student.logits.tolist(), teacher.logits.tolist(), strict=True)
    ]
    entries = [
        (a, p[v], q[v]) for p, q in dists for v, a in reference_entries(p, q, reference_top(p, k)).items()
    ]
    assert isinstance(found, Extremes)
    for end, expected in ((found.largest, max(entries)), (found.smallest, min(entries))):
        assert (end.advantage, end.student_p, end.teacher_p) == pytest.approx(expected, abs=1e-9)
    parts = [
        extremes(RowDist(student.logits[i : i + 1]), RowDist(teacher.logits[i : i + 1]), k=k)
        for i in range(shape[0])
    ]
    merged = merge([*parts, None])
    assert merged is not None
    assert list(merged.named().values()) == pytest.approx(list(found.named().values()), abs=1e-12)


def test_extremes_look_only_where_asked() -> None:
    student, teacher = rows(3, 8, 1)
    keep = torch.tensor([False, True, False])
    one = RowDist(student.logits[1:2]), RowDist(teacher.logits[1:2])
    assert extremes(student, teacher, k=2, keep=keep) == extremes(*one, k=2)
    assert extremes(student, teacher, k=2, keep=torch.zeros(3, dtype=torch.bool)) is None
    assert merge([None]) is None


# ------------------------------------------------------------------ properties


@settings(max_examples=30, deadline=None)
@given(shapes, widths)
def test_ranges(shape: tuple[int, int, int], k: int) -> None:
    student, teacher = rows(*shape)
    measured = measure(student, teacher, k=k, ks=KS)
    for name, (total, count) in measured.items():
        assert total.isfinite().all() and (total[count == 0] == 0).all(), name
        if "ratio" in name or "mass" in name or name.endswith("_p") or "fraction" in name:
            assert ((total >= 0) & (total <= 1 + 1e-12)).all(), name
    for name in ("entropy_student", "entropy_teacher"):
        total = measured[name][0]
        assert ((total >= -1e-12) & (total <= math.log(shape[1]) + 1e-12)).all()
    assert (measured["reverse_kl"][0] >= -1e-12).all()
    if "overlap_advantage" in measured:
        assert (measured["overlap_advantage"][0] <= 1e-12).all()


@settings(max_examples=25, deadline=None)
@given(shapes, widths)
def test_a_teacher_equal_to_the_student(shape: tuple[int, int, int], k: int) -> None:
    student, _ = rows(*shape)
    twin = RowDist(student.logits + 3.0, sampled_ids=student.sampled_ids)
    measured = means(measure(student, twin, k=k, ks=KS))
    for name, value in measured.items():
        if "ratio" in name or name == "top1_agreement":
            assert value == 1, name
        if "advantage" in name or "gap" in name or name.startswith("reverse_kl") or "empty_fraction" in name:
            assert value == pytest.approx(0, abs=1e-9), name
    if k <= shape[1]:
        top_mass = student.logits.softmax(-1).topk(k).values.sum(-1).mean().item()
        assert measured["overlap_mass_student"] == pytest.approx(top_mass)
        assert measured["overlap_mass_teacher"] == pytest.approx(top_mass)
        assert not {"training_advantage_student_only", "training_advantage_teacher_only"} & measured.keys()


def test_reverse_kl_is_zero_only_where_the_rows_are_equal() -> None:
    student, teacher = rows(5, 6, 3)
    mixed = teacher.logits.clone()
    mixed[2] = student.logits[2]
    kl = measure(student, RowDist(mixed), k=2, ks=[])["reverse_kl"][0]
    assert (kl > 1e-3).tolist() == [True, True, False, True, True] and abs(kl[2]) < 1e-12


@pytest.mark.parametrize(
    ("teacher", "kl"),
    [
        ([0.60, 0.30, 0.02, 0.08], 0.0),  # odds 2 : 1 as the student, whatever the masses
        ([0.40, 0.40, 0.05, 0.15], 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)),  # odds 1 : 1
    ],
)
def test_eq_7_is_zero_iff_both_agree_on_the_overlap(teacher: list[float], kl: float) -> None:
    """p = (.5, .25, .15, .1), k = 2, O = {0, 1}: −KL of the two odds, divided by |O| = 2."""
    student = torch.tensor([[0.5, 0.25, 0.15, 0.1]], dtype=torch.float64).log()
    other = torch.tensor([teacher], dtype=torch.float64).log()
    measured = means(measure(RowDist(student), RowDist(other), k=2, ks=[]))
    assert measured["overlap_ratio"] == 1
    assert measured["overlap_advantage"] == pytest.approx(-kl / 2, abs=1e-12)


def test_eq_7_and_the_released_advantage_are_not_comparable() -> None:
    """p = (.5, .3, .2, 0⁺), q = (.1, .15, 0⁺, .75), k = 2: S^p = {0, 1}, S^q = {3, 1}, O = {1}.

    Over one shared token Eq. 7 is log(1/1) = 0; the pooled one is .3/.8 · log(.15/.3).
    """
    student = torch.tensor([[0.5, 0.3, 0.2, 1e-9]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.1, 0.15, 1e-9, 0.75]], dtype=torch.float64).log()
    measured = means(measure(RowDist(student), RowDist(teacher), k=2, ks=[]))
    assert measured["overlap_ratio"] == 0.5
    assert measured["overlap_advantage"] == pytest.approx(0, abs=1e-12)
    assert measured["training_advantage_overlap"] == pytest.approx(0.375 * math.log(0.5), rel=1e-6)
    assert measured["training_advantage_student_only"] == pytest.approx(0.625 * math.log(0.2), rel=1e-6)


def test_pooled_means_weigh_entries_and_eq_7_weighs_positions() -> None:
    """One position shares 2 tokens, the other 1: pooled Σ/3, per position Σ/2."""
    student = torch.tensor([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.5, 0.4, 0.1], [0.5, 0.1, 0.4]], dtype=torch.float64).log()
    measured = measure(RowDist(student), RowDist(teacher), k=2, ks=[])
    assert measured["training_advantage_overlap"][1].tolist() == [2, 1]
    assert measured["overlap_advantage"][1].tolist() == [1, 1]


@settings(max_examples=25, deadline=None)
@given(shapes, widths, st.floats(-50, 50))
def test_a_constant_added_to_logits_changes_nothing(
    shape: tuple[int, int, int], k: int, constant: float
) -> None:
    student, teacher = rows(*shape)
    shifted = RowDist(student.logits + constant, sampled_ids=student.sampled_ids)
    assert (
        differing(
            measure(student, teacher, k=k, ks=KS), measure(shifted, teacher, k=k, ks=KS), rtol=1e-6, atol=1e-9
        )
        == []
    )


@settings(max_examples=25, deadline=None)
@given(shapes, widths, st.randoms(use_true_random=False))
def test_a_permutation_of_the_vocabulary_changes_nothing(
    shape: tuple[int, int, int], k: int, random: Any
) -> None:
    student, teacher = rows(*shape)
    order = torch.tensor(random.sample(range(shape[1]), shape[1]))
    assert student.sampled_ids is not None
    sampled = order.argsort()[student.sampled_ids]
    moved = [RowDist(dist.logits[:, order], sampled_ids=sampled) for dist in (student, teacher)]
    assert (
        differing(measure(student, teacher, k=k, ks=KS), measure(*moved, k=k, ks=KS), rtol=1e-9, atol=1e-12)
        == []
    )


@settings(max_examples=25, deadline=None)
@given(shapes, widths)
def test_union_is_student_and_teacher_less_intersection(shape: tuple[int, int, int], k: int) -> None:
    measured = measure(*rows(*shape), k=k, ks=[])
    if k <= shape[1]:
        shared, ours, theirs = (
            measured[f"training_advantage_{part}"][1] for part in ("overlap", "student_only", "teacher_only")
        )
        assert (shared + ours == k).all() and (shared + theirs == k).all()
        torch.testing.assert_close(shared / k, measured["overlap_ratio"][0])


@pytest.mark.parametrize("value", [math.nan, math.inf, 7.0])
def test_contents_of_positions_not_kept_change_nothing(value: float) -> None:
    student, teacher = rows(5, 8, 4)
    keep, depth = torch.tensor([True, False, True, True, False]), torch.arange(5)
    dirty = [torch.where(keep[:, None], dist.logits, value) for dist in (student, teacher)]
    clean = measure(student, teacher, k=3, ks=KS)
    other = measure(*(RowDist(z, sampled_ids=student.sampled_ids) for z in dirty), k=3, ks=KS)
    assert tally(clean, keep=keep) == tally(other, keep=keep)
    binned = [by_position(m, depth, bins=2, max_tokens=6, keep=keep) for m in (clean, other)]
    assert binned[0] == binned[1]
    means_ = [by_sequence(m, torch.tensor([0, 0, 1, 1, 1]), rows=2, keep=keep) for m in (clean, other)]
    torch.testing.assert_close(means_[0], means_[1], rtol=0, atol=0)


@settings(max_examples=25, deadline=None)
@given(shapes, widths, st.integers(1, 5))
def test_pieces_make_the_whole(shape: tuple[int, int, int], k: int, size: int) -> None:
    student, teacher = rows(*shape)
    index = torch.arange(shape[0]).split(size)
    pieces = [measure(student.rows(part), teacher.rows(part), k=k, ks=KS) for part in index]
    assert differing(concatenate(pieces), measure(student, teacher, k=k, ks=KS), rtol=1e-9, atol=1e-12) == []


def test_what_one_piece_could_not_measure_counts_nothing_there() -> None:
    one = torch.ones(2)
    joined = concatenate([{"a": (one, one)}, {"a": (one, one), "b": (one, one)}])
    assert joined["b"][1].tolist() == [0, 0, 1, 1] and joined["a"][1].tolist() == [1, 1, 1, 1]
    assert concatenate([]) == {} and concatenate([{}, {}]) == {}
    with pytest.raises(AssertionError):
        concatenate([{"a": (one, one)}, {}])


@pytest.mark.parametrize("v", [1, 2, 3])
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_tiny_vocabularies_and_extreme_logits(v: int, scale: float) -> None:
    random = torch.Generator().manual_seed(v)
    student, teacher = (RowDist((torch.rand(16, v, generator=random) * 2 - 1) * scale) for _ in range(2))
    for k in (1, 2, 16):
        for name, (total, count) in measure(student, teacher, k=k, ks=[1, 4, 16]).items():
            assert total.isfinite().all() and count.isfinite().all(), name
        found = extremes(student, teacher, k=k)
        assert (found is None) == (k > v)
        assert found is None or all(map(math.isfinite, found.named().values()))


def test_masked_logits_contribute_nothing() -> None:
    """Padding rows of a head set to −inf: as if they were not there."""
    student, teacher = rows(4, 6, 5)
    padded = [torch.cat([dist.logits, torch.full((4, 3), -torch.inf)], -1) for dist in (student, teacher)]
    left = measure(*(RowDist(z) for z in padded), k=8, ks=[4])
    right = measure(RowDist(student.logits), RowDist(teacher.logits), k=6, ks=[4])
    for name in ("reverse_kl", "overlap_ratio_at_4", "top1_agreement", "probability_gap_at_max_advantage"):
        torch.testing.assert_close(left[name], right[name])


def test_no_positions_measure_nothing() -> None:
    empty = RowDist(torch.zeros(0, 8))
    assert tally(measure(empty, empty, k=4, ks=[1, 2])).means() == {}


def test_measuring_leaves_the_objective_its_gradient() -> None:
    """Rows read here must not be cached without gradient in the object the loss reads afterwards."""
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    student, teacher = RowDist(logits), RowDist(torch.zeros(3, 5))
    measured = measure(student, teacher, k=2, ks=[1])
    assert not any(part.requires_grad for pair in measured.values() for part in pair)
    (student.full * student.full.exp()).sum().backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0


def test_half_precision_is_widened() -> None:
    student, teacher = rows(4, 16, 6)
    halves = [dist.logits.bfloat16() for dist in (student, teacher)]
    wide = measure(*(RowDist(z.float()) for z in halves), k=4, ks=[1])
    assert differing(measure(*(RowDist(z) for z in halves), k=4, ks=[1]), wide, rtol=0, atol=0) == []


# ------------------------------------------------------------------ what a teacher sent


def stored(
    teacher: RowDist, *, at_ids: Tensor | None = None, k: int = 0, entropy: bool = False
) -> StoredDist:
    top_ids, top_logp = teacher.topk(k) if k else (None, None)
    return StoredDist(
        sampled=teacher.sampled,
        at_ids=at_ids,
        at_logp=None if at_ids is None else teacher.at(at_ids),
        topk_ids=top_ids,
        topk_logp=top_logp,
        entropy=teacher.entropy if entropy else None,
    )


TOP_K_ONLY = {
    "reverse_kl_sampled",
    "entropy_student",
    "overlap_ratio",
    "overlap_ratio_at_1",
    "overlap_ratio_at_2",
    "overlap_ratio_at_3",
    "overlap_mass_student",
    "overlap_mass_teacher",
    "overlap_mass_student_nonempty",
    "overlap_mass_teacher_nonempty",
    "overlap_advantage",
    "overlap_empty_fraction",
    "training_advantage_overlap",
    "training_advantage_teacher_only",
    "top1_student_p",
    "top1_teacher_p",
    "top1_teacher_student_p",
    "top1_teacher_advantage",
    "top1_agreement",
}
AT_STUDENT_ONLY = {
    "reverse_kl_sampled",
    "entropy_student",
    "top1_student_p",
    "top1_student_teacher_p",
    "top1_student_advantage",
    "probability_gap_at_max_advantage",
}


@pytest.mark.parametrize(
    ("at_student", "k", "entropy", "expected"),
    [
        (False, 3, False, TOP_K_ONLY),
        (True, 0, False, AT_STUDENT_ONLY),
        (False, 0, False, {"reverse_kl_sampled", "entropy_student", "top1_student_p"}),
        (
            True,
            3,
            True,
            TOP_K_ONLY
            | AT_STUDENT_ONLY
            | {"training_advantage_student_only", "entropy_teacher", "entropy_gap"},
        ),
    ],
)
def test_a_stored_teacher_says_the_same_as_far_as_it_goes(
    at_student: bool, k: int, entropy: bool, expected: set[str]
) -> None:
    student, teacher = rows(16, 30, 7)
    ids = student.topk(3)[0].flip(-1) if at_student else None
    partial = measure(student, stored(teacher, at_ids=ids, k=k, entropy=entropy), k=3, ks=KS)
    whole = measure(student, teacher, k=3, ks=KS)
    assert partial.keys() == expected
    assert differing(partial, {name: whole[name] for name in partial}, rtol=1e-9, atol=1e-12) == []


def test_stored_ids_and_numbers_may_be_narrow() -> None:
    student, teacher = rows(6, 30, 8)
    ids, logp = teacher.topk(3)
    narrow = StoredDist(topk_ids=ids.int(), topk_logp=logp)
    assert means(measure(student, narrow, k=3, ks=[1]))["overlap_ratio"] == pytest.approx(
        means(measure(student, teacher, k=3, ks=[1]))["overlap_ratio"]
    )


def test_an_id_that_slipped_out_of_the_sent_ones_costs_its_position_only() -> None:
    student, teacher = rows(4, 30, 9)
    ids = student.topk(4)[0][:, :3].clone()
    ids[2, 2] = student.topk(4)[0][2, 3]  # the sampler ranked 3rd and 4th the other way round
    slipped = measure(student, stored(teacher, at_ids=ids), k=3, ks=[])["probability_gap_at_max_advantage"]
    whole = measure(student, teacher, k=3, ks=[])["probability_gap_at_max_advantage"]
    assert slipped[1].tolist() == [1, 1, 0, 1]
    torch.testing.assert_close(slipped[0][[0, 1, 3]], whole[0][[0, 1, 3]])
    assert extremes(student, stored(teacher, at_ids=ids), k=3) is not None


def test_a_top_k_that_happens_to_suffice_is_not_a_sample() -> None:
    """The teacher's own top-k covers the student's at some positions only; measuring there would flatter."""
    student, teacher = rows(16, 30, 10)
    assert extremes(student, stored(teacher, k=6), k=2) is None


def test_unnormalised_columns_answer_nothing_and_are_not_used() -> None:
    student, _ = rows(4, 30, 11)
    ids = student.topk(3)[0]
    measured = measure(student, ColumnDist(torch.zeros(4, 3), ids=ids), k=3, ks=[1])
    assert measured.keys() == {"entropy_student", "top1_student_p"}


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.randoms(use_true_random=False))
def test_slots_agree_with_comparing_all(m: int, s: int, r: int, random: Any) -> None:
    ids = torch.tensor([random.sample(range(12), s) for _ in range(m)])
    others = torch.tensor([random.sample(range(12), r) for _ in range(m)])
    found = slots(ids, others)
    assert torch.equal(found < r, in_set(ids, others))
    assert torch.equal(others.gather(-1, found.clamp(max=r - 1))[found < r], ids[found < r])


# ------------------------------------------------------------------ tallies


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(1, 9), st.integers(1, 40), st.randoms(use_true_random=False))
def test_bins_add_to_the_whole(shape: tuple[int, int, int], bins: int, max_tokens: int, random: Any) -> None:
    measured = measure(*rows(*shape), k=2, ks=KS)
    depth = torch.tensor([random.randrange(max_tokens) for _ in range(shape[0])])
    binned, whole = by_position(measured, depth, bins=bins, max_tokens=max_tokens), tally(measured)
    added = Tally.total(Tally({name.split("/", 2)[2]: pair}) for name, pair in binned.entries.items())
    assert added.entries.keys() == whole.entries.keys()
    for name, (total, count) in whole.entries.items():
        assert added.entries[name][1] == count
        assert added.entries[name][0] == pytest.approx(total, rel=1e-12, abs=1e-15)


def test_a_bin_is_named_by_its_first_position() -> None:
    one = torch.ones(5)
    measured: Measures = {"a": (torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), one)}
    binned = by_position(measured, torch.tensor([0, 2, 3, 9, 99]), bins=4, max_tokens=10)
    assert binned.entries == {
        "by_position/0/a": (3, 2),
        "by_position/3/a": (4, 1),
        "by_position/5/a": (0, 0),
        "by_position/8/a": (24, 2),  # beyond max_tokens: the last bin
    }
    assert bin_starts(bins=8, max_tokens=3) == [0, 1, 2]


@given(st.integers(1, 64), st.integers(1, 5000))
def test_bins_are_of_equal_width(bins: int, max_tokens: int) -> None:
    starts = bin_starts(bins=bins, max_tokens=max_tokens)
    lengths = [b - a for a, b in zip(starts, [*starts[1:], max_tokens], strict=True)]
    assert starts[0] == 0 and sum(lengths) == max_tokens and len(starts) == min(bins, max_tokens)
    assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1


def test_means_per_sequence() -> None:
    total, count = torch.tensor([1.0, 3.0, 5.0, 0.0]), torch.tensor([1.0, 1.0, 2.0, 0.0])
    means_ = by_sequence({"a": (total, count)}, torch.tensor([0, 0, 2, 3]), rows=4)["a"]
    torch.testing.assert_close(
        means_, torch.tensor([2.0, math.nan, 2.5, math.nan], dtype=torch.float64), equal_nan=True
    )
    assert by_sequence({}, torch.tensor([0]), rows=2) == {} and tally({}).entries == {}


def test_the_other_reading_of_the_entropy_gap() -> None:
    """Gaps of +1 and −1: the mean of |gap| is 1, the gap of the means 0."""
    one = torch.ones(2)
    measured: Measures = {
        "entropy_student": (torch.tensor([1.0, 2.0]), one),
        "entropy_teacher": (torch.tensor([2.0, 1.0]), one),
        "entropy_gap": (one, one),
    }
    values = derived(tally(measured) + by_position(measured, torch.tensor([0, 5]), bins=2, max_tokens=8))
    assert values["entropy_gap"] == 1 and values["entropy_gap_of_means"] == 0
    assert values["by_position/0/entropy_gap_of_means"] == 1
    assert "entropy_gap_of_means" not in derived(Tally({"entropy_student": (1.0, 1)}))


# ------------------------------------------------------------------ sequences


def test_sequence_reward_is_a_mean_over_the_response() -> None:
    student, teacher = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-2.0, -1.0, -1.0])
    rewards = sequence_reward(student, teacher, torch.tensor([0, 0, 2]), 3)
    assert rewards[0] == 0 and rewards[1].isnan() and rewards[2] == 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=24))
def test_auroc_is_the_share_of_pairs_in_order(pairs: list[tuple[int, bool]]) -> None:
    scores = torch.tensor([float(score) for score, _ in pairs])
    positive = torch.tensor([label for _, label in pairs], dtype=torch.bool)
    right, wrong = [s for s, label in pairs if label], [s for s, label in pairs if not label]
    value = auroc(scores, positive)
    if not right or not wrong:
        assert value is None
        return
    wins = sum((a > b) + (a == b) / 2 for a in right for b in wrong)
    assert value == wins / (len(right) * len(wrong))
    assert value == pytest.approx(mann_whitney(pairs))
    other = auroc(scores, ~positive)
    assert other is not None and value + other == pytest.approx(1)


def test_auroc_leaves_out_sequences_without_a_score() -> None:
    scores = torch.tensor([1.0, math.nan, 0.0, math.nan])
    assert auroc(scores, torch.tensor([True, True, False, False])) == 1


def test_repetition_counts_n_grams_seen_before() -> None:
    assert repetition_fraction([5] * 8) == 0.8  # 5 four-grams, one new
    assert repetition_fraction([1, 2, 3, 4, 5]) == 0
    assert repetition_fraction([1, 2, 3]) is None


def test_rollouts_are_counted_not_guessed() -> None:
    prompt = Prompt(id="0")
    rollouts = [
        Rollout(prompt, (1, 2, 3, 4), "stop", grade=Grade(1.0)),
        Rollout(prompt, (7,) * 8, "length", grade=Grade(0.0)),
        Rollout(prompt, (1, 2), "stop", grade=Grade(None, failed="timeout")),
        Rollout(prompt, (1, 2), "stop"),
    ]
    assert rollout_tally(rollouts).entries == {
        "response_length": (16, 4),
        "truncated_fraction": (1, 4),
        "repetition_fraction": (0.8, 2),
        "accuracy": (1, 2),
        "closure_rate": (3, 4),
        "accuracy_of_closed": (1, 1),
        "ungraded_fraction": (2, 4),
    }
    assert truncated(rollouts[1]) and not truncated(rollouts[0])
    assert rollout_tally([]).means() == {}


def test_gap_recovery_needs_a_gap() -> None:
    assert gap_recovery(0.2, 0.5, 0.6) == pytest.approx(0.75)
    assert gap_recovery(0.5, 0.4, 0.6) == pytest.approx(-1)
    assert gap_recovery(0.5, 0.5, 0.54) is None and gap_recovery(0.5, 0.5, 0.4) is None
    assert gap_recovery(0.25, 0.3, 0.30) == pytest.approx(1)


def test_chance_is_k_over_v() -> None:
    """Two unrelated random rankings meet in k/V of the slots."""
    random = torch.Generator().manual_seed(0)
    student, teacher = (RowDist(torch.randn(4000, 20, generator=random)) for _ in range(2))
    found = means(measure(student, teacher, k=5, ks=[]))["overlap_ratio"]
    assert found == pytest.approx(overlap_chance(k=5, size=20), abs=0.01)
    assert overlap_chance(k=9, size=3) == 1


@pytest.mark.parametrize("name", ["candidates", "tally", "sequence"])
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(f"opdkit.diagnostics.{name}")
    assert doctest.testmod(module).failed == 0


def test_exported_names_exist() -> None:
    assert all(hasattr(diagnostics, name) for name in diagnostics.__all__)


def test_reliability_is_the_difference_of_two_shares_and_half_where_signs_know_nothing():
    """Against loops over tokens; signs that are down everywhere agree with most wrong answers and know nothing."""
    generator = torch.Generator().manual_seed(5)
    p, q = torch.randn(2, 60, generator=generator, dtype=torch.float64)
    row = torch.arange(60) // 10
    scores = [1.0, 0.0, None, 0.4, 0.5, 0.0]
    found = derived(tally(reliability(p, q, row, scores)))
    shares = []
    for right in (True, False):
        mine = [n for n in range(60) if (s := scores[n // 10]) is not None and (s >= 0.5) == right]
        shares.append(sum(float(q[n]) > float(p[n]) for n in mine) / len(mine))
    assert found["reward_up_right"] == pytest.approx(shares[0])
    assert found["reward_up_wrong"] == pytest.approx(shares[1])
    assert found["sign_reliability"] == pytest.approx(0.5 + 0.5 * (shares[0] - shares[1]))
    down = derived(tally(reliability(p, p - 1.0, row, scores)))
    assert down["sign_reliability"] == 0.5
    ungraded = reliability(p, q, row, [None] * 6)
    assert ungraded.keys() == {"advantage_size"}
    total = sum(abs(float(a - b)) for a, b in zip(p, q, strict=True))
    assert float(ungraded["advantage_size"][0].sum()) == pytest.approx(total, rel=1e-6)
