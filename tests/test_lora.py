"""Adapters: gradients against those of the merged weights, decoding, copies, the base as teacher, folders in peft's format."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import tiny_loaded, tiny_model, tiny_tokenizer
from opdkit.config import LearnerConfig, LoraConfig, ModelConfig, OptimConfig
from opdkit.models.adapter import (
    adapt,
    adapted,
    adapter_state,
    adapters_off,
    merge,
    merged_state,
    take_up,
    write_adapter,
)
from opdkit.models.adapter_folder import adapter_folder, read_tensors, refuse_another_shape
from opdkit.models.load import check_weights, open_config, open_model, open_tokenizer
from opdkit.models.sampler import LocalSampler
from opdkit.models.student import Student
from opdkit.models.teacher import LocalTeacher
from opdkit.run.world import World
from opdkit.train.learner import Learner, Part
from opdkit.types import Needs, UserError
from ranks import rollouts, with_adapter
from test_learner import gradients, make_batch, relative_error
from test_sampler import close, fresh_logits, make_prompts, sampling

CPU = torch.device("cpu")
SCALE = 2.0  # alpha / rank of `with_adapter`


def make_learner(*, kind: str = "qwen3", dtype: torch.dtype = torch.float64, **choices: Any) -> Learner:
    cfg = choices.pop("learner", LearnerConfig())
    return Learner(
        Student(with_adapter(tiny_loaded(kind, seed=1, dtype=dtype)), k=4, **choices),
        optim=OptimConfig(lr=1e-2),
        learner=cfg,
        steps=10,
        world=World(CPU),
        max_tokens=16,
    )


# --- gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["full", "paper", "paper-eq5", "sampled"])
def test_gradient_is_that_of_the_merged_weight(preset: str) -> None:
    """dL/dB = s · dL/dW Aᵀ and dL/dA = s · Bᵀ dL/dW at W + s · B A, all of whose weights are trained; float64."""
    batch, objective, teacher = make_batch(preset=preset)
    signal = objective.prepare(batch)
    learner = make_learner()
    ours = gradients(learner, batch, signal, objective, teacher)

    plain = tiny_loaded("qwen3", seed=1, dtype=torch.float64)
    plain.model.load_state_dict(learner.weights())
    whole = Learner(
        Student(plain, k=4),
        optim=OptimConfig(),
        learner=LearnerConfig(),
        steps=10,
        world=World(CPU),
        max_tokens=16,
    )
    d_weight = gradients(whole, batch, signal, objective, teacher)
    theirs = {}
    for name, layer in adapted(learner.student.model).items():
        a, b = (factors["default"].weight.detach() for factors in (layer.lora_A, layer.lora_B))
        theirs[f"{name}.lora_A.default.weight"] = SCALE * b.T @ d_weight[f"{name}.weight"]
        theirs[f"{name}.lora_B.default.weight"] = SCALE * d_weight[f"{name}.weight"] @ a.T
    assert len(theirs) == 2 * 7 * 2  # factors, linear maps of a layer, layers
    assert relative_error(ours, theirs) <= 1e-12


@settings(max_examples=6, deadline=None)
@given(budget=st.integers(1, 200), chunk=st.integers(1, 40), preset=st.sampled_from(["paper", "full"]))
def test_any_split_gives_the_same_gradient(budget: int, chunk: int, preset: str) -> None:
    batch, objective, teacher = make_batch(preset=preset)
    signal = objective.prepare(batch)
    whole = gradients(
        make_learner(learner=LearnerConfig(batch_tokens=10**6)), batch, signal, objective, teacher
    )
    cut = make_learner(learner=LearnerConfig(batch_tokens=budget), chunk_rows=chunk)
    assert relative_error(gradients(cut, batch, signal, objective, teacher), whole) <= 1e-12


def test_gradient_checkpointing_reaches_the_adapter() -> None:
    batch, objective, teacher = make_batch()
    signal = objective.prepare(batch)
    plain = gradients(make_learner(), batch, signal, objective, teacher)
    again = gradients(make_learner(gradient_checkpointing=True), batch, signal, objective, teacher)
    assert relative_error(again, plain) <= 1e-12


def go(learner: Learner, steps: range) -> list[float]:
    batch, objective, teacher = make_batch(preset="full")
    signal = objective.prepare(batch)
    return [
        learner.update(Part(batch, signal, objective), heads={"teacher": teacher.head}, step=s).tally.means()[
            "loss"
        ]
        for s in steps
    ]


def test_only_the_adapter_moves_and_its_state_comes_back() -> None:
    learner = make_learner()
    model = learner.student.model
    before = {name: p.clone() for name, p in model.state_dict().items()}
    losses = go(learner, range(6))
    assert losses[-1] < 0.9 * losses[0]
    for name, now in model.state_dict().items():
        assert torch.equal(now, before[name]) is (".lora_" not in name), name
    kept = learner.optimizer_tensors()
    assert kept and all(".lora_" in name for name in kept)
    state = sum(t.numel() for name, t in kept.items() if not name.startswith("step."))
    assert state == 2 * sum(t.numel() for t in learner.adapter().values())

    first, second = make_learner(), make_learner()
    go(first, range(3))
    take_up(second.student.model, first.adapter(), source="a checkpoint")
    second.restore(first.optimizer_tensors(), first.state())
    assert go(second, range(3, 6)) == losses[3:]
    assert all(torch.equal(w, learner.weights()[n]) for n, w in second.weights().items())


def test_a_fresh_adapter_changes_nothing_and_draws_from_its_seed_alone() -> None:
    plain = tiny_loaded("llama")
    before = torch.get_rng_state()
    models = []
    for seed in (0, 0, 1):
        loaded = tiny_loaded("llama")
        adapt(loaded.model, LoraConfig(rank=4), seed=seed)
        models.append(loaded.model)
    assert torch.equal(torch.get_rng_state(), before)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(models[0](ids).logits, plain.model(ids).logits)
    one, same, other = (adapter_state(m, m.state_dict()) for m in models)
    assert all(torch.equal(t, same[name]) for name, t in one.items())
    a = [name for name in one if "lora_A" in name]
    assert not any(torch.equal(one[name], other[name]) for name in a)
    assert all(float(one[name].abs().max()) <= 1 / math.sqrt(one[name].shape[1]) for name in a)
    assert all(float(one[name].std()) > 0.4 / math.sqrt(one[name].shape[1]) for name in a)


def test_targets_are_linear_maps_and_never_the_head() -> None:
    loaded = tiny_loaded("llama", tie=False)
    adapt(loaded.model, LoraConfig(targets=["q_proj", "layers.1.mlp.up_proj"]), seed=0)
    assert sorted(adapted(loaded.model)) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.self_attn.q_proj",
    ]
    for target in ("lm_head", "embed_tokens", "norm", "query"):
        with pytest.raises(UserError, match=f"no linear map '{target}'") as refused:
            adapt(tiny_model("llama", tie=False), LoraConfig(targets=[target]), seed=0)
        assert "q_proj" in refused.value.hint


def test_narrow_weights_have_float32_adapters_that_are_trained() -> None:
    loaded = tiny_loaded("qwen3", dtype=torch.bfloat16)
    before = {name: p.clone() for name, p in loaded.model.state_dict().items()}
    student = Student(with_adapter(loaded), k=4)
    learner = Learner(
        student,
        optim=OptimConfig(lr=1e-2),
        learner=LearnerConfig(),
        steps=6,
        world=World(CPU),
        max_tokens=16,
    )
    batch, objective, teacher = make_batch(dtype=torch.float32, preset="full")
    signal = objective.prepare(batch)
    losses = [
        learner.update(Part(batch, signal, objective), heads={"teacher": teacher.head}, step=s).tally.means()[
            "loss"
        ]
        for s in range(6)
    ]
    assert losses[-1] < 0.9 * losses[0]
    assert {p.dtype for p in student.parameters() if p.requires_grad} == {torch.float32}
    weights = learner.weights()
    assert weights.keys() == before.keys() and {w.dtype for w in weights.values()} == {torch.bfloat16}


# --- decoding, copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fast"), [("llama", True), ("qwen2", True), ("qwen3", True), ("gemma", True), ("gemma3", False)]
)
def test_decoding_is_a_fresh_forward_with_the_adapter(kind: str, fast: bool) -> None:
    loaded = with_adapter(tiny_loaded(kind))
    sampler = LocalSampler(loaded)
    assert sampler.fast is fast
    for _ in range(2):  # the second time after the adapter has moved
        for rollout in sampler.sample(make_prompts(), sampling=sampling(), seed=0, step=0):
            logp = fresh_logits(loaded, rollout).log_softmax(-1)
            picked = torch.tensor(rollout.response_ids)[:, None]
            close(rollout.logp, logp.gather(-1, picked)[:, 0], atol=5e-6)
            with adapters_off(loaded.model):
                base = fresh_logits(loaded, rollout).log_softmax(-1)
            assert float((base - logp).abs().max()) > 0.1, "the adapter is too small to be seen"
        for layer in adapted(loaded.model).values():
            with torch.no_grad():
                layer.lora_B["default"].weight.mul_(-1.5)


def test_a_copy_holds_merged_weights_and_takes_published_ones() -> None:
    learner = make_learner(dtype=torch.float32)
    loaded = learner.student.loaded
    sampler = LocalSampler.copy_of(loaded)
    assert not adapted(sampler.loaded.model) and adapted(loaded.model)
    go_rows = make_prompts()
    for layer in adapted(loaded.model).values():
        with torch.no_grad():
            layer.lora_B["default"].weight.mul_(-1.5)
    sampler.sync(learner.weights(), version=1)
    theirs = LocalSampler(loaded).sample(go_rows, sampling=sampling(), seed=0, step=0)
    for mine, other in zip(sampler.sample(go_rows, sampling=sampling(), seed=0, step=0), theirs, strict=True):
        assert mine.response_ids == other.response_ids and mine.policy_version == 1
        assert other.logp is not None
        close(mine.logp, other.logp)


# --- the base as teacher ------------------------------------------------------------------------------------


def test_the_base_teaches_and_the_student_is_left_as_it_was() -> None:
    from dataclasses import replace

    loaded, plain = with_adapter(tiny_loaded("qwen3")), tiny_loaded("qwen3")
    student = Student(loaded)
    shared = LocalTeacher(replace(loaded, bare=True), payload="ids", frozen=False)
    rows, needs = rollouts(loaded.head.rows), Needs(sampled=True, entropy=True)
    wants = {name: p.requires_grad for name, p in student.named_parameters()}

    def logits() -> torch.Tensor:
        return loaded.model(torch.tensor([[5, 6, 7]])).logits

    before = logits()
    for ours, theirs in zip(
        shared.score(rows, needs=needs),
        LocalTeacher(plain, payload="ids").score(rows, needs=needs),
        strict=True,
    ):
        assert ours.sampled is not None and theirs.sampled is not None
        assert torch.equal(ours.sampled, theirs.sampled)
    ours_drawn = LocalSampler(replace(loaded, bare=True)).sample(
        make_prompts(), sampling=sampling(), seed=0, step=0
    )
    plain_drawn = LocalSampler(plain).sample(make_prompts(), sampling=sampling(), seed=0, step=0)
    assert [r.response_ids for r in ours_drawn] == [r.response_ids for r in plain_drawn]
    with pytest.raises(ZeroDivisionError), adapters_off(loaded.model):
        assert not torch.equal(logits(), before)
        _ = 1 / 0
    assert torch.equal(logits(), before)
    assert {name: p.requires_grad for name, p in student.named_parameters()} == wants
    with adapters_off(loaded.model), adapters_off(loaded.model):
        pass
    assert torch.equal(logits(), before)


# --- folders ------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A base and an adapter that opdkit wrote."""
    loaded = tiny_loaded("llama")
    loaded.model.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = with_adapter(loaded).model
    tensors = adapter_state(model, model.state_dict())
    write_adapter(tmp_path / "adapter", model, tensors, base=str(tmp_path / "base"), revision=None)
    return tmp_path


def say(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_peft_opens_what_is_written(place: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(place / "base")
    theirs = peft.PeftModel.from_pretrained(base, place / "adapter")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(theirs(ids).logits, with_adapter(tiny_loaded("llama")).model(ids).logits)


def test_an_adapter_folder_opens_as_its_base_with_the_adapter_merged(place: Path) -> None:
    ref = ModelConfig(model=str(place / "adapter"))
    check_weights(ref)
    assert open_config(ref).model_type == "llama" and len(open_tokenizer(ref)) == 384
    opened = open_model(ref, device=CPU)
    merged = merge(with_adapter(tiny_loaded("llama")).model).state_dict()
    assert opened.model.state_dict().keys() == merged.keys()
    for name, weight in opened.model.state_dict().items():
        torch.testing.assert_close(weight, merged[name], rtol=0, atol=1e-6)
    say(place / "adapter", base_model_name_or_path="../base")  # seen from the adapter's folder
    assert torch.equal(
        open_model(ref, device=CPU).model.state_dict()["model.norm.weight"], merged["model.norm.weight"]
    )


def test_what_peft_made_is_merged_whatever_its_kind(place: Path) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2,
        target_modules=["q_proj", "up_proj"],
        use_dora=True,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(tiny_model("llama"), config)
    theirs.peft_config["default"].base_model_name_or_path = str(place / "base")
    theirs.save_pretrained(place / "dora")
    opened = open_model(ModelConfig(model=str(place / "dora")), device=CPU)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(opened.model(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)
    assert not torch.allclose(opened.model(ids).logits, tiny_model("llama")(ids).logits, atol=1e-2)
    found = adapter_folder(str(place / "dora"))
    assert found is not None
    with pytest.raises(UserError, match="use_dora = True"):
        refuse_another_shape(found, LoraConfig(rank=2, alpha=8.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": "/not/there"}, "an adapter of /not/there, which is not there"),
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ({"base_model_name_or_path": "nowhere/model"}, "nowhere/model"),
        ({"r": 5}, "cannot be merged onto"),
        ({"target_modules": ["q_proj"]}, "in the file only"),
        ({"target_modules": ["nothing"]}, "cannot be merged onto"),
    ],
)
def test_an_adapter_without_its_base_or_of_another_is_refused(
    place: Path, changes: dict[str, Any], message: str
) -> None:
    say(place / "adapter", **changes)
    with pytest.raises(UserError, match=message) as refused:
        open_model(ModelConfig(model=str(place / "adapter")), device=CPU)
    assert refused.value.hint


def test_weights_that_are_missing_pickled_or_cut_are_refused_unread(place: Path) -> None:
    ref = ModelConfig(model=str(place / "adapter"))
    path = place / "adapter" / "adapter_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:100])
    with pytest.raises(UserError, match="damaged or cut short"):
        check_weights(ref)
    path.unlink()
    with pytest.raises(UserError, match=r"holds no adapter_model.safetensors"):
        check_weights(ref)
    (place / "adapter" / "adapter_model.bin").touch()
    with pytest.raises(UserError, match="pickled"):
        check_weights(ref)
    (place / "adapter" / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        check_weights(ref)


def test_a_whole_model_with_an_adapter_among_its_files_is_refused(place: Path) -> None:
    """Installing peft must not change which model a folder is."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (place / "base" / name).write_bytes((place / "adapter" / name).read_bytes())
    with pytest.raises(UserError, match="a whole model and an adapter"):
        open_model(ModelConfig(model=str(place / "base")), device=CPU)


def test_what_is_taken_up_must_be_what_was_asked_for(place: Path) -> None:
    tensors = read_tensors(place / "adapter")
    found = adapter_folder(str(place / "adapter"))
    assert found is not None
    refuse_another_shape(found, LoraConfig(rank=3, alpha=6.0))
    with pytest.raises(UserError, match="has rank 3 and alpha 6") as refused:
        refuse_another_shape(found, LoraConfig())
    assert refused.value.hint == "student.lora.rank=3 student.lora.alpha=6"
    narrow = tiny_model("llama")
    adapt(narrow, LoraConfig(rank=3, targets=["q_proj"]), seed=0)
    with pytest.raises(UserError, match="does not ask for") as refused:
        take_up(narrow, tensors, source="it")
    assert "down_proj" in refused.value.hint
    thick = tiny_model("llama")
    adapt(thick, LoraConfig(rank=4), seed=0)
    with pytest.raises(UserError, match="of shape"):
        take_up(thick, tensors, source="it")


def test_without_peft_it_is_said_how_to_get_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    for what in (
        lambda: adapt(tiny_model("llama"), LoraConfig(), seed=0),
        lambda: check_weights(ModelConfig(model=str(place / "adapter"))),
    ):
        with pytest.raises(UserError, match="need peft") as refused:
            what()
        assert refused.value.hint == "pip install 'opdkit[lora]'"


def test_merged_state_is_a_plain_models_state_and_leaves_the_model_alone() -> None:
    loaded = with_adapter(tiny_loaded("qwen2"))  # has biases
    before = {name: t.clone() for name, t in loaded.model.state_dict().items()}
    merged = merged_state(loaded.model, loaded.model.state_dict())
    assert all(torch.equal(before[name], t) for name, t in loaded.model.state_dict().items())
    assert merged.keys() == tiny_model("qwen2").state_dict().keys()
