"""What a newcomer has and types: tiny models, prompts and a config on disk, and `opd` as a function."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from models import tiny_model, tiny_tokenizer
from opdkit.cli import main

CONFIG = """\
student = "{shop}/student"
teacher = "{shop}/teacher"
task = "{shop}/sums.jsonl"
run = "runs/first"
steps = 2
prompts_per_step = 2
objective.k = 4

[sampling]
responses = 2
max_tokens = 8

[diagnostics]
k = 4
ks = [1, 4]
"""


class Said(NamedTuple):
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one message, of a command that ended in one and a hint, and in nothing else."""
        assert "Traceback" not in self.err and self.out == "", self
        *_, message, hint = self.err.strip().splitlines()
        assert self.err.count("error: ") == self.err.count("hint:  ") == 1, self.err
        assert message.startswith("error: ") and hint.startswith("hint:  ") and len(message) < 400, self.err
        assert "a defect of opdkit" not in hint, self.err
        return message.removeprefix("error: ")

    @property
    def hint(self) -> str:
        return self.err.strip().splitlines()[-1].removeprefix("hint:  ")


def build_shop(shop: Path) -> Path:
    """Two models that read alike, and six sums with answers."""
    save_model(shop / "student", seed=0)
    save_model(shop / "teacher", seed=1, hidden=48)
    rows = [{"prompt": f"Compute {i} + 2", "answer": str(i + 2)} for i in range(6)]
    write_rows(shop / "sums.jsonl", rows)
    return shop


def save_model(place: Path, *, tokenizer: Any = None, **settings: Any) -> Path:
    tokenizer = tokenizer or tiny_tokenizer()
    tiny_model("llama", tokenizer=tokenizer, **settings).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def opd(capfd: pytest.CaptureFixture[str], *words: object) -> Said:
    """`opd WORDS`, in this process."""
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["opd", *map(str, words)])
        patch.setenv("TRANSFORMERS_VERBOSITY", "error")
        with pytest.raises(SystemExit) as left:
            main()
    return Said(int(left.value.code or 0), *capfd.readouterr())


def train(capfd: pytest.CaptureFixture[str], place: Path, shop: Path, *words: str) -> Said:
    """`opd train` of CONFIG with these changes; the run is PLACE/run."""
    (place / "config.toml").write_text(CONFIG.format(shop=shop))
    return opd(capfd, "train", place / "config.toml", f"run={place / 'run'}", *words)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def findings(run: Path) -> dict[str, dict[str, Any]]:
    path = run / "findings.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["name"]: row for row in rows}
