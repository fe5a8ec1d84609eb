"""Preflight and diagnosis: the probe against plain float64, the rules, the document, and whole commands."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import Said, opd
from models import tiny_loaded
from opdkit.cli.app import app
from opdkit.diagnostics import REACH, stopping, success_slope, teachable
from opdkit.diagnostics.verdict import RULES, Value, judge
from opdkit.models.pair import Reader
from opdkit.recipes.document import schema
from opdkit.recipes.predict import LEAD, RECOVERED
from opdkit.recipes.preflight import MIN_PROMPTS, size_of
from opdkit.recipes.probe import Piece, numbers, read
from opdkit.studies.demo import SHIPPED
from opdkit.support import RowDist
from opdkit.types import Finding, Grade, Prompt, Rollout, UserError

TESTBED = Path(__file__).parents[1] / "configs" / "testbed-success.toml"
REMEDIES = {
    n: f"do {n}"
    for n in ("go", "teacher", "length", "align", "more", "rehearse", "longer", "cold_start", "check")
}


# --- maths ----------------------------------------------------------------------------------------------------


def _pair(seed: int, rows: int = 7, width: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, width, generator=generator, dtype=torch.float64) * 3 for _ in "pq")  # type: ignore[return-value]


@given(st.integers(0, 10_000))
def test_teachable_share_is_what_its_formula_says(seed: int) -> None:
    p_logits, q_logits = _pair(seed)
    found = teachable(RowDist(p_logits), RowDist(q_logits))
    p, q = p_logits.softmax(-1).numpy(), q_logits.softmax(-1).numpy()
    kl = (p * (np.log(p) - np.log(q))).sum(-1)
    reach = np.where(p >= REACH, q, 0).sum(-1)
    ratio = np.log(q) - np.log(p)
    variance = (p * (ratio - (p * ratio).sum(-1, keepdims=True)) ** 2).sum(-1)
    total, weight = found["teachable_share"]
    assert np.allclose(total.numpy(), kl * reach, rtol=1e-9, atol=1e-12)
    assert np.allclose(weight.numpy(), kl, rtol=1e-9, atol=1e-12)
    assert np.allclose(found["log_ratio_variance"][0].numpy(), variance, rtol=1e-9, atol=1e-12)
    assert 0 <= float(total.sum() / weight.sum()) <= 1


def test_nothing_is_teachable_in_oneself() -> None:
    p, _ = _pair(0)
    found = teachable(RowDist(p), RowDist(p.clone()))
    assert float(found["teachable_share"][1].sum()) == pytest.approx(0, abs=1e-12)


def test_the_slope_is_the_true_derivative_of_success_over_distance() -> None:
    """One state, tokens right or wrong: G(ε) along the natural gradient, against the estimate from many draws."""
    p_logits, q_logits = (x[0] for x in _pair(3))
    p, f = p_logits.softmax(-1), q_logits.log_softmax(-1) - p_logits.log_softmax(-1)
    right = torch.zeros(len(p), dtype=torch.float64)
    right[::2] = 1.0
    mean = (p * f).sum()
    moved = lambda e: p * (1 + e * (f - mean))  # noqa: E731
    epsilon = 1e-5
    gained = float((moved(epsilon) * right).sum() - (p * right).sum())
    distance = math.sqrt(float((moved(epsilon) * (moved(epsilon) / p).log()).sum()))
    true = gained / distance
    draws = torch.multinomial(p, 400_000, replacement=True, generator=torch.Generator().manual_seed(0))
    lead = (f[draws] - mean).numpy()  # δ + KL, KL = −Σ p f
    variance = np.full(len(draws), float((p * (f - mean) ** 2).sum()))
    slope = success_slope(lead, variance, right[draws].numpy(), np.arange(len(draws)) // 4)
    assert slope == pytest.approx(true, rel=0.03)


def test_the_slope_needs_two_responses_to_a_prompt() -> None:
    assert success_slope([1.0, 2.0], [1.0, 1.0], [0.0, 1.0], [0, 1]) is None
    assert success_slope([0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0, 0]) == 0.0


def test_stopping_reads_end_tokens_where_they_stand() -> None:
    p_logits, q_logits = _pair(5)
    sampled = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    at, after = torch.zeros(7, dtype=torch.bool), torch.zeros(7, dtype=torch.bool)
    at[2], after[3] = True, True
    found = stopping(
        RowDist(p_logits, sampled_ids=sampled),
        RowDist(q_logits, sampled_ids=sampled),
        ends=[2, 8],
        teacher_ends=[9],
        at_end=at,
        after_end=after,
    )
    p, q = p_logits.softmax(-1), q_logits.softmax(-1)
    mean = {name: float(total.sum() / count.sum()) for name, (total, count) in found.items()}
    assert mean["stop_student_at_end"] == pytest.approx(float(p[2, [2, 8]].sum()))
    assert mean["stop_teacher_own_at_end"] == pytest.approx(float(q[2, [2, 8, 9]].sum()))
    assert mean["stop_teacher_same_at_end"] == pytest.approx(float(q[2, 2]))
    assert mean["stop_teacher_after_end"] == pytest.approx(float(q[3, [2, 8]].sum()))
    elsewhere = [0, 1, 4, 5, 6]
    assert mean["stop_student_elsewhere"] == pytest.approx(float(p[elsewhere][:, [2, 8]].sum(-1).mean()))


# --- the probe ------------------------------------------------------------------------------------------------


def _rollouts(count: int = 12) -> list[Rollout]:
    generator = np.random.default_rng(0)
    return [
        Rollout(
            prompt=Prompt(id=f"p{i // 2}", ids=tuple(int(x) for x in generator.integers(5, 200, 3 + i % 3))),
            response_ids=tuple(int(x) for x in generator.integers(5, 200, 2 + i % 5)),
            finish_reason="stop" if i % 3 else "length",
            grade=Grade(float(i % 2)),
        )
        for i in range(count)
    ]


@torch.no_grad()
def test_the_probe_is_two_forwards_and_plain_arithmetic() -> None:
    ours, theirs = tiny_loaded("llama", seed=0), tiny_loaded("llama", seed=1)
    rollouts = _rollouts()
    piece = read(rollouts, student=Reader(ours, stop_ids=(2,)), teacher=Reader(theirs), max_tokens=8)
    kls, gaps = [], []
    for r in rollouts:
        ids = torch.tensor([[*r.prompt.ids, *r.response_ids]])
        logits = [m.model(input_ids=ids).logits[0, len(r.prompt.ids) - 1 : -1] for m in (ours, theirs)]
        p, q = (x[:, : ours.head.rows].double().log_softmax(-1) for x in logits)
        kls.append((p.exp() * (p - q)).sum(-1))
        taken = torch.tensor(r.response_ids)[:, None]
        gaps.append((q - p).gather(-1, taken)[:, 0].mean())
    found = numbers(piece, vocabulary=ours.head.rows)
    assert found["reverse_kl"].value == pytest.approx(float(torch.cat(kls).mean()), rel=1e-4)
    assert found["reverse_kl"].count == sum(r.length for r in rollouts)
    assert found["sequence_reward"].value == pytest.approx(float(torch.stack(gaps).mean()), rel=1e-4)
    assert found["accuracy"].value == 0.5 and found["truncated_fraction"].value == pytest.approx(4 / 12)
    assert found["reverse_kl"].low <= found["reverse_kl"].value <= found["reverse_kl"].high  # type: ignore[operator]


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 11))
def test_pieces_add(cut: int) -> None:
    whole, parts = _read(_rollouts()), _read(_rollouts()[:cut]) + _read(_rollouts()[cut:])
    again = Piece.from_json(json.loads(json.dumps(parts.as_json())))
    one, other = numbers(whole, vocabulary=384), numbers(again, vocabulary=384)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].value == pytest.approx(other[name].value, rel=1e-4, abs=1e-5), name


_MODELS: list[Any] = []


def _read(rollouts: list[Rollout]) -> Piece:
    if not _MODELS:
        _MODELS.extend(tiny_loaded("llama", seed=s) for s in (0, 1))
    return read(rollouts, student=Reader(_MODELS[0]), teacher=Reader(_MODELS[1]), max_tokens=8)


# --- rules ----------------------------------------------------------------------------------------------------

SOUND = {
    "reverse_kl": 0.2,
    "truncated_fraction": 0.0,
    "stop_teacher_same_at_end": 0.99,
    "stop_teacher_own_at_end": 0.99,
    "overlap_mass_teacher_before_end": 0.98,
    "overlap_ratio": 0.85,
    "teachable_share": 0.8,
    "rehearsed_loss_ratio": 0.2,
    "teacher_lead": 0.2,
    "teacher_accuracy": 0.6,
    "accuracy": 0.4,
}


@pytest.mark.parametrize(
    ("changed", "verdict", "because"),
    [
        ({}, "go", "lead"),
        ({"reverse_kl": 0.0}, "nothing_to_learn", "nothing_between"),
        ({"truncated_fraction": 0.8}, "fix_first", "truncated"),
        ({"stop_teacher_same_at_end": 0.01}, "fix_first", "other_end_token"),
        (
            {"stop_teacher_own_at_end": 0.01, "stop_teacher_same_at_end": 0.01},
            "fix_first",
            "teacher_does_not_end",
        ),
        ({"teacher_lead": -0.2}, "change_teacher", "teacher_not_better"),
        ({"aligned_gain": 0.1}, "align_prompts", "template_misaligned"),
        ({"overlap_mass_teacher_before_end": 0.5}, "cold_start", "other_words"),
        ({"rehearsed_loss_ratio": 0.9}, "change_teacher", "does_not_take"),
        ({"rehearsed_loss_ratio": None, "teachable_share": 0.3}, "change_teacher", "out_of_reach"),
        ({"success_slope": -0.2}, "change_teacher", "wrong_direction"),
    ],
)
def test_each_rule_decides_what_it_says(changed: Mapping[str, Any], verdict: str, because: str) -> None:
    told = {name: Value(v, v, v) for name, v in {**SOUND, **changed}.items() if v is not None}
    given_, findings = judge(told, remedies=REMEDIES, counts=dict.fromkeys(told, 30))
    assert given_.name == verdict
    assert because in [finding.name for finding in given_.because]
    assert all(f.rule and f.source for f in findings), "every finding names its rule and where it comes from"
    assert given_.remedy


@given(st.dictionaries(st.sampled_from(sorted(SOUND)), st.floats(-10, 10), max_size=11))
def test_rules_never_fail_on_what_is_missing(values: dict[str, float]) -> None:
    verdict, _ = judge(
        {n: Value(v) for n, v in values.items()}, remedies=REMEDIES, counts=dict.fromkeys(values, 5)
    )
    assert verdict.exit_code in (0, 3, 4)


def test_a_static_error_comes_first_and_names_of_rules_are_distinct() -> None:
    wrong = Finding("vocabulary_permuted", "error", "ids differ", remedy="opd check x")
    verdict, _ = judge({n: Value(v) for n, v in SOUND.items()}, remedies=REMEDIES, static=[wrong])
    assert (verdict.name, verdict.remedy) == ("fix_first", "opd check x")
    assert len({rule.name for rule in RULES}) == len(RULES)


# --- commands -------------------------------------------------------------------------------------------------


Run = Callable[..., Said]


@pytest.fixture
def run_opd(capfd: pytest.CaptureFixture[str]) -> Run:
    return partial(opd, capfd)


@pytest.fixture
def check(run_opd: Run) -> Run:
    return lambda *words: run_opd("check", *words, "--json")


def _parses(line: str) -> None:
    """A remedy is one command, or several joined by &&, each of them one that the CLI takes."""
    import shlex

    command = typer.main.get_command(app)
    for part in line.split(" && "):
        words = shlex.split(part)
        assert words[0] == "opd", part
        name, args, context = words[1], words[2:], typer.Context(command)
        sub = command.get_command(context, name)  # type: ignore[attr-defined]
        assert sub is not None, part
        sub.make_context(name, list(args), resilient_parsing=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _told(said: Said) -> dict[str, Any]:
    told = json.loads(said.out)
    jsonschema.validate(told, schema())
    _parses(told["verdict"]["remedy"])
    for finding in told["findings"]:
        if finding["remedy"]:
            _parses(finding["remedy"])
    assert said.code == told["verdict"]["exit_code"]
    return told


def test_a_pair_that_works_and_its_document(here: Path, check: Run) -> None:
    told = _told(check(str(TESTBED), "run=runs/a", "--continue"))
    assert told["verdict"]["name"] == "go" and told["metrics"]["rehearsed_loss_ratio"]["value"] < 0.5
    assert {"overlap_ratio_at_1", "overlap_ratio_at_4", "overlap_ratio_at_16", "overlap_ratio_at_64"} <= set(
        told["metrics"]
    )
    assert told["metrics"]["overlap_chance_at_16"]["value"] == pytest.approx(16 / 184, rel=0.1)
    assert [c["depth"] for c in told["continuation"]] == [0.25, 0.5, 0.75]
    first = told["metrics"]["overlap_ratio"]
    assert (
        sum(b["overlap_ratio"]["count"] for b in told["by_position"].values())
        == first["count"]
        == told["positions"]
    )
    assert len(told["by_depth"]) == 10
    assert json.loads((here / "runs" / "a.check.json").read_text()) == told


def test_a_higher_score_is_not_enough_and_teachers_are_ranked(here: Path, check: Run) -> None:
    bigger, improved = str(SHIPPED / "bigger"), str(SHIPPED / "improved")
    alone = _told(check(str(TESTBED), "--teacher", bigger, "run=runs/a"))
    assert alone["verdict"]["name"] == "change_teacher" and alone["verdict"]["because"] == ["does_not_take"]
    assert alone["prediction"]["gap"] > 0.2, "although it scores higher"
    both = _told(check(str(TESTBED), "--teacher", bigger, "--teacher", improved, "run=runs/b"))
    assert both["teacher"] == improved and both["verdict"]["name"] == "go"
    assert [r["teacher"] for r in both["ranking"]] == [improved, bigger]
    (between,) = both["between"]
    assert between["reverse_kl"] > 0.1 and 0 < between["overlap_ratio"] < 1


def test_a_run_keeps_what_was_said_of_its_pair(here: Path, check: Run, run_opd: Run) -> None:
    """And only of its own: another teacher's verdict stays outside."""
    told = _told(check(str(TESTBED), "run=runs/a", "--rehearse", "10"))
    short = (str(TESTBED), "steps=1", "eval.at_ends=false", "prompts_per_step=8", "run=runs/a")
    assert run_opd("train", *short).code == 0
    assert json.loads((here / "runs" / "a" / "check.json").read_text()) == told
    assert "Go" in Path(run_opd("report", "runs/a").out.strip()).read_text()
    shutil.rmtree(here / "runs" / "a")
    assert run_opd("train", *short, f"teacher={SHIPPED / 'bigger'}").code == 0
    assert not (here / "runs" / "a" / "check.json").exists()


def test_in_itself_a_model_finds_nothing(here: Path, check: Run) -> None:
    told = _told(check(str(TESTBED), "--teacher", str(SHIPPED / "student"), "run=runs/a"))
    assert told["verdict"]["name"] == "nothing_to_learn" and told["metrics"]["reverse_kl"]["value"] == 0.0


def test_diagnose_says_of_saved_rollouts_what_check_said_of_its_own(
    here: Path, check: Run, run_opd: Run
) -> None:
    kept = run_opd("eval", str(SHIPPED / "student"), "--task", str(TESTBED), "--train", "--out", "shown.jsonl",
                   "task.train_size=64", "eval.temperature=1", "eval.top_p=1", "eval.responses=2")  # fmt: skip
    assert kept.code == 0, kept
    told = _told(
        run_opd("diagnose", str(TESTBED), "--rollouts", "shown.jsonl", "--keep", "pieces.jsonl", "--json")
    )
    assert (told["prompts"], told["rollouts"]) == (64, 128) and told["graded"] and told["kind"] == "diagnose"
    assert "success_slope" in told["metrics"], "the prompt's other response is the baseline"
    seen = json.loads(check(str(TESTBED), "run=runs/a").out)["metrics"]
    for name in ("overlap_ratio", "reverse_kl", "teachable_share", "accuracy"):
        low, high = told["metrics"][name]["low"], told["metrics"][name]["high"]
        spread = high - low
        assert low - spread <= seen[name]["value"] <= high + spread, name


def test_gradients_are_in_the_document_and_change_no_verdict(here: Path, run_opd: Run) -> None:
    run_opd(
        "eval", str(SHIPPED / "student"), "--task", str(TESTBED), "--out", "shown.jsonl", "task.eval_size=24"
    )
    words = ("diagnose", str(TESTBED), "--rollouts", "shown.jsonl")
    plain = _told(run_opd(*words, "--json"))
    told = _told(run_opd(*words, "--gradients", "8", "--json"))
    names = {name for name in told["metrics"] if name.startswith("gradient_")}
    kinds = ("ratio", "growth", "cosine")
    assert names == {f"gradient_{k}_{w}" for k in kinds for w in ("within", "between")} | {
        "gradient_norm_position"
    }
    assert told["metrics"]["gradient_ratio_within"]["count"] == 8 and told["verdict"] == plain["verdict"]
    assert {n: m for n, m in told["metrics"].items() if n not in names} == plain["metrics"]
    shown = run_opd(*words, "--gradients", "8")
    assert "gradient_growth_within" in shown.out and "gradients of" in shown.err
    both = run_opd(*words, "--gradients", "8", "--depth", "maps")
    assert both.code == 2 and "--depth draws maps" in both.error
    third = run_opd(*words, "--gradients", "8", "objective.target=extrapolated", "objective.support=full")
    assert third.code == 2 and "reference as well" in third.error


def test_a_stopped_reading_goes_on(here: Path, run_opd: Run) -> None:
    run_opd(
        "eval", str(SHIPPED / "student"), "--task", str(TESTBED), "--out", "shown.jsonl", "task.eval_size=70"
    )
    whole = json.loads(run_opd("diagnose", str(TESTBED), "--rollouts", "shown.jsonl", "--json").out)
    run_opd(
        "diagnose", str(TESTBED), "--rollouts", "shown.jsonl", "--limit", "40", "--keep", "p.jsonl", "--json"
    )
    with Path("p.jsonl").open("a") as file:
        file.write('{"read": 99, "pie')  # torn by a kill
    rest = run_opd("diagnose", str(TESTBED), "--rollouts", "shown.jsonl", "--keep", "p.jsonl")
    assert "going on behind 40 rollouts" in rest.err
    again = json.loads(
        run_opd("diagnose", str(TESTBED), "--rollouts", "shown.jsonl", "--keep", "p.jsonl", "--json").out
    )
    assert again["rollouts"] == whole["rollouts"] == 70
    assert again["metrics"]["reverse_kl"]["value"] == pytest.approx(
        whole["metrics"]["reverse_kl"]["value"], rel=1e-5
    )
    other = run_opd("diagnose", str(TESTBED), "--rollouts", "shown.jsonl", "--keep", "p.jsonl", "seed=1",
                    "sampling.temperature=0.5")  # fmt: skip
    assert other.code == 2 and "another reading" in other.error


def test_input_that_cannot_work_is_said_before_anything(here: Path, check: Run, run_opd: Run) -> None:
    assert check().code == 2
    assert "no teacher" in check("student=x", "task=prompts.jsonl").error
    small = check(str(TESTBED), "--budget", "10")
    assert small.code == 2 and "--budget" in small.hint
    assert "none.jsonl" in run_opd("diagnose", str(TESTBED), "--rollouts", "none.jsonl").error
    run_opd("eval", str(SHIPPED / "student"), "--task", str(TESTBED), "--out", "a.jsonl", "task.eval_size=8")
    assert (
        "there already"
        in run_opd("eval", str(SHIPPED / "student"), "--task", str(TESTBED), "--out", "a.jsonl").error
    )


def test_what_a_budget_buys() -> None:
    from opdkit.config import build

    def config(longest: int) -> Any:
        return build(
            {"student": "x", "task": "p.jsonl", "sampling": {"max_tokens": longest}}, origin="a test"
        )

    assert size_of(config(64), budget=None, available=1000).prompts == 64
    assert size_of(config(64), budget=None, available=1000).tokens == 8192
    assert size_of(config(16), budget=None, available=1000).rollouts == 512, (
        "short responses, tiny models: more of them"
    )
    assert size_of(config(16), budget=None, available=1000, each=1e9).rollouts == 128
    assert size_of(config(7168), budget=None, available=1000).prompts == 64
    assert size_of(config(64), budget=2048, available=1000).rollouts == 32
    assert size_of(config(64), budget=10**6, available=5).prompts == 5
    with pytest.raises(UserError, match="too little"):
        size_of(config(64), budget=MIN_PROMPTS * 64, available=100)


# --- the page -------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent


def test_the_page_has_the_rules_and_the_table_of_today() -> None:
    checked = subprocess.run(
        [sys.executable, "scripts/check_pairs.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr


def test_pairs_of_fresh_bases_got_the_verdict_of_their_kind() -> None:
    """Bases that no threshold was set on; what was not as expected is told in docs/check.md, pair by pair."""
    told = json.loads((ROOT / "docs" / "studies" / "tables" / "check.json").read_text())
    fresh = [row for row in told["rows"] if row["base"] in (17, 18, 19)]
    assert len(fresh) == 54 and {row["kind"] for row in fresh} == set(told["expected"])
    assert sum(row["right"] for row in fresh) >= 0.9 * len(fresh)


def test_predictions_are_the_ranges_that_were_measured() -> None:
    told = json.loads((ROOT / "docs" / "studies" / "tables" / "check.json").read_text())
    said = {(row["base"], row["kind"]): row["verdict"] for row in told["rows"]}
    for verdict, (low, high) in RECOVERED.items():
        seen = [
            o["recovery"]
            for o in told["outcomes"]
            if said[o["base"], o["kind"]] == verdict and o["scores"][1] - o["scores"][0] >= LEAD
        ]
        measured = np.quantile(seen, [0.05, 0.95])
        assert len(seen) >= 8 and np.allclose(measured, (low, high), atol=0.05), (verdict, measured)
