"""Prompts read once for several responses: the same states, scores and gradients as one row per rollout."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from models import CACHED, tiny_loaded
from opdkit.config import LearnerConfig, ObjectiveConfig, OptimConfig
from opdkit.models import rows
from opdkit.models.batching import forwards
from opdkit.models.rows import can_share, lay_out, packed_states
from opdkit.models.student import Student
from opdkit.models.teacher import LocalTeacher
from opdkit.objectives import Objective
from opdkit.run.world import World
from opdkit.train.collate import collate
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


def states(body: Any, rollouts: list[Rollout], *, shared: bool) -> torch.Tensor:
    prompts, responses = [r.prompt.ids for r in rollouts], [r.response_ids for r in rollouts]
    return packed_states(body, lay_out(prompts, responses, shared=shared, device=CPU))


# gemma2's capped attention scores need eager attention
@pytest.mark.parametrize(
    ("kind", "attention"),
    [(k, a) for k in CACHED for a in ("sdpa", "eager") if (k, a) != ("gemma2", "sdpa")],
)
def test_shared_rows_have_the_states_of_plain_ones(kind: str, attention: str) -> None:
    loaded = tiny_loaded(kind, seed=1, dtype=torch.float64, attn_implementation=attention)
    rollouts = shared_rollouts(loaded.head.rows)
    with torch.no_grad():
        plain, shared = (states(loaded.body, rollouts, shared=s) for s in (False, True))
        alone = torch.cat([states(loaded.body, [r], shared=False) for r in rollouts])
    # norms and eager attention's softmax are float32 inside, whatever the weights are
    for found in (plain, shared):
        assert float((found - alone).abs().max()) <= 1e-6 * float(alone.abs().max())
    assert can_share(loaded.body, vocabulary=loaded.head.rows, device=CPU)


def test_a_body_that_forgets_the_prompt_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded("llama", seed=1)
    monkeypatch.setattr(rows.Prefixed, "update", lambda self, key, value, layer, *_: (key, value))
    assert not can_share(loaded.body, vocabulary=loaded.head.rows, device=CPU)
    monkeypatch.undo()
    # positions that start anew after the prompt: nothing is raised, the numbers are others
    monkeypatch.setattr(rows, "_through_prompts", _without_positions(rows._through_prompts))
    assert not can_share(loaded.body, vocabulary=loaded.head.rows, device=CPU)


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
        if not shares:
            student.__dict__["shares_prompts"] = False
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


def test_layers_that_are_run_again_share_nothing() -> None:
    assert Student(tiny_loaded("llama", seed=1)).shares_prompts
    assert not Student(tiny_loaded("llama", seed=1), gradient_checkpointing=True).shares_prompts


def test_prompts_are_shared_only_where_that_saves_tokens() -> None:
    prompts = [[1] * 40] * 4 + [[2] * 40] * 4
    assert all(f.shared for f in forwards(prompts, [20] * 8, budget=9999, device_type="cpu", share=True))
    for lengths, wanted in ([20] * 8, False), ([900] * 8, True), ([1, 200, 1, 1, 1, 200, 1, 1], True):
        found = forwards(prompts, lengths, budget=9999, device_type="cpu", share=wanted)
        assert not any(f.shared for f in found), (
            "short prompts before long or ragged responses cost more shared"
        )
        assert sorted(i for f in found for i in f.rows) == list(range(8))
    cut = forwards(prompts, [20] * 8, budget=150, device_type="cpu", share=True)
    assert [f.rows for f in cut] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert not any(f.shared for f in forwards(prompts, [20] * 8, budget=9999, device_type="cuda", share=True))
