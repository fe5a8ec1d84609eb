"""Which tokens count, against Python sets; the three holders of a distribution, against log_softmax."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opdkit.support import ColumnDist, RowDist, StoredDist, choose, in_set

properties = settings(max_examples=60, deadline=None, database=None)

SAMPLED = torch.tensor([6, 0, 3])


def logits(seed: int, *, positions: int = 3, vocabulary: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(positions, vocabulary, generator=generator, dtype=torch.float64) * 2


def pair() -> dict[str, RowDist]:
    return {"student": RowDist(logits(0)), "teacher": RowDist(logits(1))}


# --- sets ---------------------------------------------------------------------------------------------------

ids = st.integers(0, 8)


@properties
@given(
    st.lists(
        st.tuples(st.lists(ids, min_size=3, max_size=3), st.lists(ids, min_size=5, max_size=5)), max_size=4
    )
)
def test_in_set_is_membership_row_by_row(rows):
    mine = torch.tensor([a for a, _ in rows], dtype=torch.long).view(-1, 3)
    others = torch.tensor([b for _, b in rows], dtype=torch.long).view(-1, 5)
    assert in_set(mine, others).tolist() == [[x in set(b) for x in a] for a, b in rows]


def kept(
    kind: str, student: Tensor, teacher: Tensor, *, k: int, mass: float = 1.0, given=None
) -> list[set[int]]:
    pair = {"student": RowDist(student), "teacher": RowDist(teacher)}
    support = choose(kind, k=k, **pair, sampled_ids=SAMPLED, mass=mass, given=given)
    rows = [
        [v for v, keep in zip(ids, keeps, strict=True) if keep]
        for ids, keeps in zip(support.ids.tolist(), support.keep.tolist(), strict=True)
    ]
    assert all(len(row) == len(set(row)) for row in rows), "no token counts twice"
    return [set(row) for row in rows]


@properties
@given(st.integers(1, 7), st.integers(0, 10**6))
def test_sets_of_both_are_sets(k, seed):
    """union = student + teacher − overlap, symmetric difference = union − overlap, row by row."""
    pair = logits(seed), logits(seed + 1)
    ours, theirs = (kept(kind, *pair, k=k) for kind in ("student_top_k", "teacher_top_k"))
    sets = {kind: kept(kind, *pair, k=k) for kind in ("overlap", "union", "symmetric_difference")}
    for n, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert sets["overlap"][n] == a & b
        assert sets["union"][n] == a | b
        assert sets["symmetric_difference"][n] == a ^ b


@properties
@given(st.integers(1, 7), st.floats(0.01, 1.0), st.integers(0, 10**6))
def test_student_mass_is_the_fewest_tokens_that_hold_it(k, mass, seed):
    student = logits(seed)
    for row, chosen in zip(
        student.softmax(-1), kept("student_mass", student, logits(1), k=k, mass=mass), strict=True
    ):
        falling = row.argsort(descending=True).tolist()[:k]
        assert chosen == set(falling[: len(chosen)]) and chosen
        held = float(row[list(chosen)].sum())
        assert held >= mass - 1e-12 or len(chosen) == k
        assert len(chosen) == 1 or held - float(row[falling[len(chosen) - 1]]) < mass


def test_a_top_k_that_was_known_before_is_taken_as_it_was():
    """What a server was asked for, though the student has moved since."""
    before = choose(
        "student_top_k", k=3, student=RowDist(logits(5)), teacher=RowDist(logits(1)), sampled_ids=SAMPLED
    )
    wanted = [set(row) for row in before.ids.tolist()]
    theirs = kept("teacher_top_k", logits(0), logits(1), k=3)
    got = kept("overlap", logits(0), logits(1), k=3, given=before)
    assert got == [a & b for a, b in zip(wanted, theirs, strict=True)]


@properties
@given(st.integers(1, 7), st.integers(0, 10**6))
def test_top_k_supports_are_the_k_most_probable_ids(k, seed):
    student, teacher = logits(seed), logits(seed + 1)
    for kind, rows, source in (
        ("student_top_k", student, "student_forward"),
        ("teacher_top_k", teacher, "teacher"),
    ):
        support = choose(kind, k=k, student=RowDist(student), teacher=RowDist(teacher), sampled_ids=SAMPLED)
        for chosen, row in zip(support.ids.tolist(), rows.tolist(), strict=True):
            assert set(chosen) == set(sorted(range(7), key=lambda v: -row[v])[:k]) and len(set(chosen)) == k
        assert (
            support.keep.dtype == torch.bool
            and support.keep.all()
            and support.keep.shape == support.ids.shape
        )
        assert (support.source, support.is_full) == (source, False)


def test_the_overlap_of_two_top_k_sets_is_their_intersection():
    """The overlap ratio of the paper is |S^p ∩ S^q| / k."""
    student, teacher = logits(2), logits(3)
    S_p, S_q = student.topk(4, -1).indices, teacher.topk(4, -1).indices
    common = [len(set(a) & set(b)) for a, b in zip(S_p.tolist(), S_q.tolist(), strict=True)]
    assert in_set(S_p, S_q).sum(-1).tolist() == common == in_set(S_q, S_p).sum(-1).tolist()


def test_the_sampled_support_is_the_token_drawn_and_the_full_one_has_no_ids():
    sampled = choose("sampled", k=5, **pair(), sampled_ids=SAMPLED, version=3)
    assert sampled.ids.tolist() == [[6], [0], [3]] and sampled.keep.all()
    assert (sampled.source, sampled.version) == ("sampler", 3)
    full = choose("full", k=5, **pair(), sampled_ids=SAMPLED)
    assert full.is_full and full.keep is None and full.source == "full"


def test_ids_carry_no_gradient():
    student = RowDist(logits(0).requires_grad_())
    support = choose("student_top_k", k=2, student=student, teacher=student, sampled_ids=SAMPLED)
    assert not support.ids.requires_grad
    assert student.at(support.ids).requires_grad  # their log-probs do


# --- whole rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_full", [False, True])
def test_rows_answer_everything_as_log_softmax_does(after_full):
    """`at` and `entropy` take another road once the full rows exist; both roads lead to the same numbers."""
    z = logits(4)
    logp = torch.stack([row - row.exp().sum().log() for row in z])
    row = RowDist(z, sampled_ids=SAMPLED)
    if after_full:
        torch.testing.assert_close(row.full, logp, rtol=0, atol=1e-14)
    slots = torch.tensor([[0, 1], [6, 6], [2, 5]])
    torch.testing.assert_close(row.at(slots), logp.gather(-1, slots), rtol=0, atol=1e-14)
    torch.testing.assert_close(row.sampled, logp[torch.arange(3), SAMPLED], rtol=0, atol=1e-14)
    entropy = torch.tensor([-sum(math.exp(v) * v for v in r) for r in logp.tolist()], dtype=torch.float64)
    torch.testing.assert_close(row.entropy, entropy, rtol=0, atol=1e-14)
    top_ids, top_logp = row.topk(3)
    assert torch.equal(top_logp, row.at(top_ids))
    torch.testing.assert_close(top_logp, logp.sort(-1, descending=True).values[:, :3], rtol=0, atol=1e-14)


def test_some_of_the_rows_are_the_same_numbers_without_a_gradient():
    z = logits(5).requires_grad_()
    row = RowDist(z, sampled_ids=SAMPLED)
    some = row.rows(torch.tensor([2, 0]))
    assert torch.equal(some.full, row.full.detach()[[2, 0]]) and torch.equal(
        some.sampled, row.sampled.detach()[[2, 0]]
    )
    assert not some.full.requires_grad


# --- what was sent ------------------------------------------------------------------------------------------


def test_sent_log_probs_are_found_by_id_wherever_they_came_from():
    logp = logits(7).log_softmax(-1)
    at_ids = torch.tensor([[0, 1], [2, 3], [4, 5]])
    topk_ids = torch.tensor([[6, 1], [6, 0], [6, 2]])
    sent = StoredDist(
        at_ids=at_ids,
        at_logp=logp.gather(-1, at_ids),
        topk_ids=topk_ids,
        topk_logp=logp.gather(-1, topk_ids),
        sampled=logp[:, 0],
        entropy=logp[:, 1],
    )
    asked = torch.tensor([[1, 6, 0], [0, 2, 6], [2, 4, 5]])
    assert torch.equal(sent.at(asked), logp.gather(-1, asked))
    assert torch.equal(sent.at(at_ids.clone()), logp.gather(-1, at_ids))
    assert torch.equal(sent.topk(1)[0], topk_ids[:, :1])
    assert torch.equal(sent.sampled, logp[:, 0]) and torch.equal(sent.entropy, logp[:, 1])


def test_what_was_not_sent_is_refused_never_made_up():
    logp = logits(8).log_softmax(-1)
    some = torch.tensor([[0, 1], [0, 1], [0, 1]])
    sent = StoredDist(topk_ids=some, topk_logp=logp.gather(-1, some))
    for ask in (
        lambda: sent.at(torch.tensor([[0], [0], [2]])),
        lambda: sent.topk(3),
        lambda: sent.sampled,
        lambda: sent.entropy,
        lambda: sent.full,
        lambda: StoredDist().at(some),
        lambda: StoredDist().topk(1),
    ):
        with pytest.raises(LookupError, match="sent"):
            ask()


def test_columns_answer_for_their_own_ids_and_refuse_the_rest():
    slots = torch.tensor([[0, 1]])
    columns = ColumnDist(torch.tensor([[2.0, 3.0]]), ids=slots)
    assert not columns.normalised and columns.at(slots.clone()).tolist() == [[2.0, 3.0]]
    with pytest.raises(AssertionError, match="own ids"):
        columns.at(torch.tensor([[0, 2]]))
    for name in ("sampled", "entropy", "full"):
        with pytest.raises(LookupError, match="columns"):
            getattr(columns, name)
    with pytest.raises(LookupError, match="columns"):
        columns.topk(1)
