"""What a GPU must get right: the numbers of the CPU, and of a fresh forward. Skipped where there is none (make test-gpu).

Everything is drawn on the CPU and moved, so both devices see the same numbers; TF32 stays off, torch's own choice.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from commands import CONFIG, build_shop, metrics, opd
from models import tiny_model, tiny_tokenizer
from opdkit.config import LearnerConfig, ObjectiveConfig, OptimConfig, SamplingConfig
from opdkit.models.head import Head, fused_loss
from opdkit.models.load import LoadedModel, describe
from opdkit.models.sampler import LocalSampler
from opdkit.models.student import Student
from opdkit.models.teacher import LocalTeacher
from opdkit.objectives import Objective
from opdkit.run.world import World
from opdkit.support import RowDist
from opdkit.train.collate import collate
from opdkit.train.learner import Learner, Part, Update
from opdkit.types import Needs, Prompt, Rollout
from ranks import rollouts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device (make test-gpu)"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RAGGED = (5, 12, 3, 7, 7, 1)


def loaded_on(device: torch.device, kind: str, *, seed: int, **settings: Any) -> LoadedModel:
    model = tiny_model(kind, seed=seed, **settings).to(device)
    return describe(model, tiny_tokenizer(), name=f"tiny-{kind}")


def prompts() -> list[Prompt]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(4, 384, (n,), generator=generator).tolist() for n in RAGGED]
    return [Prompt(id=str(i), ids=tuple(row)) for i, row in enumerate(rows)]


@torch.no_grad()
def fresh_logp(loaded: LoadedModel, rollout: Rollout) -> Tensor:
    """[T] of the response's tokens, by one unpadded forward without a cache on the model's device."""
    ids = torch.tensor([rollout.prompt.ids + rollout.response_ids], device=loaded.device)
    logits = loaded.model(input_ids=ids, use_cache=False).logits[0, len(rollout.prompt.ids) - 1 : -1]
    picked = ids[0, len(rollout.prompt.ids) :, None]
    return logits.float().log_softmax(-1).gather(-1, picked)[:, 0].cpu()


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma3"])
@pytest.mark.parametrize(
    ("compute", "spread", "tolerance"), [(None, 0.2, 1e-4), (torch.bfloat16, 0.1, 0.1)], ids=["f32", "bf16"]
)
def test_the_samplers_logp_is_that_of_a_fresh_forward(
    kind: str, compute: torch.dtype | None, spread: float, tolerance: float
) -> None:
    """Ragged rows, some leaving early and some refilled; gemma3 goes through the body, the others through fast layers."""
    loaded = loaded_on(CUDA, kind, seed=0, spread=spread)
    sampler = LocalSampler(loaded, compute=compute)
    config = SamplingConfig(responses=2, max_tokens=40, batch_rows=5)
    drawn = sampler.sample(prompts(), sampling=config, seed=0, step=0, needs=Needs(top_k=3))
    assert len(drawn) == 2 * len(RAGGED) and len({r.response_ids for r in drawn}) > len(RAGGED)
    for rollout in drawn:
        assert rollout.logp is not None and rollout.logp.device == CPU
        torch.testing.assert_close(rollout.logp, fresh_logp(loaded, rollout), rtol=0, atol=tolerance)


def head_gradients(device: torch.device, dtype: torch.dtype, preset: str) -> dict[str, Tensor]:
    """Loss and gradients of the fused head over a vocabulary of several chunks, on the CPU in float32."""
    positions, width, vocabulary = 40, 16, 3000
    generator = torch.Generator().manual_seed(0)
    weight, hidden, teacher = (
        torch.randn(*size, generator=generator)
        for size in ((vocabulary, width), (positions, width), (positions, vocabulary))
    )
    sampled = torch.randint(vocabulary, (positions,), generator=generator).to(device)
    output = nn.Linear(width, vocabulary, bias=False)
    output.weight.data.copy_(0.3 * weight)
    head, states = Head(output.to(device), rows=vocabulary), hidden.to(device, dtype).requires_grad_()
    objective, rows = Objective(ObjectiveConfig(preset=preset)), teacher.to(device)

    def loss(logits: Tensor, part: slice) -> Tensor:
        p, q = (RowDist(x, sampled_ids=sampled[part]) for x in (logits, rows[part]))
        return objective.local(p, q, objective.support(p, q, sampled_ids=sampled[part])).sum()

    value = fused_loss(states, head, loss, chunk_rows=16)
    d_hidden, d_weight = torch.autograd.grad(value, [states, head.weight])
    found = {"loss": value.detach(), "hidden": d_hidden, "weight": d_weight}
    return {name: tensor.float().cpu() for name, tensor in found.items()}


@pytest.mark.parametrize("preset", ["full", "paper"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 8e-2)], ids=["f32", "bf16"]
)
def test_the_fused_heads_loss_and_gradient_are_the_cpus(
    preset: str, dtype: torch.dtype, tolerance: float
) -> None:
    wanted = head_gradients(CPU, torch.float32, preset)
    found = head_gradients(CUDA, dtype, preset)
    for name, tensor in wanted.items():
        assert float((found[name] - tensor).norm() / tensor.norm()) <= tolerance, name


def one_step(device: torch.device, preset: str, **student: Any) -> tuple[Update, dict[str, Tensor]]:
    """One update on fixed ragged rollouts; the weights after it, on the CPU.

    With eps = 1 AdamW's first step is smooth in the gradient: lr · g / (|g| + 1). At 1e-8 it is lr · sign(g), and the
    sign of a gradient that is zero but for rounding is nobody's to keep.
    """
    teacher = LocalTeacher(loaded_on(device, "llama", seed=2, hidden=48))
    trained = Student(loaded_on(device, "qwen3", seed=1), k=4, ks=(1, 4), **student)
    optim = OptimConfig(lr=0.1, eps=1.0, weight_decay=0.0)
    learner = Learner(
        trained,
        optim=optim,
        learner=LearnerConfig(batch_tokens=60),
        steps=1,
        world=World(device),
        max_tokens=16,
    )
    rows = rollouts(teacher.head.rows)
    batch = collate(rows, {"teacher": teacher.score(rows, needs=Needs(full=True))})
    objective = Objective(ObjectiveConfig.model_validate({"preset": preset}))
    signal = objective.prepare(batch)
    update = learner.update(Part(batch, signal, objective), heads={"teacher": teacher.head}, step=0)
    return update, {name: tensor.cpu() for name, tensor in learner.weights().items()}


@pytest.mark.parametrize("preset", ["full", "paper"])
def test_one_learner_step_is_the_cpus(preset: str) -> None:
    """Loss, gradient norm, all diagnostics, and every weight."""
    wanted, weights = one_step(CPU, preset)
    found, moved = one_step(CUDA, preset)
    assert not found.skipped
    assert found.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-4)
    means, ours = wanted.tally.means(), found.tally.means()
    assert ours.keys() == means.keys()
    assert {n: ours[n] for n in means} == pytest.approx(means, rel=1e-3, abs=1e-4, nan_ok=True)
    for name, tensor in weights.items():
        torch.testing.assert_close(moved[name], tensor, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    before = copy.deepcopy(tiny_model("qwen3", seed=1).state_dict())
    assert max(float((weights[n] - before[n]).abs().max()) for n in weights) > 1e-3, "the step moved nothing"


def test_one_learner_step_in_bf16_with_checkpointing_is_near_the_cpus() -> None:
    wanted, _ = one_step(CPU, "full")
    found, weights = one_step(CUDA, "full", compute=torch.bfloat16, gradient_checkpointing=True)
    assert found.tally.means()["loss"] == pytest.approx(wanted.tally.means()["loss"], rel=0.05)
    assert found.grad_norm == pytest.approx(wanted.grad_norm, rel=0.1)
    assert all(tensor.dtype == torch.float32 for tensor in weights.values()), "masters stay float32"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_steps_of_opd_train(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The tiny stand-in end to end; the bf16 run rounds its teacher too and tells what that cost."""
    monkeypatch.chdir(tmp_path)
    shop = build_shop(tmp_path / "shop")
    (tmp_path / "run.toml").write_text(CONFIG.format(shop=shop))
    said = opd(
        capfd, "train", "run.toml", "device=cuda", f"learner.compute={dtype}", f"teacher.dtype={dtype}"
    )
    assert said.code == 0, said.err
    rows = metrics(tmp_path / "runs" / "first")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(math.isfinite(row["loss"]) and row["skipped_steps"] == 0 for row in rows)
    assert rows[-1]["memory/peak_mb"] > 0
    assert torch.cuda.max_memory_allocated() > 0, "nothing was on the GPU"
