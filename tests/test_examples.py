"""Every example runs."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from models import tiny_model, tiny_tokenizer

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    for name, seed in (("student", 1), ("teacher", 2)):
        tiny_model("llama", seed=seed, spread=0.1).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    return str(tmp_path / "student"), str(tmp_path / "teacher")


def test_minimal(pair: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    minimal = load("minimal")
    minimal.main(*pair, "Compute 3 + 4.", "Ada has 7 apples.")
    told = capsys.readouterr().out.splitlines()
    assert len(told) == minimal.STEPS and all("divergence per token" in line for line in told)


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 150, path
