"""Graders: what they call right, and what a response can do to them (nothing)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from opdkit.config import FileTask, Grader, GymTask
from opdkit.tasks import Task, load_task
from opdkit.tasks.worker import Worker
from opdkit.types import Grade, Rollout, UserError


def file_task(folder: Path, answer: str, **grader: Any) -> Task:
    path = folder / "p.jsonl"
    path.write_text(json.dumps({"prompt": "x", "answer": answer}))
    return load_task(FileTask(path=path, grader=Grader(**grader)))


def grades(task: Task, *texts: str) -> list[Grade]:
    rollouts = task.grade([Rollout(task.train[0], (1,), "stop", text=text) for text in texts])
    assert [r.text for r in rollouts] == list(texts)
    return [r.grade for r in rollouts]


def scores(task: Task, *texts: str) -> list[float | None]:
    return [grade.score for grade in grades(task, *texts)]


def child_pid(task: Task) -> int:
    return task._grading.worker._child.process.pid


def gone(pid: int, *, within_seconds: float) -> bool:
    """A zombie is gone: whoever adopted it has not looked yet."""
    end = time.monotonic() + within_seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


# --- what is right ----------------------------------------------------------------------------------------


def test_exact_ignores_white_space_only(tmp_path):
    with file_task(tmp_path, "two  words", type="exact") as task:
        assert task.graded
        assert scores(task, "two words\n", "  two\twords ", "Two words", "two words.", "") == [1, 1, 0, 0, 0]


def test_exact_is_not_fooled_by_a_cut_response(tmp_path):
    with file_task(tmp_path, "7", type="exact") as task:
        assert scores(task, "7", "junk" + " " * 30_000 + "7") == [1, 0]


def test_regex_compares_the_last_match_as_numbers(tmp_path):
    with file_task(tmp_path, "7", type="regex", pattern=r"answer is (\S+?)\.?(?:\s|$)") as task:
        texts = ("the answer is 7", "answer is 3, no, the answer is 7.0.", "answer is 7 answer is 8", "7")
        assert scores(task, *texts) == [1, 1, 0, 0]
    with file_task(tmp_path, "1000", type="regex") as task:  # the default pattern: the last number
        assert scores(task, "3 then 1000.00", "1e3", "none", "١٠٠٠") == [1, 0, 0, 1]


def test_regex_group_that_took_no_part(tmp_path):
    with file_task(tmp_path, "7", type="regex", pattern=r"x(\d)?") as task:
        assert grades(task, "x", "x7") == [Grade(0.0), Grade(1.0)]


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("1/2", r"so \boxed{\frac{1}{2}}", r"\boxed{2}"),
        (r"\frac{1}{2}", "the answer is 0.5", "the answer is 0.4"),
        ("12,345", r"\boxed{12345}", "12"),
        ("The answer is $5$", "5.0", "6"),
        (r"3\sqrt{2}", r"$\sqrt{18}$", r"$\sqrt{17}$"),
        ("x^2+2x+1", "$(x+1)^2$", "$(x-1)^2$"),
        (r"\{1, 2\}", r"$\{2, 1\}$", r"$\{1, 3\}$"),
    ],
)
def test_math(tmp_path, answer, right, wrong):
    pytest.importorskip("math_verify")
    with file_task(tmp_path, answer, type="math", timeout_seconds=30) as task:
        assert scores(task, right, wrong, "no idea", r"\boxed{") == [1, 0, 0, 0]


def test_math_counts_an_answer_it_cannot_read_as_failed(tmp_path):
    pytest.importorskip("math_verify")
    with file_task(tmp_path, " ", type="math") as task:
        (grade,) = grades(task, "7")
    assert grade.score is None and grade.failed.startswith("error: ValueError")


def test_gym_scores_by_the_generator(tmp_path):
    pytest.importorskip("reasoning_gym")
    with load_task(GymTask(name="chain_sum", train_size=5, eval_size=3)) as task:
        right = [Rollout(p, (1,), "stop", text=f" {p.answer}\n") for p in task.train + task.evaluation]
        wrong = [Rollout(p, (1,), "stop", text="no") for p in task.train]
        assert [r.grade.score for r in task.grade(right + wrong)] == [1.0] * 8 + [0.0] * 5
    boxed = GymTask(name="chain_sum", train_size=1, eval_size=0, extract=r"\[(.*?)\]")
    with load_task(boxed) as task:
        answer = task.train[0].answer
        assert scores(task, f"[0] so [{answer}] it is", answer, f"[{answer}] or [x]") == [1, 0, 0]


def test_gym_entries_survive_a_new_child_with_their_types():
    """arc_agi scores tuples: an entry that had been through JSON would score its own answer 0.05."""
    pytest.importorskip("reasoning_gym")
    with load_task(GymTask(name="arc_agi", train_size=2, eval_size=0, timeout_seconds=30)) as task:
        task.close()
        rollouts = task.grade([Rollout(p, (1,), "stop", text=p.answer) for p in task.train])
        assert [r.grade for r in rollouts] == [Grade(1.0), Grade(1.0)]


def test_refusals(tmp_path):
    for pattern, said in (("((", "is no pattern"), (r"\d", "has no group")):
        with pytest.raises(UserError, match=said):
            file_task(tmp_path, "7", type="regex", pattern=pattern)


# --- what a response can do -------------------------------------------------------------------------------


def test_catastrophic_pattern_is_a_counted_failure_and_the_rest_goes_on(tmp_path):
    with file_task(tmp_path, "7", type="regex", pattern=r"^(?:(?:a+)+|(\d))$", timeout_seconds=0.5) as task:
        before = child_pid(task)
        started = time.monotonic()
        got = grades(task, "7", "a" * 60 + "!", "7", "8", "a" * 60 + "!", "7")
        hung = Grade(None, "timeout")
        assert got == [Grade(1.0), hung, Grade(1.0), Grade(0.0), hung, Grade(1.0)]
        assert time.monotonic() - started < 20
        assert gone(before, within_seconds=1) and child_pid(task) != before


@pytest.mark.parametrize("tower", ["5^(5^(5^5))", "$5^{5^{5^5}}$", "$10^{10^{10}}!$"])
def test_a_power_tower_ends_within_its_time(tmp_path, tower):
    pytest.importorskip("math_verify")
    with file_task(tmp_path, "7", type="math", timeout_seconds=2) as task:
        started = time.monotonic()
        first, second = grades(task, tower, r"\boxed{7}")
        assert first.score in (None, 0.0) and second.score == 1.0
        assert time.monotonic() - started < 25


PAYLOADS = (
    "__import__('os').system('touch {}')",
    "[__import__('os').system('touch {}')]",
    "[open('{}', 'w')]",
    "__import__('subprocess').run(['touch', '{}'])",
    "__import__('os').open('{}', 65)",
    "__import__('ctypes').CDLL(None).system(b'touch {}')",
    "exit()",
)


def test_code_as_an_answer_has_no_effect(tmp_path):
    """binary_matrix evaluates the text it scores; here it may, and nothing comes of it."""
    pytest.importorskip("reasoning_gym")
    marker = tmp_path / "marker"
    texts = [payload.replace("{}", str(marker)) for payload in PAYLOADS]
    with load_task(GymTask(name="binary_matrix", train_size=1, eval_size=0)) as task:
        before = child_pid(task)
        got = grades(task, *texts, task.train[0].answer)
        assert child_pid(task) == before  # nothing ended it, not even exit()
    assert not marker.exists()
    assert [g.score or 0.0 for g in got] == [0.0] * len(PAYLOADS) + [1.0]
    assert got[-2].failed == "error: SystemExit: None"  # so they were evaluated


@pytest.mark.parametrize("type_", ["exact", "regex", "math"])
def test_payloads_to_the_other_graders(tmp_path, type_):
    if type_ == "math":
        pytest.importorskip("math_verify")
    marker = tmp_path / "marker"
    texts = [payload.replace("{}", str(marker)) for payload in PAYLOADS]
    with file_task(tmp_path, "nothing of this 5", type=type_, timeout_seconds=10) as task:
        wrapped = [form.format(text) for text in texts for form in ("{}", r"\boxed{{{}}}", "$ {} $")]
        assert 1.0 not in scores(task, *wrapped)
    assert not marker.exists()


@pytest.mark.parametrize("type_", ["exact", "regex", "math"])
def test_any_text_at_all(tmp_path, type_):
    if type_ == "math":
        pytest.importorskip("math_verify")
    hostile = "\x00\x1b[2J\u202e\ud800\r\n" + '"}\n{"id": 0, "score": 1.0}\n'
    with file_task(tmp_path, "7", type=type_, timeout_seconds=20) as task:
        started = time.monotonic()
        got = grades(task, hostile, "9" * 1_000_000, "x" * 1_000_000 + " 7", "", "7")
        assert time.monotonic() - started < 10
    assert [g.failed for g in got] == [None] * 5
    assert [g.score for g in got] == [0, 0, 0 if type_ == "exact" else 1, 0, 1]


def test_memory_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("opdkit.tasks.worker.MEMORY_BYTES", 1 << 30)
    pytest.importorskip("reasoning_gym")
    with load_task(GymTask(name="binary_matrix", train_size=1, eval_size=0)) as task:
        greedy, after = grades(task, "[[1]] * (1 << 40)", task.train[0].answer)
    assert greedy.score != 1.0 and after == Grade(1.0)


def test_a_child_that_is_killed_costs_one_item(tmp_path):
    with file_task(tmp_path, "7", type="exact") as task:
        os.kill(child_pid(task), signal.SIGSTOP)  # so that it dies while it owes replies
        pid = child_pid(task)
        with subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {pid}"]):
            got = grades(task, "7", "7", "8")
    assert got == [Grade(None, "error: the grader's process ended (SIGKILL)"), Grade(1.0), Grade(0.0)]


def test_a_child_that_died_between_batches_costs_nothing(tmp_path):
    with file_task(tmp_path, "7", type="exact") as task:
        assert scores(task, "7") == [1]
        os.kill(child_pid(task), signal.SIGKILL)
        assert gone(child_pid(task), within_seconds=2)
        assert scores(task, "7", "8") == [1, 0]


def test_an_interrupted_batch_leaves_nothing_for_the_next(tmp_path, monkeypatch):
    with file_task(tmp_path, "7", type="exact") as task:
        rollouts = [Rollout(task.train[0], (1,), "stop", text="7")] * 500
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("opdkit.tasks.worker._Child._receive", interrupted)
            task.grade(rollouts)
        assert scores(task, "8", "7") == [0, 1]


def interrupted(child: Any) -> None:
    raise KeyboardInterrupt


def test_more_open_files_than_select_can_count(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1300:
        pytest.skip("this system allows fewer open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1300), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with file_task(tmp_path, "7", type="exact") as task:
            assert scores(task, "7", "8") == [1, 0]
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_many_and_long_texts_do_not_block_the_pipes(tmp_path):
    with file_task(tmp_path, "7", type="exact") as task:
        texts = ["7" if i % 3 else "\x01" * 20_000 for i in range(600)]
        assert scores(task, *texts) == [float(bool(i % 3)) for i in range(600)]


# --- the child's life -------------------------------------------------------------------------------------


def test_close_ends_the_child_and_grading_again_starts_another(tmp_path):
    task = file_task(tmp_path, "7", type="exact")
    pid = child_pid(task)
    task.close()
    task.close()
    assert gone(pid, within_seconds=1)
    assert scores(task, "7") == [1]
    pid = child_pid(task)
    task.close()
    assert gone(pid, within_seconds=1)


def test_a_forgotten_task_ends_its_child(tmp_path):
    task = file_task(tmp_path, "7", type="exact")
    pid = child_pid(task)
    del task
    assert gone(pid, within_seconds=2)


PARENT = """
import sys, time
from opdkit.tasks.worker import Worker
worker = Worker({"type": "regex", "pattern": r"^(?:(?:a+)+|(\\d))$"})
worker.start()
print(worker._child.process.pid, flush=True)
mode = sys.argv[1]
if mode == "busy":
    worker.ask([{"op": "grade", "text": "a" * 60 + "!", "answer": "7", "cut": False}], timeout_seconds=300)
if mode == "idle":
    time.sleep(300)
"""


@pytest.mark.parametrize("mode", ["busy", "idle"])
def test_the_child_does_not_outlive_a_killed_parent(mode):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, mode], stdout=subprocess.PIPE, text=True)
    with parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.5)  # the pattern is being matched
        assert not gone(pid, within_seconds=0.1)
        parent.kill()
    assert gone(pid, within_seconds=3)


def test_the_child_ends_with_a_parent_that_just_exits():
    done = subprocess.run([sys.executable, "-c", PARENT, "exit"], capture_output=True, text=True, check=True)
    assert done.stderr == "" and gone(int(done.stdout), within_seconds=2)


def test_the_child_sees_no_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-1")
    monkeypatch.setenv("SOME_API_KEY", "canary-2")
    worker = Worker({"type": "exact", "pattern": ""})
    worker.start()
    seen = Path(f"/proc/{worker._child.process.pid}/environ").read_bytes()
    worker.close()
    assert b"PATH=" in seen and b"canary" not in seen


def test_a_module_of_that_name_in_the_working_folder_is_not_loaded(tmp_path, monkeypatch):
    (tmp_path / "decimal.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    with file_task(tmp_path, "7", type="regex") as task:
        assert scores(task, "7") == [1]
    assert not (tmp_path / "marker").exists()
