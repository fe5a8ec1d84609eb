"""Runs that train an adapter: saved, resumed, examined, published, on two ranks; the base is read and never written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from commands import Said, build_shop, metrics, opd, save_model
from killing import Case, Kill, Nursery, files, look
from models import tiny_model, tiny_tokenizer
from opdkit.config import load_config
from opdkit.models.adapter import adapted
from opdkit.run import Stop
from opdkit.run.world import World
from opdkit.tasks import load_task
from opdkit.train.stage import Stage, set_stage
from ranks import torchrun
from serving import fake_server

LORA = ("student.lora={rank = 4, alpha = 8.0}", "optim.lr=1e-2")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(shop: Path, *more: object) -> list[object]:
    return ["train", f"student.model={shop / 'student'}", f"teacher={shop / 'teacher'}", f"task={shop / 'sums.jsonl'}",
            "run=runs/r", "steps=3", "prompts_per_step=4", "sampling.responses=2", "sampling.max_tokens=8", "device=cpu",
            "objective=full", "diagnostics.k=4", "diagnostics.ks=[1,4]", "save.every=1", "save.keep=9", *LORA, *more]  # fmt: skip


def model_of(run: Path, step: int = 3) -> Path:
    return run / "checkpoints" / f"step_{step}" / "model"


# --- one run ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over the same prompts in every step, so that its losses can be compared."""
    place = tmp_path_factory.mktemp("finished")
    rows = (shop / "sums.jsonl").read_text().splitlines()[:4]
    (shop / "four.jsonl").write_text("\n".join(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run_words(words(shop, f"task={shop / 'four.jsonl'}", "sampling.responses=16", "prompts_per_step=4"))
    return place / "runs" / "r"


def run_words(argv: list[object]) -> None:
    import sys

    from opdkit.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["opd", *map(str, argv)])
        with pytest.raises(SystemExit) as left:
            main()
        assert not left.value.code


def test_the_loss_falls_and_the_base_is_left_bit_for_bit(shop: Path, finished: Path) -> None:
    losses = [row["loss"] for row in metrics(finished)]
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0]
    base = load_file(shop / "student" / "model.safetensors")
    saved = load_file(model_of(finished) / "model.safetensors")
    assert saved.keys() == base.keys()
    moved = {name for name in base if not torch.equal(base[name], saved[name])}
    assert moved == {name for name in base if "_proj" in name}
    plain = tiny_model("llama", seed=0).state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in base.items()), (
        "the base's file was written to"
    )


@torch.no_grad()
def test_the_checkpoint_is_a_whole_model_and_an_adapter_beside_it(shop: Path, finished: Path) -> None:
    import peft

    ids = torch.tensor([tiny_tokenizer()("Compute 4 + 4")["input_ids"]])
    merged = AutoModelForCausalLM.from_pretrained(model_of(finished))(ids).logits
    base = AutoModelForCausalLM.from_pretrained(shop / "student")
    before = base(ids).logits
    theirs = peft.PeftModel.from_pretrained(base, model_of(finished).with_name("adapter"))(ids).logits
    torch.testing.assert_close(theirs, merged, rtol=0, atol=1e-5)
    assert float((merged - before).abs().max()) > 1e-3
    optimizer = load_file(model_of(finished).with_name("optimizer.safetensors"))
    assert optimizer and all(".lora_" in name for name in optimizer)


def test_commands_take_the_checkpoint_and_the_adapter(
    shop: Path, finished: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The merged folder and the adapter folder answer greedily alike."""
    told = []
    exam = ("--task", shop / "sums.jsonl", "task.grader=exact", "eval.temperature=0", "eval.responses=1")
    for name in ("model", "adapter"):
        place = model_of(finished).with_name(name)
        said = opd(
            capfd, "eval", place, *exam, "sampling.max_tokens=8", "--out", f"{name}.jsonl", "device=cpu"
        )
        assert said.code == 0, said.err
        told.append(
            [json.loads(row)["response_ids"] for row in Path(f"{name}.jsonl").read_text().splitlines()]
        )
    assert told[0] == told[1] and len(told[0]) == 6
    said = opd(capfd, "report", finished, "--out", "page.html")
    assert said.code == 0 and Path("page.html").stat().st_size > 10_000, said.err
    more = ("--prompts", shop / "sums.jsonl", "--teacher", shop / "teacher", "--budget", "10")
    for name in ("model", "adapter"):
        said = opd(
            capfd, "check", "--student", model_of(finished).with_name(name), *more, "--json", "device=cpu"
        )
        assert said.code in (0, 3, 4) and json.loads(said.out)["verdict"], said.err


def test_an_adapter_is_trained_on_or_merged_and_may_teach(
    shop: Path, finished: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    adapter = model_of(finished).with_name("adapter")
    on = opd(capfd, *words(shop, f"student.model={adapter}", "steps=1", "run=runs/on"))
    assert on.code == 0, on.err
    told = json.loads((Path("runs/on/checkpoints/step_1/adapter/adapter_config.json")).read_text())
    assert told["base_model_name_or_path"] == str(shop / "student")
    begun = load_file(adapter / "adapter_model.safetensors")
    after = load_file("runs/on/checkpoints/step_1/adapter/adapter_model.safetensors")
    apart = max(float((after[name] - begun[name]).abs().max()) for name in begun)
    assert 0 < apart <= 1.1e-2  # one step of AdamW from there, not from a fresh adapter
    all_of_it = opd(
        capfd, *words(shop, f"student.model={adapter}", "student.lora=unset", "steps=1", "run=runs/all")
    )
    assert all_of_it.code == 0 and not Path("runs/all/checkpoints/step_1/adapter").exists(), all_of_it.err
    begun = load_file(model_of(finished) / "model.safetensors")
    after = load_file("runs/all/checkpoints/step_1/model/model.safetensors")
    assert max(float((after[name] - begun[name]).abs().max()) for name in begun) <= 1.1e-2
    taught = opd(capfd, *words(shop, f"teacher={adapter}", "steps=1", "run=runs/taught"))
    assert taught.code == 0, taught.err
    other = opd(capfd, *words(shop, f"student.model={adapter}", "student.lora.rank=2", "run=runs/other"))
    assert other.code == 2 and other.hint == "student.lora.rank=4 student.lora.alpha=8"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (['student.lora.targets=["lm_head"]'], "no linear map 'lm_head'"),
        (["student.lora.rank=0"], "rank"),
        (["student.lora.dropout=0.1"], "dropout"),
    ],
)
def test_what_cannot_be_adapted_is_said(
    shop: Path, here: Path, capfd: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    said: Said = opd(capfd, *words(shop, *more))
    assert said.code == 2 and message in said.error and not Path("runs/r/config.toml").exists()


# --- the base as teacher ------------------------------------------------------------------------------------


def staged(shop: Path, *more: str) -> Stage:
    config = load_config(None, [str(word) for word in words(shop, *more)[1:]])
    with Stop() as stop, load_task(config.task) as task:
        stage = set_stage(config, world=World(torch.device("cpu")), task=task, stop=stop)
    if stage.folder is not None:
        stage.folder.close()
    return stage


def test_a_fresh_adapters_base_is_its_teacher_without_a_copy(shop: Path, finished: Path, here: Path) -> None:
    def shares(stage: Stage) -> bool:
        teacher: Any = stage.teacher
        return teacher.loaded.model is stage.learner.student.model

    own = 'teacher={type="self"}'
    shared = staged(shop, own, "run=runs/a")
    assert shares(shared) and adapted(shared.learner.student.model)
    assert not shares(staged(shop, own, "teacher.every=2", "run=runs/b"))
    assert not shares(staged(shop, own, "teacher.dtype=bfloat16", "run=runs/c"))
    assert not shares(staged(shop, own, "student.lora=unset", "run=runs/d"))
    adapter = f"student.model={model_of(finished).with_name('adapter')}"
    copied = staged(shop, own, adapter, "run=runs/e")
    teacher: Any = copied.teacher
    assert not shares(copied) and not adapted(teacher.loaded.model)
    assert copied.learner.weights()["model.layers.0.mlp.up_proj.weight"].equal(
        teacher.loaded.model.state_dict()["model.layers.0.mlp.up_proj.weight"]
    )


def test_the_base_teaches_what_a_copy_of_it_teaches(
    shop: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit: the base as the teacher of a run, and the same weights opened a second time."""
    hot = "teacher.temperature=0.5"
    exam = (
        f"task.eval_path={shop / 'sums.jsonl'}",
        "task.grader=exact",
        "eval.teacher=true",
        "eval.responses=2",
    )
    assert opd(capfd, *words(shop, 'teacher={type="self"}', hot, *exam, "run=runs/self")).code == 0
    assert opd(capfd, *words(shop, f"teacher={shop / 'student'}", hot, *exam, "run=runs/again")).code == 0
    for name in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        one, other = (Path(f"runs/{run}/checkpoints/step_3/{name}").read_bytes() for run in ("self", "again"))
        assert one == other, name
    assert Path("runs/self/eval.jsonl").read_text() == Path("runs/again/eval.jsonl").read_text()
    assert metrics(Path("runs/self"))[0]["reverse_kl"] > 0.01


# --- resume -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    place = tmp_path_factory.mktemp("resume")
    with Nursery(place) as nursery:
        yield Case.make(nursery, place, "lora")


def test_killed_and_resumed_is_uninterrupted(case: Case) -> None:
    """Adapter, optimizer, merged model, counters, metrics, evaluations and sampled tokens, byte by byte."""
    trial = case.trial("killed", [Kill(when=lambda run: look(run)["rows"] >= 5), Kill(save=1)])
    assert trial.identical and [met.code for met in trial.struck] == [137, 137], trial
    saved = files(case.reference / "checkpoints" / "step_12")
    assert {
        "adapter/adapter_model.safetensors",
        "model/model.safetensors",
        "optimizer.safetensors",
    } <= saved.keys()


def test_a_moving_copy_of_an_adapted_student_resumes(case: Case) -> None:
    """The teacher has weights of its own here, merged ones, which the checkpoint keeps."""
    moving = Case.make(case.nursery, case.folder / "moving", "lora", teacher__every=4)
    trial = moving.trial("killed", [Kill(when=lambda run: look(run)["rows"] >= 7)])
    assert trial.identical, trial


def test_another_base_is_refused(case: Case) -> None:
    run = case.folder / "moved"
    shutil.copytree(case.reference, run)
    text = (run / "config.toml").read_text()
    other = save_model(case.folder / "other", seed=7, tie=True)
    (run / "config.toml").write_text(text.replace(str(case.folder / "student"), str(other)))
    child = case.nursery.start(["train", "--resume", str(run)])
    assert child.wait() == 2 and "is not the base that" in child.said, child.said
    shutil.rmtree(other)
    child = case.nursery.start(["train", "--resume", str(run)])
    assert child.wait() == 2 and str(other) in child.said, child.said


# --- engines, ranks -----------------------------------------------------------------------------------------


def test_an_engine_gets_merged_weights(shop: Path, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The canary compares what the server then says with the adapted learner; a server that takes nothing is found out."""
    for defect in ("", "nothing"):
        with fake_server(shop / "student", defect=defect) as url:
            drawn = f'sampling={{type="vllm-server",url="{url}",responses=2,max_tokens=6}}'
            told = [
                word
                for word in words(shop, drawn, f"run=runs/{defect or 'good'}")
                if "sampling." not in str(word)
            ]
            said = opd(capfd, *told)
        if defect:
            assert said.code == 1 and "the publish did nothing" in said.err
            continue
        assert said.code == 0, said.err
        rows = metrics(Path("runs/good"))
        assert len(rows) == 3 and all(row["canary"] < 2e-5 and row["sampler_mismatch"] < 1e-5 for row in rows)


def test_vllm_does_not_read_an_adapter_folder(
    shop: Path, finished: Path, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opdkit.train.stage.check_installed", lambda: None)
    adapter = model_of(finished).with_name("adapter")
    told = [
        w
        for w in words(shop, f"student.model={adapter}", 'sampling={type="vllm",max_tokens=8}')
        if "sampling." not in str(w)
    ]
    said = opd(capfd, *told)
    assert said.code == 2 and "is an adapter" in said.error and "sampling" in said.hint


def test_two_ranks_train_the_adapter_of_one(
    shop: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each samples with a merged copy; the teacher is a copy there, the shared base here."""
    own = ('teacher={type="self"}', "teacher.temperature=0.5")
    assert opd(capfd, *words(shop, *own, "run=runs/one")).code == 0
    torchrun("-m", "opdkit", *map(str, words(shop, *own, "run=runs/two")))
    one, two = (metrics(Path(f"runs/{run}")) for run in ("one", "two"))
    for name in ("loss", "grad_norm", "response_length"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-3), name
    ours, theirs = (
        load_file(f"runs/{run}/checkpoints/step_3/adapter/adapter_model.safetensors")
        for run in ("one", "two")
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-3)
