"""Real input: SmolLM2-135M, reasoning-gym prompts, a chat template, a differing copy as teacher; train, kill, resume, report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SMOLLM2 = Path(os.environ.get("OPD_SMOLLM2", ROOT / ".cache" / "smollm2-135m")).absolute()

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (SMOLLM2 / "ready").exists(), reason="no SmolLM2 weights: make smollm2"),
]


def test_weights_are_there_in_ci() -> None:
    assert (SMOLLM2 / "model.safetensors").stat().st_size > 500_000_000


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make resume` runs."""
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [
        sys.executable,
        str(ROOT / "scripts" / "resume.py"),
        "--student",
        str(SMOLLM2),
        "--out",
        str(out),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert "(killed)" in result.stdout
    return out / "run"


def test_the_run_is_whole(demo: Path) -> None:
    rows = [json.loads(line) for line in (demo / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert 0 < row["reverse_kl"] < 1 and row["overlap_ratio"] > 0.5 and row["sampler_mismatch"] < 1e-4
        assert row["overlap_mass_student"] > 0.5 and row["overlap_chance_at_16"] == 16 / 49152
        assert row["ungraded_fraction"] == 0
    evaluations = [json.loads(line) for line in (demo / "eval.jsonl").read_text().splitlines()]
    assert [row["step"] for row in evaluations] == [0, 4]


def test_the_trained_student_loads_and_has_moved(demo: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    saved = demo / "checkpoints" / "step_4" / "model"
    before = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32).state_dict()
    after = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).state_dict()
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > 0.9 * len(before)
    assert all(w.isfinite().all() for w in after.values())
    assert len(AutoTokenizer.from_pretrained(saved)) == 49152


def test_rollouts_went_through_the_chat_template(demo: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    rows = [json.loads(line) for line in (demo / "rollouts" / "step_1.jsonl").read_text().splitlines()]
    for row in rows:
        shown = tokenizer.decode(row["prompt_ids"])
        assert (
            "<|im_start|>user" in shown
            and shown.endswith("<|im_start|>assistant\n")
            and row["prompt"] in shown
        )
        assert row["length"] == len(row["response_ids"]) <= 12


def test_the_report_is_there(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    assert "overlap_ratio" in page and "chain_sum" in page
