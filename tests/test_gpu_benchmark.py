"""benchmarks/gpu.py where there is no GPU: it says so; a dry run takes its code path and never looks like a result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PHASES = ["sample", "score", "update", "sync"]


def gpu(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu.py", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The dry run's JSON and what it printed."""
    out = tmp_path_factory.mktemp("gpu") / "dry.json"
    done = gpu("--shape", "tiny", "--device", "cpu", "--steps", 3, "--trl", "off", "--out", out)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the plain command measures it")
def test_without_a_gpu_one_sentence_says_so() -> None:
    before = sorted(path.name for path in RESULTS.iterdir())
    done = gpu()
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1 and "nothing was measured, because there is no GPU" in done.stdout
    assert sorted(path.name for path in RESULTS.iterdir()) == before


def test_a_dry_run_says_what_it_is(dry: tuple[dict[str, Any], str]) -> None:
    result, printed = dry
    assert result["dry_run"] is True and result["complete"] is True
    assert result["device"]["type"] == "cpu" and "driver" not in result["device"]
    assert printed.startswith("DRY RUN on a CPU") and "no number here is of a GPU" in printed
    assert "TRL was not run: --trl off" in printed
    assert result["trl"] == {"run": False, "why": "--trl off"}


def test_the_result_says_what_it_is_of(dry: tuple[dict[str, Any], str]) -> None:
    result, _ = dry
    assert result["machine"]["torch"] == torch.__version__ and result["machine"]["transformers"]
    assert result["commit"] is None or len(result["commit"].split("-")[0]) == 40
    assert result["command"].startswith("python benchmarks/gpu.py --shape tiny --device cpu")
    config = result["config"]
    assert config["dtypes"] == {
        "student_masters": "float32", "student_compute": "bfloat16", "teacher": "bfloat16",
    }  # fmt: skip
    assert {"shape", "vocabulary", "student", "teacher", "sampler", "prompt_tokens"} <= config.keys()


def test_every_part_has_every_number(dry: tuple[dict[str, Any], str]) -> None:
    result, _ = dry
    rows = result["rows"]
    assert [row["name"] for row in rows] == ["paper/8", "full/8", "paper/12", "full/12"]
    assert [row["work"]["gradient_checkpointing"] for row in rows] == [False, False, True, True]
    for row in rows:
        work, phases, peaks = row["work"], row["phases"]["ours"], row["peak_mb_of_phases"]["ours"]
        assert work["new_tokens_per_step"] == work["prompts"] * work["responses"] * work["length"]
        assert list(phases) == [*PHASES, "step"] and list(peaks) == PHASES
        assert (work["steps"], work["warm_up_steps"], row["skipped_steps"]) == (3, 1, 0)
        assert all(peak > 0 for peak in peaks.values()) and row["peak_mb"]["ours"] == max(peaks.values())
        for spread in (*phases.values(), row["seconds"]["ours"], row["tokens_per_second"]["ours"]):
            assert 0 < spread["min"] <= spread["median"] <= spread["max"]


def test_the_phases_add_up_to_about_the_step(dry: tuple[dict[str, Any], str]) -> None:
    """What is left is the row of metrics. Shares are of one step each, so a busy machine slows both sides of them."""
    for row in dry[0]["rows"]:
        assert row["share_in_phases"]["median"] >= 0.8 and row["share_in_phases"]["max"] <= 1.0
        least, tokens = row["seconds"]["ours"]["min"], row["work"]["new_tokens_per_step"]
        assert row["tokens_per_second"]["ours"]["max"] == pytest.approx(tokens / least, rel=0.01)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sampler", "vllm"], "vLLM is not installed"),
        (["--lengths", 100_000], "the models reach no further"),
        (["--shape", "tiny", "--device", "cpu", "--out", RESULTS / "gpu.json"], "a dry run is no result"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    words: list[object], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from gpu import arguments

    with pytest.raises(SystemExit) as left:
        arguments([str(word) for word in words])
    assert left.value.code == 2 and told in capsys.readouterr().err
