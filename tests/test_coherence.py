"""How gradients of single positions add up: the numbers against plain float64, the gradients against the learner's own."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import tiny_loaded
from opdkit.config import LearnerConfig, ObjectiveConfig, OptimConfig
from opdkit.diagnostics import coherence as coherence_of
from opdkit.diagnostics import gradient_coherence
from opdkit.diagnostics.sketch import count_sketch
from opdkit.models.student import Student
from opdkit.objectives import Objective
from opdkit.recipes.coherence import (
    DIMENSIONS,
    bounded_dimensions,
    coherence,
    position_gradients,
    projection,
    scored,
)
from opdkit.run.world import World
from opdkit.train.learner import Learner, Part
from opdkit.types import Prompt, Rollout, UserError
from ranks import graded, rollouts

CPU = torch.device("cpu")
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(0, 10_000))


def _vectors(shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rows, width, seed = shape
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


# --- the numbers ----------------------------------------------------------------------------------------------


def _by_hand(vectors: np.ndarray) -> dict[str, float | None]:
    """The table's formulas as loops over pairs."""
    lengths = [float(np.sqrt((v**2).sum())) for v in vectors]
    whole = float(np.sqrt((vectors.sum(0) ** 2).sum()))
    unit = [v / n for v, n in zip(vectors, lengths, strict=True) if n > 0]
    pairs = [float(a @ b) for a, b in itertools.combinations(unit, 2)]
    alive = bool(unit)
    return {
        "ratio": whole / sum(lengths) if alive else None,
        "growth": whole / math.sqrt(sum(n**2 for n in lengths)) if alive else None,
        "cosine": sum(pairs) / len(pairs) if pairs else None,
    }


def _approx(value: float | None) -> Any:
    return value if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)


@given(st.lists(SHAPES, min_size=1, max_size=4), st.booleans())
def test_the_table_is_what_its_formulas_say(shapes: list[tuple[int, int, int]], silent: bool) -> None:
    parts = [_vectors((rows, 5, seed)) for rows, _, seed in shapes]
    if silent:
        parts[0][0] = 0.0
    row = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(p) for p in parts]))
    order = torch.randperm(len(row), generator=torch.Generator().manual_seed(1))
    told = gradient_coherence(torch.cat(parts)[order], row[order])
    apart = [_by_hand(p.numpy()) for p in parts]
    among = _by_hand(np.stack([p.numpy().sum(0) for p in parts]))
    for kind in ("ratio", "growth", "cosine"):
        known = [one[kind] for one in apart if one[kind] is not None]
        mean, count = told.get(f"gradient_{kind}_within", (None, 0))
        assert count == len(known)
        assert mean == _approx(sum(known) / len(known) if known else None)  # type: ignore[arg-type]
        assert told.get(f"gradient_{kind}_between", (None, 0))[0] == _approx(among[kind])
    norms = np.linalg.norm(np.concatenate([p.numpy() for p in parts]), axis=1)
    assert told["gradient_norm_position"] == (pytest.approx(norms.mean(), rel=1e-12), len(row))


@given(SHAPES, st.integers(2, 7))
def test_the_same_vector_again_and_again_is_wholly_coherent(shape: tuple[int, int, int], times: int) -> None:
    said = coherence_of(_vectors(shape)[:1].expand(times, -1))
    assert said.ratio == pytest.approx(1.0) and said.cosine == pytest.approx(1.0)
    assert said.growth == pytest.approx(math.sqrt(times))


@given(st.integers(2, 8), st.integers(0, 10_000))
def test_orthogonal_vectors_grow_like_a_random_walk(rows: int, seed: int) -> None:
    q = torch.linalg.qr(_vectors((rows, rows, seed))).Q
    scales = 1.0 + _vectors((rows, 1, seed + 1)).abs()
    said = coherence_of(q * scales)
    assert said.growth == pytest.approx(1.0) and said.cosine == pytest.approx(0.0, abs=1e-12)
    assert coherence_of(q).ratio == pytest.approx(1 / math.sqrt(rows))


@given(SHAPES)
def test_a_vector_and_its_opposite_cancel(shape: tuple[int, int, int]) -> None:
    g = _vectors(shape)
    said = coherence_of(torch.cat([g, -g]))
    assert said.ratio == pytest.approx(0.0, abs=1e-12) and said.growth == pytest.approx(0.0, abs=1e-12)
    assert coherence_of(torch.stack([g[0], -g[0]])).cosine == pytest.approx(-1.0)


@given(SHAPES, st.floats(1e-9, 1e9), st.sampled_from([torch.float32, torch.float64]))
def test_a_common_factor_changes_nothing_but_the_length(
    shape: tuple[int, int, int], factor: float, dtype: torch.dtype
) -> None:
    g = _vectors(shape, dtype)
    one, other = coherence_of(g), coherence_of(g * factor)
    close = dict(rel=1e-4, abs=1e-5) if dtype == torch.float32 else dict(rel=1e-9, abs=1e-11)
    for kind in ("ratio", "growth", "cosine"):
        a, b = getattr(one, kind), getattr(other, kind)
        assert (a is None) == (b is None) and (a is None or b == pytest.approx(a, **close))
    assert other.lengths == pytest.approx(factor * one.lengths, rel=1e-5)


@given(SHAPES)
def test_silent_vectors_are_in_no_cosine(shape: tuple[int, int, int]) -> None:
    g = _vectors(shape)
    alone, beside = coherence_of(g), coherence_of(torch.cat([g, torch.zeros_like(g)]))
    assert (beside.ratio, beside.growth, beside.cosine) == (
        _approx(alone.ratio),
        _approx(alone.growth),
        _approx(alone.cosine),
    )
    assert (beside.count, beside.directed) == (2 * alone.count, alone.directed)


def test_one_position_has_a_ratio_and_no_cosine() -> None:
    said = coherence_of(torch.tensor([[0.0, -3.0]]))
    assert (said.ratio, said.growth, said.cosine) == (1.0, 1.0, None)
    nothing = coherence_of(torch.zeros(3, 2))
    assert (nothing.ratio, nothing.growth, nothing.cosine, nothing.directed) == (None, None, None, 0)
    assert gradient_coherence(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)) == {}


# --- the sketch -----------------------------------------------------------------------------------------------


def test_a_sketch_keeps_cosines_to_the_stated_error() -> None:
    """Pairs of every cosine from −1 to 1: mean error near 0, spread at most √((1 + c²)/D), none beyond five of these."""
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(2, 200, 3000, generator=generator, dtype=torch.float64)
    share = torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None]
    y = share * x + (1 - share.abs()) * y
    cosine = torch.nn.functional.cosine_similarity
    for seed in range(2):
        cut = count_sketch([1000, 2000], dimensions=DIMENSIONS, seed=seed, device=CPU)
        small = [torch.stack([cut([v[:1000], v[1000:]]) for v in side]) for side in (x, y)]
        true = cosine(x, y)
        error = cosine(*small) - true
        bound = ((1 + true**2) / DIMENSIONS).sqrt()
        assert (error.abs() <= 5 * bound).all()
        assert (error / bound).square().mean() <= 1.3
        lengths = small[0].norm(dim=-1) / x.norm(dim=-1) - 1
        assert lengths.abs().max() <= 5 * math.sqrt(1 / (2 * DIMENSIONS))


def test_a_sketch_is_linear_and_draws_nothing_from_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    cut, again = (count_sketch([7, 5], dimensions=4, seed=1, device=CPU) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    x, y = [torch.randn(7), torch.randn(5)], [torch.randn(7), torch.randn(5)]
    assert torch.equal(cut(x), again(x))
    both = cut([a.double() + b.double() for a, b in zip(x, y, strict=True)])
    assert torch.allclose(both, cut(x) + cut(y), rtol=1e-12, atol=1e-12)


# --- gradients of single positions ----------------------------------------------------------------------------


def _objective(**choices: Any) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"k": 4, **choices})


OBJECTIVES = {
    "paper": _objective(),
    "paper-eq5": _objective(preset="paper-eq5"),
    "sampled": _objective(preset="sampled"),
    "full": _objective(preset="full"),
    "union, tail": _objective(support="union", normalisation="tail_bucket"),
    "window": _objective(signal={"window": 3}),
    "selected": _objective(signal={"select": "teachable", "share": 0.5}),
    "credit": _objective(preset="sampled", signal={"discount": 0.9}),
    "rewarded": _objective(signal={"reward": "additive"}),
}


def _norms_in_float64(model: Any) -> None:
    """transformers' RMSNorm rounds to float32 whatever comes back through it, and a sum of rounded gradients is not the rounded
    gradient of the sum. Here it stays as wide as the weights."""

    def forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
        return norm.weight * x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = forward.__get__(module)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("kind", "exact"), [("qwen3", True), ("llama", True), ("llama", False)])
def test_the_gradients_of_positions_add_up_to_the_learners(name: str, kind: str, exact: bool) -> None:
    """Σ_t ∇loss_t over the number of trained tokens, against a step of all rollouts: float64."""
    student, teacher = (tiny_loaded(k, seed=s, dtype=torch.float64) for k, s in ((kind, 1), ("llama", 2)))
    if exact:
        _norms_in_float64(student.model)
    objective = Objective(OBJECTIVES[name])
    rows = graded(rollouts(student.head.rows))
    rows[0] = replace(rows[0], trained=(True, False) * 4 + (True,))
    batch, heads = scored(student, teacher, rows, objective, (1.0, 1.0))
    signal = objective.prepare(batch)

    model = Student(student, k=4)
    learner = Learner(model, optim=OptimConfig(), learner=LearnerConfig(), steps=1, world=World(CPU))
    parts = [Part(batch, signal, objective)]
    learner._backward(parts, heads, learner._global_count(parts))
    whole = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    project = projection(model, dimensions=None)
    found = list(position_gradients(model, batch, signal, objective, heads, project))
    assert len({row for row, _ in found}) == len(found)
    total = sum(gradients.sum(0) for _, gradients in found)
    assert float(torch.linalg.norm(total / batch.num_trained - whole) / whole.norm()) <= (
        1e-12 if exact else 1e-6
    )


def test_positions_that_do_not_train_are_not_counted() -> None:
    student, teacher = tiny_loaded("llama", seed=1), tiny_loaded("llama", seed=2)
    rows = rollouts(student.head.rows)
    rows[1] = replace(rows[1], trained=(False,) * rows[1].length)
    rows[2] = replace(rows[2], response_ids=())
    told = coherence(student, teacher, rows, objective=_objective())
    kept = [r for i, r in enumerate(rows) if i not in (1, 2)]
    assert told["gradient_norm_position"].count == sum(r.length for r in kept)
    assert told["gradient_ratio_within"].count == told["gradient_ratio_between"].count == len(kept)
    assert told["gradient_cosine_within"].count == sum(r.length > 1 for r in kept)
    again = coherence(student, teacher, kept, objective=_objective())
    assert {n: pytest.approx(m.value, rel=1e-4) for n, m in again.items()} == {
        n: m.value for n, m in told.items()
    }


def test_a_sketch_tells_the_same_as_whole_gradients() -> None:
    student, teacher = tiny_loaded("llama", seed=1), tiny_loaded("llama", seed=2)
    rows = rollouts(student.head.rows)
    whole = coherence(student, teacher, rows, objective=_objective())
    small = coherence(student, teacher, rows, objective=_objective(), dimensions=DIMENSIONS)
    assert whole.keys() == small.keys() and len(whole) == 7
    for name, number in whole.items():
        scale = number.value if name == "gradient_norm_position" else 1.0
        assert small[name].value == pytest.approx(number.value, abs=0.05 * scale), name
        assert small[name].count == number.count
    assert bounded_dimensions(student, rows) is None
    assert bounded_dimensions(student, [replace(rows[0], response_ids=(5,) * 10_000)]) == DIMENSIONS


def test_intervals_hold_the_value_and_are_the_same_again() -> None:
    student, teacher = tiny_loaded("llama", seed=1), tiny_loaded("llama", seed=2)
    rows = rollouts(student.head.rows)
    told, again = (coherence(student, teacher, rows, objective=_objective(), seed=3) for _ in range(2))
    assert told == again
    for name, number in told.items():
        assert number.low is not None and number.high is not None
        assert number.low <= number.value <= number.high, name
    alone = coherence(student, teacher, rows[:2], objective=_objective())
    assert all(number.low is None for number in alone.values()), "two responses to one prompt"


def test_what_is_the_same_everywhere_agrees_wholly() -> None:
    """Responses of one token to prompts that read alike have one gradient."""
    student, teacher = tiny_loaded("llama", seed=1), tiny_loaded("llama", seed=2)
    rows = [Rollout(Prompt(id=str(i), ids=(5, 6, 7)), (9,), "length") for i in range(4)]
    told = coherence(student, teacher, rows, objective=_objective())
    assert told["gradient_ratio_between"].value == pytest.approx(1.0, rel=1e-6)
    assert told["gradient_cosine_between"].value == pytest.approx(1.0, rel=1e-6)
    assert "gradient_cosine_within" not in told and told["gradient_ratio_within"].value == pytest.approx(1.0)


def test_a_third_model_is_refused_and_nothing_is_no_number() -> None:
    student = tiny_loaded("llama", seed=1)
    with pytest.raises(UserError, match="reference"):
        coherence(student, student, rollouts(50), objective=_objective(target="extrapolated", support="full"))
    assert coherence(student, student, [], objective=_objective()) == {}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_resampled_prompts_do_not_agree_with_themselves(seed: int) -> None:
    """Orthogonal sums: growth stays about 1 in every draw, though a third of the prompts is drawn twice."""
    from opdkit.recipes.coherence import _resampled

    low, high = _resampled(np.eye(12), [str(i // 2) for i in range(12)], seed=seed)["gradient_growth_between"]
    assert low == pytest.approx(1.0) and high == pytest.approx(1.0)
