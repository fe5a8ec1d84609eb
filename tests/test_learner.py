"""The learner: one normalisation, any split, guards, schedules, precision."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import tiny_loaded
from opdkit.config import LearnerConfig, ObjectiveConfig, OptimConfig
from opdkit.models.head import PIECE_BYTES
from opdkit.models.student import MEASURED_BYTES, Student
from opdkit.models.teacher import LocalTeacher
from opdkit.objectives import Objective
from opdkit.run.world import World
from opdkit.train.collate import collate, micro_batches, row_groups
from opdkit.train.learner import Learner, Part, learning_rate
from opdkit.types import Batch, Needs, RunError, Signal
from ranks import rollouts

WORLD = World(torch.device("cpu"))


def make_learner(
    *, dtype: torch.dtype = torch.float64, optim: OptimConfig | None = None, learner: LearnerConfig | None = None,
    kind: str = "qwen3", steps: int = 10, **student: Any,
) -> Learner:  # fmt: skip
    loaded = tiny_loaded(kind, seed=1, dtype=dtype)
    return Learner(
        Student(loaded, k=4, **student),
        optim=optim or OptimConfig(lr=1e-2),
        learner=learner or LearnerConfig(),
        steps=steps,
        world=WORLD,
        max_tokens=16,
    )


def make_batch(
    *, dtype: torch.dtype = torch.float64, preset: str = "paper", payload: Any = "hidden", **choices: Any
) -> tuple[Batch, Objective, LocalTeacher]:
    objective = Objective(ObjectiveConfig.model_validate({"preset": preset, **choices}))
    teacher = LocalTeacher(tiny_loaded("llama", seed=2, dtype=dtype, hidden=48), payload=payload)
    rows = rollouts(teacher.head.rows)
    return collate(rows, {"teacher": teacher.score(rows, needs=Needs(sampled=True))}), objective, teacher


def gradients(
    learner: Learner, batch: Batch, signal: Signal, objective: Objective, teacher: LocalTeacher
) -> dict[str, torch.Tensor]:
    learner.optimizer.zero_grad()
    parts = [Part(batch, signal, objective)]
    learner._backward(parts, {"teacher": teacher.head}, learner._global_count(parts))
    return {n: p.grad.clone() for n, p in learner.student.model.named_parameters() if p.grad is not None}


def relative_error(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """‖g − g′‖ / ‖g′‖ of the whole gradient."""
    assert ours.keys() == theirs.keys()
    difference = sum(float((ours[n] - theirs[n]).double().square().sum()) for n in ours)
    return math.sqrt(difference / sum(float(theirs[n].double().square().sum()) for n in theirs))


@settings(max_examples=12, deadline=None)
@given(
    budget=st.integers(1, 200), chunk=st.integers(1, 40), preset=st.sampled_from(["paper", "full", "sampled"])
)
def test_any_split_gives_the_same_gradient(budget: int, chunk: int, preset: str) -> None:
    batch, objective, teacher = make_batch(preset=preset)
    signal = objective.prepare(batch)
    whole = gradients(
        make_learner(learner=LearnerConfig(batch_tokens=10**6)), batch, signal, objective, teacher
    )
    cut = make_learner(learner=LearnerConfig(batch_tokens=budget), chunk_rows=chunk)
    assert relative_error(gradients(cut, batch, signal, objective, teacher), whole) <= 1e-12


def test_any_split_gives_the_same_gradient_in_float32() -> None:
    batch, objective, teacher = make_batch(dtype=torch.float32)
    signal = objective.prepare(batch)
    whole = gradients(make_learner(dtype=torch.float32), batch, signal, objective, teacher)
    for budget in (1, 30, 60, 120):
        cut = make_learner(dtype=torch.float32, learner=LearnerConfig(batch_tokens=budget), chunk_rows=7)
        assert relative_error(gradients(cut, batch, signal, objective, teacher), whole) <= 1e-6


def test_gradient_is_that_of_a_plain_forward() -> None:
    """Against an implementation without packing, chunks or micro-batches: one row at a time, plain autograd, Eq. 4."""
    batch, objective, teacher = make_batch(preset="full")
    learner = make_learner(learner=LearnerConfig(batch_tokens=50), chunk_rows=5)
    ours = gradients(learner, batch, objective.prepare(batch), objective, teacher)

    plain = tiny_loaded("qwen3", seed=1, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for rollout in batch.rollouts:
        ids = torch.tensor([[*rollout.prompt.ids, *rollout.response_ids]])
        at = slice(len(rollout.prompt.ids) - 1, ids.shape[1] - 1)
        p = plain.model(ids).logits[0, at].log_softmax(-1)
        with torch.no_grad():
            q = teacher.loaded.model(ids).logits[0, at].log_softmax(-1)
        total = total + (p.exp() * (p - q)).sum()
    (total / batch.num_trained).backward()
    theirs = {n: p.grad for n, p in plain.model.named_parameters() if p.grad is not None}
    assert relative_error(ours, theirs) <= 1e-12


def test_untrained_tokens_change_nothing() -> None:
    """Positions that are not trained on may hold any token the context allows: only their own loss term goes."""
    batch, objective, teacher = make_batch()
    keep = torch.ones(len(batch.row), dtype=torch.bool)
    keep[batch.row == 3] = False
    masked = gradients(
        make_learner(),
        replace(batch, trained=keep),
        objective.prepare(replace(batch, trained=keep)),
        objective,
        teacher,
    )
    rows = [r for i, r in enumerate(batch.rollouts) if i != 3]
    without = collate(rows, {"teacher": teacher.score(rows, needs=Needs(sampled=True))})
    left_out = gradients(make_learner(), without, objective.prepare(without), objective, teacher)
    assert relative_error(masked, left_out) <= 1e-12


def test_gradient_checkpointing_gives_the_same_gradient() -> None:
    batch, objective, teacher = make_batch()
    signal = objective.prepare(batch)
    plain = gradients(make_learner(), batch, signal, objective, teacher)
    learner = make_learner(gradient_checkpointing=True)
    calls = []
    layer = learner.student.model.base_model.layers[0]
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    assert relative_error(gradients(learner, batch, signal, objective, teacher), plain) <= 1e-12
    forwards = len(row_groups(batch.rollouts, budget=16384, device=torch.device("cpu")))
    assert len(calls) == 2 * forwards, "the layer was not run again in the backward"


def test_payloads_agree() -> None:
    """Hidden states lent to the chunks, or log-probs at the sampler's ids: one gradient."""
    batch, objective, teacher = make_batch(k=4)
    hidden = gradients(make_learner(), batch, objective.prepare(batch), objective, teacher)
    student = tiny_loaded("qwen3", seed=1, dtype=torch.float64)
    ids = []
    for r in batch.rollouts:
        logits = student.model(torch.tensor([[*r.prompt.ids, *r.response_ids]])).logits[0]
        ids.append(logits[len(r.prompt.ids) - 1 : -1].topk(4).indices)
    served = LocalTeacher(teacher.loaded, payload="ids")
    needs = Needs(sampled=True, at_ids=True, top_k=4, entropy=True)
    scored = collate(
        batch.rollouts, {"teacher": served.score(batch.rollouts, needs=needs, ids=ids)}, early_ids=ids
    )
    sent = gradients(make_learner(), scored, objective.prepare(scored), objective, served)
    assert relative_error(sent, hidden) <= 1e-12


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_step_is_skipped_and_three_stop_the_run(bad: float) -> None:
    batch, objective, teacher = make_batch()
    learner = make_learner()
    before = {n: w.clone() for n, w in learner.weights().items()}
    scores = list(batch.scores["teacher"])
    assert scores[0].hidden is not None
    spoilt = scores[0].hidden.clone()
    spoilt[0, 0] = bad
    scores[0] = replace(scores[0], hidden=spoilt)
    poisoned = replace(batch, scores={"teacher": tuple(scores)})
    signal = objective.prepare(batch)

    def update(which: Batch) -> Any:
        return learner.update(Part(which, signal, objective), heads={"teacher": teacher.head}, step=0)

    for skipped in (1, 2):
        assert update(poisoned).skipped
        assert learner.skipped_steps == skipped and learner.version == 0
    assert all(torch.equal(before[n], w) for n, w in learner.weights().items())
    assert learner.optimizer_tensors() == {}
    with pytest.raises(RunError, match="3 steps in a row"):
        update(poisoned)
    assert not update(batch).skipped and learner.version == 1 and learner.skipped_in_a_row == 0


def test_clipping_bounds_the_norm() -> None:
    batch, objective, teacher = make_batch()
    learner = make_learner(optim=OptimConfig(lr=1e-2, clip=1e-3))
    signal = objective.prepare(batch)
    free = gradients(learner, batch, signal, objective, teacher)
    norm = learner._clip()
    assert norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in free.values())))
    after = math.sqrt(
        sum(float(p.grad.square().sum()) for p in learner.student.parameters() if p.grad is not None)
    )
    assert norm > 1e-3 and after == pytest.approx(1e-3, rel=1e-3)


def test_the_loss_falls_and_the_optimizer_state_comes_back() -> None:
    batch, objective, teacher = make_batch(preset="full")
    signal = objective.prepare(batch)

    def go(learner: Learner, first: int, last: int) -> list[float]:
        return [
            learner.update(
                Part(batch, signal, objective), heads={"teacher": teacher.head}, step=s
            ).tally.means()["loss"]
            for s in range(first, last)
        ]

    straight = make_learner()
    losses = go(straight, 0, 6)
    assert losses[-1] < 0.7 * losses[0]

    first = make_learner()
    go(first, 0, 3)
    second = make_learner()
    second.student.model.load_state_dict(first.weights())
    kept = first.optimizer_tensors()
    assert kept and any(float(t.abs().max()) > 0 for n, t in kept.items() if n.startswith("exp_avg"))
    second.restore({n: t.clone() for n, t in kept.items()}, first.state())
    assert go(second, 3, 6) == losses[3:]
    assert all(torch.equal(w, second.weights()[n]) for n, w in straight.weights().items())


def test_bfloat16_compute_keeps_float32_masters_and_is_close() -> None:
    batch, objective, teacher = make_batch(dtype=torch.float32)
    signal = objective.prepare(batch)
    exact = gradients(make_learner(dtype=torch.float32), batch, signal, objective, teacher)
    learner = make_learner(dtype=torch.float32, compute=torch.bfloat16)
    rough = gradients(learner, batch, signal, objective, teacher)
    assert all(
        p.dtype == torch.float32 and p.grad is not None and p.grad.dtype == torch.float32
        for p in learner.student.parameters()
    )
    assert 1e-6 < relative_error(rough, exact) < 0.2


def test_schedules() -> None:
    cosine = OptimConfig(lr=2.0, schedule="cosine", warmup_steps=2)
    rates = [learning_rate(cosine, step=s, steps=10) for s in range(10)]
    assert rates[:2] == [1.0, 2.0] and rates[2] == 2.0
    assert all(a > b for a, b in itertools.pairwise(rates[2:])) and 0 < rates[-1] < 0.2
    assert learning_rate(OptimConfig(lr=3.0), step=7, steps=9) == 3.0


def test_micro_batches_cover_every_position_once() -> None:
    batch, objective, _ = make_batch()
    parts = list(
        micro_batches(batch, objective.prepare(batch), budget=40, device=torch.device("cpu"), at_least=12)
    )
    assert len(parts) == 12 and len(parts[-1].index) == 0
    index = torch.cat([p.index for p in parts])
    assert sorted(index.tolist()) == list(range(len(batch.row)))
    assert torch.equal(torch.cat([p.sampled_ids for p in parts]), batch.sampled_ids[index])
    for part in parts:
        # the entry after each gathered one is the token it predicts; a response's last token is in no row
        ends = [int(batch.depth[i]) == batch.rollouts[batch.row[i]].length - 1 for i in part.index]
        last = torch.tensor(ends, dtype=torch.bool)
        following = part.input_ids.flatten()[(part.gather + 1).clamp(max=part.input_ids.numel() - 1)]
        assert torch.equal(following[~last], part.sampled_ids[~last])


@pytest.mark.parametrize("payload", ["hidden", "ids"])
def test_pieces_of_a_chunk_measure_the_same(payload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions put aside by pieces of three and measured five at a time, against whole chunks."""
    support = {} if payload == "hidden" else {"support": "teacher_top_k"}
    batch, objective, teacher = make_batch(dtype=torch.float64, payload="hidden")
    if support:
        objective = Objective(ObjectiveConfig.model_validate({"preset": "paper", "k": 4, **support}))
        sender = LocalTeacher(teacher.loaded, payload="ids")
        scores = sender.score(batch.rollouts, needs=Needs(sampled=True, top_k=8, entropy=True))
        batch = collate(batch.rollouts, {"teacher": scores}, measured_positions=40)
    found = []
    for size in (None, 4 * teacher.head.rows):
        if size:
            monkeypatch.setitem(PIECE_BYTES, "cpu", 3 * size)
            monkeypatch.setitem(MEASURED_BYTES, "cpu", 5 * size)
        heads = {"teacher": teacher.head} if payload == "hidden" else {}
        part = Part(batch, objective.prepare(batch), objective)
        update = make_learner(chunk_rows=8 if size else 0).update(part, heads=heads, step=0)
        found.append((update.tally.means(), update.extremes))
    (whole, most), (pieces, most_of_pieces) = found
    assert pieces == pytest.approx(whole, rel=1e-6, abs=1e-9) and "overlap_ratio" in whole
    assert (
        (most is None) is (most_of_pieces is None) is (payload == "ids")
    )  # they need log-probs at the student's ids
    if most is not None and most_of_pieces is not None:
        assert most_of_pieces.named() == pytest.approx(most.named(), rel=1e-6, abs=1e-9)


def test_whoever_reads_first_the_gradient_is_the_same() -> None:
    """Found by `test_payloads_agree`: a diagnostic under no_grad once left a constant normaliser behind for the loss."""
    from opdkit.support import RowDist

    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 2], [1, 3], [4, 0]])
    for name in ("logsumexp", "full", "sampled", "entropy"):
        first = RowDist(logits, sampled_ids=ids[:, 0])
        with torch.no_grad():
            getattr(first, name)
        (read_before,) = torch.autograd.grad(first.at(ids).sum(), logits)
        (untouched,) = torch.autograd.grad(RowDist(logits).at(ids).sum(), logits)
        torch.testing.assert_close(read_before, untouched)
