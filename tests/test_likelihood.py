"""Likelihood objectives: what a step's gradient is, against plain loops that share no code with the package.

Letters: N response tokens of a step, V vocabulary, A advantage of a response.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import tiny_loaded
from opdkit.config import LearnerConfig, OptimConfig
from opdkit.models.student import Student
from opdkit.objectives import Likelihood, advantages, group_relative, imitation, push_down
from opdkit.run.world import World
from opdkit.train.collate import collate
from opdkit.train.learner import Learner, Part, Update
from opdkit.types import Batch, Grade, Needs, Prompt, Rollout
from ranks import rollouts

WORLD = World(torch.device("cpu"))
VOCABULARY = 384
properties = settings(max_examples=60, deadline=None, database=None)

IMITATION = Likelihood(imitation)
GRPO = Likelihood(group_relative)
PLAIN = Likelihood(partial(group_relative, scale="none"))
PUSH_DOWN = Likelihood(push_down, student_needs=Needs(sampled=True, entropy=True))
SCORES = (
    1.0,
    0.0,
    0.75,
    0.25,
    1.0,
    1.0,
    None,
    1.0,
    0.5,
    0.0,
    0.0,
    1.0,
)  # of `given`: six prompts, two responses


def make_learner(budget: int = 10**6, *, chunk: int = 0, lr: float = 1e-2) -> Learner:
    return Learner(
        Student(tiny_loaded("qwen3", seed=1, dtype=torch.float64), k=4, chunk_rows=chunk),
        optim=OptimConfig(lr=lr, clip=1e9),
        learner=LearnerConfig(batch_tokens=budget),
        steps=10,
        world=WORLD,
        max_tokens=16,
    )


def given_rollouts(scores: Sequence[float | None] = SCORES) -> list[Rollout]:
    """Ragged responses, graded, with what a sampler would have said of their tokens."""
    generator = torch.Generator().manual_seed(7)
    graded = zip(rollouts(VOCABULARY), scores, strict=True)
    return [
        replace(
            rollout,
            finish_reason="stop",
            grade=Grade(score, None if score is not None else "timeout"),
            logp=-5 * torch.rand(rollout.length, generator=generator),
            entropy=6 * torch.rand(rollout.length, generator=generator),
        )
        for rollout, score in graded
    ]


def gradient(learner: Learner, batch: Batch, objective: Likelihood) -> dict[str, Tensor]:
    signal = objective.prepare(batch)
    parts = [Part(batch, signal, objective)]
    learner._backward(parts, {}, learner._global_count(parts))
    found = {n: p.grad.clone() for n, p in learner.student.model.named_parameters() if p.grad is not None}
    learner.optimizer.zero_grad()
    return found


def updated(learner: Learner, batch: Batch, objective: Likelihood) -> Update:
    signal = objective.prepare(batch)
    return learner.update(Part(batch, signal, objective), step=0)


def plain(
    rows: Sequence[Rollout], loss: Callable[[Sequence[Tensor]], Tensor]
) -> tuple[float, dict[str, Tensor]]:
    """Value and gradient of `loss` of each rollout's logits [T, V]: one row at a time, Hugging Face's own forward."""
    model = tiny_loaded("qwen3", seed=1, dtype=torch.float64).model.requires_grad_(True)
    logits = []
    for rollout in rows:
        ids = torch.tensor([[*rollout.prompt.ids, *rollout.response_ids]])
        logits.append(model(ids).logits[0, len(rollout.prompt.ids) - 1 : -1])
    value = loss(logits)
    value.backward()
    return float(value.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def weighted_likelihood(
    rows: Sequence[Rollout], weights: Sequence[Sequence[float]], count: int
) -> dict[str, Tensor]:
    """Gradient of −1/N Σ w log p(y), every token by hand."""

    def loss(logits: Sequence[Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for rollout, row, ws in zip(rows, logits, weights, strict=True):
            for token, scores, w in zip(rollout.response_ids, row, ws, strict=True):
                total = total - w * (scores[token] - scores.logsumexp(0))
        return total / count

    return plain(rows, loss)[1]


def error(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """‖g − g′‖ / ‖g′‖ of the whole gradient."""
    assert ours.keys() == theirs.keys()
    return size({n: ours[n] - theirs[n] for n in ours}) / size(theirs)


def size(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))


def spread_out(values: Sequence[float], rows: Sequence[Rollout]) -> list[list[float]]:
    """One value per rollout, for each of its tokens."""
    return [[value] * rollout.length for value, rollout in zip(values, rows, strict=True)]


# --- sft ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_imitation_is_mean_cross_entropy(masked: bool) -> None:
    """Value and gradient; tokens that are not trained are what cross_entropy calls ignored."""
    rows = given_rollouts()
    if masked:
        rows = [
            replace(r, trained=tuple((t + i) % 3 > 0 for t in range(r.length))) for i, r in enumerate(rows)
        ]
    learner = make_learner(budget=50, chunk=5)
    batch = collate(rows, {})

    def loss(logits: Sequence[Tensor]) -> Tensor:
        targets = [
            token if trained else -100
            for r in rows
            for token, trained in zip(r.response_ids, r.trained or (True,) * r.length, strict=True)
        ]
        return torch.nn.functional.cross_entropy(torch.cat(list(logits)), torch.tensor(targets))

    value, theirs = plain(rows, loss)
    assert error(gradient(learner, batch, IMITATION), theirs) <= 1e-10
    update = updated(learner, batch, IMITATION)
    assert update.tally.means()["loss"] == pytest.approx(value, abs=1e-10)
    assert update.grad_norm == pytest.approx(size(theirs), rel=1e-10)
    assert update.tally.means()["logp_sampled"] == pytest.approx(-value, abs=1e-10)


def test_what_is_imitated_becomes_likelier() -> None:
    batch, learner = collate(given_rollouts(), {}), make_learner()
    losses = [updated(learner, batch, IMITATION).tally.means()["loss"] for _ in range(6)]
    assert losses[-1] < 0.5 * losses[0]


# --- grpo ---------------------------------------------------------------------------------------------------


def by_hand(rows: Sequence[Rollout], *, scale: str) -> list[float]:
    """(score − mean of the prompt's scores) / (sample standard deviation + 1e-4); 0 without a score."""
    found = []
    for rollout in rows:
        group = [score_of(r) for r in rows if r.prompt.id == rollout.prompt.id]
        scores = [s for s in group if s is not None]
        mine = score_of(rollout)
        if mine is None or len(set(scores)) < 2:
            found.append(0.0)
            continue
        over = statistics.stdev(scores) + 1e-4 if scale == "std" else 1.0
        found.append((mine - statistics.fmean(scores)) / over)
    return found


def score_of(rollout: Rollout) -> float | None:
    if rollout.grade is None or rollout.grade.score is None:
        return None
    return 0.0 if rollout.finish_reason == "length" else rollout.grade.score


def graded(*scores: float | None, prompt: str = "a", cut: Sequence[int] = ()) -> list[Rollout]:
    return [
        Rollout(
            Prompt(prompt, ids=(5,)),
            (7, 3),
            "length" if i in cut else "stop",
            grade=None if score is None else Grade(score),
        )
        for i, score in enumerate(scores)
    ]


@pytest.mark.parametrize("scale", ["std", "none"])
@properties
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.none() | st.sampled_from([0.0, 0.1, 0.25, 0.7, 1.0]) | st.floats(0, 1, width=16),
            st.booleans(),
        ),
        min_size=1,
        max_size=16,
    )
)
def test_advantages_are_those_of_a_loop(scale: str, drawn: list[tuple[str, float | None, bool]]) -> None:
    """Groups in any order, ties, ungraded and truncated responses, groups of one."""
    rows = [
        Rollout(Prompt(prompt), (3,), "length" if cut else "stop", grade=Grade(score))
        for prompt, score, cut in drawn
    ]
    ours, theirs = advantages(rows, scale=scale).tolist(), by_hand(rows, scale=scale)
    assert ours == pytest.approx(theirs, rel=2e-3, abs=2e-3)  # float32, over spreads down to 1e-4
    if scale == "none":
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_advantages_in_numbers() -> None:
    """Two right of four: mean 1/2, sample deviation sqrt(1/3)."""
    high = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    assert advantages(graded(1.0, 0.0, 0.0, 1.0)).tolist() == pytest.approx([high, -high, -high, high])
    assert advantages(graded(1.0, 0.0, 0.0, 1.0), scale="none").tolist() == [0.5, -0.5, -0.5, 0.5]
    assert advantages(graded(0.2, 0.8), scale="none").tolist() == pytest.approx([-0.3, 0.3])
    apart = [*graded(1.0, 0.0), *graded(1.0, 1.0, prompt="b")]
    assert advantages(apart, scale="none").tolist() == [0.5, -0.5, 0.0, 0.0]


def test_a_response_without_a_score_is_no_part_of_its_group() -> None:
    """Neither trained on nor counted in the mean; a grader that failed is like one that was never asked."""
    ungraded = graded(1.0, None, 0.0, None)
    failed = [replace(r, grade=r.grade or Grade(None, "timeout")) for r in ungraded]
    for rows in (ungraded, failed):
        assert advantages(rows, scale="none").tolist() == [0.5, 0.0, -0.5, 0.0]
    assert advantages(graded(1.0, None, None)).tolist() == [0.0, 0.0, 0.0]  # alone in its group
    assert advantages(graded(None, None)).tolist() == [0.0, 0.0]


def test_a_truncated_response_scores_nothing() -> None:
    assert advantages(graded(1.0, 1.0, cut=[1]), scale="none").tolist() == [0.5, -0.5]
    assert advantages(graded(1.0, 1.0, cut=[0, 1])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("score", [0.0, 1.0, 0.1, 0.7, 0.9, 1 / 3])
@pytest.mark.parametrize("members", [2, 3, 6, 7])
@pytest.mark.parametrize("scale", ["std", "none"])
def test_a_group_that_agrees_says_nothing(score: float, members: int, scale: str) -> None:
    """Exactly nothing: a mean rounded by a hair would be a gradient, and AdamW makes any gradient a full step."""
    assert advantages(graded(*[score] * members), scale=scale).tolist() == [0.0] * members


def test_a_step_of_ties_has_no_gradient() -> None:
    batch, learner = collate(given_rollouts([0.7] * 12), {}), make_learner()
    assert size(gradient(learner, batch, GRPO)) == 0.0
    assert updated(learner, batch, GRPO).grad_norm == 0.0


@pytest.mark.parametrize(("scale", "tolerance"), [("none", 1e-12), ("std", 1e-6)])  # weights are float32
def test_the_gradient_is_the_policy_gradient(scale: str, tolerance: float) -> None:
    """−1/N Σ A ∇log p with N all trained tokens, those of ties and of failed graders too."""
    rows = given_rollouts()
    rows[8] = replace(rows[8], finish_reason="length")
    weights = by_hand(rows, scale=scale)
    assert min(weights) < 0 < max(weights) and weights.count(0.0) >= 4
    theirs = weighted_likelihood(rows, spread_out(weights, rows), count=sum(r.length for r in rows))
    ours = gradient(make_learner(budget=60, chunk=7), collate(rows, {}), PLAIN if scale == "none" else GRPO)
    assert error(ours, theirs) <= tolerance


def test_what_was_worse_than_its_group_is_trained_down() -> None:
    """One response is all there is to train on, its advantage negative: it becomes less likely."""
    rows = given_rollouts([0.0, 1.0] + [None] * 10)
    rows[1] = replace(rows[1], trained=(False,) * rows[1].length)
    batch, learner = collate(rows, {}), make_learner(lr=1e-3)
    before = updated(learner, batch, PLAIN)
    after = updated(learner, batch, PLAIN)
    assert before.grad_norm > 0
    assert after.sequences["logp_sampled"][0] < before.sequences["logp_sampled"][0] - 1e-3


def test_right_rises_and_wrong_falls() -> None:
    batch, learner = collate(given_rollouts([1.0, 0.0] * 6), {}), make_learner(lr=1e-3)
    first = updated(learner, batch, GRPO).sequences["logp_sampled"]
    for _ in range(4):
        last = updated(learner, batch, GRPO).sequences["logp_sampled"]
    assert (last[::2] > first[::2]).all() and (last[1::2] < first[1::2]).all()


# --- push_down ----------------------------------------------------------------------------------------------


def push_by_hand(logp: Sequence[float], entropy: Sequence[float], share: float) -> list[float]:
    """F25 as a loop: the share of tokens of lowest log p get −1/2 − (H − Hmin) / (2 (Hmax − Hmin))."""
    order = sorted(range(len(logp)), key=lambda i: logp[i])
    chosen = order[: int(share * len(logp))]
    found = [0.0] * len(logp)
    for i in chosen:
        low, high = min(entropy[j] for j in chosen), max(entropy[j] for j in chosen)
        found[i] = -0.5 - ((entropy[i] - low) / (2 * (high - low)) if high > low else 0.0)
    return found


def said(lengths: Sequence[int], logp: Sequence[float], entropy: Sequence[float]) -> Batch:
    """Rollouts of these lengths with what the sampler said of their tokens."""
    columns = zip(
        torch.tensor(logp).split(list(lengths)), torch.tensor(entropy).split(list(lengths)), strict=True
    )
    rows = [
        Rollout(Prompt(str(i), ids=(5,)), (7,) * len(p), "stop", logp=p, entropy=h)
        for i, (p, h) in enumerate(columns)
    ]
    return collate(rows, {})


@st.composite
def sampled(draw: st.DrawFn) -> tuple[list[int], list[float], list[float]]:
    """Lengths of rollouts (one may be empty), distinct log-probs and entropies."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6))
    total = sum(lengths)
    logp = draw(st.lists(st.integers(-4000, 0), min_size=total, max_size=total, unique=True))
    entropy = draw(st.lists(st.integers(0, 600), min_size=total, max_size=total))
    return lengths, [x / 256 for x in logp], [x / 64 for x in entropy]


shares = st.sampled_from([0.05, 0.2, 0.25, 0.5, 0.9, 1.0])


@properties
@given(sampled(), shares)
def test_push_down_is_the_formula(drawn: tuple[list[int], list[float], list[float]], share: float) -> None:
    weights = push_down(said(*drawn), share=share).tolist()
    assert weights == pytest.approx(push_by_hand(drawn[1], drawn[2], share), abs=1e-6)
    assert all(w == 0 or -1 <= w <= -0.5 for w in weights)
    assert sum(w != 0 for w in weights) == int(share * sum(drawn[0]))


@properties
@given(sampled(), shares, st.randoms(use_true_random=False))
def test_the_order_of_rollouts_does_not_matter(
    drawn: tuple[list[int], list[float], list[float]], share: float, chance: object
) -> None:
    batch = said(*drawn)
    order = list(range(len(batch.rollouts)))
    chance.shuffle(order)  # type: ignore[attr-defined]
    moved = collate([batch.rollouts[i] for i in order], {})
    pieces = push_down(batch, share=share).split(drawn[0])
    assert push_down(moved, share=share).equal(torch.cat([pieces[i] for i in order]))


def test_push_down_in_numbers() -> None:
    """Five tokens, two of them chosen: the one of lower entropy gets −1/2, the other −1."""
    batch = said([2, 3], [-1.0, -9.0, -2.0, -0.5, -8.0], [3.0, 4.0, 3.0, 3.0, 5.0])
    assert push_down(batch, share=0.4).tolist() == [0.0, -0.5, 0.0, 0.0, -1.0]
    assert push_down(batch, share=0.1).tolist() == [0.0] * 5  # less than one token
    alike = said([2, 3], [-1.0, -9.0, -2.0, -0.5, -8.0], [3.0] * 5)
    assert push_down(alike, share=0.4).tolist() == [0.0, -0.5, 0.0, 0.0, -0.5]


def test_push_down_pushes_down() -> None:
    """Gradient = −1/N Σ A ∇log p of the formula, and the chosen tokens become less likely, on the learner's path."""
    rows = given_rollouts()
    logp, entropy = (torch.cat([getattr(r, name) for r in rows]).tolist() for name in ("logp", "entropy"))
    weights = torch.tensor(push_by_hand(logp, entropy, 0.2), dtype=torch.float64)
    pieces = [w.tolist() for w in weights.split([r.length for r in rows])]
    theirs = weighted_likelihood(rows, pieces, count=len(weights))
    batch, learner = collate(rows, {}), make_learner(budget=60, chunk=7, lr=1e-3)
    assert error(gradient(learner, batch, PUSH_DOWN), theirs) <= 1e-6  # weights are float32
    losses = [updated(learner, batch, PUSH_DOWN).tally.means()["loss"] for _ in range(3)]
    assert losses[2] < losses[1] < losses[0] < 0  # −A log p with A < 0


# --- all of them --------------------------------------------------------------------------------------------

EACH = pytest.mark.parametrize(
    "objective", [IMITATION, GRPO, PUSH_DOWN], ids=["imitation", "group_relative", "push_down"]
)


@EACH
@settings(max_examples=8, deadline=None, database=None)
@given(budget=st.integers(1, 200), chunk=st.integers(1, 40))
def test_any_split_gives_the_same_gradient(objective: Likelihood, budget: int, chunk: int) -> None:
    batch = collate(given_rollouts(), {})
    whole = gradient(make_learner(), batch, objective)
    assert error(gradient(make_learner(budget, chunk=chunk), batch, objective), whole) <= 1e-12


@EACH
def test_the_order_of_a_batch_does_not_matter(objective: Likelihood) -> None:
    rows = given_rollouts()
    whole = gradient(make_learner(), collate(rows, {}), objective)
    moved = collate([rows[i] for i in (7, 0, 11, 4, 1, 9, 3, 2, 10, 5, 8, 6)], {})
    assert error(gradient(make_learner(), moved, objective), whole) <= 1e-12


@EACH
def test_untrained_tokens_contribute_nothing(objective: Likelihood) -> None:
    """Their weight is 0, they are not in the denominator, and their loss is selected away, were it infinite."""
    rows = given_rollouts()
    rows = [replace(r, trained=tuple(t % 2 == 0 for t in range(r.length))) for r in rows]
    batch = collate(rows, {})
    weights = objective.prepare(batch).weight
    assert weights[~batch.trained].eq(0).all() and weights[batch.trained].ne(0).any()
    pieces = [w.tolist() for w in weights.double().split([r.length for r in rows])]
    theirs = weighted_likelihood(rows, pieces, count=sum((r.length + 1) // 2 for r in rows))
    assert error(gradient(make_learner(), batch, objective), theirs) <= 1e-10


def test_untrained_tokens_are_not_chosen_to_be_pushed_down() -> None:
    """A tool's output may be the least likely text of a step: the share and the entropies are of what trains."""
    own = said([6], [-1.0, -9.0, -2.0, -0.5, -8.0, -7.0], [3.0, 4.0, 3.0, 3.0, 5.0, 1.0])
    tool = Rollout(
        Prompt("tool", ids=(5,)),
        (7,) * 4,
        "stop",
        trained=(False,) * 4,
        logp=torch.full((4,), -20.0),
        entropy=torch.full((4,), 0.5),
    )
    both = collate([*own.rollouts, tool], {})
    weights = PUSH_DOWN.prepare(both).weight
    assert weights[:6].equal(PUSH_DOWN.prepare(own).weight) and weights[6:].eq(0).all()


def test_tokens_of_weight_zero_are_in_the_denominator() -> None:
    """A group that agrees, or a token too likely to be chosen, dilutes the step: N counts every trained token.

    The same rollouts with as many tokens of weight zero beside them: half the gradient.
    """
    rows = given_rollouts()
    idle = [
        replace(
            r,
            prompt=replace(r.prompt, id=f"idle {r.prompt.id}"),
            grade=Grade(1.0),
            logp=torch.zeros(r.length),
            entropy=torch.zeros(r.length),
        )
        for r in rows
    ]
    batch, twice = collate(rows, {}), collate([*rows, *idle], {})
    half = replace(PUSH_DOWN, weigh=partial(push_down, share=0.1))  # of twice the tokens: the same tokens
    for alone, beside in ((PLAIN, PLAIN), (PUSH_DOWN, half)):
        one, two = gradient(make_learner(), batch, alone), gradient(make_learner(), twice, beside)
        assert size(one) > 0 and error({n: 2 * g for n, g in two.items()}, one) <= 1e-10


@EACH
def test_rollouts_of_nothing_are_a_step(objective: Likelihood) -> None:
    """A response without a token, and a step of only such."""
    rows = given_rollouts()
    nothing = replace(rows[0], response_ids=(), logp=torch.empty(0), entropy=torch.empty(0), grade=None)
    with_one = gradient(make_learner(), collate([*rows, nothing], {}), objective)
    assert error(with_one, gradient(make_learner(), collate(rows, {}), objective)) <= 1e-12
    update = updated(make_learner(), collate([nothing], {}), objective)
    assert update.tally.means()["loss"] == 0.0 and not update.skipped


def test_without_a_teacher_the_student_is_measured_alone() -> None:
    """Entropy and log-prob of the tokens at the measured positions only; nothing about a teacher."""
    rows = given_rollouts()
    batch = collate(rows, {}, measured_positions=20, seed=3)
    update = updated(make_learner(budget=60, chunk=7), batch, IMITATION)
    entropies, logps = [], []
    plain_logits: list[Tensor] = []

    def read(logits: Sequence[Tensor]) -> Tensor:
        plain_logits.extend(x.detach() for x in logits)
        return logits[0].sum()

    plain(rows, read)
    for row, rollout in zip(plain_logits, rows, strict=True):
        p = row.log_softmax(-1)
        entropies += (-(p.exp() * p).sum(-1)).tolist()
        logps += [float(p[t, token]) for t, token in enumerate(rollout.response_ids)]
    here = batch.measured.nonzero()[:, 0].tolist()
    means, entries = update.tally.means(), update.tally.entries
    assert means["entropy_student"] == pytest.approx(statistics.fmean(entropies[i] for i in here), abs=1e-10)
    assert means["logp_sampled"] == pytest.approx(statistics.fmean(logps[i] for i in here), abs=1e-10)
    assert entries["entropy_student"][1] == 20
    assert not {name for name in entries if "teacher" in name or "overlap" in name or "kl" in name}
    assert update.sequences["sequence_reward"].isnan().all()
    assert "sampler_mismatch" in means and update.extremes is None
