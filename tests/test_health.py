"""Health during training: every condition on a run that has it, silence on runs that work, nothing told twice.

Fixtures under tests/data/health are columns of real runs (scripts/health_campaign.py --record); what the testbed does
not have by itself is planted in a tiny run that really runs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from commands import build_shop, findings, metrics, opd, save_model
from models import tiny_model, tiny_tokenizer
from opdkit.cli.app import app
from opdkit.config import HealthConfig, WorldTask, load_config
from opdkit.config.records import HealthName
from opdkit.diagnostics import CONDITIONS, Monitor
from opdkit.diagnostics.health import EXAMPLES, conditions_table, example_rows, first_finding, show
from opdkit.models.sampler import LocalSampler
from opdkit.run.rows import to_json
from opdkit.train import run_story
from opdkit.types import Finding, RunError

ROOT = Path(__file__).parent.parent
NAMES = [condition.name for condition in CONDITIONS]


def recorded(name: str) -> list[dict[str, Any]]:
    """Rows of a real run."""
    data = json.loads((ROOT / "tests" / "data" / "health" / f"{name}.json").read_text())
    columns = data["columns"]
    return [
        {"step": i + 1, **{name: values[i] for name, values in columns.items() if values[i] is not None}}
        for i in range(data["steps"])
    ]


def told(rows: list[dict[str, Any]], **about: Any) -> dict[str, int | None]:
    """name → step of what is found in rows."""
    monitor = Monitor(steps=about.pop("steps", len(rows)), **about)
    return {finding.name: finding.step for row in rows for finding in monitor.see(row)}


# --- runs that have it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "conditions"),
    [
        ("bigger", {"overlap_stagnation"}),
        ("other_style", {"overlap_stagnation"}),
        ("other_end", {"low_mass_good_advantage"}),
        (
            "other_end_long",
            {"low_mass_good_advantage", "length_inflation", "entropy_blow_up", "gradient_spike"},
        ),
        ("high_lr", {"overlap_fall", "loss_rise", "entropy_blow_up", "lost_stopping", "tail_first_decay"}),
        ("low_lr", {"flat_small_loss", "overlap_stagnation"}),
        ("reverse", {"accuracy_fall"}),
    ],
)
def test_failing_runs_are_told_and_early(run: str, conditions: set[str]) -> None:
    found = told(recorded(run))
    assert conditions <= set(found)
    assert min(step for step in found.values() if step is not None) < 40


@pytest.mark.parametrize("run", ["healthy", "healthy_cold_started", "healthy_self"])
def test_runs_that_work_are_left_alone(run: str) -> None:
    assert told(recorded(run)) == {}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shop = build_shop(tmp_path_factory.mktemp("shop"))
    save_model(shop / "parrot", seed=1)
    tokenizer = tiny_tokenizer()
    parrot(tokenizer.convert_tokens_to_ids("a")).save_pretrained(shop / "parrot")
    near = AutoModelForCausalLM.from_pretrained(shop / "teacher")
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in near.parameters():
            weight += 0.02 * torch.randn_like(weight)
    near.save_pretrained(shop / "near")
    tokenizer.save_pretrained(shop / "near")
    return shop


def parrot(word: int) -> Any:
    """A model that says one word over and over: every state is the same one, and only that word's row answers."""
    model = tiny_model("llama", tokenizer=tiny_tokenizer(), seed=1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.zero_()
        model.get_input_embeddings().weight.fill_(1.0)
        head = model.get_output_embeddings().weight
        assert head is not model.get_input_embeddings().weight
        head.zero_()
        head[word] = 8.0 / head.shape[1]
    return model


def config(shop: Path, run: Path, *overrides: str) -> Any:
    """A tiny run: 12 steps, some tokens, no evaluation."""
    base = (f"student={shop / 'student'}", f"teacher={shop / 'teacher'}", f"task={shop / 'sums.jsonl'}")
    small = ("prompts_per_step=2", "sampling.responses=2", "sampling.max_tokens=8", "eval.at_ends=false")
    narrow = ("objective.k=4", "diagnostics.k=4", "diagnostics.ks=[1, 4]", "threads=1", "save.every=0")
    return load_config(None, [*base, *small, *narrow, "steps=12", f"run={run}", *overrides])


def test_a_student_that_learns_to_repeat_itself(shop: Path, tmp_path: Path) -> None:
    more = ("steps=40", "optim.lr=0.02", "sampling.max_tokens=16", f"teacher={shop / 'parrot'}")
    run_story(config(shop, tmp_path / "run", *more))
    assert findings(tmp_path / "run")["repetition"]["numbers"]["repetition_fraction"] > 0.15


def test_a_student_that_becomes_sure_of_itself(shop: Path, tmp_path: Path) -> None:
    """The sampled-token reward at a learning rate that it cannot bear."""
    more = (f"student={shop / 'near'}", "objective.preset=sampled", "optim.lr=0.2", "steps=40")
    run_story(config(shop, tmp_path / "run", *more))
    numbers = findings(tmp_path / "run")["entropy_collapse"]["numbers"]
    assert numbers["entropy_student"] < 0.4 * numbers["entropy_student_first"]


def test_responses_that_are_all_cut_off(shop: Path, tmp_path: Path) -> None:
    run_story(config(shop, tmp_path / "run", "sampling.max_tokens=2", "optim.lr=1e-9"))
    found = findings(tmp_path / "run")["truncation"]
    assert found["step"] == 6 and found["remedy"].endswith("run=" + str(tmp_path / "run-2"))


def test_a_sampler_that_is_left_behind(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the sampler keeps the weights of step 0 while the learner moves on."""
    monkeypatch.setattr(
        "opdkit.train.stage._sampler", lambda config, plan, loaded, *rest: LocalSampler.copy_of(loaded)
    )
    monkeypatch.setattr("opdkit.train.loop._publish", lambda stage: None)
    run_story(config(shop, tmp_path / "run", "optim.lr=0.01"))
    assert findings(tmp_path / "run")["sampler_mismatch"]["numbers"]["sampler_mismatch"] > 0.05


def test_a_step_that_was_left_out(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the gradient of the second step is not finite."""
    from opdkit.train.learner import Learner

    clip = Learner._clip
    monkeypatch.setattr(
        Learner,
        "_clip",
        lambda self: float("nan") if self.version == 1 and not self.skipped_steps else clip(self),
    )
    run_story(config(shop, tmp_path / "run"))
    found = findings(tmp_path / "run")["skipped_steps"]
    assert (found["step"], found["numbers"]) == (2, {"skipped_steps": 1.0})


# --- what is made up -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_example_shows_its_condition_before_two_fifths_of_the_run(name: str) -> None:
    for steps in (20, 100, 1000):
        found = first_finding(name, steps=steps)
        assert found.step is not None and found.step < 0.4 * steps, steps
        assert found.severity == next(c.severity for c in CONDITIONS if c.name == name)
        assert found.message and found.rule and found.source and found.numbers
        assert "{" not in found.message + found.rule + found.remedy


@pytest.mark.parametrize("steps", [1, 5, 20, 100, 1000])
def test_the_healthy_example_is_silent(steps: int) -> None:
    assert told(example_rows(steps=steps)) == {}


def test_each_condition_is_told_once() -> None:
    rows = example_rows("lost_stopping") + example_rows() + example_rows("lost_stopping")
    monitor = Monitor(steps=300)
    names = [f.name for row in rows for f in monitor.see(row)]
    assert names.count("lost_stopping") == 1 and len(names) == len(set(names))


@pytest.mark.parametrize("story", ["sft", "grpo", "improve", "push_down"])
def test_without_a_teacher_only_what_makes_sense_is_asked(story: str) -> None:
    """Names of a teacher's numbers mean nothing there, even if a file had them."""
    found = set().union(*(told(example_rows(name), story=story) for name in NAMES))
    always, on_own = {"gradient_spike", "skipped_steps"}, {"lost_stopping", "length_inflation", "repetition"}
    assert always <= found and not {n for n in found if n.startswith(("overlap", "low_mass", "flat", "loss"))}
    assert (found == always) if story in ("sft", "improve") else (on_own < found)


def test_ignored_conditions_are_not_told() -> None:
    assert "lost_stopping" not in told(example_rows("lost_stopping"), ignore=["lost_stopping"])


def test_patience_is_kept() -> None:
    assert told(example_rows("overlap_stagnation"), patience=0.6)["overlap_stagnation"] == 60


# --- properties ----------------------------------------------------------------------------------------------

WATCHED = sorted(example_rows()[0])
ANYTHING = st.one_of(st.none(), st.booleans(), st.text(max_size=3), st.integers(), st.floats())
ROWS = st.lists(st.dictionaries(st.sampled_from(WATCHED), ANYTHING), max_size=60)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, steps=st.integers(1, 10**6))
def test_no_row_makes_it_raise(rows: list[dict[str, Any]], steps: int) -> None:
    monitor = Monitor(steps=steps)
    for finding in (f for row in rows for f in monitor.see(row)):
        assert json.loads(to_json(asdict(finding)))["name"] in NAMES


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from([None, *NAMES]), seed=st.randoms(use_true_random=False), data=st.data())
def test_order_of_names_and_missing_names(name: str | None, seed: Any, data: Any) -> None:
    """Shuffled names change nothing; names that are not logged silence only what asks for them."""
    rows = example_rows(name)
    shuffled = [dict(seed.sample(list(row.items()), len(row))) for row in rows]
    assert told(shuffled) == told(rows)
    gone = data.draw(st.sets(st.sampled_from(WATCHED)))
    fewer = told([{k: v for k, v in row.items() if k not in gone} for row in rows])
    assert set(fewer) - {"entropy_blow_up", "entropy_collapse"} <= set(told(rows))


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(["overlap_stagnation", "loss_rise", "lost_stopping"]), power=st.integers(0, 20))
def test_relative_thresholds_do_not_know_the_unit(name: str, power: int) -> None:
    """Losses in another unit (above the floors; a power of two rounds nothing) give the same findings at the same steps."""
    rows, scale = example_rows(name), 2.0**power
    scaled = [row | {k: row[k] * scale for k in ("loss", "overlap_advantage", "grad_norm")} for row in rows]
    assert told(scaled) == told(rows)


@pytest.mark.parametrize("run", ["other_end", "high_lr", "healthy", "reverse"])
@pytest.mark.parametrize("cut", [1, 19, 20, 30, 77, 99, 100])
def test_a_replayed_monitor_goes_on_byte_for_byte(run: str, cut: int) -> None:
    rows = recorded(run)
    whole, cut_off, resumed = (Monitor(steps=len(rows)) for _ in range(3))
    expected = lines(f for row in rows for f in whole.see(row))
    before = [f for row in rows[:cut] for f in cut_off.see(row)]
    read = [json.loads(to_json(row)) for row in rows[:cut]]
    late = resumed.replay(read, [json.loads(line) for line in lines(before)])
    after = [f for row in rows[cut:] for f in resumed.see(row)]
    assert late == [] and lines([*before, *after]) == expected


def test_what_nobody_told_so_far_is_told_at_the_replay() -> None:
    """A run that was begun with health.enabled=false, and goes on with it."""
    rows = example_rows("lost_stopping")
    monitor = Monitor(steps=100)
    assert [f.name for f in monitor.replay(rows[:50], [])] == ["lost_stopping"]
    assert [f.name for row in rows[50:] for f in monitor.see(row)] == []


def test_not_finite_and_absent_are_the_same() -> None:
    """metrics.jsonl has null for what was NaN in memory."""
    rows = recorded("other_end")
    holes = {
        i: value for i, value in zip((3, 25, 31, 80), (float("nan"), float("inf"), None, 1e300), strict=True)
    }
    some = [row | {"loss": holes[i]} if i in holes else row for i, row in enumerate(rows)]
    none = [
        {k: v for k, v in row.items() if k != "loss"} if i in holes else row for i, row in enumerate(rows)
    ]
    assert told(some) == told(none)


def lines(found: Any) -> list[str]:
    return [to_json(asdict(finding)) for finding in found]


# --- the run -------------------------------------------------------------------------------------------------


def broken(shop: Path) -> tuple[str, ...]:
    """A student that is nearly the teacher, and leaves it with every step."""
    return (f"student={shop / 'near'}", "optim.lr=0.3", "steps=40")


def test_a_critical_finding_saves_and_stops(
    shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (tmp_path / "config.toml").write_text("")
    words = [w for w in _words(config(shop, run, *broken(shop)))]
    said = opd(capfd, "train", *words, "health.on_critical=stop")
    stopped = metrics(run)[-1]["step"]
    critical = [f for f in findings(run).values() if f["severity"] == "error"]
    assert said.code == 1 and said.error.startswith(f"stopped after step {stopped}, saved") and stopped < 40
    assert critical and all(f["step"] == stopped for f in critical) and critical[0]["name"] in said.error
    assert (run / "checkpoints" / f"step_{stopped}" / "manifest.json").is_file()

    again = opd(
        capfd, *re.search(r"opd (train --resume .*)$", said.hint)[1].split(), "health.on_critical=go_on"
    )  # type: ignore[index]
    assert again.code == 0 and [row["step"] for row in metrics(run)] == list(range(1, 41))

    whole = tmp_path / "whole"
    run_story(config(shop, whole, *broken(shop)))
    assert _told_in(run) == _told_in(whole) and len(_told_in(whole)) > len(critical)


def test_a_run_stopped_once_goes_on_without_being_told_to(shop: Path, tmp_path: Path) -> None:
    """What was told is not told again, so it does not stop the resumed run at once."""
    stop = config(shop, tmp_path / "run", *broken(shop), "health.on_critical=stop")
    stops = []
    for _ in range(len(NAMES)):
        try:
            assert run_story(stop, resume=stop.run if stops else None) == 0
            break
        except RunError:
            stops.append(metrics(stop.run)[-1]["step"])
    assert stops == sorted(set(stops)) and metrics(stop.run)[-1]["step"] == 40


def test_an_unwatched_run_tells_nothing(shop: Path, tmp_path: Path) -> None:
    run_story(
        config(shop, tmp_path / "run", *broken(shop), "health.enabled=false", "health.on_critical=stop")
    )
    assert not set(findings(tmp_path / "run")) & set(NAMES)


def _words(config: Any) -> list[str]:
    """A config as key=value words."""
    from opdkit.config import dump_toml

    return [line.replace(" = ", "=", 1) for line in dump_toml(config).splitlines()]


def _told_in(run: Path) -> list[str]:
    text = (run / "findings.jsonl").read_text().replace(str(run), "RUN")
    return [line for line in text.splitlines() if json.loads(line)["name"] in NAMES]


# --- words that are kept -------------------------------------------------------------------------------------


def test_config_knows_every_condition() -> None:
    assert list(get_args(HealthName)) == NAMES == list(EXAMPLES)
    assert HealthConfig().enabled and WorldTask is not None


@pytest.mark.parametrize("condition", CONDITIONS, ids=NAMES)
def test_remedies_are_commands_that_exist(condition: Any) -> None:
    found = first_finding(condition.name)
    words = found.remedy.partition("  #")[0].split()
    assert words[0] == "opd"
    root = typer.main.get_command(app)
    command = root.get_command(click.Context(root), words[1])  # type: ignore[attr-defined]
    assert command is not None, found.remedy
    context = command.make_context(words[1], words[2:])  # raises for an unknown option or a missing argument
    overrides = context.params.get("overrides") or []
    assert load_config(None, [*SOUND, *overrides])


SOUND = ("student=a", "teacher=b", "task=c.jsonl")


def test_the_module_shows_itself() -> None:
    text = "\n".join(show())
    assert all(f"\n{name}  (" in f"\n{text}" for name in NAMES)
    said = subprocess.run(
        [sys.executable, "-W", "error", "-m", "opdkit.diagnostics.health"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.strip() == text.strip()


@pytest.mark.parametrize("name", ["conditions", "monitor", "health"])
def test_watching_needs_no_torch(name: str) -> None:
    text = (ROOT / "src" / "opdkit" / "diagnostics" / f"{name}.py").read_text()
    assert "torch" not in re.findall(r"^(?:import|from) (\w+)", text, flags=re.MULTILINE)


def test_the_page_is_fresh() -> None:
    checked = subprocess.run(
        [sys.executable, "scripts/health_campaign.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    page = (ROOT / "docs" / "health.md").read_text()
    assert "\n".join(conditions_table()) in page


def test_figures_of_the_campaign() -> None:
    """What the issue demands, of runs that were not used for the thresholds."""
    runs: list[Mapping[str, Any]] = json.loads(
        (ROOT / "docs" / "studies" / "tables" / "health.json").read_text()
    )["runs"]
    new = [run for run in runs if run["role"] == "held out"]
    failing, healthy = ([r for r in new if r["healthy"] == well] for well in (False, True))
    early = [r for r in failing if r["alarm"] is not None and r["alarm"] < 0.4 * r["steps"]]
    assert len(failing) >= 20 and len(healthy) >= 60
    assert len(early) >= 0.9 * len(failing)
    assert sum(r["alarm"] is not None for r in healthy) <= 2


def test_a_finding_is_a_finding() -> None:
    assert isinstance(first_finding("truncation"), Finding)
