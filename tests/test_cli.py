"""The command line from outside: what is on stdout and on stderr, exit codes, and how fast help comes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands import CONFIG, build_shop, findings, metrics, opd, write_rows


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, prompts and config.toml: `opd` is typed in here, and runs/done is a finished run."""
    shop = build_shop(tmp_path_factory.mktemp("shop"))
    (shop / "config.toml").write_text(CONFIG.format(shop=shop))
    return shop


@pytest.fixture
def here(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shop)
    return shop


@pytest.fixture
def done(here: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """A finished run, made once."""
    run = here / "runs/done"
    if not run.exists():
        assert opd(capfd, "train", "config.toml", "run=runs/done", "task.grader=exact").code == 0
    return run


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "opdkit", *words]


# --- help ---------------------------------------------------------------------------------------------------


def test_help_is_fast_and_loads_nothing_heavy():
    code = (
        "import sys, time; start = time.perf_counter(); sys.argv = ['opd', *sys.argv[1:]]\n"
        "from opdkit.cli import main\n"
        "try: main()\n"
        "except SystemExit as left: assert not left.code, left.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'plotly', 'rich'} & set(sys.modules)\n"
        "print(time.perf_counter() - start, sorted(heavy), file=sys.stderr)"
    )
    for words in (["--help"], ["train", "--help"], ["eval", "-h"], ["report", "-h"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip()
        seconds, _, heavy = done.stderr.partition(" ")
        assert heavy.strip() == "[]" and float(seconds) < 3, done.stderr  # 0.1 s on an idle core


def test_without_arguments_the_help_is_shown(capfd):
    said = opd(capfd)
    assert said.code == 2 and "Commands:" in said.out + said.err


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["trian"], "no such command 'trian'", "did you mean 'train'?"),
        (["train", "config.toml", "--resum", "x"], "no such option: --resum", "opd train -h"),
        (["eval", "student"], "missing option '--task'", "opd eval -h"),
        (["eval"], "missing argument 'MODEL'", "opd eval -h"),
        (["report"], "missing argument 'RUN...'", "opd report -h"),
        (["train", "--resume"], "option '--resume' requires an argument", "opd train -h"),
        (["report", "runs/nothing"], "runs/nothing is no folder", "opd report RUN"),
    ],
)
def test_a_wrong_command_line_is_one_message_and_a_hint(here, capfd, words, message, hint):
    said = opd(capfd, *words)
    assert said.code == 2 and message in said.error.lower().replace("model", "MODEL").replace(
        "run...", "RUN..."
    )
    assert hint in said.hint


# --- train --------------------------------------------------------------------------------------------------


def test_print_config_says_where_each_value_comes_from(here, capfd):
    said = opd(capfd, "train", "config.toml", "--print-config", "optim.lr=1e-5")
    assert said.code == 0 and said.err == ""
    lines = {line.split()[0]: line for line in said.out.splitlines()}
    assert lines["optim.lr"].endswith("# command line") and "1e-05" in lines["optim.lr"]
    assert lines["sampling.responses"].endswith("# config.toml")
    assert lines["objective.divergence"].endswith("# preset paper")
    assert lines["seed"].endswith("# default")
    assert not Path("runs/first").exists()
    document = json.loads(opd(capfd, "train", "config.toml", "--print-config", "--json").out)
    assert document["steps"] == {"value": 2, "source": "config.toml"}


def test_print_config_of_a_run_names_its_file(done, capfd):
    said = opd(capfd, "train", "--resume", "runs/done", "steps=4", "--print-config")
    lines = {line.split()[0]: line for line in said.out.splitlines()}
    assert lines["steps"].endswith("# command line")
    assert lines["student.model"].endswith("# runs/done/config.toml")


def test_stdout_is_one_json_document_and_talk_is_on_stderr(done, capfd):
    trained = opd(capfd, "train", "config.toml", "run=runs/json", "--json")
    assert trained.code == 0 and trained.err == ""
    assert json.loads(trained.out)["run"] == "runs/json" and trained.out.count("\n") == 1
    assert json.loads(trained.out)["metrics"]["step"] == 2
    shown = opd(capfd, "train", "config.toml", "run=runs/shown")
    assert shown.code == 0 and shown.out == "" and "opd report runs/shown" in shown.err
    report = opd(capfd, "report", "runs/done", "--json")
    assert report.code == 0 and json.loads(report.out) == {"report": "runs/done/report.html"}


@pytest.mark.parametrize(
    "words",
    [
        ["train", "config.toml", "run=runs/done", "--json"],
        ["train", "config.toml", "teacher=nobody/is-here", "--json"],
        ["eval", "student", "--task", "nothing.jsonl", "--json"],
        ["report", "student", "--json"],
    ],
)
def test_errors_leave_stdout_empty(done, capfd, words):
    said = opd(capfd, *words)
    assert said.code == 2 and said.error and said.hint  # `error` looks at stdout


def test_without_grader_nothing_is_said_about_accuracy(here, capfd):
    said = opd(
        capfd, "train", "config.toml", "run=runs/ungraded", "task.eval_path=sums.jsonl", "eval.responses=1"
    )
    assert "no grader, so nothing will be said about accuracy" in said.err
    assert "no grader, so nothing about accuracy" in said.err  # of the evaluations
    assert findings(Path("runs/ungraded"))["no_grader"]["severity"] == "info"
    assert all("accuracy" not in row for row in metrics(Path("runs/ungraded")))
    evaluations = [json.loads(line) for line in Path("runs/ungraded/eval.jsonl").read_text().splitlines()]
    assert evaluations and all("avg_at_k" not in row for row in evaluations)


def test_a_complete_run_says_so(done, capfd):
    before = (done / "metrics.jsonl").read_bytes()
    said = opd(capfd, "train", "--resume", "runs/done")
    assert said.code == 0 and "complete: 2 of 2 steps are done" in said.err
    assert (done / "metrics.jsonl").read_bytes() == before


# --- eval ---------------------------------------------------------------------------------------------------


def test_eval_tells_accuracy_with_its_interval(done, capfd):
    words = ("--task", "sums.jsonl", "task.grader=exact", "sampling.max_tokens=8", "eval.responses=2")
    for model in ("student", "runs/done/checkpoints/step_2/model"):
        said = opd(capfd, "eval", model, *words, "--json")
        assert said.code == 0 and said.err == ""
        row = json.loads(said.out)
        assert row["model"] == model and row["problems"] == 6 and row["responses"] == 2
        assert 0 <= row["low"] <= row["avg_at_k"] <= row["high"] <= 1 and set(row["pass_at_k"]) == {"1", "2"}
    shown = opd(capfd, "eval", "student", *words)
    assert "avg@2" in shown.out and "95% interval" in shown.out and shown.err == ""


def test_eval_counts_cut_answers_apart(here, capfd):
    """Any text counts as right for this pattern; what was cut off is still not passed, and said so."""
    write_rows(here / "any.jsonl", [{"prompt": "say anything", "answer": ""}])
    words = ["--task", "any.jsonl", "task.grader={type='regex', pattern='()'}", "sampling.max_tokens=3"]
    cut = json.loads(
        opd(capfd, "eval", "student", *words, "sampling.min_tokens=3", "sampling.stop_ids=[]", "--json").out
    )
    assert cut["truncated_fraction"] == cut["truncated_correct_fraction"] == 1.0 and cut["avg_at_k"] == 0.0
    shown = opd(capfd, "eval", "student", *words, "sampling.min_tokens=3", "sampling.stop_ids=[]")
    assert "cut off with the right answer in it, counted as not passed: 100.0%" in shown.out
    every = f"sampling.stop_ids={list(range(384))}"
    whole = json.loads(opd(capfd, "eval", "student", *words, every, "--json").out)
    assert whole["truncated_fraction"] == 0.0 and whole["avg_at_k"] == 1.0


def test_eval_takes_a_config_with_a_task_alone(here, capfd):
    Path("task.toml").write_text('[task]\npath = "sums.jsonl"\neval_path = "sums.jsonl"\n')
    said = opd(capfd, "eval", "student", "--task", "task.toml", "sampling.max_tokens=4", "--json")
    assert said.code == 0 and json.loads(said.out)["graded"] is False


def test_eval_leaves_out_long_prompts_and_counts_them(here, capfd):
    write_rows(here / "long.jsonl", [{"prompt": "short"}, {"prompt": "word " * 400}])
    said = opd(capfd, "eval", "student", "--task", "long.jsonl", "sampling.max_tokens=4")
    assert said.code == 0 and "1 prompts left no room for a response and were left out" in said.out


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["student", "--task", "sum.jsonl"], "no prompt file at sum.jsonl", "did you mean sums.jsonl?"),
        (["student", "--task", "config.toml"], "the task has no evaluation prompts", "task.eval_path=FILE"),
        (["student", "--task", "sums.jsonl"], "sampling.max_tokens is 256", "sampling.max_tokens=23"),
        (["student", "--task", "sums.jsonl", "eval.max_tokens=400"], "is 400, the", "eval.max_tokens=23"),
        (["runs/done", "--task", "sums.jsonl"], "holds no config.json", "checkpoints/step_2/model?"),
        (["./studnt", "--task", "sums.jsonl"], "no model folder at ./studnt", "did you mean student?"),
        (["student", "--task", "sums.jsonl", "device=toaster"], "'toaster' is no device", "device=cpu"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated(done, capfd, words, message, hint):
    said = opd(capfd, "eval", *words)
    assert said.code == 2 and message in said.error and hint in said.hint


# --- signals and pipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_ctrl_c_saves_and_says_how_to_go_on(here, capfd, number):
    words = command("train", "config.toml", "run=runs/stopped", "steps=100000", "save.every=0")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        rows = here / "runs/stopped/metrics.jsonl"
        while running.poll() is None and not (rows.exists() and rows.read_bytes().count(b"\n") >= 2):
            time.sleep(0.05)
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 128 + number and out == "" and "Traceback" not in err, err
    assert "opd train --resume runs/stopped" in err
    last = metrics(here / "runs/stopped")[-1]["step"]
    assert (here / f"runs/stopped/checkpoints/step_{last}/manifest.json").exists()
    assert opd(capfd, "train", "--resume", "runs/stopped", f"steps={last + 1}").code == 0
    assert [row["step"] for row in metrics(here / "runs/stopped")] == list(range(1, last + 2))


@pytest.mark.skipif(shutil.which("head") is None, reason="no head")
def test_a_reader_that_leaves_early_is_no_error(here):
    words = " ".join(command("train", "config.toml", "--print-config", "--json"))
    done = subprocess.run(
        f"set -o pipefail; {words} | head -c 0",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert done.stderr == "", done


def test_a_defect_is_one_line_and_its_traceback_is_there_for_the_asking(here, capfd, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise KeyError("of ours")

    import opdkit.train

    monkeypatch.setattr(opdkit.train, "run_story", broken)
    said = opd(capfd, "train", "config.toml", "run=runs/defect")
    assert said.code == 1 and "Traceback" not in said.err
    assert "error: KeyError: 'of ours'" in said.err and "OPD_TRACEBACK=1" in said.hint
    monkeypatch.setenv("OPD_TRACEBACK", "1")
    with pytest.raises(KeyError):
        opd(capfd, "train", "config.toml", "run=runs/defect")
    assert os.environ["OPD_TRACEBACK"] == "1"


# --- every way of getting the numbers -----------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["paper", "paper-eq5", "sampled", "full"])
@pytest.mark.parametrize("support", ["student_top_k", "teacher_top_k"])
def test_what_the_teacher_sends_does_not_change_the_loss(
    here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], preset: str, support: str
) -> None:
    """Hidden states and log-probs at ids are two roads to one first step; full rows have the first road only."""
    losses = []
    for payload in ("hidden", "ids"):
        run = tmp_path / payload
        own = [] if preset in ("sampled", "full") else [f"objective.support={support}"]
        said = opd(
            capfd,
            "train",
            "config.toml",
            f"run={run}",
            "steps=1",
            f"objective.preset={preset}",
            f"teacher.payload={payload}",
            *own,
        )
        if preset == "full" and payload == "ids":
            assert said.code == 2 and "payload" in said.hint
            continue
        assert said.code == 0, said.err
        losses.append(metrics(run)[0]["loss"])
    assert losses[0] == pytest.approx(losses[-1], rel=1e-5)
