"""The newcomer who does everything wrong: one message, a hint to type, the right exit code, nothing lost.

Exit code 2 and no run folder for wrong input; a counted skip where data are at fault; 1 for a run that had to
stop, which then goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from commands import CONFIG, Said, build_shop, findings, metrics, opd, save_model, write_rows
from models import tiny_loaded, tiny_tokenizer
from opdkit.config import LearnerConfig, ObjectiveConfig, OptimConfig
from opdkit.models.student import Student
from opdkit.models.teacher import LocalTeacher
from opdkit.objectives import Objective
from opdkit.run.world import World
from opdkit.train.collate import collate
from opdkit.train.learner import Learner, Part
from opdkit.types import Needs
from ranks import rollouts

Type = Callable[..., Said]


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def here(tmp_path: Path, shop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working folder with config.toml; models and prompts are in the shop."""
    monkeypatch.chdir(tmp_path)
    Path("config.toml").write_text(CONFIG.format(shop=shop))
    return tmp_path


@pytest.fixture
def train(here: Path, capfd: pytest.CaptureFixture[str]) -> Type:
    """`opd train config.toml WORDS`."""
    return lambda *words: opd(capfd, "train", "config.toml", *words)


@pytest.fixture
def refused(train: Type, here: Path) -> Type:
    """`train`, for input that is refused before any weight is read and before anything is written."""

    def weights(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    def refuse(*words: object) -> Said:
        before = sorted(here.rglob("*"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("opdkit.models.load._from_pretrained", weights)
            said = train(*words)
        assert said.code == 2 and said.error and said.hint
        assert sorted(here.rglob("*")) == before, "nothing may be left behind"
        return said

    return refuse


def copied(shop: Path, here: Path, name: str = "student") -> Path:
    return Path(shutil.copytree(shop / name, here / "copy"))


# --- the configuration --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["stpes=3"], "unknown key 'stpes' on the command line", "did you mean 'steps'?"),
        (["optim.rl=1e-5"], "unknown key 'optim.rl'", "did you mean 'lr'?"),
        (["task.grader.patern=x"], "unknown key 'task.grader.patern'", "did you mean 'pattern'?"),
        (["steps=many"], "steps: Input should be a valid integer (got 'many')", "steps=…"),
        (["steps=0"], "steps: Input should be greater than or equal to 1", "steps=…"),
        (["steps"], "'steps' is not key=value", "optim.lr=1e-5"),
        (["--steps", "3"], "no such option: --steps", "steps=VALUE"),
        (["teacher.type=self"], "'teacher.model' is no key of type 'self'", "'teacher={ type = \"self\" }'"),
        (["objective.support=sampled", "objective.estimator=exact"], "differentiated", "score_function"),
        (["objective=paper-eq5", "objective.k=1"], "Eq. 5 at k = 1", "k >= 2"),
        (["objective.k=385"], "objective.k = 385 is larger than the vocabulary of 384", "objective.k=16"),
        (["diagnostics.k=385"], "diagnostics.k = 385 is larger", "diagnostics.k=16"),
        (["sampling.stop_ids=[384]"], "sampling.stop_ids holds 384", "leave sampling.stop_ids out"),
        (["objective=full", "teacher.payload=ids"], "needs full rows", 'teacher.payload = "hidden"'),
        (["device=cuda"], "device 'cuda' is not there", "device=cpu"),
        (["device=meta"], "device 'meta' is not there", "device=cpu"),
        (["device=toaster"], "'toaster' is no device", "device=cpu"),
        (["run=runs/a b"], "'runs/a b' cannot name a run", "run=runs/my-run"),
        (["run=.."], "'..' cannot name a run", "run=runs/my-run"),
        (["run=config.toml/x"], "cannot write the run folder config.toml/x: Not a directory", "run=PATH"),
        (["run=/proc/x"], "cannot write the run folder /proc/x", "run=PATH"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_before_anything_happens(refused, words, message, hint):
    if words == ["device=cuda"] and torch.cuda.is_available():
        words = ["device=cuda:99"]
        message = "device 'cuda:99' is not there"
    said = refused(*words)
    assert message in said.error and hint in said.hint


def test_a_file_that_is_not_there_or_not_toml(here, capfd):
    missing = opd(capfd, "train", "confg.toml")
    assert missing.code == 2 and missing.error == "no config file at confg.toml"
    assert missing.hint == "did you mean config.toml?"
    Path("bad.toml").write_text("student = folder\n")
    bad = opd(capfd, "train", "bad.toml")
    assert bad.code == 2 and "bad.toml is not valid TOML" in bad.error and "line 1" in bad.error
    assert bad.hint == 'strings need quotes: student = "folder"'
    nothing = opd(capfd, "train")
    assert (
        nothing.code == 2
        and nothing.error == "no CONFIG was given"
        and "opd train CONFIG.toml" in nothing.hint
    )


def test_what_the_teacher_cannot_give_is_refused_before_weights_exist(refused, shop, here):
    """The plan's refusal comes first even where the weights are damaged."""
    broken = copied(shop, here, "teacher")
    (broken / "model.safetensors").write_bytes(b"no weights")
    said = refused("teacher=copy", "objective=full", "teacher.payload=ids")
    assert "the objective needs full rows" in said.error
    assert "model.safetensors is damaged" in refused("teacher=copy").error


# --- model folders ------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_named_with_the_nearest(refused, shop, here):
    said = refused(f"teacher={shop}/techer")
    assert said.error == f"no model folder at {shop}/techer" and said.hint == f"did you mean {shop}/teacher?"
    copied(shop, here)
    assert refused("student=cpoy").hint == "did you mean copy?"  # which may also be a Hub id
    assert refused("student=config.toml").error == "config.toml is a file, not a model folder"


def test_a_folder_without_config_says_where_the_model_is(refused, shop, here):
    empty = here / "empty"
    empty.mkdir()
    assert refused("student=empty").error == "empty holds no config.json, so it is no model folder"
    shutil.copytree(shop / "student", empty / "checkpoints/step_7/model")
    assert refused("student=empty").hint == "did you mean empty/checkpoints/step_7/model?"


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_damaged_weights(refused, shop, here, who):
    weights = copied(shop, here, who) / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:100], b"", b"\0" * 5000, b"pickle"):
        weights.write_bytes(damaged)
        said = refused(f"{who}=copy")
        assert said.error.startswith("copy/model.safetensors is damaged or cut short: ")
        assert said.hint == "copy or download copy again, or name another model"


def test_a_shard_that_is_missing(refused, shop, here):
    model = copied(shop, here)
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors is not there" in refused("student=copy").error
    (model / "model.safetensors.index.json").write_text("[]")
    assert refused("student=copy").error == "copy/model.safetensors.index.json is damaged"


def test_weights_that_are_missing_or_pickled(refused, shop, here):
    model = copied(shop, here)
    (model / "model.safetensors").unlink()
    assert refused("student=copy").error == "copy holds no weights: model.safetensors is not there"
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch marker'\ntR.")
    said = refused("student=copy")
    assert "copy holds pickled weights only (pytorch_model.bin)" in said.error
    assert "save_pretrained" in said.hint and not Path("marker").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hidden_layers": 3}, "asks for weights that are not there: model.layers.2."),
        ({"num_hidden_layers": 1}, "leaves out weights that are there: model.layers.1."),
        ({"intermediate_size": 64}, "and the weights disagree about the shape of: model.layers.0.mlp."),
    ],
)
def test_a_model_that_would_be_part_random_is_refused(train, shop, here, settings, message):
    """transformers would fill in random weights, with a line in its log."""
    config = copied(shop, here) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    said = train("student=copy")
    assert said.code == 2 and said.error.startswith(f"copy/config.json {message}")
    assert train("run=runs/first").code == 0, "the name is free for the next try"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "{", "cannot open the config of copy"),
        ("config.json", "[]", "cannot open the config of copy"),
        ("config.json", "{}", "cannot open the config of copy"),
        ("config.json", '{"model_type": "unheard"}', "cannot open the config of copy"),
        ("config.json", '{"model_type": "llama", "num_hidden_layers": "two"}', "cannot open the config of"),
        ("tokenizer.json", '{"a": ', "cannot open the tokenizer of copy"),
        ("tokenizer.json", "{}", "cannot open the tokenizer of copy"),
        ("tokenizer.json", None, "copy holds no tokenizer"),
        ("chat_template.jinja", None, "the tokenizer has no chat template"),
        ("chat_template.jinja", "{{ raise_exception('no roles') }}", "refuses this prompt: no roles"),
        ("chat_template.jinja", "{% for", "the chat template refuses this prompt"),
    ],
)  # fmt: skip
def test_damaged_files_of_a_model(refused, shop, here, name, text, message):
    path = copied(shop, here) / name
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert message in refused("student=copy").error


@pytest.mark.parametrize("model_type", ["llama", "evil"])
def test_code_in_a_model_folder_is_never_run(train, shop, here, model_type):
    """A type of transformers' own is opened with its own code; any other is refused."""
    model = copied(shop, here)
    (model / "evil.py").write_text("open('marker', 'w')\nclass C: pass\nclass M: pass\n")
    config = json.loads((model / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": [None, "evil.C"]}
    (model / "config.json").write_text(json.dumps(config | {"model_type": model_type, "auto_map": auto_map}))
    said = train("student=copy", "steps=1")
    assert not Path("marker").exists() and "evil" not in sys.modules
    if model_type == "evil":
        assert (
            said.code == 2 and said.error == "copy needs code from its own repository, which opd does not run"
        )
    else:
        assert said.code == 0


# --- vocabularies -------------------------------------------------------------------------------------------


def test_another_tokenizer_is_refused_with_the_first_differences(refused, here):
    save_model(here / "other", tokenizer=tiny_tokenizer(seed=5))
    said = refused("teacher=other")
    assert said.error.count(" to the student and ") == 3 and "student's family" in said.hint


def test_two_ids_that_changed_places_are_named(refused, shop, here):
    path = copied(shop, here, "teacher") / "tokenizer.json"
    data = json.loads(path.read_text())
    ids = data["model"]["vocab"]
    first, second = (next(token for token, i in ids.items() if i == wanted) for wanted in (300, 301))
    ids[first], ids[second] = ids[second], ids[first]
    path.write_text(json.dumps(data))
    said = refused("teacher=copy")
    assert f"id 300 is {first!r} to the student and {second!r} to the teacher" in said.error
    assert f"id 301 is {second!r}" in said.error


def test_tokens_that_one_side_does_not_know(refused, train, shop, here):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shop / "student")
    tokenizer.add_special_tokens({"eos_token": "<|bye|>"})
    save_model(here / "bye", tokenizer=tokenizer)
    said = refused("student=bye")
    assert said.error == "the student's end token '<|bye|>' (id 384) is unknown to the teacher"
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = "<|bye|>" + tokenizer.chat_template
    save_model(here / "template", tokenizer=tokenizer)
    said = refused("student=template")
    assert f"{shop}/sums.jsonl:1 has token '<|bye|>', id 384" in said.error
    save_model(here / "small", vocab_size=300)
    assert "share ids below 300 only" in refused("student=small").error


@pytest.mark.parametrize("objective", ["full", "paper", "paper-eq5"])
def test_embeddings_padded_wider_than_the_tokenizer(train, here, objective):
    """Qwen2.5 in small: 151,936 and 152,064 rows over one tokenizer. Padding is loud, and never drawn."""
    for name, rows in (("student", 400), ("teacher", 416)):
        model = save_model(here / name, vocab_size=rows, seed=rows)
        weights = load_file(model / "model.safetensors")
        head = weights["lm_head.weight"]
        head[384:] = 100 * head[:1].sign()
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    said = train("student=student", "teacher=teacher", f"objective={objective}", "save.rollouts_every=1")
    assert said.code == 0, said.err
    rows = metrics(Path("runs/first"))
    assert all(row["reverse_kl"] > 0 and torch.tensor(row["loss"]).isfinite() for row in rows)
    for path in Path("runs/first/rollouts").iterdir():
        for line in path.read_text().splitlines():
            assert max(json.loads(line)["response_ids"]) < 384


# --- prompts ------------------------------------------------------------------------------------------------


def test_prompt_files_that_hold_no_prompts(refused, shop, here):
    Path("empty.jsonl").write_text("\n")
    assert refused("task=empty.jsonl").error == "empty.jsonl holds no rows"
    Path("torn.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"\n')
    assert refused("task=torn.jsonl").error == "torn.jsonl:2: not JSON: Expecting ',' delimiter, column 16"
    assert refused(f"task={shop}/sum.jsonl").hint == f"did you mean {shop}/sums.jsonl?"
    assert refused("task.eval_path=torn.jsonl").error.startswith("torn.jsonl:2: not JSON")


def test_long_prompts_are_left_out_and_counted(train, here):
    write_rows(
        here / "long.jsonl", [{"prompt": "short"}, {"prompt": "word " * 400}, {"prompt": "word " * 300}]
    )
    said = train("task=long.jsonl", "task.eval_path=long.jsonl", "eval.responses=1")
    assert said.code == 0 and "2 of 3 training prompts are longer than the 248 tokens" in said.err
    assert "2 of 3 evaluation prompts" in said.err
    assert findings(Path("runs/first"))["prompts_dropped"]["numbers"]["dropped"] == 2


def test_prompts_that_are_all_too_long(refused, here):
    write_rows(here / "long.jsonl", [{"prompt": "word " * 400}])
    said = refused("task=long.jsonl")
    assert (
        "the shortest has 2014 tokens, sampling.max_tokens is 8, the student's context is 256" in said.error
    )
    assert "shorten the prompts" in said.hint


def test_responses_that_leave_no_room_get_a_length_that_works(refused, train):
    said = refused("sampling.max_tokens=256")
    assert "no training prompt leaves room" in said.error
    assert train(said.hint, "steps=1").code == 0


def test_what_only_the_teacher_reads_must_fit_too(refused, train):
    assert "the teacher's context is 256" in refused(f"teacher.context={'know ' * 100}").error
    chat = refused("teacher.context=know this", "task.chat_template=false")
    assert chat.error == "a system message needs a chat template"
    assert train("teacher.context=know this", "steps=1").code == 0


def test_a_teachers_context_reaches_prompts_whatever_their_ids(train, here):
    """Also a prompt drawn twice in a step, and one whose own id looks like that of a second draw."""
    write_rows(here / "ids.jsonl", [{"prompt": "one", "id": "a"}, {"prompt": "two", "id": "a#1"}])
    words = ("task=ids.jsonl", "steps=1", "prompts_per_step=4", "optim.lr=1e-12", "teacher={type='self'}")
    assert train(*words, "run=runs/same").code == 0
    assert train(*words, "run=runs/context", 'teacher={type="self", context="know"}').code == 0
    assert abs(metrics(Path("runs/same"))[0]["reverse_kl"]) < 1e-6
    assert metrics(Path("runs/context"))[0]["reverse_kl"] > 1e-3


def test_graders_that_cannot_work(refused, here):
    write_rows(here / "open.jsonl", [{"prompt": "a", "answer": "b"}, {"prompt": "c"}])
    said = refused("task=open.jsonl", "task.grader=exact")
    assert "1 of 2 rows have no `answer`, the first at open.jsonl:2" in said.error
    assert said.hint == "task.answer_key=COLUMN, or task.grader=none"
    assert (
        "task.grader.pattern is no pattern" in refused("task.grader=regex", "task.grader.pattern='('").error
    )


@pytest.mark.parametrize(
    ("grader", "timeout"),
    [
        (r"""{type = "regex", pattern = '(?s)^((?:.|.)*)\x00$', timeout_seconds = 0.2}""", True),
        ("""{type = "math"}""", False),  # finds no answer to compare with, and raises
    ],
)
def test_a_grader_that_hangs_or_raises_is_counted(train, here, grader, timeout):
    write_rows(here / "odd.jsonl", [{"prompt": "a", "answer": " "}])
    said = train(
        "task=odd.jsonl",
        f"task.grader={grader}",
        "sampling.max_tokens=30",
        "sampling.min_tokens=30",
        "steps=1",
    )
    assert said.code == 0, said.err
    row = metrics(Path("runs/first"))[0]
    assert row["ungraded_fraction"] == 1.0 and "accuracy" not in row


def test_few_prompts_and_short_responses_are_steps_like_others(train, here):
    write_rows(here / "one.jsonl", [{"prompt": "one"}])
    assert train("task=one.jsonl", "prompts_per_step=3", "run=runs/few").code == 0
    assert train("sampling.max_tokens=1", "run=runs/one-token").code == 0
    every = f"sampling.stop_ids={list(range(384))}"
    assert train(every, "run=runs/only-end").code == 0
    for name in ("few", "one-token", "only-end"):
        rows = metrics(Path("runs") / name)
        assert len(rows) == 2 and all(torch.tensor(row["loss"]).isfinite() for row in rows)
    assert metrics(Path("runs/only-end"))[0]["response_length"] == 1.0
    assert metrics(Path("runs/only-end"))[0]["truncated_fraction"] == 0.0


def test_a_step_of_empty_responses_changes_nothing():
    student = Student(tiny_loaded("llama", seed=1), k=4)
    learner = Learner(
        student,
        optim=OptimConfig(lr=1e-2),
        learner=LearnerConfig(),
        steps=3,
        world=World(torch.device("cpu")),
    )
    teacher = LocalTeacher(tiny_loaded("llama", seed=2))
    rows = [replace(r, response_ids=(), logp=None, topk_ids=None, topk_logp=None) for r in rollouts(384)]
    scores = teacher.score(rows, needs=Needs(sampled=True))
    objective = Objective(ObjectiveConfig(k=4))
    batch = collate(rows, {"teacher": scores})
    before = [p.clone() for p in student.parameters()]
    update = learner.update(
        Part(batch, objective.prepare(batch), objective), heads={"teacher": teacher.head}, step=0
    )
    assert not update.skipped and update.tally.means().get("loss", 0.0) == 0.0
    assert all(torch.equal(old, new) for old, new in zip(before, student.parameters(), strict=True))


# --- run folders --------------------------------------------------------------------------------------------


@pytest.fixture
def begun(train: Type) -> Path:
    """A run of one step."""
    assert train("steps=1", "save.rollouts_every=0").code == 0
    return Path("runs/first")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_is_never_overwritten(train, begun):
    before = contents(begun)
    said = train()
    assert said.code == 2 and said.error == "runs/first exists and is not empty"
    assert said.hint == "opd train --resume runs/first, or another name: run=runs/first-2"
    assert contents(begun) == before


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["runs/firts"], "runs/firts is not there", "did you mean runs/first?"),
        (["runs"], "runs is not a run folder", "did you mean runs/first?"),
        (
            ["runs/first", "config.toml"],
            "--resume takes its configuration from",
            "opd train --resume runs/first",
        ),
        (["runs/first", "optim.lr=1"], "optim.lr cannot change in a resumed run", "run=DIR"),
        (["runs/first", "objective=full"], "objective cannot change in a resumed run", "run=DIR"),
        (["runs/first", "run=runs/other"], "run cannot change in a resumed run", "run=DIR"),
        (["runs/first", "stpes=3"], "stpes cannot change", "run=DIR"),
    ],
)
def test_what_cannot_be_resumed(begun, capfd, words, message, hint):
    before = contents(begun)
    said = opd(capfd, "train", "--resume", *words)
    assert said.code == 2 and message in said.error and hint in said.hint
    assert contents(begun) == before


def test_a_run_that_is_being_written_is_left_alone(begun, capfd):
    """By another process, which is named."""
    code = (
        "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDWR); fcntl.flock(fd, fcntl.LOCK_EX);"
        "os.pwrite(fd, b'process 1 on x', 0); print('held', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-S", "-c", code, str(begun / ".opd-lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        before = contents(begun)
        said = opd(capfd, "train", "--resume", begun, "steps=3")
        assert said.code == 2 and "runs/first is being written to by process 1 on x" in said.error
        assert "opd train --resume runs/first" in said.hint and contents(begun) == before
        holder.communicate()
    assert opd(capfd, "train", "--resume", begun, "steps=2").code == 0
    fd = os.open(begun / ".opd-lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back
    os.close(fd)


def test_a_full_disk_loses_nothing_and_the_run_goes_on(begun, train, capfd):
    """A limit on file sizes that lets rows through and no model: the save after step 2 fails."""
    before = contents(begun)
    words = [sys.executable, "-B", "-m", "opdkit", "train", "--resume", str(begun), "steps=3", "save.every=1"]
    limit = (100_000, 100_000)
    full = subprocess.run(
        words,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    said = Said(full.returncode, full.stdout, full.stderr)
    assert said.code == 1 and "cannot write checkpoint" in said.error and "File too large" in said.error
    assert "bytes are free" in said.error and said.hint.endswith("then: opd train --resume runs/first")
    after = contents(begun)
    kept = [name for name in before if "checkpoints" in name]
    assert kept and all(after[name] == before[name] for name in kept)
    assert after["runs/first/metrics.jsonl"].startswith(before["runs/first/metrics.jsonl"])
    assert [p.name for p in (begun / "checkpoints").iterdir()] == ["step_1"]

    assert opd(capfd, "train", "--resume", begun, "steps=3").code == 0
    assert [row["step"] for row in metrics(begun)] == [1, 2, 3]
    assert train("steps=3", "run=runs/whole").code == 0
    weights = "checkpoints/step_3/model/model.safetensors"
    assert (begun / weights).read_bytes() == Path("runs/whole", weights).read_bytes()


# --- what stops a run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "message", "hint"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nlong"), 1, "out of memory: CUDA", "batch_tokens"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "out of memory", "batch_tokens"),
        (MemoryError(), 1, "out of memory", "batch_tokens"),
        (KeyboardInterrupt(), 130, "interrupted", "opd train --resume runs/first"),
        (OSError(28, "No space left on device", "x"), 1, "no space left to write (x)", "free some space"),
        (OSError(5, "Input/output error"), 1, "Input/output error", "opd train --resume runs/first"),
    ],
)  # fmt: skip
def test_whatever_stops_a_run_says_how_to_go_on(train, here, monkeypatch, error, code, message, hint):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(sys.modules["opdkit.train.loop"], "collate", fail)
    said = train()
    assert said.code == code and message in said.error and hint in said.hint
    assert "opd train --resume runs/first" in said.hint
