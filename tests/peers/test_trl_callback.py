"""OpdCallback in the real TRL release: tiny models, CPU, both trainers. Run by `make test-trl`."""

from __future__ import annotations

import json
import random
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from assets import CHAT_TEMPLATE, make_model, make_prompts, make_tokenizer  # noqa: E402
from opdkit.integrations.trl import OpdCallback  # noqa: E402
from opdkit.report.page import write_report  # noqa: E402
from opdkit.report.read import read_run  # noqa: E402
from opdkit.run import RunFolder  # noqa: E402
from opdkit.types import UserError  # noqa: E402

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("default")]

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64,
}  # fmt: skip
BOTH = pytest.mark.parametrize("kind", ["distillation", "gkd"])


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assets")
    tokenizer = make_tokenizer(0)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    for seed, name in enumerate(("student", "teacher"), start=1):
        make_model(tokenizer, seed=seed, **SMALL).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "prompts.json").write_text(
        json.dumps([row["prompt"] for row in make_prompts(tokenizer, seed=3)[:32]])
    )
    return folder


COMMON: dict[str, Any] = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "beta": 1.0,
    "seed": 0,
}


def make_trainer(kind: str, assets: Path, out: Path, *, peft: Any = None, **changes: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(assets / "student", padding_side="left")
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(assets / n, dtype=torch.float32) for n in ("student", "teacher")
    )
    prompts = json.loads((assets / "prompts.json").read_text())
    settings = COMMON | {"output_dir": str(out)} | changes
    if kind == "distillation":
        config = DistillationConfig(**({"max_completion_length": 12} | settings))
        return DistillationTrainer(
            model=student, teacher_model=teacher, args=config, processing_class=tokenizer, peft_config=peft,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
        )  # fmt: skip
    talk = [[{"role": "user", "content": p}, {"role": "assistant", "content": "It is 4."}] for p in prompts]
    config = GKDConfig(
        **({"max_new_tokens": 12, "max_length": 64, "lmbda": 1.0, "temperature": 1.0} | settings)
    )
    return GKDTrainer(
        model=student, teacher_model=teacher, args=config, processing_class=tokenizer, peft_config=peft,
        train_dataset=Dataset.from_dict({"messages": talk}),
    )  # fmt: skip


def train(trainer: Any, **kwargs: Any) -> list[dict[str, float]]:
    """TRL's own log rows that hold a loss."""
    set_seed(7)
    trainer.train(**kwargs)
    return [row for row in trainer.state.log_history if "loss" in row]


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def random_state() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


@BOTH
def test_a_run_is_measured_and_told(kind: str, assets: Path, tmp_path: Path) -> None:
    trainer = make_trainer(kind, assets, tmp_path / "out")
    run = tmp_path / "run"
    trainer.add_callback(OpdCallback(trainer, run=run, rollouts=8))
    logged = train(trainer)

    found = rows(run)
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    for row, trl in zip(found, logged, strict=True):
        assert row["loss"] == trl["loss"] and row["grad_norm"] == trl["grad_norm"]
        assert 0 <= row["overlap_ratio"] <= 1 and 0 <= row["overlap_mass_student"] <= 1
        assert row["overlap_advantage"] <= 0 and row["entropy_student"] > 0
        assert 0 <= row["by_position/0/overlap_ratio"] <= 1
        assert {
            "response_length",
            "truncated_fraction",
            "teachable_share",
            "seconds/step",
            "seconds/measure",
        } <= set(row)
        # a user's own tracker sees the same numbers
        assert trl["opd/overlap_ratio"] == row["overlap_ratio"]
        assert trl["opd/reverse_kl"] == row["reverse_kl"]
        assert not any(name.startswith("opd/by_position") for name in trl)


SNIPPET = """\
from opdkit.integrations.trl import OpdCallback

trainer.add_callback(OpdCallback(trainer, run="runs/trl"))
trainer.train()
"""


@BOTH
def test_the_lines_in_the_docs_are_enough(
    kind: str, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(SNIPPET, {"trainer": make_trainer(kind, assets, tmp_path / "out", max_steps=1)})
    assert len(rows(tmp_path / "runs" / "trl")) == 1
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    told = [page.name for page in pages if "OpdCallback(trainer, run=" in page.read_text()]
    assert all(SNIPPET in page.read_text() for page in pages if page.name in told), told


@BOTH
def test_what_is_read_is_what_the_loss_saw(kind: str, assets: Path, tmp_path: Path) -> None:
    """beta = 1 is the reverse KL over the vocabulary: with every rollout read, ours is TRL's loss."""
    trainer = make_trainer(kind, assets, tmp_path / "out")
    trainer.add_callback(OpdCallback(trainer, run=tmp_path / "run", rollouts=8))
    logged = train(trainer)
    for row, trl in zip(rows(tmp_path / "run"), logged, strict=True):
        # GKDTrainer divides by the tokens of the data set's answers (its num_items_in_batch), not by those generated
        if kind == "distillation":
            assert row["reverse_kl"] == pytest.approx(trl["loss"], rel=2e-5)
            assert row["entropy_student"] == pytest.approx(trl["entropy"], rel=0.05)  # TRL: a mean of means


@BOTH
@pytest.mark.parametrize(
    "changes", [{}, {"gradient_checkpointing": True, "lmbda": 0.5}], ids=["plain", "checkpointing"]
)
def test_training_is_the_same_to_the_bit(
    kind: str, changes: dict[str, Any], assets: Path, tmp_path: Path
) -> None:
    changes = {k: v for k, v in changes.items() if kind == "gkd" or k != "lmbda"}
    ends = []
    for attached in (False, True):
        trainer = make_trainer(kind, assets, tmp_path / f"out-{attached}", **changes)
        if attached:
            trainer.add_callback(OpdCallback(trainer, run=tmp_path / "run", save_every=2))
        logged = [
            {k: v for k, v in row.items() if k in ("loss", "grad_norm", "entropy")} for row in train(trainer)
        ]
        weights = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        ends.append((logged, weights, random_state(), [m.training for m in trainer.model.modules()]))
    (logs, weights, state, modes), (logs_with, weights_with, state_with, modes_with) = ends
    assert logs == logs_with and state == state_with and modes == modes_with
    assert all(torch.equal(weights[name], weights_with[name]) for name in weights)


@BOTH
def test_the_folder_is_one_that_report_reads(kind: str, assets: Path, tmp_path: Path) -> None:
    trainer = make_trainer(kind, assets, tmp_path / "out")
    run = tmp_path / "run"
    trainer.add_callback(OpdCallback(trainer, run=run))
    train(trainer)

    config = tomllib.loads((run / "config.toml").read_text())
    assert config["steps"] == 4 and config["trl"]["trainer"] == type(trainer).__name__
    assert config["trl"]["learning_rate"] == 1e-2 and config["optim"]["lr"] == 1e-2
    assert json.loads((run / "env.json").read_text())["trainer"]["trl"]
    read = read_run(run, name="run")
    assert read.gaps == ["no eval.jsonl"]
    assert len(read.metrics) == 4 and set(read.rollouts) == {1, 4}
    first = read.rollouts[1][0]
    assert len(first["response_ids"]) == first["length"] == len(first["tokens"]["text"])
    assert first["finish_reason"] in ("stop", "length") and first["prompt"]
    page = write_report([run])
    assert "overlap" in page.read_text()


def test_gkd_on_its_data_alone_measures_nothing(assets: Path, tmp_path: Path) -> None:
    """lmbda = 0 trains on the data set's answers, and with seq_kd on the teacher's: neither is the student's own."""
    trainer = make_trainer("gkd", assets, tmp_path / "out", lmbda=0.0, seq_kd=True)
    trainer.add_callback(OpdCallback(trainer, run=tmp_path / "run"))
    train(trainer)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_gkd_waits_for_a_step_of_the_students_own(assets: Path, tmp_path: Path) -> None:
    trainer = make_trainer(
        "gkd", assets, tmp_path / "out", lmbda=0.4, max_steps=10, gradient_accumulation_steps=1
    )
    heard: list[int] = []
    generate = trainer.generate_on_policy_outputs
    trainer.generate_on_policy_outputs = lambda *a: (
        heard.append(trainer.state.global_step + 1),
        generate(*a),
    )[1]
    trainer.add_callback(OpdCallback(trainer, run=tmp_path / "run"))
    train(trainer)
    assert 0 < len(heard) < 10
    assert [row["step"] for row in rows(tmp_path / "run")] == heard


def test_every_counts_logging_steps(assets: Path, tmp_path: Path) -> None:
    trainer = make_trainer("distillation", assets, tmp_path / "out", max_steps=8, logging_steps=2)
    trainer.add_callback(OpdCallback(trainer, run=tmp_path / "run", every=2))
    logged = train(trainer)
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found] == [1, 4, 8]  # the first is what it began with
    assert "loss" not in found[0] and found[1]["loss"] == logged[1]["loss"]


def test_a_resumed_training_goes_on_in_its_folder(assets: Path, tmp_path: Path) -> None:
    run, changes = tmp_path / "run", {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trainer = make_trainer("distillation", assets, tmp_path / "out", **changes)
    trainer.add_callback(OpdCallback(trainer, run=run))
    train(trainer)
    whole = rows(run)

    again = make_trainer("distillation", assets, tmp_path / "out", **changes)
    again.add_callback(OpdCallback(again, run=run))
    train(again, resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    found = rows(run)
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    assert found[:2] == whole[:2]
    assert found[2]["reverse_kl"] == pytest.approx(whole[2]["reverse_kl"], rel=0.2)


def test_a_taken_folder_is_refused_before_the_first_step(assets: Path, tmp_path: Path) -> None:
    trainer = make_trainer("distillation", assets, tmp_path / "out")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").write_text("mine")
    trainer.add_callback(OpdCallback(trainer, run=tmp_path / "run"))
    with pytest.raises(UserError, match="not empty") as refused:
        train(trainer)
    assert "OpdCallback(" in refused.value.hint and trainer.state.global_step == 0


def test_adapters_are_read_in_place(assets: Path, tmp_path: Path) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer("distillation", assets, tmp_path / "out", peft=lora)
    trainer.add_callback(OpdCallback(trainer, run=tmp_path / "run", rollouts=8))
    logged = train(trainer)
    for row, trl in zip(rows(tmp_path / "run"), logged, strict=True):
        assert row["reverse_kl"] == pytest.approx(trl["loss"], rel=2e-5)


def test_mixed_precision_is_read_as_it_is_trained(assets: Path, tmp_path: Path) -> None:
    trainer = make_trainer("distillation", assets, tmp_path / "out", bf16=True)
    assert trainer.accelerator.mixed_precision == "bf16"
    trainer.add_callback(OpdCallback(trainer, run=tmp_path / "run", rollouts=8))
    logged = train(trainer)
    for row, trl in zip(rows(tmp_path / "run"), logged, strict=True):
        assert row["reverse_kl"] == pytest.approx(trl["loss"], rel=0.05)


def test_a_critical_finding_can_end_the_training(assets: Path, tmp_path: Path) -> None:
    """A learning rate that ruins the student: told, and with on_critical = "stop" the end."""
    trainer = make_trainer(
        "distillation", assets, tmp_path / "out", max_steps=30, learning_rate=1.0, gradient_accumulation_steps=1,
        max_completion_length=6, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer.add_callback(OpdCallback(trainer, run=tmp_path / "run", rollouts=4, on_critical="stop"))
    train(trainer)
    found = [row for row in rows(tmp_path / "run", "findings.jsonl") if row["severity"] == "error"]
    assert found and trainer.state.global_step == found[0]["step"] < 30
    assert all("opd report" in row["remedy"] and "config.toml" not in row["remedy"] for row in found)
    assert any("learning_rate=" in row["remedy"] for row in found)


def test_memory_that_runs_out_costs_the_record_not_the_training(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("opdkit.integrations.trl.read_pair", none_left)
    trainer = make_trainer("distillation", assets, tmp_path / "out")
    trainer.add_callback(OpdCallback(trainer, run=tmp_path / "run"))
    assert len(train(trainer)) == 4
    (told,) = rows(tmp_path / "run", "findings.jsonl")
    assert told["name"] == "measuring_stopped" and told["step"] == 1


def test_the_trainer_is_left_as_it_was(assets: Path, tmp_path: Path) -> None:
    trainer = make_trainer("distillation", assets, tmp_path / "out")
    before = {name for name in vars(trainer) if name in ("log", "compute_loss")}
    trainer.add_callback(OpdCallback(trainer, run=tmp_path / "run"))
    train(trainer)
    assert {name for name in vars(trainer) if name in ("log", "compute_loss")} == before
    RunFolder.open(tmp_path / "run").close()  # the lock is given back


def test_a_trainer_without_a_teacher_or_rollouts_is_refused(assets: Path, tmp_path: Path) -> None:
    trainer = make_trainer("distillation", assets, tmp_path / "out")
    trainer.teacher_model = None
    with pytest.raises(UserError, match="no teacher"):
        OpdCallback(trainer, run=tmp_path / "run")
    with pytest.raises(UserError, match="no student rollouts"):
        OpdCallback(object(), run=tmp_path / "run")
