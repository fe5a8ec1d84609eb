"""Real input: SmolLM2-135M, reasoning-gym prompts, a chat template, a differing copy as teacher; train, kill, resume, report.

And the parts of `make real`: its sums, its configs, its order of commands, its tables.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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


# --- the real run -----------------------------------------------------------------------------------------------


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Any:
    """scripts/real.py as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import real

    return real


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """File name → rows, as `make real` writes them."""
    out = tmp_path_factory.mktemp("sums")
    script = [
        sys.executable,
        str(ROOT / "scripts" / "real_sums.py"),
        "--student",
        str(SMOLLM2),
        "--out",
        str(out),
    ]
    subprocess.run(script, check=True)
    return {p.name: [json.loads(row) for row in p.read_text().splitlines()] for p in out.iterdir()}


def operands(row: dict[str, str]) -> tuple[int, int]:
    found = re.search(r"(\d+) \+ (\d+)", row["prompt"])
    assert found
    return int(found[1]), int(found[2])


def test_held_out_sums_share_no_operands_in_either_order(sums: dict[str, list[dict[str, str]]]) -> None:
    train = {frozenset(operands(row)) for row in sums["train.jsonl"] + sums["form_only.jsonl"]}
    for name in ("plain.jsonl", "prefilled.jsonl"):
        held_out = [frozenset(operands(row)) for row in sums[name]]
        assert len(held_out) == len(set(held_out)) == 300 and not train & set(held_out)
        assert all(sum(operands(row)) == int(row["answer"]) for row in sums[name])


def test_the_format_only_teacher_sees_no_right_number(sums: dict[str, list[dict[str, str]]]) -> None:
    for row in sums["form_only.jsonl"]:
        a, b = operands(row)
        form = re.fullmatch(rf"{a} \+ {b} = (\d+)\.", row["response"])
        assert form and form[1] != row["answer"]


def test_a_begun_answer_stands_after_the_chat_template(sums: dict[str, list[dict[str, str]]]) -> None:
    for asked, begun in zip(sums["plain.jsonl"], sums["prefilled.jsonl"], strict=True):
        a, b = operands(asked)
        assert asked["prompt"] in begun["prompt"]
        assert begun["prompt"].endswith(f"<|im_start|>assistant\n{a} + {b} =")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "real").glob("*.toml")), ids=lambda p: p.name)
def test_configs_of_the_real_run_load(path: Path) -> None:
    from opdkit.config import load_config

    assert load_config(path).student.model == ".cache/smollm2-135m"


def test_what_is_finished_is_left_and_what_was_cut_goes_on(real: Any, tmp_path: Path) -> None:
    begun = real.teach("a", "student", tmp_path)
    assert begun.command[-1] == f"run={tmp_path / 'teacher-a'}" and "--resume" not in begun.command
    (tmp_path / "teacher-a").mkdir()
    (tmp_path / "teacher-a" / "config.toml").touch()
    assert real.teach("a", "student", tmp_path).command[-2:] == ["--resume", str(tmp_path / "teacher-a")]

    (tmp_path / "logs").mkdir()
    tasks = [touching(real, name, needs, tmp_path) for name, needs in [("c", ["b"]), ("b", ["a"]), ("a", [])]]
    (tmp_path / "a").write_text("kept")
    real.run_all(tasks, tmp_path, jobs=2)
    assert (tmp_path / "a").read_text() == "kept" and (tmp_path / "c").exists()
    names = [json.loads(row)["name"] for row in (tmp_path / "times.jsonl").read_text().splitlines()]
    assert names == ["b", "c"]


def test_a_failure_ends_it_and_leaves_no_result(real: Any, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    failing = real.Task(
        "x", [sys.executable, "-c", "print(1); exit(3)"], [], tmp_path / "x.json", prints=True
    )
    with pytest.raises(SystemExit, match="goes on"):
        real.run_all([failing, touching(real, "y", ["x.json"], tmp_path)], tmp_path, jobs=1)
    assert not (tmp_path / "x.json").exists() and not (tmp_path / "y").exists()


def touching(real: Any, name: str, needs: list[str], folder: Path) -> Any:
    code = f"open({str(folder / name)!r}, 'w')"
    return real.Task(name, [sys.executable, "-c", code], [folder / n for n in needs], folder / name)


def test_drawings_are_functions_of_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import real_tables

    for name, drawn in real_tables.drawings(ROOT / "docs" / "real").items():
        assert (ROOT / "docs" / "real" / name).read_text() == drawn, "python scripts/real_tables.py docs/real"
