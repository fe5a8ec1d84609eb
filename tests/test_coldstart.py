"""`opd coldstart` from its command line: one flow of stages, refusals, and the same files after a kill in any stage."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from commands import metrics, opd, save_model, write_rows
from killing import Kill, Nursery, compare, files, overrides
from opdkit.config import build, load_config
from opdkit.recipes.coldstart import coldstart
from opdkit.recipes.document import schema
from opdkit.tasks import demonstrations, encode
from opdkit.tasks.rows import read_prompts
from opdkit.train import Silent, run_story
from opdkit.types import UserError

SETTINGS: dict[str, Any] = {
    "steps": 3,
    "prompts_per_step": 4,
    "device": "cpu",
    "threads": 1,
    "sampling.responses": 2,
    "sampling.max_tokens": 8,
    "sampling.stop_ids": [3, *range(40, 120)],  # so that most responses end
    "optim.lr": 1e-3,
    "objective.k": 4,
    "diagnostics.k": 4,
    "diagnostics.ks": [1, 4],
    "eval.responses": 1,
    "eval.teacher": True,
    "save.every": 1,
    "save.rollouts_every": 1,
    "task.grader.type": "regex",
    "task.grader.pattern": r"(\d)",
    "coldstart.filters.no_answer": False,
    "coldstart.prompts_per_step": 6,
    "coldstart.probe_every": 2,
    "coldstart.probe_prompts": 8,
    "coldstart.least": 2,
    "coldstart.steps": 6,
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher, 150 sums with answers: three chunks of answers."""
    shop = tmp_path_factory.mktemp("shop")
    save_model(shop / "student", seed=0)
    save_model(shop / "teacher", seed=1, hidden=48)
    rows = [{"prompt": f"Compute {i} + 2", "answer": str(i % 10), "response": str(i)} for i in range(150)]
    write_rows(shop / "sums.jsonl", rows)
    write_rows(shop / "held_out.jsonl", [{"prompt": f"Compute {i} + 3", "answer": "3"} for i in range(6)])
    return shop


def words(shop: Path, run: Path, **changes: Any) -> list[str]:
    settings = SETTINGS | {
        "student.model": str(shop / "student"),
        "teacher.model": str(shop / "teacher"),
        "task.path": str(shop / "sums.jsonl"),
        "task.eval_path": str(shop / "held_out.jsonl"),
        "run": str(run),
    }
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    return overrides({k: v for k, v in (settings | changed).items() if v is not None})


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("logs")) as nursery:
        yield nursery


@pytest.fixture(scope="module")
def reference(nursery: Nursery, shop: Path) -> Path:
    """A cold start that nobody disturbed."""
    run = shop / "reference"
    child = nursery.start(["coldstart", *words(shop, run), "--json"])
    assert child.wait() == 0, child.said
    return run


@pytest.fixture
def copied(reference: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference, tmp_path / "copied"))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- the flow -------------------------------------------------------------------------------------------------


def test_the_stages_leave_what_they_say(reference: Path, nursery: Nursery) -> None:
    told = json.loads((nursery.folder / "1.log").read_text().splitlines()[-1])
    answers, kept, dropped = (rows(reference / f"{n}.jsonl") for n in ("answers", "kept", "dropped"))
    assert len(answers) == 142 and len({row["prompt"] for row in answers}) == 142, "eight of 150 are held out"
    assert len(kept) + len(dropped) == 142 and kept and {row["reason"] for row in dropped} >= {"truncated"}
    assert all(row["finish_reason"] == "stop" for row in kept)
    stages = told["stages"]
    assert stages["filters"]["kept"] == len(kept) and sum(stages["filters"]["reasons"].values()) == len(
        dropped
    )
    probes = rows(reference / "probes.jsonl")
    assert [row["step"] for row in probes][:2] == [0, 2] and probes[-1]["step"] == stages["sft"]["trained"]
    assert stages["sft"]["step"] in [row["step"] for row in probes[1:]]
    assert told["probe_before"] == probes[0] and told["probe_after"]["step"] == stages["sft"]["step"]
    handed = f'student.model = "{reference / "sft" / "checkpoints" / "step_"}{stages["sft"]["step"]}/model"'
    assert handed.replace('"', "") in (reference / "distill" / "config.toml").read_text().replace('"', "")
    assert [row["step"] for row in metrics(reference / "distill")] == [1, 2, 3]
    scores = told["scores"]
    assert scores["before"] == stages["before"]["eval"]["avg_at_k"] and scores["teacher"] is not None
    assert scores["after"] == rows(reference / "distill" / "eval.jsonl")[-1]["avg_at_k"]
    assert told["exit_code"] == 0 and told["next"].startswith("opd report ")


def test_report_and_check_read_the_stage_folders(
    reference: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = opd(capfd, "report", reference / "distill", reference / "sft", "--out", tmp_path / "page.html")
    assert page.code == 0 and (tmp_path / "page.html").is_file(), page
    both = opd(capfd, "report", reference, "--out", tmp_path / "both.html")
    assert both.code == 0
    assert (tmp_path / "both.html").read_text() == (tmp_path / "page.html").read_text(), "its two runs"
    monkeypatch.chdir(tmp_path)
    short = ["sampling.max_tokens=4", "--budget", "64"]
    before = opd(capfd, "check", reference / "config.toml", *short, "--out", "old.json", "--json")
    assert before.code in (0, 3, 4), before
    again = ["check", reference / "distill" / "config.toml", *short, "--out", "new.json"]
    said = opd(capfd, *again, "--against", "old.json")
    assert (
        "against the earlier check: " in said.out
        and f"  student {json.loads(before.out)['student']} → " in said.out
    )
    told = json.loads((tmp_path / "new.json").read_text())
    jsonschema.validate(told, schema())
    change = told["against"]["metrics"]["overlap_ratio"]
    assert change["change"] == change["after"] - change["before"] != 0.0
    assert change["before"] == json.loads(before.out)["metrics"]["overlap_ratio"]["value"]
    write_rows(tmp_path / "other.json", [{"schema": "another"}])
    wrong = opd(capfd, *again, "--against", "other.json")
    assert wrong.code == 2 and "is no document of opd check" in wrong.error


def test_a_complete_one_is_left_as_it_is(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = files(copied)
    told = json.loads(opd(capfd, "coldstart", "--resume", copied, "--json").out)
    assert told["exit_code"] == 0
    changed = {name for name, data in files(copied).items() if before.get(name) != data}
    assert changed <= {"config.toml", ".opd-lock"}, "where the folder is, who has it"


def test_other_inputs_make_stages_anew_and_nothing_is_deleted(
    copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = (copied / "kept.jsonl").read_bytes()
    answers = (copied / "answers.jsonl").stat().st_mtime_ns
    said = opd(
        capfd,
        "coldstart",
        "--resume",
        copied,
        "coldstart.filters.ngram=1",
        "coldstart.filters.ngram_share=0.1",
    )
    assert said.code == 0, said
    assert (copied / "answers.jsonl").stat().st_mtime_ns == answers, "the teacher was not asked again"
    assert (copied / "before-1" / "kept.jsonl").read_bytes() == kept != (copied / "kept.jsonl").read_bytes()
    assert (copied / "before-1" / "distill" / "metrics.jsonl").is_file()
    assert "repeated_ngrams" in {row["reason"] for row in rows(copied / "dropped.jsonl")}


def test_a_file_that_was_changed_is_not_taken_for_the_stages(
    copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (copied / "kept.jsonl").open("a") as file:
        file.write("{}\n")
    said = opd(capfd, "coldstart", "--resume", copied)
    assert (
        said.code == 2
        and "is not what stage `filters` wrote" in said.error
        and f"rm {copied / 'kept.jsonl'} && " in said.hint
    )


def test_a_file_that_is_gone_is_made_again_and_the_rest_stays(
    reference: Path, copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (copied / "kept.jsonl").unlink()
    trained = (copied / "distill" / "metrics.jsonl").stat().st_mtime_ns
    assert opd(capfd, "coldstart", "--resume", copied).code == 0
    assert (copied / "kept.jsonl").read_bytes() == (reference / "kept.jsonl").read_bytes()
    assert (copied / "distill" / "metrics.jsonl").stat().st_mtime_ns == trained


def test_a_fixed_hand_over_and_a_forward_kl(
    shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "coldstart__until": {"steps": 3},
        "coldstart__warm_up": "forward_kl",
        "steps": 1,
        "coldstart__prompts": 30,
    }
    said = opd(capfd, "coldstart", *words(shop, tmp_path / "run", **changes), "--json")
    assert said.code == 0, said
    told = json.loads(said.out)
    assert told["stages"]["sft"]["step"] == 3 and told["stages"]["sft"]["why"] == "steps"
    assert told["stages"]["answers"]["answers"] == 30
    learned = metrics(tmp_path / "run" / "sft")
    assert len(learned) == 3 and all(row["loss"] > 0 and "overlap_ratio" in row for row in learned)


def test_the_terminal_hears_of_every_stage(
    shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = {"coldstart__until": {"steps": 2}, "coldstart__steps": 2, "steps": 1, "coldstart__prompts": 30}
    said = opd(capfd, "coldstart", *words(shop, tmp_path / "run", **changes))
    assert said.code == 0, said
    for part in (
        "the student before",
        "the teacher answers 30",
        "kept ",
        "probe after step 2",
        "hand-over: step 2",
    ):
        assert part in said.err, part
    assert "overlap_ratio" in said.out and said.out.splitlines()[-1].startswith("next: opd report ")


# --- imitation by a divergence --------------------------------------------------------------------------------


def imitation(shop: Path, run: Path, **changes: Any) -> Any:
    return build(
        {
            "story": "sft",
            "student": str(shop / "student"),
            "teacher": str(shop / "teacher"),
            "task": str(shop / "sums.jsonl"),
            "objective": {"preset": "full", "divergence": "forward_kl"},
            "diagnostics": {"k": 4, "ks": [4], "positions": 0},
            "prompts_per_step": 8,
            "steps": 12,
            "optim": {"lr": 3e-3},
            "run": str(run),
            "device": "cpu",
            **changes,
        },
        origin="a test",
    )


def test_sft_with_a_teacher_is_the_forward_kl_on_its_text(shop: Path, tmp_path: Path) -> None:
    """Σ_v q (log q − log p) at every state of the demonstrations, the mean over their tokens, by plain forwards."""
    few = write_rows(tmp_path / "few.jsonl", rows(shop / "sums.jsonl")[:8])
    config = imitation(shop, tmp_path / "run", task=str(few))
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(shop / name, dtype=torch.float64)
        for name in ("student", "teacher")
    )
    tokenizer = AutoTokenizer.from_pretrained(shop / "student")
    prompts = encode(read_prompts(few, config.task), tokenizer, config.task)
    total, count = 0.0, 0
    for shown in demonstrations(prompts, tokenizer, stop_ids=[3]):
        ids = torch.tensor([[*shown.prompt.ids, *shown.response_ids]])
        with torch.no_grad():
            p, q = (model(ids).logits[0].log_softmax(-1) for model in (student, teacher))
        states = slice(len(shown.prompt.ids) - 1, ids.shape[1] - 1)
        total += float((q.exp() * (q - p))[states].sum())
        count += shown.length
    assert run_story(config, talk=Silent()) == 0
    losses = [row["loss"] for row in metrics(tmp_path / "run")]
    assert losses[0] == pytest.approx(total / count, rel=1e-4)
    assert losses[-1] < 0.8 * losses[0], losses
    assert "staleness" not in metrics(tmp_path / "run")[0], "nobody drew it"


def test_in_itself_there_is_nothing_to_imitate(shop: Path, tmp_path: Path) -> None:
    assert (
        run_story(imitation(shop, tmp_path / "run", teacher=str(shop / "student"), steps=1), talk=Silent())
        == 0
    )
    assert metrics(tmp_path / "run")[0]["loss"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": {"preset": "sampled"}}, "drawn by somebody else"),
        ({"objective": {"preset": "full", "signal": {"discount": 0.9}}}, "knows their positions only"),
        ({"objective": {"preset": "full", "anchor": 0.1}}, "other models than the teacher"),
        ({"objective": {"preset": "paper", "divergence": "forward_kl"}, "teacher": {"payload": "ids"}}, "draws nothing"),
        ({"objective": {"preset": "full"}}, "this is the reverse KL"),
        ({"teacher": {"context": "be brief"}}, "a context that only the teacher reads"),
    ],
)  # fmt: skip
def test_what_demonstrations_cannot_be_learned_by(
    shop: Path, tmp_path: Path, changes: dict, said: str
) -> None:
    if "teacher" in changes:
        changes = changes | {"teacher": {"model": str(shop / "teacher"), **changes["teacher"]}}
    with pytest.raises(UserError, match=said) as refused:
        run_story(imitation(shop, tmp_path / "run", **changes), talk=Silent())
    assert refused.value.hint and not (tmp_path / "run").exists()


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said", "hint"),
    [
        ({"teacher__model": None}, "there is no teacher", "teacher="),
        ({"teacher__model": None, "teacher__type": "self"}, "own copy", "teacher="),
        ({"story": "grpo", "teacher__model": None}, "the story is 'grpo'", "story=distill"),
        ({"coldstart__probe_prompts": 100}, "150 training prompts are too few", "coldstart.probe_prompts=75"),
        ({"coldstart__filters__wrong": True, "task__grader__type": "none"}, "no grader", "task.grader=exact"),
        ({"task__render": "teacher"}, "no teacher whose template", "coldstart.warm_up=forward_kl"),
        ({"coldstart__until": {"steps": 9}}, "beyond the most steps", "coldstart.steps=9"),
        ({"coldstart__until": {"steps": 3, "overlap": 0.8}}, "a fixed hand-over", "until = "),
        ({"coldstart__least": 99}, "least lies beyond", "coldstart.steps=99"),
        ({"coldstart__probe_evry": 3}, "probe_evry", "did you mean 'probe_every'?"),
        ({"coldstart__max_tokens": 4000}, "no training prompt leaves room", "coldstart.max_tokens="),
        ({"coldstart__warm_up": "forward_kl", "teacher__payload": "ids"}, "full", "teacher.payload"),
    ],
)  # fmt: skip
def test_refusals_name_what_would_do(
    shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: dict, said: str, hint: str
) -> None:
    told = opd(capfd, "coldstart", *words(shop, tmp_path / "run", **changes))
    assert told.code == 2 and said in told.error and hint in told.hint, told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--resume", "nowhere"), "is not there"),
        (("--resume", "empty"), "holds no coldstart.json"),
        (("CONFIG", "--resume", "RUN"), "takes its configuration from"),
        (("--resume", "RUN", "student.model=other"), "cannot change"),
        ((), "no CONFIG"),
    ],
)
def test_refusals_of_going_on(
    copied: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], given: tuple, said: str, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    told = opd(capfd, "coldstart", *(copied if word == "RUN" else word for word in given))
    assert told.code == 2 and said in told.error, told


def test_a_folder_is_used_once(copied: Path, shop: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = opd(capfd, "coldstart", *words(shop, copied))
    assert told.code == 2 and "is not empty" in told.error and f"--resume {copied}" in told.hint


def test_where_nothing_is_left_the_reasons_are_counted(
    shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pattern = {"coldstart__filters__no_answer": True, "coldstart__filters__answer": "NEVER SAID"}
    told = opd(capfd, "coldstart", *words(shop, tmp_path / "run", **pattern))
    assert told.code == 1 and "no_answer" in told.err and "truncated" in told.err, told
    assert f"opd coldstart --resume {tmp_path / 'run'} coldstart.filters.no_answer=false" in told.hint
    again = opd(
        capfd, "coldstart", "--resume", tmp_path / "run", "coldstart.filters.no_answer=false", "--json"
    )
    assert again.code == 0, again


def test_an_end_token_of_the_teacher_alone_is_replaced_and_told(
    shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its generation config stops at a token that does not stop the student."""
    teacher = Path(shutil.copytree(shop / "teacher", tmp_path / "teacher"))
    ends = [3, *range(40, 120)]
    (teacher / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    changes = {
        "teacher__model": str(teacher),
        "sampling__stop_ids": None,
        "coldstart__prompts": 40,
        "steps": 1,
    }
    said = opd(capfd, "coldstart", *words(shop, tmp_path / "run", **changes), "--json")
    assert said.code == 0, said
    found = {f["name"]: f for f in json.loads(said.out)["findings"]}
    assert "end_token_replaced" in found
    row = next(r for r in rows(tmp_path / "run" / "kept.jsonl") if r["response_ids"][-1] != 3)
    answer = next(r for r in rows(tmp_path / "run" / "answers.jsonl") if r["id"] == row["id"])
    assert answer["response"].startswith(row["response"]) and answer["response"] != row["response"]


# --- kills ----------------------------------------------------------------------------------------------------


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


MOMENTS = {
    "answers": lambda run: 0 < lines(run / "answers.jsonl") < 142,
    "sft": lambda run: lines(run / "sft" / "metrics.jsonl") >= 1,
    "between segments": lambda run: lines(run / "probes.jsonl") >= 2,
    "distill": lambda run: lines(run / "distill" / "metrics.jsonl") >= 1,
}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_in_any_stage_ends_with_the_same_files(
    reference: Path, nursery: Nursery, shop: Path, tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    child = nursery.start(["coldstart", *words(shop, run)])
    struck = Kill(when=MOMENTS[moment], number=number).strike(child, run)
    assert struck.hit, f"it was over before {moment}"
    assert struck.code == 128 + number, child.said
    if number == signal.SIGTERM:
        assert f"opd coldstart --resume {run}" in child.said
    child = nursery.start(["coldstart", "--resume", str(run)])
    assert child.wait() == 0, child.said
    assert differences(run, reference) == []


class Struck(Silent):
    """A SIGTERM at one moment of what is shown: each is outside the work that a signal cuts off."""

    def __init__(self, moment: str):
        self.moment, self.notes = moment, list[str]()

    def at(self, moment: str) -> None:
        if moment == self.moment:
            os.kill(os.getpid(), signal.SIGTERM)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.at("filtered" if text.startswith("kept ") else text.split(":")[0])

    def progress(self, what: str, done: int, count: int) -> None:
        self.at(f"{what} {done} of {count}")

    def probed(self, row: dict[str, Any]) -> None:
        self.at(f"probe {row['step']}")

    def step(self, row: dict[str, Any], steps: int) -> None:
        self.at(f"step {row['step']} of {steps}")


@pytest.mark.parametrize(
    "moment",
    ["answers 142 of 142", "filtered", "probe 0", "step 2 of 6", "probe 2", "hand-over", "distillation"],
)
def test_a_signal_between_two_pieces_of_work_is_heeded_before_the_next(
    reference: Path, shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], moment: str
) -> None:
    """`step 2` is the last of its segment."""
    run = tmp_path / "run"
    config = load_config(reference / "config.toml", [f"run={run}"])
    show, unheeded = Struck(moment), list[int]()
    before = signal.signal(signal.SIGTERM, lambda number, _: unheeded.append(number))
    try:
        code, told = coldstart(config, show=show)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (code, unheeded) == (143, [])
    assert told["exit_code"] == 143 and show.notes[-1].endswith(f"opd coldstart --resume {run}")
    stages = json.loads((run / "coldstart.json").read_text())["stages"]
    assert "steps" not in stages.get("distill", {}) and not (run / "distill" / "metrics.jsonl").exists()
    assert opd(capfd, "coldstart", "--resume", run).code == 0
    assert differences(run, reference) == []


def differences(run: Path, reference: Path) -> list[str]:
    """What differs, but for wall-clock values and the name of the folder."""
    names = ("answers.jsonl", "kept.jsonl", "dropped.jsonl", "probes.jsonl")
    found = [n for n in names if (run / n).read_bytes() != (reference / n).read_bytes()]
    for stage in ("sft", "distill"):
        found += [f"{stage}/{name}" for name in compare(run / stage, reference / stage)]
    ours, theirs = (
        json.loads((place / "coldstart.json").read_text())["stages"] for place in (run, reference)
    )
    told = [
        {n: {k: v for k, v in s.items() if k != "inputs"} for n, s in each.items()} for each in (ours, theirs)
    ]
    return found + (["coldstart.json"] if told[0] != told[1] else [])


def test_a_torn_line_of_answers_is_written_again(reference: Path, nursery: Nursery, copied: Path) -> None:
    """As a power cut may leave it: the manifest knows nothing of the stage, half a line is at the end."""
    manifest = json.loads((copied / "coldstart.json").read_text())
    for stage in ("answers", "filters", "sft", "distill"):
        del manifest["stages"][stage]
    (copied / "coldstart.json").write_text(json.dumps(manifest))
    for name in ("kept.jsonl", "dropped.jsonl", "probes.jsonl"):
        (copied / name).unlink()
    for name in ("sft", "distill"):
        shutil.rmtree(copied / name)
    answers = (copied / "answers.jsonl").read_bytes()
    cut = answers[: len(answers) * 3 // 4]
    (copied / "answers.jsonl").write_bytes(cut)
    child = nursery.start(["coldstart", "--resume", str(copied)])
    assert child.wait() == 0, child.said
    assert differences(copied, reference) == []


def test_a_student_with_an_adapter_goes_through(
    shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The SFT trains one and hands over the merged model, on which distillation trains another."""
    changes = {
        "student__lora": {"rank": 2, "alpha": 4.0},
        "coldstart__until": {"steps": 2},
        "steps": 1,
        "coldstart__prompts": 30,
    }
    said = opd(capfd, "coldstart", *words(shop, tmp_path / "run", **changes), "--json")
    assert said.code == 0, said
    for stage, step in (("sft", 2), ("distill", 1)):
        place = tmp_path / "run" / stage / "checkpoints" / f"step_{step}"
        assert (place / "adapter").is_dir() and (place / "model" / "config.json").is_file()
