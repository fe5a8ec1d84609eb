"""Prompts read once for several responses: the same states, scores and gradients as one row per rollout."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import CACHED, tiny_loaded
from opdkit.config import LearnerConfig, ObjectiveConfig, OptimConfig
from opdkit.models import joined, rows
from opdkit.models.batching import Way, forwards
from opdkit.models.rows import can, lay_out, packed_states, ways_of
from opdkit.models.student import Student
from opdkit.models.teacher import LocalTeacher
from opdkit.objectives import Objective
from opdkit.run.world import World
from opdkit.train.collate import collate, row_groups
from opdkit.train.learner import Learner, Part
from opdkit.types import Needs, Prompt, Rollout

CPU = torch.device("cpu")
LENGTHS = (9, 8, 8, 1, 7, 9, 6, 9)


def shared_rollouts(vocabulary: int, *, prompt_tokens: tuple[int, ...] = (30, 21)) -> list[Rollout]:
    """Four responses to each of two prompts of different lengths, one of them of a single token."""
    generator = torch.Generator().manual_seed(3)
    prompts = [
        Prompt(str(p), ids=tuple(torch.randint(vocabulary, (n,), generator=generator).tolist()))
        for p, n in enumerate(prompt_tokens)
    ]
    return [
        Rollout(
            prompts[i // 4], tuple(torch.randint(vocabulary, (n,), generator=generator).tolist()), "length"
        )
        for i, n in enumerate(LENGTHS)
    ]


def states(body: Any, rollouts: list[Rollout], *, way: Way) -> torch.Tensor:
    prompts, responses = [r.prompt.ids for r in rollouts], [r.response_ids for r in rollouts]
    return packed_states(body, lay_out(prompts, responses, way=way, device=CPU))


# gemma2's capped attention scores need eager attention
@pytest.mark.parametrize(
    ("kind", "attention"),
    [(k, a) for k in CACHED for a in ("sdpa", "eager") if (k, a) != ("gemma2", "sdpa")],
)
def test_rows_of_every_layout_have_the_states_of_plain_ones(kind: str, attention: str) -> None:
    loaded = tiny_loaded(kind, seed=1, dtype=torch.float64, attn_implementation=attention)
    rollouts = shared_rollouts(loaded.head.rows)
    with torch.no_grad():
        alone = torch.cat([states(loaded.body, [r], way="plain") for r in rollouts])
        found = {way: states(loaded.body, rollouts, way=way) for way in ("plain", "shared")}
        if attention == "sdpa":  # eager attention is the body's own, and capped scores are in no kernel
            found["joined"] = states(loaded.body, rollouts, way="joined")
    # norms and eager attention's softmax are float32 inside, whatever the weights are
    for way, each in found.items():
        assert float((each - alone).abs().max()) <= 1e-6 * float(alone.abs().max()), way
    assert ways_of(loaded.body, vocabulary=loaded.head.rows, device=CPU) == set(found) - {"plain"}


def test_a_body_that_forgets_the_prompt_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded("llama", seed=1)
    monkeypatch.setattr(rows.Prefixed, "update", lambda self, key, value, layer, *_: (key, value))
    assert not can(loaded.body, "shared", loaded.head.rows, CPU)
    monkeypatch.undo()
    # positions that start anew after the prompt: nothing is raised, the numbers are others
    monkeypatch.setattr(rows, "_through_prompts", _without_positions(rows._through_prompts))
    assert not can(loaded.body, "shared", loaded.head.rows, CPU)


def test_a_body_whose_rows_see_each_other_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded("llama", seed=1)
    within = joined.within_rows

    def all_at_once(*args: Any, row_lengths: Any, **others: Any) -> Any:
        return within(*args, row_lengths=[sum(row_lengths)], **others)

    monkeypatch.setattr(joined, "within_rows", all_at_once)
    assert not can(loaded.body, "joined", loaded.head.rows, CPU)


def test_a_prepared_body_reads_and_saves_as_before(tmp_path: Path) -> None:
    """Plain rows, a mask of its own and what is written to disk are the same, bit for bit."""
    bare, prepared = (tiny_loaded("qwen3", seed=1) for _ in range(2))
    assert "joined" in ways_of(prepared.body, vocabulary=prepared.head.rows, device=CPU)
    ids, mask = torch.arange(12).view(2, 6) + 3, torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    for more in ({}, {"attention_mask": mask}):
        with torch.no_grad():
            a, b = (one.body(input_ids=ids, **more).last_hidden_state for one in (bare, prepared))
        assert torch.equal(a, b)
    written = []
    for name, one in (("bare", bare), ("prepared", prepared)):
        one.model.save_pretrained(tmp_path / name)
        written.append((tmp_path / name / "config.json").read_text())
    assert written[0] == written[1]


@pytest.mark.parametrize("other", [{"softcap": 30.0}, {"s_aux": torch.zeros(4)}, {"dropout": 0.1}])
def test_attention_of_another_kind_is_refused(other: dict[str, Any]) -> None:
    states = torch.randn(1, 4, 6, 8)
    with pytest.raises(TypeError, match="end to end"):
        joined.within_rows(torch.nn.Module(), states, states, states, None, row_lengths=(4, 2), **other)


def test_a_window_is_looked_back_over_within_a_row_only() -> None:
    query, key, value = (torch.randn(1, h, 11, 8, dtype=torch.float64) for h in (4, 2, 2))
    found, _ = joined.within_rows(
        torch.nn.Module(), query, key, value, None, row_lengths=(5, 5, 1), sliding_window=3
    )
    for start, length in ((0, 5), (5, 5), (10, 1)):
        for i in range(length):
            first = start + max(0, i - 2)
            for head in range(4):
                scores = key[0, head // 2, first : start + i + 1] @ query[0, head, start + i] / 8**0.5
                wanted = scores.softmax(0) @ value[0, head // 2, first : start + i + 1]
                torch.testing.assert_close(found[0, start + i, head], wanted)


def _without_positions(through: Any) -> Any:
    def wrong(body: Any, input_ids: torch.Tensor, prefix: Any) -> Any:
        return through(body, input_ids, replace(prefix, lengths=prefix.lengths - 1))

    return wrong


@pytest.mark.parametrize("payload", ["hidden", "ids"])
def test_a_teacher_scores_shared_prompts_as_rows_alone(payload: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = LocalTeacher(tiny_loaded("qwen3", seed=2), payload=payload)
    rollouts = shared_rollouts(teacher.head.rows)
    used = _counted(monkeypatch)
    together = teacher.score(rollouts, needs=Needs(sampled=True, top_k=4))
    assert used, "nothing was shared, so nothing was tested"
    for rollout, found in zip(rollouts, together, strict=True):
        (alone,) = teacher.score([rollout], needs=Needs(sampled=True, top_k=4))
        assert found.topk_logp is not None and alone.topk_logp is not None
        torch.testing.assert_close(found.topk_logp, alone.topk_logp, rtol=0, atol=1e-5)


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    through = rows._through_prompts

    def noted(body: Any, input_ids: torch.Tensor, prefix: Any) -> Any:
        calls.append(len(input_ids))
        return through(body, input_ids, prefix)

    monkeypatch.setattr(rows, "_through_prompts", noted)
    return calls


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_the_gradient_through_a_shared_prompt_is_that_of_plain_rows(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = Objective(ObjectiveConfig(preset="paper"))
    teacher = LocalTeacher(tiny_loaded("llama", seed=2, dtype=torch.float64, hidden=48))
    rollouts = shared_rollouts(teacher.head.rows)
    batch = collate(rollouts, {"teacher": teacher.score(rollouts, needs=Needs(sampled=True))})
    found = []
    for shares in (True, False):
        student = Student(tiny_loaded(kind, seed=1, dtype=torch.float64), k=4)
        student.__dict__["ways"] = {"shared"} if shares else set()
        learner = Learner(
            student, optim=OptimConfig(), learner=LearnerConfig(batch_tokens=60), steps=1, world=World(CPU)
        )
        used = _counted(monkeypatch)
        part = Part(batch, objective.prepare(batch), objective)
        learner._backward([part], {"teacher": teacher.head}, batch.num_trained)
        monkeypatch.undo()
        assert bool(used) is shares
        found.append({n: p.grad for n, p in student.model.named_parameters() if p.grad is not None})
    shared, plain = found
    assert shared.keys() == plain.keys()
    error = sum(float((shared[n] - plain[n]).square().sum()) for n in plain)
    assert math.sqrt(error / sum(float(g.square().sum()) for g in plain.values())) <= 1e-6


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma3"])
def test_the_step_of_rows_end_to_end_is_that_of_plain_rows(kind: str) -> None:
    """Loss, gradients and what is measured, ragged responses of prompts of their own."""
    objective = Objective(ObjectiveConfig(preset="paper"))
    teacher = LocalTeacher(tiny_loaded("llama", seed=2, dtype=torch.float64, hidden=48))
    generator = torch.Generator().manual_seed(5)
    rollouts = [
        Rollout(Prompt(str(n), ids=_ids(generator, 3 + n % 5)), _ids(generator, n), "length")
        for n in (1, 40, 3, 90, 17, 2, 60, 9)
    ]
    found = []
    for ways in ({"joined"}, set[Way]()):
        teacher.__dict__["_ways"] = ways
        batch = collate(rollouts, {"teacher": teacher.score(rollouts, needs=Needs(sampled=True))})
        student = Student(tiny_loaded(kind, seed=1, dtype=torch.float64), k=4)
        student.__dict__["ways"] = ways
        learner = Learner(student, optim=OptimConfig(), learner=LearnerConfig(), steps=1, world=World(CPU))
        assert any(
            f.way == "joined" for f in row_groups(rollouts, budget=4096, device=CPU, ways=ways)
        ) == bool(ways)
        part = Part(batch, objective.prepare(batch), objective)
        losses, notes = learner._backward([part], {"teacher": teacher.head}, batch.num_trained)
        order = torch.cat(notes.sampled_index).argsort()
        grads = {n: p.grad for n, p in student.model.named_parameters() if p.grad is not None}
        found.append((losses[0], torch.cat(notes.student_logp)[order], grads))
    (loss, logp, grads), (plain_loss, plain_logp, plain_grads) = found
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    torch.testing.assert_close(logp, plain_logp, rtol=0, atol=1e-6)
    error = sum(float((grads[n] - plain_grads[n]).square().sum()) for n in plain_grads)
    assert math.sqrt(error / sum(float(g.square().sum()) for g in plain_grads.values())) <= 1e-6


def _ids(generator: torch.Generator, count: int) -> tuple[int, ...]:
    return tuple(torch.randint(60, (count,), generator=generator).tolist())


def test_layers_that_are_run_again_have_plain_rows() -> None:
    assert Student(tiny_loaded("llama", seed=1)).ways == {"shared", "joined"}
    assert not Student(tiny_loaded("llama", seed=1), gradient_checkpointing=True).ways


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(200, 3000))
def test_every_rollout_is_in_one_forward_within_the_budget(lengths: list[int], budget: int) -> None:
    prompts = [[5] * 7] * len(lengths)
    plain = forwards(prompts, lengths, budget=budget, device_type="cpu")
    found = forwards(prompts, lengths, budget=budget, device_type="cpu", ways=["joined"])
    for forward in found:
        tokens = [7 + lengths[i] - 1 for i in forward.rows]
        assert tokens == sorted(tokens, reverse=True)
        padded = sum(tokens) if forward.way == "joined" else len(tokens) * max(tokens)
        assert padded <= budget or len(tokens) == 1
    assert sorted(i for f in found for i in f.rows) == list(range(len(lengths)))
    assert len(found) <= len(plain) or any(f.way == "joined" for f in found)


def test_rows_of_one_length_are_not_joined() -> None:
    ragged, ways = [1 + 8 * i for i in range(32)], ["joined"]

    def laid_out(lengths: list[int], device_type: str) -> set[str]:
        found = forwards([[5] * 32] * 32, lengths, budget=16384, device_type=device_type, ways=ways)
        return {forward.way for forward in found}

    assert laid_out([64] * 32, "cpu") == {"plain"}
    assert laid_out(ragged, "cpu") == {"joined"} and laid_out(ragged, "cuda") == {"plain"}


def test_prompts_are_shared_only_where_that_saves_tokens() -> None:
    prompts = [[1] * 40] * 4 + [[2] * 40] * 4
    assert all(
        f.way == "shared"
        for f in forwards(prompts, [20] * 8, budget=9999, device_type="cpu", ways=["shared"])
    )
    for lengths, wanted in ([20] * 8, False), ([900] * 8, True), ([1, 200, 1, 1, 1, 200, 1, 1], True):
        found = forwards(prompts, lengths, budget=9999, device_type="cpu", ways=["shared"] if wanted else [])
        assert not any(f.way == "shared" for f in found), (
            "short prompts before long or ragged responses cost more shared"
        )
        assert sorted(i for f in found for i in f.rows) == list(range(8))
    cut = forwards(prompts, [20] * 8, budget=150, device_type="cpu", ways=["shared"])
    assert [f.rows for f in cut] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert not any(
        f.way == "shared"
        for f in forwards(prompts, [20] * 8, budget=9999, device_type="cuda", ways=["shared"])
    )
