"""Stories that make teachers: sft, grpo, improve, and the control push_down; end to end through `opd train`.

A run is killed where it kills itself: in a forked process, at a step that is named. No clock is involved.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import killing
from commands import Said, build_shop, findings, metrics, opd, write_rows
from killing import compare, files, newest
from models import IM_END, tiny_tokenizer
from opdkit.cli import main
from opdkit.studies.bodies import Body, write_body
from opdkit.tasks.chain import ChainWorld

STORIES = ("sft", "grpo", "improve", "push_down")
STEPS, ROUND = 8, 4
STOPS = [IM_END, *range(40, 160)]  # so that many responses of a random model end
TEXT = "[a-z]()"  # a response is right if it holds a lower-case letter
SETTINGS: dict[str, Any] = {
    **killing.SETTINGS,
    "steps": STEPS,
    "sampling.max_tokens": 6,
    "sampling.stop_ids": STOPS,
    "learner.batch_tokens": 60,
    "diagnostics.positions": 6,
    "save.rollouts": 8,
    "improve.prompts": 10,
    "improve.every": ROUND,
    "push_down.share": 0.5,
    "task.grader.type": "regex",
    "task.grader.pattern": TEXT,
}
WORLD = ChainWorld(modulus=2, depth=(1, 2), kinds=(1.0, 0.0, 0.0), templates=1, slip_share=0.0)
DIALS = "{modulus=2, depth=[1, 2], kinds=[1.0, 0.0, 0.0], templates=1, slip_share=0.0}"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, sums with and without demonstrations, a model that reads a world of chains."""
    shop = build_shop(tmp_path_factory.mktemp("shop"))
    texts = ["The answer is {}.", "So: {}", "{} it is", "Yes, {}.<|im_end|>"]
    rows = [
        {
            "prompt": f"Compute {i} + 2",
            "answer": "",
            "group": ("even", "odd")[i % 2],
            "response": texts[i % 4].format(i + 2),
        }
        for i in range(12)
    ]
    write_rows(shop / "shown.jsonl", rows)
    write_rows(shop / "asked.jsonl", [{**row, "id": f"asked-{i}"} for i, row in enumerate(rows[:6])])
    write_body(shop / "body", Body(32, 64, 0.1), world=WORLD, seed=1)
    return shop


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(shop: Path, story: str, run: Path | str, **changes: Any) -> list[str]:
    """The command line of a story; `task__path` stands for `task.path`."""
    places = {
        "student": shop / "student",
        "task.path": shop / "shown.jsonl",
        "task.eval_path": shop / "asked.jsonl",
    }
    given = {key.replace("__", "."): value for key, value in changes.items()}
    settings = {"story": story, "run": run, **places, **SETTINGS, **given}
    return [
        "train",
        *(f"{k}={v if isinstance(v, str | Path) else json.dumps(v)}" for k, v in settings.items()),
    ]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rollouts_of(run: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(run.glob("rollouts/*.jsonl")) for row in rows_of(path)]


# --- a run like any other -----------------------------------------------------------------------------------

Finished = Callable[[str], Path]


@pytest.fixture(scope="module")
def finished(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run of a story that nobody disturbed, made once."""
    place = tmp_path_factory.mktemp("finished")

    def make(story: str) -> Path:
        run = place / story
        if not run.exists():
            assert forked(*words(shop, story, run)) == 0
        return run

    return make


def forked(*argv: str, prepare: Callable[[pytest.MonkeyPatch], None] = lambda _: None) -> int:
    """`opd ARGV` in a process of its own; its exit code, negative for the signal that ended it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads here hold nothing that we need
        pid = os.fork()
    if pid == 0:
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", ["opd", *argv])
                prepare(patch)
                main()
        except SystemExit as end:
            os._exit(int(end.code or 0))
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("story", STORIES)
def test_a_story_is_a_run_like_any_other(finished: Finished, story: str, capfd: Any) -> None:
    """Numbers of every step, evaluations, a checkpoint that loads, a page; not a word about a teacher."""
    run = finished(story)
    rows = metrics(run)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    wanted = {"loss", "entropy_student", "logp_sampled", "grad_norm", "response_length", "truncated_fraction"}
    for row in rows:
        assert wanted <= row.keys() and all(math.isfinite(value) for value in row.values())
        assert not [n for n in row if re.search("overlap|teacher|kl|gap|sequence_reward|advantage", n)]
        assert 0 < row["measured_positions"] <= 6 and row["entropy_student"] > 0
        assert ("accuracy" in row) == (story in ("grpo", "push_down"))
        assert ("kept_rollouts" in row) == (story == "improve")
        assert ("sampler_mismatch" in row) == (story in ("grpo", "push_down"))
        assert row["skipped_steps"] == 0 and row.get("sampler_mismatch", 0) < 1e-3
    assert any(row["grad_norm"] > 0 for row in rows)
    evaluations = rows_of(run / "eval.jsonl")
    assert [row["step"] for row in evaluations] == [0, 4, 8]
    for row in evaluations:
        assert row["graded"] and row["problems"] == 6 and set(row["by_group"]) == {"even", "odd"}
        assert row["avg_at_k"] == pytest.approx(statistics.fmean(row["by_group"].values()))  # three of each
        assert "teacher_avg_at_k" not in row
    assert len({row["avg_at_k"] for row in evaluations}) > 1, "nothing was learnt"

    from transformers import AutoModelForCausalLM

    assert newest(run) == STEPS
    model = AutoModelForCausalLM.from_pretrained(run / f"checkpoints/step_{STEPS}/model")
    assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()
    said = opd(capfd, "report", run, "--json")
    assert said.code == 0 and said.err == ""
    page = Path(json.loads(said.out)["report"]).read_text()
    assert "entropy_student" in page and "an unnamed teacher" not in page and "with the objective" not in page


@pytest.mark.parametrize("story", STORIES)
def test_kept_rows_and_sequences_tell_of_the_same_rollouts(finished: Finished, story: str) -> None:
    run = finished(story)
    every = 4 if story in ("sft", "improve") else 8
    sequences = rows_of(run / "sequences.jsonl")
    assert [row["step"] for row in sequences] == list(range(1, STEPS + 1))
    for row, metric in zip(sequences, metrics(run), strict=True):
        kept = rows_of(run / f"rollouts/step_{row['step']}.jsonl")
        assert len(kept) == every and row["score"] == [r["score"] for r in kept]
        assert row["length"] == [len(r["response_ids"]) for r in kept] == [r["length"] for r in kept]
        assert row["truncated"] == [r["finish_reason"] == "length" for r in kept]
        assert row["sequence_reward"] == [None] * every and not any("tokens" in r for r in kept)
        assert metric["response_length"] == statistics.fmean(row["length"])
        if story in ("grpo", "push_down"):
            assert row["score"] == [float(re.search("[a-z]", r["response"]) is not None) for r in kept]
            assert metric["accuracy"] == pytest.approx(statistics.fmean(row["score"]))


# --- killed and resumed -------------------------------------------------------------------------------------


def strike(step: int, number: int) -> Callable[[pytest.MonkeyPatch], None]:
    """Sends the process a signal when its loop has the rollouts of `step`, from 0, and has not learnt from them."""
    import opdkit.train.loop as loop

    original = loop.collate

    def struck(*args: Any, **settings: Any) -> Any:
        if settings["step"] == step:
            os.kill(os.getpid(), number)
        return original(*args, **settings)

    return lambda patch: patch.setattr(loop, "collate", struck)


def same(run: Path, reference: Path) -> bool:
    """Weights, optimizer, counters, metrics but the clock's, evaluations, rollouts; and what rounds kept."""
    assert compare(run, reference) == []
    kept = [{p.name: p.read_bytes() for p in r.glob("kept_*.jsonl")} for r in (run, reference)]
    assert kept[0] == kept[1]
    assert (run / "sequences.jsonl").read_bytes() == (reference / "sequences.jsonl").read_bytes()
    return True


KILLS = (  # step, signal, exit code, newest checkpoint then
    (1, signal.SIGKILL, -9, 0),  # before the first checkpoint
    (4, signal.SIGTERM, 143, 5),  # after a step, in the middle of the second round
    (7, signal.SIGKILL, -9, 6),  # in the middle again
)


@pytest.mark.parametrize("story", STORIES)
def test_killed_and_resumed_is_uninterrupted(shop: Path, finished: Finished, here: Path, story: str) -> None:
    run = here / "run"
    command = words(shop, story, run)
    for step, number, code, saved in KILLS:
        assert forked(*command, prepare=strike(step, number)) == code
        assert newest(run) == saved and len(metrics(run)) == (saved if code == 143 else step)
        command = ["train", "--resume", str(run)]
    assert forked(*command) == 0
    assert same(run, finished(story))


@pytest.mark.parametrize("written", [False, True])
def test_killed_where_a_round_is_written(shop: Path, finished: Finished, here: Path, written: bool) -> None:
    """Just before and just after kept_1.jsonl is there."""
    from opdkit.run.folder import RunFolder

    original = RunFolder.write_text

    def write(folder: RunFolder, name: str, text: str) -> None:
        if name == "kept_1.jsonl" and not written:
            os.kill(os.getpid(), signal.SIGKILL)
        original(folder, name, text)
        if name == "kept_1.jsonl":
            os.kill(os.getpid(), signal.SIGKILL)

    def prepare(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(RunFolder, "write_text", write)

    run = here / "run"
    assert forked(*words(shop, "improve", run), prepare=prepare) == -9
    assert (run / "kept_1.jsonl").exists() == written and newest(run) == 3
    assert forked("train", "--resume", str(run)) == 0
    assert same(run, finished("improve"))


def test_a_resumed_round_is_read_and_not_drawn_again(shop: Path, finished: Finished, here: Path) -> None:
    """The student that drew it is gone: without the file another round comes of it, which would show here."""
    run = here / "run"
    assert forked(*words(shop, "improve", run), prepare=strike(6, signal.SIGKILL)) == -9
    other = Path(shutil.copytree(run, here / "other"))
    (other / "kept_1.jsonl").unlink()
    assert forked("train", "--resume", str(other)) == 0
    kept = [(r / "kept_1.jsonl").read_bytes() for r in (other, finished("improve"))]
    assert kept[0] != kept[1] and compare(other, finished("improve"))


# --- improve ------------------------------------------------------------------------------------------------


def test_improve_imitates_its_own_right_answers(shop: Path, finished: Finished) -> None:
    """What a round keeps is right and came to its end; the steps of a round learn from nothing else."""
    run, tokenizer = finished("improve"), tiny_tokenizer()
    assert sorted(p.name for p in run.glob("kept_*")) == ["kept_0.jsonl", "kept_1.jsonl"]
    rounds = [rows_of(run / f"kept_{number}.jsonl") for number in (0, 1)]
    for kept in rounds:
        assert 0 < len(kept) <= 20 and len({row["id"] for row in kept}) <= 10
        assert len({(row["id"], row["sample"]) for row in kept}) == len(kept)
        for row in kept:
            *before, end = row["response_ids"]
            assert end in STOPS and not set(before) & set(STOPS) and len(before) < 6
            text = str(tokenizer.decode(row["response_ids"], skip_special_tokens=True))
            assert re.search("[a-z]", text) and row["response"] == text
    for step, row in enumerate(metrics(run)):
        assert row["kept_rollouts"] == len(rounds[step // ROUND])
    sources = [{(r["id"], r["sample"], tuple(r["response_ids"])) for r in kept} for kept in rounds]
    for row in rollouts_of(run):
        known = (row["id"], row["sample"], tuple(row["response_ids"]))
        assert known in sources[(row["step"] - 1) // ROUND] and row["finish_reason"] == "stop"


def test_a_round_is_drawn_from_the_student_of_that_moment(shop: Path, finished: Finished, here: Path) -> None:
    """A run that ends after the first round has the student that the second one asks; one round is one file."""
    run = finished("improve")
    one = here / "one"
    assert forked(*words(shop, "improve", one, steps=ROUND, save__every=0, improve__every=0)) == 0
    assert (one / "kept_0.jsonl").read_bytes() == (run / "kept_0.jsonl").read_bytes()
    assert not (one / "kept_1.jsonl").exists()

    from transformers import AutoModelForCausalLM

    from opdkit.config import SamplingConfig
    from opdkit.models.load import describe
    from opdkit.models.sampler import LocalSampler
    from opdkit.types import Prompt

    model = AutoModelForCausalLM.from_pretrained(one / f"checkpoints/step_{ROUND}/model")
    sampler = LocalSampler(describe(model.eval(), tiny_tokenizer(), name="student"))
    sampling = SamplingConfig(responses=2, max_tokens=6, stop_ids=STOPS)
    kept = rows_of(run / "kept_1.jsonl")
    asked = {row["id"]: Prompt(row["id"], ids=tuple(row["prompt_ids"])) for row in kept}
    drawn = sampler.sample(list(asked.values()), sampling=sampling, seed=5, step=1)
    answers = {(r.prompt.id, r.sample): list(r.response_ids) for r in drawn}
    assert all(answers[row["id"], row["sample"]] == row["response_ids"] for row in kept)


def test_nothing_right_stops_the_run_with_a_way_on(shop: Path, here: Path, capfd: Any) -> None:
    """Of all that was asked: ten prompts of twelve, or all where that is not limited."""
    changes = {"task__grader__pattern": "(never said)", "eval__at_ends": False}
    said = opd(capfd, *words(shop, "improve", "runs/none", **changes))
    assert said.code == 1 and "round 0: none of 20 responses was right" in said.error
    assert "story=sft" in said.hint and "improve.prompts" in said.hint
    assert not list(Path("runs/none").glob("kept_*")) and not Path("runs/none/metrics.jsonl").exists()
    again = opd(capfd, "train", "--resume", "runs/none")
    assert again.code == 1 and again.error == said.error
    every = opd(capfd, *words(shop, "improve", "runs/all", **changes, improve__prompts=1000))
    assert "none of 24 responses was right" in every.error


def test_what_was_cut_off_is_not_imitated(shop: Path, here: Path, capfd: Any) -> None:
    """Right or not: with one token and no end nothing came to its end."""
    said = opd(
        capfd,
        *words(
            shop,
            "improve",
            "runs/cut",
            sampling__stop_ids=[IM_END],
            sampling__min_tokens=6,
            eval__at_ends=False,
        ),
    )
    assert said.code == 1 and "none of 20 responses was right" in said.error


# --- what cannot work ---------------------------------------------------------------------------------------


@pytest.fixture
def refused(shop: Path, here: Path, capfd: Any) -> Callable[..., Said]:
    """`opd train` of a story that is refused before any weight is read and before anything is written."""

    def weights(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    def refuse(story: str, **changes: Any) -> Said:
        changes = {"task.grader.type": "none", **changes}
        before = sorted(here.rglob("*"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("opdkit.models.load._from_pretrained", weights)
            said = opd(capfd, *words(shop, story, "runs/first", **changes))
        assert said.code == 2 and said.error and said.hint, said
        assert sorted(here.rglob("*")) == before, "nothing may be left behind"
        return said

    return refuse


def test_a_demonstration_that_is_missing(refused: Callable[..., Said], shop: Path, here: Path) -> None:
    rows = rows_of(shop / "shown.jsonl")
    del rows[3]["response"]
    write_rows(here / "gap.jsonl", rows)
    said = refused("sft", task__path="gap.jsonl")
    assert "1 of 12 prompts have no demonstration to imitate, the first is gap.jsonl:4" in said.error
    assert "task.response_key=COLUMN" in said.hint
    assert "12 of 12 prompts" in refused("sft", task__response_key="reply").error
    rows[3]["response"] = ""
    write_rows(here / "gap.jsonl", rows)
    said = refused("sft", task__path="gap.jsonl")
    assert "gap.jsonl:4: the demonstration in `response` is no text, or empty" in said.error


@pytest.mark.parametrize("story", ["grpo", "improve"])
def test_scores_need_a_grader(refused: Callable[..., Said], story: str) -> None:
    said = refused(story)
    assert f"story '{story}' lives on scores, and the task has no grader" in said.error
    assert "task.grader=exact" in said.hint


def test_a_group_needs_two(refused: Callable[..., Said]) -> None:
    said = refused("grpo", sampling__responses=1)
    assert said.error == "a group of one response has no spread" and said.hint == "sampling.responses=8"


@pytest.mark.parametrize("story", STORIES)
def test_a_teacher_where_there_is_none(refused: Callable[..., Said], shop: Path, story: str) -> None:
    said = refused(story, teacher="{type='self'}" if story == "grpo" else shop / "teacher")
    assert said.error.startswith(f"story '{story}' has no teacher") and "story=distill" in said.hint


def test_no_teacher_where_there_is_one(refused: Callable[..., Said]) -> None:
    said = refused("distill")
    assert said.error == "story 'distill' needs a teacher"
    assert said.hint.startswith("teacher=FOLDER") and "story=sft, grpo, improve" in said.hint


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"grpo.scale": "mean"}, "grpo.scale: Input should be 'std' or 'none'", "grpo.scale=…"),
        ({"push_down.share": 0}, "push_down.share: Input should be greater than 0", "push_down.share=…"),
        ({"improve.prompts": 0}, "improve.prompts: Input should be greater than or equal to 1", "improve.prompts=…"),
        ({"sampling.top_k": 385}, "sampling.top_k = 385 is larger than the vocabulary", "sampling.top_k=16"),
        ({"sampling.stop_ids": [384]}, "sampling.stop_ids holds 384", "leave sampling.stop_ids out"),
        ({"sampling.max_tokens": 250}, "evaluation prompt leaves room", "sampling.max_tokens="),
    ],
)  # fmt: skip
def test_values_that_cannot_be(
    refused: Callable[..., Said], changes: dict[str, Any], message: str, hint: str
) -> None:
    said = refused("sft", **changes)
    assert message in said.error and hint in said.hint


def test_a_story_that_is_not_there(refused: Callable[..., Said]) -> None:
    said = refused("stf")
    assert "'distill', 'sft', 'grpo', 'improve' or 'push_down' (got 'stf')" in said.error


# --- sft ----------------------------------------------------------------------------------------------------


BRIEF = {"eval__every": 0, "eval__at_ends": False, "task__grader__type": "none"}


def imitated(run: Path) -> dict[str, dict[str, Any]]:
    """Every demonstration that a run used, by id."""
    return {row["id"]: row for row in rollouts_of(run)}


def test_a_demonstration_ends_once(shop: Path, finished: Finished) -> None:
    """Also one whose text says its end already; what is trained on is the text, token by token."""
    tokenizer = tiny_tokenizer()
    used = imitated(finished("sft"))
    texts = {f"shown:{i + 1}": row["response"] for i, row in enumerate(rows_of(shop / "shown.jsonl"))}
    assert used.keys() == texts.keys()
    for name, row in used.items():
        *before, end = row["response_ids"]
        assert end == IM_END and IM_END not in before and row["finish_reason"] == "stop"
        assert tokenizer.decode(before) == texts[name].removesuffix("<|im_end|>")
        assert row["response"] == texts[name]
    assert sum(text.endswith("<|im_end|>") for text in texts.values()) == 3


def test_an_end_that_the_user_named_ends_a_demonstration(shop: Path, here: Path) -> None:
    """`sampling.stop_ids` say what an end is: a text that ends in one of them gets no second end."""
    stop = tiny_tokenizer()(".", add_special_tokens=False)["input_ids"]
    changes = {**BRIEF, "sampling__stop_ids": [IM_END, *stop], "steps": 3}
    assert forked(*words(shop, "sft", here / "run", **changes)) == 0
    for row in imitated(here / "run").values():
        assert row["response_ids"][-1] == (stop[0] if row["response"].endswith(".") else IM_END)


@pytest.mark.parametrize("template", [True, False])
def test_a_demonstration_follows_its_templated_prompt(shop: Path, here: Path, template: bool) -> None:
    """Chat template, system message and prefix are read, and not trained on."""
    tokenizer, prefix = tiny_tokenizer(), "Let me think. "
    changes: dict[str, Any] = {**BRIEF, "task__prefix": prefix, "steps": 3, "task__chat_template": template}
    if template:
        changes["task__system"] = "Be brief."
    assert forked(*words(shop, "sft", here / "run", **changes)) == 0
    begun = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    for row in imitated(here / "run").values():
        chat = f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        text = chat if template else row["prompt"]
        assert row["prompt_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"] + begun
        assert not row["response"].startswith(prefix)


def test_messages_are_imitated_as_well(shop: Path, here: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"say {i}"}], "reply": f"{i}!", "answer": ""}
        for i in range(4)
    ]
    path = write_rows(here / "chat.jsonl", rows)
    changes = {**BRIEF, "task__path": path, "task__response_key": "reply", "steps": 1}
    assert forked(*words(shop, "sft", here / "run", **changes)) == 0
    kept = rows_of(here / "run/rollouts/step_1.jsonl")
    assert len(kept) == 4
    for row in kept:
        ((_, asked),) = [message.values() for message in row["prompt"]]
        assert row["response"] == f"{asked.removeprefix('say ')}!"


def test_demonstrations_that_are_too_long_are_left_out_and_told(shop: Path, here: Path, capfd: Any) -> None:
    """The context is 256 tokens: one of exactly that length is learnt from, one token more is not."""
    tokenizer = tiny_tokenizer()

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    chat = tokens("<|im_start|>user\nlong<|im_end|>\n<|im_start|>assistant\n") + 1  # and the end
    word = "~"
    assert tokens(word * 7) == 7
    rows = [{"prompt": "long", "response": word * (256 - chat + more), "answer": ""} for more in (0, 1, 90)]
    write_rows(here / "long.jsonl", rows)
    changes = {**BRIEF, "task__path": "long.jsonl", "sampling__stop_ids": [IM_END], "steps": 1}
    said = opd(capfd, *words(shop, "sft", "run", **changes))
    assert said.code == 0 and "2 of 3 demonstrations are longer than the student's context" in said.err
    assert findings(here / "run")["demonstrations_dropped"]["numbers"] == {"dropped": 2, "demonstrations": 3}
    (row,) = imitated(here / "run").values()
    assert len(row["prompt_ids"]) + len(row["response_ids"]) == 256
    write_rows(here / "long.jsonl", rows[1:])
    none = opd(capfd, *words(shop, "sft", "none", **changes))
    assert none.code == 2 and none.error == "no demonstration fits into the student's context of 256 tokens"


def test_the_loss_of_a_step_is_that_of_transformers(shop: Path, here: Path) -> None:
    """Labels are the response's tokens; Hugging Face's own loss, one row at a time, weighted by tokens."""
    assert forked(*words(shop, "sft", here / "run", steps=1, **BRIEF)) == 0

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(shop / "student")
    total, count = 0.0, 0
    for row in rows_of(here / "run/rollouts/step_1.jsonl"):
        ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
        labels = ids.clone()
        labels[:, : len(row["prompt_ids"])] = -100
        with torch.no_grad():
            total += float(model(ids, labels=labels).loss) * row["length"]
        count += row["length"]
    assert metrics(here / "run")[0]["loss"] == pytest.approx(total / count, rel=1e-5)


# --- the testbed's worlds -----------------------------------------------------------------------------------


def in_the_world(shop: Path, story: str, run: Path | str, **changes: Any) -> list[str]:
    """A story in a small world of chains."""
    common: dict[str, Any] = {
        "steps": 2,
        "prompts_per_step": 4,
        "device": "cpu",
        "threads": 1,
        "sampling.responses": 2,
        "sampling.max_tokens": WORLD.max_tokens,
        "task.train_size": 60,
        "task.eval_size": 12,
        "eval.responses": 2,
        "save.rollouts_every": 1,
        "save.rollouts": 50,
    }
    given = {key.replace("__", "."): value for key, value in changes.items()}
    settings = {
        "story": story,
        "student": shop / "body",
        "run": run,
        "task.type": "testbed",
        **common,
        **given,
    }
    return [
        "train",
        f"task.args={DIALS}",
        *(f"{k}={v if isinstance(v, str | Path) else json.dumps(v)}" for k, v in settings.items()),
    ]


@pytest.fixture(scope="module")
def taught(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of sft in a world of two numbers, long enough to answer in its form; half the answers are right."""
    run = tmp_path_factory.mktemp("taught") / "run"
    settings = {
        "steps": 60,
        "prompts_per_step": 24,
        "optim__lr": 1e-2,
        "optim__warmup_steps": 5,
        "task__train_size": 200,
        "task__eval_size": 20,
        "save__rollouts_every": 60,
        "eval__responses": 4,
    }
    assert forked(*in_the_world(shop, "sft", run, **settings)) == 0
    return run


def test_imitation_teaches(taught: Path) -> None:
    """Loss falls from a random model's to that of the choice of words; held-out problems get answers, and right ones."""
    rows, (before, after) = metrics(taught), rows_of(taught / "eval.jsonl")
    assert rows[0]["loss"] > 3 and rows[-1]["loss"] < 0.8
    assert before["avg_at_k"] < 0.1 and after["avg_at_k"] > 0.3 and after["low"] > before["high"]
    assert after["truncated_fraction"] < 0.05 and set(after["by_group"]) == {"easy"}
    for row in rows_of(taught / "rollouts/step_60.jsonl"):
        problem = WORLD.parse(row["prompt"])
        check = WORLD.check(problem, row["response"])
        assert check.final and check.complete and check.style == "steps"
        assert row["group"] == "easy" and row["response"].endswith("<done>")


def test_greedy_does_not_depend_on_chance(taught: Path, here: Path, capfd: Any) -> None:
    model = taught / "checkpoints/step_60/model"
    (here / "world.toml").write_text(
        f'[task]\ntype = "testbed"\ntrain_size = 1\neval_size = 20\nargs = {DIALS}\n'
    )

    def answers(temperature: float, seed: int) -> dict[str, Any]:
        choices = [f"eval.temperature={temperature}", f"seed={seed}", "eval.responses=3", "eval.top_p=1.0"]
        said = opd(
            capfd,
            "eval",
            model,
            "--task",
            "world.toml",
            *choices,
            "sampling.max_tokens=9",
            "device=cpu",
            "--json",
        )
        assert said.code == 0, said.err
        return json.loads(said.out)

    greedy = answers(0.0, seed=1)
    assert answers(0.0, seed=2) == greedy
    assert greedy["pass_at_k"]["1"] == greedy["pass_at_k"]["3"] == greedy["avg_at_k"]
    assert 0 < greedy["avg_at_k"] < 1, "the test would show nothing"
    hot = [answers(1.5, seed=seed) for seed in (1, 2)]
    assert hot[0] != hot[1] and hot[0]["pass_at_k"]["1"] < hot[0]["pass_at_k"]["3"]


def test_the_teacher_is_examined_once(shop: Path, taught: Path, here: Path, capfd: Any) -> None:
    """At step 0, by what `opd eval` says of it on the same problems; the student's numbers stay its own."""
    model = taught / "checkpoints/step_60/model"
    settings = {"teacher": model, "eval__every": 1, "task__eval_size": 20, "eval__responses": 4}
    assert forked(*in_the_world(shop, "distill", "run", **settings, eval__teacher=True)) == 0
    first, *others = rows_of(here / "run/eval.jsonl")
    assert [row["step"] for row in (first, *others)] == [0, 1, 2]
    assert not any(name.startswith("teacher_") for row in others for name in row)
    alone = rows_of(taught / "eval.jsonl")[-1]
    assert {name: first[f"teacher_{name}"] for name in alone if name != "step"} == {
        name: value for name, value in alone.items() if name != "step"
    }
    assert first["teacher_avg_at_k"] > first["avg_at_k"] + 0.3
    assert forked(*in_the_world(shop, "distill", "bare", **settings)) == 0
    bare = rows_of(here / "bare/eval.jsonl")[0]
    assert bare == {name: value for name, value in first.items() if not name.startswith("teacher_")}


@pytest.mark.parametrize("story", ["grpo", "improve", "push_down"])
def test_a_taught_student_goes_on_in_its_world(shop: Path, taught: Path, here: Path, story: str) -> None:
    """The world's own verifier gives the scores; evaluation tells accuracy by kind of problem."""
    model = taught / "checkpoints/step_60/model"
    assert forked(*in_the_world(shop, story, "run", student=model, optim__lr=1e-4)) == 0
    for row in rollouts_of(here / "run"):
        right = WORLD.check(WORLD.parse(row["prompt"]), row["response"]).final
        assert row["score"] == (None if story == "improve" else float(right)) and (
            right or story != "improve"
        )
    assert [set(row["by_group"]) for row in rows_of(here / "run/eval.jsonl")] == [{"easy"}] * 2


def test_demonstrations_of_somebody_else(shop: Path, here: Path) -> None:
    """From a file; the world still examines."""
    problems = WORLD.problems(4, seed=9)
    write_rows(
        here / "other.jsonl",
        [{"prompt": WORLD.prompt(p), "response": f"walk after 1 result {i}"} for i, p in enumerate(problems)],
    )
    assert forked(*in_the_world(shop, "sft", "run", task__demonstrations="other.jsonl")) == 0
    used = imitated(here / "run")
    assert {row["response"].split()[-1] for row in used.values()} == {"0", "1", "2", "3"}
    assert len(rows_of(here / "run/eval.jsonl")) == 2


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"task.args.wrong_shar": 0.5}, "task.args.wrong_shar is no dial of the chain world", "did you mean 'wrong_share'?"),
        ({"task.args.colour": 1}, "task.args.colour is no dial of the chain world", "it has: depth, kinds, modulus"),
        ({"task.args.seed": 1}, "task.args.seed is no dial", "it has: depth"),
        ({"task.style": "stepz"}, "the chain world has no style 'stepz'", "task.style=steps"),
        ({"task.template": 3}, "the chain world has no such problems", "task.template"),
        ({"task.eval_size": 900}, "there seem to be no more than", "task.args"),
        ({"task.args.depth": 3}, "the chain world has no such problems", "task.args"),
        ({"task.family": "sudoku"}, "task.family: Input should be 'chain' or ", "task.family=…"),
        ({"task.demonstrations": "none.jsonl"}, "no prompt file at none.jsonl", "task.path"),
        ({"task.chat_template": True}, "the tokenizer has no chat template", "task.chat_template=false"),
    ],
)  # fmt: skip
def test_a_world_that_is_not_there(
    shop: Path, here: Path, capfd: Any, changes: dict[str, Any], message: str, hint: str
) -> None:
    said = opd(capfd, *in_the_world(shop, "sft", "run", **changes))
    assert said.code == 2 and message in said.error and hint in said.hint, said.err
    assert not Path("run").exists()


def test_prompts_that_the_world_cannot_judge(shop: Path, here: Path, capfd: Any) -> None:
    """A file of demonstrations may ask anything; a story that is graded cannot."""
    write_rows(here / "other.jsonl", [{"prompt": "read hello", "response": "answer 1"}])
    said = opd(capfd, *in_the_world(shop, "grpo", "run", task__demonstrations="other.jsonl"))
    assert said.code == 2 and "other.jsonl:1" in said.error


# --- grpo ---------------------------------------------------------------------------------------------------


def test_grpo_raises_the_score(shop: Path, here: Path) -> None:
    """A trivial task: begin with a letter from a to m."""
    changes = {
        "task__grader__pattern": "^[a-m]()",
        "steps": 12,
        "prompts_per_step": 8,
        "sampling__responses": 8,
        "optim__lr": 3e-3,
        "learner__batch_tokens": 4000,
        "eval__responses": 16,
        "eval__every": 0,
        "eval__temperature": 1.0,
        "eval__top_p": 1.0,
    }
    assert forked(*words(shop, "grpo", here / "run", **changes)) == 0
    before, after = rows_of(here / "run/eval.jsonl")
    assert after["avg_at_k"] > 2 * before["avg_at_k"] and after["low"] > before["high"]
    rows = metrics(here / "run")
    assert rows[-1]["accuracy"] > rows[0]["accuracy"] + 0.3


def test_the_first_step_of_grpo_by_hand(shop: Path, here: Path) -> None:
    """Loss = −1/N Σ A log p, from what the run has kept and a plain forward of the first student."""
    assert forked(*words(shop, "grpo", here / "run", steps=1, grpo__scale="none")) == 0

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(shop / "student")
    rows = rows_of(here / "run/rollouts/step_1.jsonl")
    scores: dict[str, list[float]] = {}
    for row in rows:
        row["counted"] = 0.0 if row["finish_reason"] == "length" else row["score"]
        scores.setdefault(row["id"], []).append(row["counted"])
    assert all(len(group) == 2 for group in scores.values())
    total = sum(
        -(row["counted"] - statistics.fmean(scores[row["id"]]))
        * float(logp_of(model, row, row["prompt_ids"]).sum())
        for row in rows
    )
    loss = metrics(here / "run")[0]["loss"]
    assert loss == pytest.approx(total / sum(row["length"] for row in rows), rel=1e-4) and loss != 0


def logp_of(model: Any, row: dict[str, Any], prompt: list[int], *, temperature: float = 1.0) -> torch.Tensor:
    """[T]: what Hugging Face's own forward gives the tokens of a kept response."""
    return rows_at(model, row, prompt, temperature).gather(-1, torch.tensor(row["response_ids"])[:, None])[
        :, 0
    ]


def rows_at(model: Any, row: dict[str, Any], prompt: list[int], temperature: float) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + row["response_ids"]])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


# --- what distil keeps token by token -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def looked_at(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of distillation, each kept and each saved, at temperatures, the teacher with a context of its own."""
    run = tmp_path_factory.mktemp("looked") / "run"
    changes = {
        "teacher": f"{{model='{shop}/teacher', temperature=1.3, context='Know all.'}}",
        "sampling__temperature": 0.8,
        "steps": 2,
        "save__every": 1,
        "eval__at_ends": False,
        "eval__every": 0,
    }
    assert forked(*words(shop, "distill", run, **changes)) == 0
    return run


def test_kept_tokens_are_those_of_a_plain_forward(shop: Path, looked_at: Path) -> None:
    """Both models' log-probs of the tokens taken, and of their five candidates, before the step's update."""
    from transformers import AutoModelForCausalLM

    tokenizer = tiny_tokenizer()
    teacher = AutoModelForCausalLM.from_pretrained(shop / "teacher")
    for step, place in ((1, shop / "student"), (2, looked_at / "checkpoints/step_1/model")):
        student = AutoModelForCausalLM.from_pretrained(place)
        rows = rows_of(looked_at / f"rollouts/step_{step}.jsonl")
        assert len(rows) == 8
        for row in rows:
            told = row["tokens"]
            chat = (
                f"<|im_start|>system\nKnow all.<|im_end|>\n<|im_start|>user\n{row['prompt']}<|im_end|>\n"
                "<|im_start|>assistant\n"
            )
            read = tokenizer(chat, add_special_tokens=False)["input_ids"]
            p, q = rows_at(student, row, row["prompt_ids"], 0.8), rows_at(teacher, row, read, 1.3)
            assert told["text"] == [tokenizer.decode([i]) for i in row["response_ids"]]
            for at, token in enumerate(row["response_ids"]):
                assert told["student_logp"][at] == pytest.approx(float(p[at, token]), abs=1e-4)
                assert told["teacher_logp"][at] == pytest.approx(float(q[at, token]), abs=1e-4)
                for name, own in (("student_top", p), ("teacher_top", q)):
                    best = own[at].topk(5).indices.tolist()
                    assert [text for text, _, _ in told[name][at]] == [tokenizer.decode([i]) for i in best]
                    for (_, ours, theirs), i in zip(told[name][at], best, strict=True):
                        assert ours == pytest.approx(float(p[at, i]), abs=1e-4)
                        assert theirs == pytest.approx(float(q[at, i]), abs=1e-4)


def test_sequences_are_the_means_of_kept_tokens(looked_at: Path) -> None:
    for row in rows_of(looked_at / "sequences.jsonl"):
        kept = rows_of(looked_at / f"rollouts/step_{row['step']}.jsonl")
        rewards = [
            statistics.fmean(
                q - p for p, q in zip(r["tokens"]["student_logp"], r["tokens"]["teacher_logp"], strict=True)
            )
            for r in kept
        ]
        assert row["sequence_reward"] == pytest.approx(rewards, abs=2e-4)
        assert row["sequence_reward"] == [r["sequence_reward"] for r in kept]
        assert row["score"] == [r["score"] for r in kept] and row["length"] == [r["length"] for r in kept]
        mean = metrics(looked_at)[row["step"] - 1]["sequence_reward"]
        assert mean == pytest.approx(statistics.fmean(row["sequence_reward"]))


def test_looking_changes_nothing(shop: Path, looked_at: Path, here: Path) -> None:
    """The same run without a look at its rollouts has the same weights."""
    changes = {
        "teacher": f"{{model='{shop}/teacher', temperature=1.3, context='Know all.'}}",
        "sampling__temperature": 0.8,
        "steps": 2,
        "save__every": 1,
        "save__rollouts_every": 0,
        "eval__at_ends": False,
        "eval__every": 0,
    }
    assert forked(*words(shop, "distill", here / "run", **changes)) == 0
    assert not (here / "run/rollouts").exists() and not (here / "run/sequences.jsonl").exists()
    ours, theirs = (files(run / "checkpoints/step_2") for run in (here / "run", looked_at))
    assert ours == theirs


@pytest.fixture(autouse=True)
def _quiet_files() -> Iterator[None]:
    """No progress bars of transformers, whose thread a fork would leave behind."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
