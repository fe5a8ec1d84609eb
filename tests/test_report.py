"""The report: what it says, what it draws in a real browser, and that nothing a run wrote becomes markup."""

import fcntl
import json
import math
import os
import random
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from opdkit.report import read, text, words, write_report
from opdkit.report.change import change, gap_recovery, response_tokens, skipped
from opdkit.report.panels import groups
from opdkit.types import UserError

# --- run folders with the shapes of the paper's Figs. 6 and 19 ----------------------------------------------

VOCABULARY = 151_936
BINS = tuple(range(0, 2048, 256))


def make_run(folder: Path, *, success: bool, steps: int = 120, seed: int = 0, graded: bool = True) -> Path:
    """A run folder: aligning with its teacher when `success`, standing still when not."""
    folder.mkdir(parents=True)
    draw = random.Random(seed)
    teacher = "JustRL-DeepSeek-1.5B" if success else "DeepSeek-R1-Distill-Qwen-7B"
    (folder / "config.toml").write_text(config_text(teacher, steps, folder.name), encoding="utf-8")
    (folder / "env.json").write_text(json.dumps(ENV), encoding="utf-8")
    write_rows(folder / "metrics.jsonl", [metrics_row(s, steps, success, draw) for s in range(1, steps + 1)])
    if graded:
        write_rows(
            folder / "eval.jsonl", [eval_row(s, steps, success) for s in range(0, steps + 1, steps // 4 or 1)]
        )
    (folder / "rollouts").mkdir()
    for step in sorted({1, steps // 2 or 1, steps}):
        write_rows(folder / "rollouts" / f"step_{step}.jsonl", [rollout_row(step, i, draw) for i in range(4)])
    if not success:
        write_rows(folder / "findings.jsonl", [FINDING])
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def config_text(teacher: str, steps: int, name: str) -> str:
    return f"""story = "distill"
student.model = "DeepSeek-R1-Distill-Qwen-1.5B"
student.dtype = "float32"
teacher.type = "local"
teacher.model = "{teacher}"
task.type = "file"
task.path = "dapo-math-17k.jsonl"
objective.preset = "paper"
objective.support = "student_top_k"
objective.k = 16
sampling.responses = 4
sampling.max_tokens = 2048
optim.lr = 1e-06
optim.betas = [0.9, 0.999]
diagnostics.ks = [1, 4, 16, 64]
run = "runs/{name}"
steps = {steps}
prompts_per_step = 64
"""


ENV = {
    "versions": {"torch": "2.13.0", "transformers": "5.16.0"},
    "commit": "a39f92b",
    "command": "opd train configs/paper.toml --token hf_abcdefghijklmnopqrstuvwx",
    "index": "https://me:canary-secret@packages.example.org/simple",
}

FINDING = {
    "name": "stagnation",
    "severity": "warning",
    "message": "overlap_advantage has not moved for 100 steps.",
    "numbers": {"overlap_advantage": -0.031, "loss": 0.021},
    "remedy": "opd train … teacher=JustRL-DeepSeek-1.5B",
    "step": 100,
}


def metrics_row(step: int, steps: int, success: bool, draw: random.Random) -> dict[str, float]:
    done = step / steps
    fall = math.exp(-4.5 * done) if success else 1 - 0.1 * math.sin(9 * done)

    def noisy(value: float, share: float = 0.04) -> float:
        return value * (1 + share * draw.gauss(0, 1))

    loss = noisy(0.455 * fall + 0.01 if success else 0.031 * fall, 0.08)
    overlap = 0.72 + 0.19 * (1 - math.exp(-3 * done)) if success else 0.745 + 0.03 * math.sin(3 * done)
    student = 0.42 - 0.08 * done if success else 0.40 + 0.02 * math.sin(7 * done)
    length = noisy(1450 - (250 * done if success else -120 * done))
    row = {
        "step": step,
        "loss": loss,
        "reverse_kl": noisy(loss * 1.15),
        "overlap_ratio": noisy(overlap, 0.006),
        "overlap_mass_student": noisy(0.982, 0.002),
        "overlap_mass_teacher": noisy(0.974, 0.002),
        "overlap_advantage": -noisy(0.024 * fall + 0.0009 if success else 0.031 * fall, 0.08),
        "training_advantage_overlap": -noisy(0.05 * fall + 0.002),
        "training_advantage_student_only": -noisy(0.0042 * fall),
        "training_advantage_teacher_only": noisy(0.0021 * fall),
        "entropy_student": noisy(student),
        "entropy_teacher": noisy(student - 0.16 * fall),
        "entropy_gap": noisy(0.21 * fall + 0.05 if success else 0.24 * fall),
        "entropy_gap_of_means": noisy(0.16 * fall + 0.02),
        "sequence_reward": -noisy(loss),
        "sequence_reward_auroc": noisy(0.74, 0.02),
        "grad_norm": noisy(2.9 * (0.35 + 0.65 * fall) if success else 0.44, 0.12),
        "learning_rate": 1e-6 * min(1.0, step / 10),
        "response_length": length,
        "truncated_fraction": max(0.0, noisy(0.22 - 0.09 * done, 0.1)),
        "repetition_fraction": max(0.0, noisy(0.03, 0.3)),
        "sampler_mismatch": abs(noisy(0.0021, 0.2)),
        "staleness": 0.0,
        "reverse_kl_sampled": loss + 0.05 * draw.gauss(0, 1),
        "top1_agreement": noisy(overlap, 0.01),
        "top1_student_p": noisy(0.79, 0.01),
        "top1_student_teacher_p": noisy(0.79 - 0.12 * fall, 0.02),
        "probability_gap_at_max_advantage": noisy(0.19 * fall),
        "measured_positions": 256.0,
        "support_mismatch": abs(noisy(0.0007, 0.3)),
        "accuracy": noisy(0.36 + 0.16 * done if success else 0.37, 0.05),
        "ungraded_fraction": 0.0,
        "skipped_steps": 0.0 if done < 0.6 else 1.0,
        "tokens_per_second": noisy(5200.0),
        "memory/peak_mb": 61_000 + 40 * draw.random(),
        "seconds/sample": noisy(41.0),
        "seconds/score": noisy(9.0),
        "seconds/update": noisy(19.0),
        "seconds/sync": noisy(1.6, 0.2),
        "seconds/step": noisy(71.5),
        "shuffle_entropy": noisy(3.0),
    }
    for k in (1, 4, 16, 64):
        row[f"overlap_ratio_at_{k}"] = min(1.0, noisy(overlap * (1.12 - 0.03 * math.log2(k)), 0.006))
        row[f"overlap_chance_at_{k}"] = k / VOCABULARY
    for place, start in enumerate(BINS):
        depth = place / len(BINS)
        row[f"by_position/{start}/overlap_ratio"] = noisy(overlap - 0.08 * depth, 0.01)
        row[f"by_position/{start}/entropy_student"] = noisy(student * (1 + 0.8 * depth * done), 0.03)
        row[f"by_position/{start}/entropy_teacher"] = noisy(student * (0.8 + 0.4 * depth), 0.03)
        row[f"by_position/{start}/reverse_kl"] = noisy(loss * (0.7 + 0.9 * depth), 0.06)
        row[f"by_position/{start}/top1_agreement"] = noisy(overlap * (1 - 0.1 * depth), 0.02)
    return row


def eval_row(step: int, steps: int, success: bool) -> dict[str, Any]:
    score = 0.378 + (0.145 * (1 - math.exp(-3 * step / steps)) if success else 0.012 * step / steps)
    return {
        "step": step,
        "avg_at_k": score,
        "low": score - 0.041,
        "high": score + 0.043,
        "pass_at_k": {"1": score, "4": score + 0.14, "16": score + 0.26},
        "truncated_fraction": 0.11,
        "problems": 143,
        "responses": 16,
    } | ({"teacher_avg_at_k": 0.55} if step == 0 else {})


def rollout_row(step: int, index: int, draw: random.Random) -> dict[str, Any]:
    return {
        "step": step,
        "prompt": f"Let a = {index}. Find the remainder of a² + 7 when it is divided by 5.",
        "response": f"First square a.\n\nThen a² + 7 = {index**2 + 7}, and the remainder is "
        f"\\boxed{{{(index**2 + 7) % 5}}}.",
        "finish_reason": "stop" if index else "length",
        "score": float(index % 2),
        "length": 900 + 71 * index,
        "sequence_reward": -draw.random() / 3,
        "response_ids": [1, 2, 3],
        "overlap_ratio": draw.random(),
    }


# --- what it says -------------------------------------------------------------------------------------------


def reading(folder: Path) -> read.Run:
    return read.read_run(folder, name=folder.name)


def test_success_and_stagnation_are_told_apart_in_words(tmp_path: Path) -> None:
    good = reading(make_run(tmp_path / "good", success=True))
    still = reading(make_run(tmp_path / "still", success=False))
    assert words.alignment(good).title == "Aligning"
    assert "the student is aligning" in words.alignment(good).sentence
    assert words.alignment(still).title == "Stagnating"
    assert (
        "a small loss that moves so little is a weak signal, not success" in words.alignment(still).sentence
    )
    assert words.accuracy(good).tone == "good"
    assert "this may be chance" in words.accuracy(still).sentence


def test_overlap_alone_is_never_called_success(tmp_path: Path) -> None:
    rows = [
        {"step": s, "loss": 0.05, "overlap_advantage": -0.03, "overlap_ratio": 0.5 + s / 60}
        for s in range(20)
    ]
    run = reading(bare_run(tmp_path / "run", rows))
    assert words.alignment(run).title == "Stagnating"
    assert any("can rise with a useless teacher" in sentence for sentence in words.details(run))


def test_flat_overlap_does_not_spoil_a_success(tmp_path: Path) -> None:
    rows = [
        {"step": s, "loss": 0.5 * 0.8**s, "overlap_advantage": -0.02 * 0.8**s, "overlap_ratio": 0.7}
        for s in range(20)
    ]
    assert words.alignment(reading(bare_run(tmp_path / "run", rows))).title == "Aligning"


@pytest.mark.parametrize(
    ("losses", "title"),
    [
        ([0.1, 0.2, 0.4], "Moving away"),
        ([0.5], "Too short to read"),
        ([0.5, 0.01], "Too short to read"),
        ([], "Too short to read"),
        ([0.5, 0.3, 0.25], "Unclear"),
        ([2.0, 2.1, 1.9], "Stagnating"),
        ([0.5, 0.1, 0.01], "Loss falls"),
        ([0.1, 0.0, -0.1], "Unclear"),
    ],
)
def test_other_shapes_of_a_loss(losses: list[float], title: str, tmp_path: Path) -> None:
    run = reading(
        bare_run(tmp_path / "run", [{"step": s, "loss": losses[s // 4]} for s in range(4 * len(losses))])
    )
    assert words.alignment(run).title == title


def test_without_evaluation_it_says_nothing_about_accuracy(tmp_path: Path) -> None:
    run = reading(make_run(tmp_path / "run", success=True, graded=False))
    assert words.accuracy(run).sentence == "No evaluation, so this says nothing about accuracy."
    assert "no eval.jsonl" in run.gaps
    write_rows(tmp_path / "run" / "eval.jsonl", [{"step": 0, "problems": 8, "graded": False}])
    run = reading(tmp_path / "run")
    assert words.accuracy(run).sentence == "Evaluated without a grader, so this says nothing about accuracy."


def test_first_and_last_are_means_over_a_tenth(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"step": s, "loss": float(s)} for s in range(30)]
    rows[0]["loss"] = math.nan
    found = change(reading(bare_run(tmp_path / "run", rows)), "loss")
    assert found is not None
    assert (found.first, found.last, found.window, found.count) == (2.0, 28.0, 3, 29)


def test_numbers_that_need_the_config(tmp_path: Path) -> None:
    run = reading(make_run(tmp_path / "run", success=True, steps=8))
    tokens = response_tokens(run)
    assert tokens is not None
    assert tokens == pytest.approx(sum(run.values("response_length")) * 64 * 4)
    assert skipped(run) == 1
    assert gap_recovery(run) == pytest.approx(0.145 * (1 - math.exp(-3)) / (0.55 - 0.378))


def test_gap_recovery_is_undefined_for_a_small_gap(tmp_path: Path) -> None:
    folder = bare_run(tmp_path / "run", [{"step": 1, "loss": 1.0}])
    write_rows(
        folder / "eval.jsonl",
        [{"step": s, "avg_at_k": 0.5 + s / 9, "teacher_avg_at_k": 0.54} for s in range(2)],
    )
    assert gap_recovery(reading(folder)) is None


def test_every_metric_has_a_plot(tmp_path: Path) -> None:
    run = reading(make_run(tmp_path / "run", success=True, steps=3))
    drawn = {metric for group in groups(run.names()) for panel in group.panels for metric in panel.metrics}
    apart = {name for name in run.names() if name.startswith(("by_position/", "seconds/"))} - {"seconds/step"}
    assert drawn == set(run.names()) - apart
    assert [panel.metrics for panel in groups(run.names())[-1].panels] == [("shuffle_entropy",)]


# --- what is missing or torn --------------------------------------------------------------------------------


def bare_run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    write_rows(folder / "metrics.jsonl", rows)
    return folder


def test_a_folder_without_a_run_is_refused_with_a_hint(tmp_path: Path) -> None:
    bare_run(tmp_path / "runs" / "a", [])
    with pytest.raises(UserError) as refused:
        write_report([tmp_path / "runs"])
    assert refused.value.hint == f"opd report {tmp_path / 'runs' / 'a'}"
    with pytest.raises(UserError, match="is no folder"):
        write_report([tmp_path / "nowhere" / "b"])
    with pytest.raises(UserError, match="no run"):
        write_report([])


def test_a_run_killed_at_its_first_step(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", success=True, steps=1, graded=False)
    shutil.rmtree(folder / "rollouts")
    page = write_report([folder]).read_text(encoding="utf-8")
    assert "Too short to read" in page
    assert "Missing: no eval.jsonl; no sampled rollouts." in page


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "eval.jsonl", "config.toml", "env.json", "rollouts/step_1.jsonl"]
)
@pytest.mark.parametrize(
    "content", ["", "\n\n", "{", '{"step": 1, "lo', "[" * 100_000, "\x00\xff", '{"step": "x"}']
)
def test_any_file_may_be_empty_or_torn(name: str, content: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", success=True, steps=4)
    (folder / name).write_bytes(content.encode("latin-1"))
    assert write_report([folder]).stat().st_size > 4_000_000


def test_a_torn_last_line_is_left_out_and_said_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", success=True, steps=5)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0.')
    run = reading(folder)
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4, 5]
    assert "metrics.jsonl: 1 line could not be read (torn by a kill?) and left out" in run.gaps


def test_after_a_resume_the_later_row_counts(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 2.0}]
    assert reading(bare_run(tmp_path / "run", rows)).series("loss") == ([1, 2], [1.0, 2.0])


def test_numbers_no_float_can_hold_are_gaps(tmp_path: Path) -> None:
    folder = bare_run(tmp_path / "run", [])
    (folder / "metrics.jsonl").write_text(
        f'{{"step": 1, "loss": 1{"0" * 400}, "learning_rate": NaN, "accuracy": true}}\n'
    )
    assert reading(folder).values("loss") == []
    write_report([folder])


def test_odd_values_of_known_keys(tmp_path: Path) -> None:
    folder = bare_run(tmp_path / "run", [{"step": 1, "loss": "x"}, {"loss": 1.0}, {"step": 3, "loss": None}])
    odd = {"pass_at_k": {"x": 1, "4": "y", "8": 0.5}, "low": "z", "avg_at_k": 0.5, "step": 0}
    write_rows(folder / "eval.jsonl", [odd, {"step": 1, "pass_at_k": 7}])
    write_rows(
        folder / "findings.jsonl", [{}, {"severity": ["x"], "numbers": 3, "message": {"a": 1}, "step": "s"}]
    )
    (folder / "rollouts").mkdir()
    write_rows(folder / "rollouts" / "step_1.jsonl", [{}, {"prompt": [{"role": "user", "content": "hi"}]}])
    page = write_report([folder]).read_text(encoding="utf-8")
    assert "avg_at_k" in page and "hi" in page and page.rstrip().endswith("</html>")


def test_secrets_do_not_reach_the_page(tmp_path: Path) -> None:
    page = write_report([make_run(tmp_path / "run", success=True, steps=2)]).read_text(encoding="utf-8")
    assert "canary-secret" not in page
    assert "hf_abcdefghijklmnopqrstuvwx" not in page
    assert "configs/paper.toml" in page


def test_out_goes_where_it_is_told_and_nowhere_else(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", success=True, steps=2)
    before = sorted(folder.rglob("*"))
    assert write_report([folder], tmp_path / "new" / "page.html") == tmp_path / "new" / "page.html"
    assert sorted(folder.rglob("*")) == before
    with pytest.raises(UserError, match="cannot write"):
        write_report([folder], folder / "config.toml" / "page.html")


def test_invisible_characters_are_spelt_out() -> None:
    assert text.visible("a\u202eb\u200bc\x00\r\n\ud800\u2028") == "a⟨U+202E⟩b⟨U+200B⟩c␀␍\n⟨U+D800⟩⟨U+2028⟩"
    assert text.visible("नमस्ते 👩‍💻 é") == "नमस्ते 👩‍💻 é"


# --- in a browser -------------------------------------------------------------------------------------------

LAUNCHER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


@dataclass
class Browser:
    """Headless Chromium, spoken to in DevTools messages over two pipes: it reads fd 3 and writes fd 4."""

    process: subprocess.Popen[bytes]
    to_browser: int
    from_browser: int
    events: list[dict[str, Any]] = field(default_factory=list)
    buffer: bytes = b""
    last_id: int = 0
    session: str | None = None
    target: str | None = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while (reply := self.receive()).get("id") != self.last_id:
            self.events.append(reply)
        assert "error" not in reply, reply
        result: dict[str, Any] = reply["result"]
        return result

    def receive(self, seconds: float = 60) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            assert select.select([self.from_browser], [], [], seconds)[0], "the browser says nothing"
            chunk = os.read(self.from_browser, 1 << 20)
            assert chunk, "the browser is gone"
            self.buffer += chunk
        message, _, self.buffer = self.buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def evaluate(self, expression: str) -> Any:
        reply = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def open(self, page: Path) -> None:
        """Open `page` in a tab of its own and wait until its last plot is drawn."""
        before, self.session, self.events = self.target, None, []
        self.target = self.call("Target.createTarget", url="about:blank")["targetId"]
        if before:
            self.call("Target.closeTarget", targetId=before)
        self.session = self.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=page.as_uri())
        self.wait_for("document.documentElement?.dataset.drawn")

    def wait_for(self, expression: str, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, (expression, self.events[-9:])
            time.sleep(0.1)

    def complaints(self) -> list[dict[str, Any]]:
        """Exceptions, console output and logged errors (a blocked script or request is one of them)."""
        self.evaluate("1")  # collects what was sent before
        loud = (
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
            "Log.entryAdded",
            "Page.javascriptDialogOpening",
        )
        return [event for event in self.events if event.get("method") in loud]

    def requests(self) -> list[str]:
        """Addresses asked for; a `data:` image (a drawn heatmap) is in the page and not an address."""
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in sent]
        return [url for url in urls if not url.startswith("data:")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of this file; where CI has none that is a failure, elsewhere a skip."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no chromium on this machine, and CI has to open the page")
        pytest.skip("no chromium on this machine")
    profile = tmp_path_factory.mktemp("profile")
    child_reads, we_write = os.pipe()
    we_read, child_writes = os.pipe()
    # above 9, so that neither is in the way when the launcher puts them at 3 and 4
    ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (child_reads, child_writes)]
    command = [sys.executable, "-c", LAUNCHER, *map(str, ends), found, *FLAGS, f"--user-data-dir={profile}"]
    with subprocess.Popen(
        command, pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        for fd in (child_reads, child_writes, *ends):
            os.close(fd)
        browser = Browser(process, we_write, we_read)
        yield browser
        browser.session = None
        os.write(we_write, b'{"id": 0, "method": "Browser.close"}\0')
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
    os.close(we_write)
    os.close(we_read)


def plots_of(page: Path) -> int:
    return page.read_text(encoding="utf-8").count('<div class="plot"')


def curves(page: Path) -> int:
    drawn = page.read_text(encoding="utf-8").partition('id="figures">')[2].partition("</script>")[0]
    return sum(len(figure["traces"]) for figure in json.loads(drawn) if figure["kind"] != "heatmap")


@pytest.mark.chromium
def test_one_run_is_drawn_without_complaint_or_network(browser: Browser, tmp_path: Path) -> None:
    page = write_report([make_run(tmp_path / "good", success=True)])
    browser.open(page)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    folded = "document.querySelectorAll('details .plot').length"
    assert browser.evaluate("document.querySelectorAll('.js-plotly-plot').length") == plots_of(page) - 1 > 30
    assert browser.evaluate(folded) == 1
    assert browser.evaluate("document.querySelectorAll('.plot:not(:has(.main-svg))').length") == 1
    # each curve holds ink: a plot whose data was lost would still have axes
    assert browser.evaluate("document.querySelectorAll('.plot .scatterlayer path.js-line').length") == curves(
        page
    )
    assert browser.evaluate("document.querySelectorAll('.plot .heatmaplayer image').length") == 4
    assert browser.evaluate("document.querySelectorAll('.plot .errorbar').length") == 5
    browser.evaluate("document.querySelector('details.more').open = true")
    browser.wait_for("document.querySelectorAll('.plot .heatmaplayer image').length === 5")
    assert browser.complaints() == []


@pytest.mark.chromium
def test_two_runs_are_overlaid_and_can_be_switched_off(browser: Browser, tmp_path: Path) -> None:
    good = make_run(tmp_path / "a" / "run", success=True, steps=30)
    still = make_run(tmp_path / "b" / "run", success=False, steps=30)
    page = write_report([good, still], tmp_path / "both.html")
    browser.open(page)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.evaluate(
        "[...document.querySelectorAll('button[data-run]')].map(b => b.innerText.trim())"
    ) == [
        "a/run",
        "b/run",
    ]
    lines = "document.querySelector('#alignment .plot').querySelectorAll('path.js-line').length"
    assert browser.evaluate(lines) == 2
    browser.evaluate("document.querySelector('button[data-run]').click()")
    browser.wait_for(f"{lines} === 1")
    assert "DeepSeek-R1-Distill-Qwen-7B" in browser.evaluate("document.querySelector('#summary').innerText")


@pytest.mark.chromium
def test_a_run_with_nothing_in_it_is_still_a_page(browser: Browser, tmp_path: Path) -> None:
    page = write_report([bare_run(tmp_path / "run", [])])
    browser.open(page)
    assert browser.complaints() == []
    assert "metrics.jsonl is empty" in browser.evaluate("document.body.innerText")


PAYLOADS = (
    "</script><script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "<a href='javascript:window.hit = 1'>press</a>",
    "javascript:window.hit=1",
    "' onmouseover='window.hit = 1' x='",
    '" autofocus onfocus="window.hit = 1" x="',
    "<!--<script>",
    "]]><svg/onload=window.hit=1>",
    "{{7*7}}{% raw %}${7*7}",
    "&lt;script&gt;window.hit=1&lt;/script&gt;",
    "<b>bold</b><style>*{display:none}</style>",
    "$\\href{javascript:window.hit=1}{x}$",
    "%{y}<extra>x</extra>",
    "\u202e\u2066\x1b[31m\x07\u2028\ud800",
    "__proto__",
    "constructor",
)


def hostile_run(folder: Path, payload: str) -> Path:
    """A run that says `payload` wherever a run can say something, its name included."""
    folder = folder / payload.replace("/", "∕").encode("utf-8", "replace").decode()
    (folder / "rollouts").mkdir(parents=True)
    quoted = json.dumps(text.visible(payload))  # TOML strings hold no control characters or surrogates
    keys = ("student.model", "teacher.model", "task.path", "objective.preset", quoted)
    (folder / "config.toml").write_text("".join(f"{key} = {quoted}\n" for key in keys), encoding="utf-8")
    (folder / "env.json").write_text(json.dumps({payload: payload, "versions": {payload: [payload]}}))
    names = (payload, f"by_position/0/{payload}", f"seconds/{payload}")
    rows = [{"step": s, "loss": 0.1 * s, **dict.fromkeys(names, 0.5 + s)} for s in range(1, 4)]
    write_rows(folder / "metrics.jsonl", rows)
    evaluation = {"step": 0, "avg_at_k": 0.4, "low": 0.3, "high": 0.5, "pass_at_k": {payload: 1, "4": 0.5}}
    write_rows(folder / "eval.jsonl", [evaluation | {payload: payload}])
    finding = dict.fromkeys(("name", "severity", "message", "remedy"), payload) | {"numbers": {payload: 1.0}}
    write_rows(folder / "findings.jsonl", [finding])
    rollout = dict.fromkeys(("prompt", "response", "finish_reason", payload), payload)
    write_rows(folder / "rollouts" / "step_1.jsonl", [rollout])
    return folder


SKELETON = """[...document.querySelectorAll('*')].map(
    (e) => e.tagName + ' ' + [...e.attributes].map((a) => a.name).sort().join(' ')).sort().join('\\n')"""
TAGS = "[...new Set([...document.querySelectorAll('*')].map((e) => e.tagName.toLowerCase()))].sort()"
LINKS = (
    "[...document.querySelectorAll('*')].map((e) => e.href ?? e.getAttribute('xlink:href')).filter((x) => x)"
)
LOSS = "document.querySelector('#alignment .plot')"


@pytest.mark.chromium
def test_nothing_a_run_wrote_becomes_markup(browser: Browser, tmp_path: Path) -> None:
    """Element by element and attribute by attribute, the page of hostile runs is that of harmless ones.

    One page holds a run per payload, so all of them are also overlaid in one plot and its hover label.
    """
    harmless = [hostile_run(tmp_path / "harmless", f"plain words {i}") for i in range(len(PAYLOADS))]
    hostile = [hostile_run(tmp_path / "hostile", payload) for payload in PAYLOADS]
    page = write_report(harmless)
    browser.open(page)
    assert "plain words 3" in hovered(browser)
    expected = [static_skeleton(page, browser), browser.evaluate(TAGS), *ours(browser)]
    page = write_report(hostile)
    browser.open(page)
    assert "<img src=x onerror='window.hit = 1'>" in hovered(browser)
    assert [static_skeleton(page, browser), browser.evaluate(TAGS), *ours(browser)] == expected
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.evaluate("window.hit") is None
    assert not set("\u202e\u2066\x1b\u2028") & set(browser.evaluate("document.body.innerText"))


def hovered(browser: Browser) -> str:
    """The text of the label that appears where the mouse rests on the first plot of alignment."""
    browser.evaluate(f"{LOSS}.scrollIntoView({{block: 'center'}})")
    box = browser.evaluate(f"{LOSS}.getBoundingClientRect().toJSON()")
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    deadline = time.monotonic() + 30
    while not (found := browser.evaluate(f"{LOSS}.querySelector('.hoverlayer').textContent")):
        assert time.monotonic() < deadline
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", **place)
        place["x"] += 1
        time.sleep(0.2)
    return str(found)


def ours(browser: Browser) -> list[Any]:
    """Where the links of the drawn page lead inside it, and how many there are; plotly must not add any."""
    links = [str(link).partition("#")[2] for link in browser.evaluate(LINKS)]
    return [links, len(links)]


def static_skeleton(page: Path, browser: Browser) -> str:
    """Elements and attribute names as parsed, before plotly adds its own, which depend on the data."""
    written, plotly, _ = page.read_text(encoding="utf-8").partition("* plotly.js")  # the rest is constant
    assert plotly
    html = json.dumps(written)
    parsed = f"new DOMParser().parseFromString({html}, 'text/html')"
    found: str = browser.evaluate(SKELETON.replace("document", parsed))
    return found


@pytest.mark.chromium
def test_the_policy_stops_a_script_that_is_not_ours(browser: Browser, tmp_path: Path) -> None:
    """Were escaping ever to fail, the policy is what stands behind it."""
    page = write_report([make_run(tmp_path / "run", success=True, steps=2)])
    broken = page.read_text(encoding="utf-8").replace("</main>", "<script>window.hit = 1</script></main>")
    broken = broken.replace("</main>", "<img src='x' onerror='window.hit = 1'></main>")
    page.write_text(broken, encoding="utf-8")
    browser.open(page)
    assert browser.evaluate("window.hit") is None
    assert browser.complaints() != []
