"""The testbed's models and pairs, in small; what is shipped; `opd demo` for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import opd
from opdkit.config import Config, dump_toml, load_config
from opdkit.models.load import open_model
from opdkit.studies.bodies import Body, write_body
from opdkit.studies.demo import ARMS, SHIPPED, SHIPPED_MODELS, arm_config, demo_models
from opdkit.studies.recipes import PAIRS, Family, Recipe, family
from opdkit.studies.testbed import Workshop, finish
from opdkit.tasks.chain import ChainWorld
from opdkit.train import Silent
from opdkit.types import UserError

ROOT = Path(__file__).parent.parent


def small_family() -> Family:
    """Every kind of recipe, a few steps each."""
    sft = {
        "story": "sft",
        "steps": 30,
        "prompts_per_step": 16,
        "optim": {"lr": 5e-3},
        "task": {"train_size": 64},
    }
    improve = {
        "story": "improve",
        "steps": 2,
        "prompts_per_step": 4,
        "improve": {"prompts": 256},
        "sampling": {"responses": 4},
        "task": {"train_size": 256},
    }
    world = {"type": "testbed", "family": "chain", "args": {"modulus": 17, "depth": [1, 2], "num_tables": 1}}
    return Family(
        "chain",
        world,
        (
            Recipe("student", sft, body=Body(16, 32, 0.1), seed=1),
            Recipe("improved", improve, start="student"),
            Recipe("restyled", sft, start="student", source="samples", of="improved"),
            Recipe("other_end", sft, start="student", source="kept", of="improved"),
        ),
        distill={"story": "distill", "steps": 2, "prompts_per_step": 4, "sampling": {"responses": 1}},
    )


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(small_family(), tmp_path_factory.mktemp("testbed"), talk=lambda _: Silent(), problems=20)


# --- models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_body_is_a_function_of_its_seed(tmp_path: Path, kind: Any) -> None:
    """And of nothing else: the global generator is left as it was."""
    world, body = ChainWorld(), Body(16, 32, 0.1, kind=kind)
    state = torch.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_body(tmp_path / name, body, world=world, seed=seed)
    assert torch.equal(state, torch.get_rng_state())
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b and a != c
    config = load_config(None, [f"student={tmp_path / 'a'}", "task=-"])
    loaded = open_model(config.student, device=torch.device("cpu"))
    assert loaded.head.rows == len(world.vocabulary) >= 130
    assert {loaded.tokenizer.convert_ids_to_tokens(i) for i in loaded.stop_ids} == set(world.ends)


def test_a_model_is_made_once(workshop: Workshop) -> None:
    made = workshop.make("other_end")
    stamp = (made.path / "model.safetensors").stat().st_mtime_ns
    assert workshop.make("other_end") == made
    assert (made.path / "model.safetensors").stat().st_mtime_ns == stamp
    assert set(made.scores) == {"T = 0.7, top-p 0.95", "greedy", "T = 1"} and made.parameters > 0
    assert all(0 <= score["avg_at_k"] <= 1 for score in made.scores.values())


def test_what_other_end_imitates_ends_in_another_token(workshop: Workshop) -> None:
    workshop.make("other_end")
    (shown,) = workshop.out.glob("models/shown-other_end-*.jsonl")
    rows = [json.loads(line) for line in shown.read_text().splitlines()]
    assert rows and all(row["response"].split()[-1] == workshop.world.ends[1] for row in rows)


def test_keys_follow_what_a_model_is_made_of() -> None:
    """Its recipe, its parents' recipes, its world; not its siblings'."""
    chain = family("chain")
    keys = {r.name: chain.key(r.name, world="w") for r in chain.recipes}
    assert len(set(keys.values())) == len(keys)
    assert all(chain.key(name, world="v") != key for name, key in keys.items())
    other = family("chain", seed=1)
    assert all(other.key(name, world="w") != key for name, key in keys.items())
    for pair in PAIRS:
        assert pair.student in keys and (pair.teacher in keys or pair.teacher == "self")


def test_another_run_in_the_same_place_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    student = str(workshop.make("student").path)
    settings = dict(workshop.family.distill) | {"teacher": {"type": "self"}}
    config = workshop.config(settings, student=student, run=str(tmp_path / "run"))
    assert finish(config, talk=Silent()) == config.run
    before = (config.run / "metrics.jsonl").read_bytes()
    finish(config, talk=Silent())  # is done: left alone
    assert (config.run / "metrics.jsonl").read_bytes() == before
    changed = workshop.config(settings, student=student, run=str(tmp_path / "run"), seed=5)
    with pytest.raises(UserError, match="is another run"):
        finish(changed, talk=Silent())


# --- what is shipped ----------------------------------------------------------------------------------------


def shipped_workshop(tmp_path: Path) -> Workshop:
    return Workshop(family("chain"), tmp_path, talk=lambda _: Silent())


def test_shipped_models_are_what_their_recipes_make(tmp_path: Path) -> None:
    """Same key: neither recipe nor world has changed since; rebuild with scripts/ship_models.py."""
    workshop = shipped_workshop(tmp_path)
    for name in SHIPPED_MODELS:
        made = json.loads((SHIPPED / name / "made.json").read_text())
        assert made["key"] == workshop.family.key(name, world=workshop.content), name
        assert sum(f.stat().st_size for f in (SHIPPED / name).iterdir()) < 1_000_000


def test_shipped_models_meet_the_preconditions() -> None:
    """Without them the pairs mean nothing (docs/testbed.md)."""
    told = {name: json.loads((SHIPPED / name / "made.json").read_text())["scores"] for name in SHIPPED_MODELS}
    for reading in ("T = 0.7, top-p 0.95", "greedy"):
        student, improved, bigger = (told[name][reading] for name in SHIPPED_MODELS)
        assert student["by_group"]["easy"] >= 0.98 and student["by_group"]["table"] <= 0.15
        assert student["by_group"]["wrong"] <= 0.3, "errors must be wrong in the mode"
        assert improved["avg_at_k"] - student["avg_at_k"] >= 0.15
        assert bigger["avg_at_k"] - student["avg_at_k"] >= 0.10


@pytest.mark.parametrize(("name", "arm"), [("success", ARMS[0]), ("failure", ARMS[1])])
def test_configs_are_what_the_demo_runs(tmp_path: Path, name: str, arm: Any) -> None:
    workshop = shipped_workshop(tmp_path)
    run = tmp_path / "run"
    config = load_config(ROOT / "configs" / f"testbed-{name}.toml", [f"run={run}"])
    demo = arm_config(arm, workshop, demo_models(workshop, base=0), run=run, seed=0)
    assert _places(config) == _places(demo)


def _places(config: Config) -> list[str]:
    """The configuration with the folders of models resolved."""
    student, teacher = config.student.model, config.teacher.model  # type: ignore[union-attr]
    text = dump_toml(config)
    for place in (student, teacher):
        text = text.replace(place, str(Path(place).resolve()))
    return text.splitlines()


# --- the demo -----------------------------------------------------------------------------------------------


def test_demo_shows_its_contrast(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The real thing, on the shipped models: about a minute and a half of one core."""
    said = opd(capfd, "demo", "--out", tmp_path / "demo", "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    working, failing = told["pairs"]
    assert working["gap_recovery"] >= 0.7 and failing["gap_recovery"] <= 0.2
    assert failing["teacher"] - failing["before"] >= 0.1
    first, last = working["watched"]["overlap_ratio"]
    assert last - first >= 0.04
    first, last = failing["watched"]["overlap_ratio"]
    assert abs(last - first) <= 0.02
    gain = working["after"] - working["before"]
    assert told["control"]["after"] - told["control"]["before"] < gain / 4
    assert "</html>" in Path(told["report"]).read_text(encoding="utf-8")
    again = opd(capfd, "demo", "--out", tmp_path / "demo")  # finished arms are read
    assert again.code == 0 and "gap recovery" in again.out and f"{working['gap_recovery']:.0%}" in again.out
