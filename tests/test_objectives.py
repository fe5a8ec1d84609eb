"""The objectives against the formulas they claim, in float64 on small vocabularies.

p is the student, q the teacher, S the support, p̄ and q̄ the two renormalised over S, P_S and Q_S their masses
there. The oracle is `opdkit.proofs.oracle`, which `opd selftest` runs as well: loops and autograd over explicit
probabilities, without code of the objectives. Every gradient is with respect to the student's logits.
"""

import math
import typing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from opdkit.config import PRESETS, RECIPES, ObjectiveConfig
from opdkit.config.objective import Divergence
from opdkit.objectives import Objective
from opdkit.proofs.oracle import candidates, oracle, reshaped, term
from opdkit.proofs.ours import expectation, local, value_and_gradient
from opdkit.proofs.specs import POSITIONS, VOCABULARY, K, accepted, logits_pair, named
from opdkit.support import ColumnDist, RowDist, StoredDist, choose
from opdkit.types import Batch, Needs, Support

EXACT = 1e-12  # float64 on sums of a dozen terms

properties = settings(max_examples=40, deadline=None, database=None)


# --- records, and a gradient ------------------------------------------------------------------------------------------


def config(**keys) -> ObjectiveConfig:
    defaults = {"support": "student_top_k", "k": K, "divergence": "reverse_kl", "normalisation": "none"}
    return ObjectiveConfig(**{**defaults, "estimator": "score_function", "weights": "student", **keys})


def unchecked(**keys) -> ObjectiveConfig:
    """A record the configuration refuses, for the proofs of why."""
    return config().model_copy(update=keys)


def gradient_of(loss_of_row, student: Tensor) -> Tensor:
    """Autograd of a scalar function of one row's probabilities, row by row."""
    return torch.stack(
        [
            value_and_gradient(lambda z, n=n: loss_of_row(z.softmax(-1), n), row)[1]
            for n, row in enumerate(student)
        ]
    )


ACCEPTED = accepted()


def test_how_many_objectives_there_are():
    """Per set support: 5 divergences × 3 normalisations × 2 estimators, and for the score function of the
    reverse KL 3 normalisations × 2 further weights; for the sampled token the two names of weight 1. For the six
    sets that leave something out: 5 divergences × 2 estimators with a bucket, 4 with the sampled token."""
    assert len(ACCEPTED) == 7 * (5 * 3 * 2 + 3 * 2) + 2 + 6 * (5 * 2 + 4)


@pytest.mark.parametrize("spec", ACCEPTED, ids=named)
def test_every_objective_is_its_formula(spec):
    student, teacher = logits_pair(1)
    sampled = torch.tensor([0, 3, 8, 2, 5])
    value, gradient = local(spec, student, teacher, sampled=sampled)
    wanted_value, wanted_gradient = oracle(spec, student, teacher, sampled)
    torch.testing.assert_close(value, wanted_value, rtol=0, atol=EXACT)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=0, atol=EXACT)
    assert wanted_gradient.abs().max() > 1e-3  # the agreement is about something


ONE_LIST = ("sampled", "student_top_k", "teacher_top_k")  # whose slots are the oracle's candidates, in order


@pytest.mark.parametrize("spec", [s for s in ACCEPTED if s.support in ONE_LIST], ids=named)
def test_only_kept_slots_count(spec):
    student, teacher = logits_pair(2)
    sampled = torch.tensor([1, 4, 0, 7, 6])
    support = Objective(spec).support(RowDist(student), RowDist(teacher), sampled_ids=sampled)
    keep = torch.rand(support.ids.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    keep[0], keep[1] = False, True
    support = Support(ids=support.ids, keep=keep, source=support.source)
    value, gradient = local(spec, student, teacher, sampled=sampled, support=support)
    wanted_value, wanted_gradient = oracle(spec, student, teacher, sampled, keep)
    torch.testing.assert_close(value, wanted_value, rtol=0, atol=EXACT)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=0, atol=EXACT)
    if spec.normalisation != "tail_sampled":  # there the sampled token stands for everything
        assert value[0] == 0 and (gradient[0] == 0).all()  # an empty set: exactly nothing, not nearly


EMPTIES = [s for s in ACCEPTED if s.support in ("overlap", "symmetric_difference")]


@pytest.mark.parametrize("spec", [s for s in EMPTIES if s.normalisation != "tail_sampled"], ids=named)
def test_an_empty_set_contributes_exactly_nothing(spec):
    """Two models without a common candidate, and two with all of them in common; a nan beside them is not met."""
    student, teacher = logits_pair(3)
    falling = student.argsort(-1, descending=True)
    teacher = teacher.scatter(-1, falling[:, :K], -50.0) if spec.support == "overlap" else student * 0.5
    value, gradient = local(spec, student, teacher)
    assert (value == 0).all() and (gradient == 0).all()


# --- the full vocabulary ------------------------------------------------------------------------------------


def divergence_of_rows(name: str, beta: float, p: Tensor, q: Tensor) -> Tensor:
    return sum(term(name, beta, p[v], q[v]) for v in range(len(p)))


@pytest.mark.parametrize("estimator", ["exact", "score_function"])
@pytest.mark.parametrize("normalisation", ["none", "weights", "both"])
@pytest.mark.parametrize("divergence", typing.get_args(Divergence))
def test_over_the_full_vocabulary_every_estimator_is_the_gradient_of_the_divergence(
    divergence, normalisation, estimator
):
    """The constant dropped from the advantage cancels, since Σ_V p ∇log p = 0."""
    student, teacher = logits_pair(4)
    spec = config(
        support="full",
        divergence=divergence,
        normalisation=normalisation,
        estimator=estimator,
        beta=0.7,
        skew=0.7,
    )
    value, gradient = local(spec, student, teacher)
    q = teacher.softmax(-1)
    wanted = gradient_of(lambda p, n: divergence_of_rows(divergence, 0.7, p, q[n]), student)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=EXACT)
    for n, p in enumerate(student.softmax(-1)):
        assert float(value[n]) == pytest.approx(
            float(divergence_of_rows(divergence, 0.7, p, q[n])), abs=EXACT
        )


def test_js_is_a_scaled_forward_kl_at_small_beta_and_a_scaled_reverse_kl_at_large_beta():
    """js/β → KL(q‖p) as β → 0, js/(1−β) → KL(p‖q) as β → 1, error falling as β does."""
    student, teacher = logits_pair(5)
    for name, end in (("forward_kl", lambda e: (e, e)), ("reverse_kl", lambda e: (1 - e, e))):
        value, gradient = local(config(support="full", divergence=name, estimator="exact"), student, teacher)
        errors = []
        for small in (1e-3, 1e-5):
            beta, scale = end(small)
            js = config(support="full", divergence="js", estimator="exact", beta=beta)
            js_value, js_gradient = local(js, student, teacher)
            errors.append(
                max(
                    float((js_value / scale - value).abs().max()),
                    float((js_gradient / scale - gradient).abs().max()),
                )
            )
        assert errors[0] < 0.1 and errors[1] < errors[0] / 50, (name, errors)


# --- one sampled token --------------------------------------------------------------------------------------


def test_the_sampled_token_is_unbiased_for_the_reverse_kl_in_value_and_gradient():
    student, teacher = logits_pair(6)
    value, gradient = expectation(ObjectiveConfig(preset="sampled"), student, teacher)
    wanted_value, wanted_gradient = local(ObjectiveConfig(preset="full"), student, teacher)
    torch.testing.assert_close(value, wanted_value, rtol=0, atol=EXACT)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=0, atol=EXACT)


def test_differentiating_the_sampled_log_ratio_directly_has_zero_mean_gradient():
    """∇(log p(y) − log q(y)) = ∇log p(y), and E_{y~p} ∇log p(y) = 0: why sampled + exact is refused."""
    student, teacher = logits_pair(7)
    p, q = student.softmax(-1), teacher.log_softmax(-1)
    mean, largest = torch.zeros_like(student), 0.0
    for y in range(VOCABULARY):
        _, gradient = value_and_gradient(lambda z, y=y: z.log_softmax(-1)[:, y] - q[:, y], student)
        mean += p[:, y, None] * gradient
        largest = max(largest, float(gradient.abs().max()))
    assert mean.abs().max() < EXACT and largest > 0.1
    with pytest.raises(ValidationError, match="mean zero"):
        config(support="sampled", estimator="exact")


def test_one_scalar_per_position_carries_no_signal():
    """A·∇log p(y_t) with any A that does not depend on y_t has zero mean, so candidates are never summed
    to one advantage before they meet ∇log p: here A is the whole KL; the true gradient is far from 0."""
    student, teacher = logits_pair(8)
    p = student.softmax(-1)
    A, true_gradient = local(ObjectiveConfig(preset="full"), student, teacher)
    mean = torch.zeros_like(student)
    for y in range(VOCABULARY):
        _, gradient = value_and_gradient(lambda z, y=y: -A * z.log_softmax(-1)[:, y], student)
        mean += p[:, y, None] * gradient
    assert mean.abs().max() < EXACT
    assert true_gradient.abs().max() > 0.1


@pytest.mark.parametrize("spec", [s for s in ACCEPTED if s.normalisation == "tail_sampled"], ids=named)
def test_the_sampled_token_makes_any_set_unbiased(spec):
    """TT-OPD: over the draw of y, value and gradient are the full vocabulary's; the set alone is not."""
    student, teacher = logits_pair(14)
    value, gradient = expectation(spec, student, teacher)
    whole = config(support="full", divergence=spec.divergence, beta=spec.beta, skew=spec.skew)
    wanted_value, wanted_gradient = local(whole, student, teacher)
    torch.testing.assert_close(value, wanted_value, rtol=0, atol=EXACT)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=0, atol=EXACT)
    alone = local(spec.model_copy(update={"normalisation": "none"}), student, teacher)[1]
    assert (alone - wanted_gradient).abs().max() > 1e-3


@pytest.mark.parametrize("divergence", typing.get_args(Divergence))
def test_with_a_bucket_the_score_function_is_exact(divergence):
    """p and q sum to 1 over S and the bucket, so the constant that was dropped cancels there as over the vocabulary."""
    student, teacher = logits_pair(15)
    keys = {"normalisation": "tail_bucket", "divergence": divergence, "support": "union"}
    value, exact = local(config(estimator="exact", **keys), student, teacher)
    same, scored = local(config(estimator="score_function", **keys), student, teacher)
    torch.testing.assert_close(scored, exact, rtol=0, atol=EXACT)
    torch.testing.assert_close(value, same, rtol=0, atol=EXACT)
    assert (value > 0).all()  # a divergence again: the sum over S alone may be negative


def test_a_bucket_that_holds_nothing_is_no_division_by_zero():
    """All mass in S, in float32: the bucket's log is finite, and what it adds is nothing."""
    student = torch.tensor([[30.0, 29.0, -60.0, -60.0]])
    teacher = torch.tensor([[29.0, 30.0, -60.0, -60.0]])
    value, gradient = local(config(k=2, normalisation="tail_bucket", estimator="exact"), student, teacher)
    plain, _ = local(config(k=2, estimator="exact"), student, teacher)
    assert value.isfinite().all() and gradient.isfinite().all()
    torch.testing.assert_close(value, plain, rtol=0, atol=1e-5)


# --- shaping, baselines ---------------------------------------------------------------------------------------------

SHAPED = {"clip": 0.7, "log": None, "power": 2.0, "floor": 0.45}


@pytest.mark.parametrize("support", ["student_top_k", "union", "full", "sampled"])
@pytest.mark.parametrize("name", SHAPED)
def test_shaping_changes_the_advantage_of_each_candidate_and_nothing_else(name, support):
    """−Σ w · shaped(A) · ∇log p, the value being the divergence's all the same."""
    student, teacher = logits_pair(18)
    sampled = torch.tensor([0, 3, 8, 2, 5])
    spec = config(support=support, shaping=name, shaping_value=SHAPED[name])
    value, gradient = local(spec, student, teacher, sampled=sampled)
    plain_value, plain = local(config(support=support), student, teacher, sampled=sampled)
    torch.testing.assert_close(value, plain_value, rtol=0, atol=EXACT)
    p, q = student.softmax(-1), teacher.softmax(-1)

    def pushed(row, n):
        S = candidates(spec, p[n], q[n], int(sampled[n]))
        weights = [1.0 if support == "sampled" else float(p[n, v]) for v in S]
        gains = [reshaped(name, SHAPED[name], float(p[n, v]), float(q[n, v])) for v in S]
        return -sum(w * a * row[v].log() for w, a, v in zip(weights, gains, S, strict=True))

    torch.testing.assert_close(gradient, gradient_of(pushed, student), rtol=0, atol=EXACT)
    assert (gradient - plain).abs().max() > 1e-3


def test_shapes_have_the_limits_they_are_said_to_have():
    """A wide clip and a floor at 0 change nothing; power over its exponent is the log-ratio as the exponent falls."""
    student, teacher = logits_pair(19)
    _, plain = local(config(), student, teacher)
    for wide in ({"shaping": "clip", "shaping_value": 1e3}, {"shaping": "floor", "shaping_value": 1e-9}):
        assert torch.equal(local(config(**wide), student, teacher)[1], plain)
    errors = []
    for small in (1e-2, 1e-4):
        _, power = local(config(shaping="power", shaping_value=small), student, teacher)
        errors.append(float((power / small - plain).abs().max()))
    assert errors[1] < errors[0] / 50


@pytest.mark.parametrize("baseline", ["kl", "kl_top_k"])
def test_a_baseline_leaves_the_mean_and_lowers_the_variance(baseline):
    """vOPD: b · ∇log p(y) has mean 0 for any b that does not see y; with b = KL the second moment falls."""
    student, teacher = logits_pair(20)
    plain, lowered = config(support="sampled"), config(support="sampled", baseline=baseline)
    value, gradient = expectation(lowered, student, teacher)
    wanted_value, wanted = expectation(plain, student, teacher)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=EXACT)
    torch.testing.assert_close(value, wanted_value, rtol=0, atol=EXACT)

    def second_moment(spec):
        p, total = student.softmax(-1), 0.0
        for y in range(VOCABULARY):
            _, g = local(spec, student, teacher, sampled=torch.full((POSITIONS,), y))
            total += float((p[:, y] * (g**2).sum(-1)).sum())
        return total

    assert second_moment(lowered) < 0.9 * second_moment(plain)


@pytest.mark.parametrize(
    "keys, words",
    [({"shaping": "clip", "estimator": "exact"}, "score_function"), ({"shaping": "power", "divergence": "js"}, "reverse_kl"),
     ({"shaping": "floor", "shaping_value": 1.5}, "shaping_value < 1"), ({"baseline": "kl"}, "sampled")],
)  # fmt: skip
def test_shapes_and_baselines_that_act_on_nothing_are_refused(keys, words):
    with pytest.raises(ValidationError, match=words):
        config(**keys)


def test_a_baseline_says_what_it_needs():
    assert Objective(config(support="sampled", baseline="kl")).teacher_needs.full
    needs = Objective(config(support="sampled", baseline="kl_top_k")).teacher_needs
    assert needs == Needs(sampled=True, at_ids=True)
    assert Objective(config(support="sampled", baseline="kl_top_k")).student_needs.top_k == K


@pytest.mark.parametrize("preset", ["paper", "paper-eq5", "sampled", "full"])
def test_the_gated_forward_kl_acts_where_the_teacher_is_unsure(preset):
    """EOPD: the objective's own gradient, and α ∇KL(q̄‖p) over the teacher's top k where H(q) > τ; nothing elsewhere."""
    student, teacher = logits_pair(21)
    teacher = teacher * torch.tensor([0.2, 4.0, 1.0, 6.0, 0.5], dtype=torch.float64)[:, None]
    keys = {"preset": preset} | ({} if preset in ("full", "sampled") else {"k": K})
    own_value, own = local(ObjectiveConfig(**keys), student, teacher)
    spec = ObjectiveConfig(**keys, forward_gate=0.5, gate_k=3, gate_entropy=1.0)
    value, gradient = local(spec, student, teacher)
    q = teacher.softmax(-1)
    unsure = [-float((row * row.log()).sum()) > 1.0 for row in q]
    assert 0 < sum(unsure) < POSITIONS

    def forward(p, n):
        S = sorted(range(VOCABULARY), key=lambda v: -float(q[n, v]))[:3]
        total = sum(float(q[n, v]) for v in S)
        kl = sum(float(q[n, v]) / total * (math.log(float(q[n, v]) / total) - p[v].log()) for v in S)
        return 0.5 * kl if unsure[n] else 0.0 * p.sum()

    torch.testing.assert_close(gradient - own, gradient_of(forward, student), rtol=0, atol=EXACT)
    wanted = torch.stack([forward(row, n) for n, row in enumerate(student.softmax(-1))])
    torch.testing.assert_close(value - own_value, wanted, rtol=0, atol=EXACT)
    needs = Objective(spec).teacher_needs
    assert needs.entropy and needs.top_k >= 3 and not Objective(spec).columns_only


# --- top-k --------------------------------------------------------------------------------------------------


def masses(student: Tensor, teacher: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    return student.softmax(-1).gather(-1, ids).sum(-1), teacher.softmax(-1).gather(-1, ids).sum(-1)


def gradient_of_mass(student: Tensor, ids: Tensor, *, log: bool) -> Tensor:
    def mass(p, n):
        P = sum(p[v] for v in ids[n].tolist())
        return P.log() if log else P

    return gradient_of(mass, student)


@pytest.mark.parametrize("k", [1, 2, 4, VOCABULARY])
def test_the_released_code_is_eq5_plus_a_term_on_the_mass_in_the_support(k):
    """g(paper) = ∇KL(p̄‖q̄) + [KL(p̄‖q̄) + log(P_S/Q_S)]·∇log P_S; over the whole vocabulary the term is gone."""
    student, teacher = logits_pair(9)
    ids = student.topk(k, -1).indices
    _, paper = local(ObjectiveConfig(preset="paper", k=k), student, teacher)
    kl, eq5 = local(unchecked(k=k, normalisation="both", estimator="exact"), student, teacher)
    P, Q = masses(student, teacher, ids)
    extra = (kl + (P / Q).log())[:, None] * gradient_of_mass(student, ids, log=True)
    torch.testing.assert_close(paper, eq5 + extra, rtol=0, atol=EXACT)
    assert (extra.abs().max() > 1e-2) == (k < VOCABULARY)


@pytest.mark.parametrize("k", [1, 3, VOCABULARY])
def test_truncating_without_renormalising_pulls_on_the_mass(k):
    """∇Σ_S p log(p/q) − Σ_S p log(p/q) ∇log p = Σ_S p ∇log p = ∇P_S: the "+1" no longer cancels."""
    student, teacher = logits_pair(10)
    ids = student.topk(k, -1).indices
    _, exact = local(config(k=k, estimator="exact"), student, teacher)
    _, scored = local(config(k=k), student, teacher)
    bias = gradient_of_mass(student, ids, log=False)
    by_token = gradient_of(
        lambda p, n: sum(float(p.detach()[v]) * p[v].log() for v in ids[n].tolist()), student
    )
    torch.testing.assert_close(exact - scored, bias, rtol=0, atol=EXACT)
    torch.testing.assert_close(by_token, bias, rtol=0, atol=EXACT)
    assert (bias.abs().max() > 1e-2) == (k < VOCABULARY)


@pytest.mark.parametrize("divergence", typing.get_args(Divergence))
def test_where_both_are_renormalised_the_score_function_is_exact(divergence):
    """Σ_S p̄ ∇log p̄ = 0, so the dropped constant cancels on S as it does on V."""
    student, teacher = logits_pair(11)
    keys = {"normalisation": "both", "divergence": divergence, "support": "teacher_top_k"}
    _, exact = local(config(estimator="exact", **keys), student, teacher)
    _, scored = local(config(estimator="score_function", **keys), student, teacher)
    torch.testing.assert_close(scored, exact, rtol=0, atol=EXACT)
    assert exact.abs().max() > 1e-2


@pytest.mark.parametrize("estimator", ["exact", "score_function"])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js"])
@pytest.mark.parametrize("kind", ["student_top_k", "teacher_top_k"])
def test_eq5_over_one_token_is_identically_zero_and_refused(kind, divergence, estimator):
    student, teacher = logits_pair(12)
    keys = {
        "k": 1,
        "normalisation": "both",
        "support": kind,
        "divergence": divergence,
        "estimator": estimator,
    }
    value, gradient = local(unchecked(**keys), student, teacher)
    assert value.abs().max() == 0 and gradient.abs().max() < 1e-15
    with pytest.raises(ValidationError, match="identically 0"):
        config(**keys)


def test_the_paper_preset_keeps_a_signal_at_one_token():
    student, teacher = logits_pair(12)
    value, gradient = local(ObjectiveConfig(preset="paper", k=1), student, teacher)
    assert value.abs().min() > 1e-2 and gradient.abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("kind", ["student_top_k", "teacher_top_k"])
@pytest.mark.parametrize("estimator", ["exact", "score_function"])
def test_eq5_needs_the_columns_of_the_support_only(kind, estimator):
    """log p̄ = z − logsumexp_S z on unnormalised columns: loss and gradient of whole rows."""
    student, teacher = logits_pair(13)
    objective = Objective(ObjectiveConfig(preset="paper-eq5", k=K, support=kind, estimator=estimator))
    assert objective.columns_only
    sampled = torch.zeros(POSITIONS, dtype=torch.long)
    support = objective.support(RowDist(student), RowDist(teacher), sampled_ids=sampled)
    value, gradient = local(objective.spec, student, teacher, support=support)
    q = ColumnDist(teacher.gather(-1, support.ids) + 7.0, ids=support.ids)

    def from_columns(z):
        return objective.local(ColumnDist(z.gather(-1, support.ids), ids=support.ids), q, support)

    column_value, column_gradient = value_and_gradient(from_columns, student)
    torch.testing.assert_close(column_value, value, rtol=0, atol=EXACT)
    torch.testing.assert_close(column_gradient, gradient, rtol=0, atol=EXACT)


@pytest.mark.parametrize("preset", ["paper", "sampled"])
def test_columns_are_refused_where_the_normaliser_does_not_cancel(preset):
    student, teacher = logits_pair(13)
    objective = Objective(ObjectiveConfig(preset=preset))
    assert not objective.columns_only
    ids = student.topk(1, -1).indices
    support = Support(ids=ids, keep=torch.ones_like(ids, dtype=torch.bool))
    with pytest.raises(AssertionError, match="columns"):
        objective.local(ColumnDist(student.gather(-1, ids), ids=ids), RowDist(teacher), support)


def test_a_teacher_that_sent_log_probs_at_the_ids_is_as_good_as_its_rows():
    student, teacher = logits_pair(14)
    objective = Objective(config(normalisation="weights"))
    ids = student.topk(K, -1).indices
    support = choose(
        "student_top_k", k=K, student=RowDist(student), teacher=RowDist(teacher), sampled_ids=ids[:, 0]
    )
    sent = StoredDist(at_ids=ids, at_logp=teacher.log_softmax(-1).gather(-1, ids))
    ours = value_and_gradient(lambda z: objective.local(RowDist(z), sent, support), student)
    rows = value_and_gradient(lambda z: objective.local(RowDist(z), RowDist(teacher), support), student)
    torch.testing.assert_close(ours, rows, rtol=0, atol=EXACT)


# --- what the configuration refuses, needs and weighs -------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"support": "sampled", "estimator": "exact"}, "mean zero"),
        ({"support": "sampled", "normalisation": "both"}, "identically 0"),
        ({"support": "student_top_k", "normalisation": "both", "k": 1}, "identically 0"),
        ({"support": "teacher_top_k", "normalisation": "both", "k": 1}, "identically 0"),
        ({"weights": "teacher", "estimator": "exact"}, "score function of the reverse KL"),
        ({"weights": "uniform", "divergence": "forward_kl"}, "score function of the reverse KL"),
        ({"weights": "teacher", "divergence": "js"}, "score function of the reverse KL"),
        ({"support": "sampled", "weights": "teacher"}, "one candidate"),
        ({"support": "sampled", "divergence": "forward_kl"}, "unbounded ratio"),
        ({"support": "sampled", "divergence": "js"}, "unbounded ratio"),
    ],
)
def test_what_is_not_an_objective_is_refused_with_a_reason_and_a_remedy(keys, why):
    with pytest.raises(ValidationError, match=why) as refused:
        config(**keys)
    assert "(use " in refused.value.errors()[0]["msg"]


def test_over_the_full_vocabulary_k_is_not_read_so_one_is_no_obstacle():
    assert config(support="full", normalisation="both", k=1).k == 1


@pytest.mark.parametrize(
    ("preset", "student", "teacher"),
    [
        ("paper", Needs(top_k=16), Needs(at_ids=True)),
        ("paper-eq5", Needs(top_k=16), Needs(at_ids=True)),
        ("sampled", Needs(sampled=True), Needs(sampled=True)),
        ("full", Needs(full=True), Needs(full=True)),
    ],
)
def test_needs_of_the_presets(preset, student, teacher):
    objective = Objective(ObjectiveConfig(preset=preset))
    assert (objective.student_needs, objective.teacher_needs) == (student, teacher)


UNBIASED = {"sampled": "reverse_kl", "full": "reverse_kl", "tt-opd": "reverse_kl", "vopd": "reverse_kl"}
EXACT_OF_ANOTHER = {"gkd": "js", "distillm": "skewed_reverse_kl"}
BIASED = {"paper", "paper-eq5", "teacher-top-k", "power-opd", "reopold", "eopd", "log-opd"}
COUPLED = {
    *("minillm", "gamma-opd", "token-grpo", "iw-opd", "prefix-opd", "ta-opd", "tip", "sign-gate", "kdrl"),
    *("opd-then-rl", "paced", "one-end"),
}
"""Unbiased at a position; what their signal, or merged ends, make of that is tests/test_signal.py."""
OTHER_TARGETS = {"exopd", "delta-opd", "veto", "stable-opd"}
"""Need further models: tests/test_signal.py."""


def test_every_preset_is_proven_somewhere():
    assert set(PRESETS) == {*UNBIASED, *EXACT_OF_ANOTHER, *BIASED, *COUPLED, *OTHER_TARGETS}
    assert all(RECIPES[name].source.startswith("arXiv ") for name in PRESETS)


@pytest.mark.parametrize("preset", sorted({*PRESETS} - OTHER_TARGETS))
def test_a_preset_is_biased_or_not_as_its_record_says(preset):
    """Over the draw of y, against the full vocabulary's gradient of the divergence that the record names."""
    student, teacher = logits_pair(22)
    wide = {"k": 3, "gate_k": 3} if preset not in ("sampled", "full") else {}
    spec = ObjectiveConfig(preset=preset, **wide)
    _, gradient = expectation(spec, student, teacher)
    divergence = EXACT_OF_ANOTHER.get(preset, "reverse_kl")
    whole = config(support="full", divergence=divergence, beta=spec.beta, skew=spec.skew)
    error = float((gradient - local(whole, student, teacher)[1]).abs().max())
    says = RECIPES[preset].gradient
    if preset in BIASED:
        assert error > 1e-3 and (says.startswith("biased") or preset == "eopd")
    else:
        first = (
            ("unbiased", "exact", "weighted", "gated", "scaled")
            if preset in COUPLED
            else ("unbiased", "exact")
        )
        assert error < EXACT and says.startswith(first)


def test_needs_of_the_teachers_top_k():
    objective = Objective(config(support="teacher_top_k"))
    assert (objective.student_needs, objective.teacher_needs) == (Needs(at_ids=True), Needs(top_k=K))


def test_ids_that_came_with_the_batch_serve_only_the_support_they_were_chosen_for():
    student, teacher = (RowDist(z) for z in logits_pair(15))
    sampled = torch.zeros(POSITIONS, dtype=torch.long)
    ids = torch.arange(K).expand(POSITIONS, K)
    given = Support(ids=ids, keep=torch.ones_like(ids, dtype=torch.bool), source="sampler")
    for kind, used in (
        ("student_top_k", True),
        ("teacher_top_k", False),
        ("sampled", False),
        ("full", False),
    ):
        spec = config(support=kind, normalisation="weights")
        chosen = Objective(spec).support(student, teacher, sampled_ids=sampled, given=given)
        assert (chosen is given) == used


def test_a_window_trains_the_first_tokens_of_every_response():
    trained = torch.tensor([True, True, True, False, True])
    depth = torch.tensor([0, 1, 2, 0, 1])
    zeros = torch.zeros(5, dtype=torch.long)
    batch = Batch(
        rollouts=(), scores={}, row=zeros, depth=depth, sampled_ids=zeros, trained=trained, measured=trained
    )
    assert Objective(config(signal={"window": 2})).prepare(batch).weight.tolist() == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert Objective(config()).prepare(batch).weight.tolist() == trained.float().tolist()


def test_the_weight_of_a_position_is_one_where_it_trains_and_zero_elsewhere():
    trained = torch.tensor([True, False, True])
    zeros = torch.zeros(3, dtype=torch.long)
    batch = Batch(
        rollouts=(), scores={}, row=zeros, depth=zeros, sampled_ids=zeros, trained=trained, measured=trained
    )
    assert Objective(config()).prepare(batch).weight.tolist() == [1.0, 0.0, 1.0]


# --- properties ---------------------------------------------------------------------------------------------


def rows(size: int, *, limit: float = 12.0):
    number = st.floats(-limit, limit, allow_nan=False, width=32)
    return st.lists(number, min_size=size, max_size=size).map(
        lambda row: torch.tensor([row], dtype=torch.float64)
    )


@st.composite
def pairs(draw):
    size = draw(st.integers(5, 12))
    return draw(rows(size)), draw(rows(size))


@properties
@given(pairs(), st.sampled_from(["reverse_kl", "forward_kl", "js"]), st.floats(0.05, 0.95))
def test_a_divergence_of_full_rows_is_positive_unless_they_are_equal(pair, divergence, beta):
    """Pinsker: KL ≥ ½‖p−q‖₁², and so js ≥ ½ β(1−β)‖p−q‖₁². Zero means equal, equal means zero."""
    student, teacher = pair
    spec = config(support="full", divergence=divergence, estimator="exact", beta=beta)
    distance = (student.softmax(-1) - teacher.softmax(-1)).abs().sum()
    bound = 0.5 * float(distance) ** 2 * (beta * (1 - beta) if divergence == "js" else 1.0)
    value, _ = local(spec, student, teacher)
    assert float(value) >= bound - 1e-13
    same, gradient = local(spec, student, student)
    assert abs(float(same)) < 1e-15 and gradient.abs().max() < 1e-14


def test_a_truncated_sum_may_be_negative():
    """Σ_S p log(p/q) with q larger on all of S; over the whole row it is positive."""
    student = torch.tensor([[1.0, 0.9, 0.8, 0.8, 0.8]], dtype=torch.float64)
    teacher = torch.tensor([[3.0, 2.9, 0.0, 0.0, 0.0]], dtype=torch.float64)
    truncated, _ = local(config(k=2, estimator="exact"), student, teacher)
    whole, _ = local(config(support="full", estimator="exact"), student, teacher)
    assert truncated < -0.1 and whole > 0.1


@properties
@given(pairs(), st.sampled_from(ACCEPTED), st.floats(-30, 30), st.floats(-30, 30))
def test_a_constant_added_to_the_logits_changes_nothing(pair, spec, student_shift, teacher_shift):
    """Ids are fixed first: a shift rounds the logits, which top-k notices at a tie."""
    student, teacher = pair
    sampled = torch.zeros(1, dtype=torch.long)
    support = Objective(spec).support(RowDist(student), RowDist(teacher), sampled_ids=sampled)
    plain = local(spec, student, teacher, support=support)
    shifted = local(spec, student + student_shift, teacher + teacher_shift, support=support)
    scale = max(1.0, float(plain[0].abs().max()), float(plain[1].abs().max()))  # q/p may be e^24
    torch.testing.assert_close(shifted[0] / scale, plain[0] / scale, rtol=0, atol=1e-11)
    torch.testing.assert_close(shifted[1] / scale, plain[1] / scale, rtol=0, atol=1e-11)


@properties
@given(st.sampled_from(ACCEPTED), st.permutations(range(VOCABULARY)), st.integers(0, 10**6))
def test_renaming_the_vocabulary_renames_the_gradient_and_nothing_else(spec, order, seed):
    student, teacher = logits_pair(seed)
    order = torch.tensor(order)
    sampled = torch.arange(POSITIONS)
    value, gradient = local(spec, student, teacher, sampled=sampled)
    renamed_value, renamed_gradient = local(
        spec, student[:, order], teacher[:, order], sampled=order.argsort()[sampled]
    )
    torch.testing.assert_close(renamed_value, value, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(renamed_gradient, gradient[:, order], rtol=1e-11, atol=1e-11)


def slots(logp: Tensor, support: Support) -> StoredDist:
    """A distribution that holds any numbers at the support's slots, as padding would; another token was sampled."""
    sampled, ids = torch.full_like(logp[:, 0], -1.5).detach(), torch.full_like(support.ids[:, 0], 99)
    return StoredDist(at_ids=support.ids, at_logp=logp, sampled=sampled, sampled_ids=ids)


GARBAGE = (math.nan, math.inf, -math.inf, 1e308, -1e308, 1e30, 0.0, 700.0)


@properties
@given(st.sampled_from([s for s in ACCEPTED if s.support != "full"]), st.data())
def test_slots_that_are_not_kept_may_hold_anything(spec, data):
    """Value and gradient are bit for bit those with 0 in the slots; a nan there does not return."""
    width = 1 if spec.support == "sampled" else K
    flags = st.lists(st.booleans(), min_size=3 * width, max_size=3 * width)
    keep = torch.tensor(data.draw(flags)).view(3, width)
    keep[2] = False
    fill = st.lists(st.sampled_from(GARBAGE), min_size=3 * width, max_size=3 * width)
    p, q = (z.log_softmax(-1)[:3, :width] for z in logits_pair(17))
    ids = torch.arange(width).expand(3, width)
    support = Support(ids=ids, keep=keep)
    junk_p, junk_q = (torch.tensor(data.draw(fill), dtype=torch.float64).view(3, width) for _ in range(2))

    def run(p_slots, q_slots):
        return value_and_gradient(
            lambda z: Objective(spec).local(slots(z, support), slots(q_slots, support), support), p_slots
        )

    clean = run(torch.where(keep, p, 0.0), torch.where(keep, q, 0.0))
    dirty = run(torch.where(keep, p, junk_p), torch.where(keep, q, junk_q))
    for ours, wanted in zip(dirty, clean, strict=True):
        assert torch.equal(ours, wanted)
        assert ours.isfinite().all()
    assert (dirty[1][~keep] == 0).all()
    assert (dirty[0][2] == 0 or spec.normalisation == "tail_sampled") and (dirty[1][2] == 0).all()
