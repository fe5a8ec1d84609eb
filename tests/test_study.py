"""`opd study`: rules that decide on tables, arms run once, rows and pages, scales that are made of configuration files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import opd
from opdkit.run.folder import RunFolder
from opdkit.studies import campaign as campaigns
from opdkit.studies.blocks import skeleton
from opdkit.studies.campaign import Task, campaign, tasks
from opdkit.studies.estimate import ahead, change, estimate, largest, of, ratio, size
from opdkit.studies.pages import FRONT, came, front_lines, write_pages
from opdkit.studies.questions import STUDIES
from opdkit.studies.reading import read_run
from opdkit.studies.study import (
    PAPER,
    REAL,
    SCALES,
    Arm,
    Expectation,
    Scale,
    Study,
    decisions,
    outcome,
    reproduced,
)
from opdkit.studies.tables import keep, place, rows_in, told, widest
from opdkit.types import RunError
from test_studies import small_family

TABLES = Path(__file__).parent.parent / "docs" / "studies" / "tables"
PAGES = TABLES.parent


def row(arm: str, family: str = "chain", seed: int = 0, **numbers: Any) -> dict[str, Any]:
    return {
        "scale": "full",
        "family": family,
        "seed": seed,
        "arm": arm,
        "config": "k",
        "commit": "c" * 40,
    } | numbers


# --- estimates ------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=8), st.floats(-3, 3))
@settings(deadline=None, max_examples=30)
def test_the_interval_holds_the_mean_and_moves_with_the_numbers(values: list[float], shift: float) -> None:
    found, moved = estimate(values), estimate([v + shift for v in values])
    assert found is not None and moved is not None
    assert found.low - 1e-12 <= found.value <= found.high + 1e-12 and found.count == len(values)
    assert min(values) - 1e-12 <= found.low and found.high <= max(values) + 1e-12
    assert np.allclose(
        [moved.low, moved.value, moved.high], np.array([found.low, found.value, found.high]) + shift
    )


def test_the_interval_is_that_of_all_resamples() -> None:
    values = [0.1, 0.4, 0.9]
    every = [
        np.mean([a, b, c]) for a in values for b in values for c in values
    ]  # 1 of 27 is over 2.5 %: the ends
    found = estimate(values)
    assert found is not None
    assert np.allclose([found.low, found.high], [min(every), max(every)])
    wide = estimate([*values, *values])
    many = [np.mean(pick) for pick in np.random.default_rng(1).choice([*values, *values], (20_000, 6))]
    assert wide is not None and np.allclose(
        [wide.low, wide.high], np.quantile(many, [0.025, 0.975]), atol=0.02
    )
    assert estimate([]) is None and estimate(values) == found


def test_numbers_are_taken_base_by_base() -> None:
    rows = [
        row("a", seed=0, x=1.0, y_first=2.0, y_last=1.0),
        row("a", seed=1, x=3.0, y_first=4.0, y_last=1.0),
    ]
    rows += [row("b", seed=0, x=0.5), row("b", "lists", seed=1, x=9.0), row("b", seed=1, x=None)]
    assert ahead("a", "b", "x")(rows) == {("chain", 0): 0.5}  # lists is another base, a missing number none
    assert change("a", "y")(rows) == {("chain", 0): -1.0, ("chain", 1): -3.0}
    assert ratio("a", "y")(rows) == {("chain", 0): 0.5, ("chain", 1): 0.25}
    assert size(change("a", "y"))(rows) == {("chain", 0): 1.0, ("chain", 1): 3.0}
    assert largest(of("a", "x"), of("b", "x"))(rows) == {("chain", 0): 1.0}


# --- rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.5], "holds"),
        ([0.1], "does not hold"),
        ([], "not run"),
        ([0.5, 0.6, 0.7], "holds"),
        ([0.1, 0.1, 0.1], "does not hold"),
        ([0.1, 0.5, 0.6], "undecided"),  # its interval holds the bound
    ],
)
def test_a_rule_decides_by_the_whole_interval(values: list[float], verdict: str) -> None:
    rows = [row("a", seed=i, x=value) for i, value in enumerate(values)]
    assert Expectation("e", "t", of("a", "x"), at_least=0.3).decide(rows).verdict == verdict
    other = {"holds": "does not hold", "does not hold": "holds"}.get(verdict, verdict)
    assert Expectation("e", "t", of("a", "x"), at_most=0.3 - 1e-9).decide(rows).verdict == other


def rules(**claims: bool) -> Study:
    expected = tuple(Expectation(n, n, of("a", n), at_least=0.5, claim=c) for n, c in claims.items())
    return Study("s", "?", "1", ("2", "11a"), "c", (Arm("a"),), expected)


@pytest.mark.parametrize(
    ("chain", "lists", "outcomes"),
    [
        ({"x": 1, "y": 1}, {"x": 1, "y": 1}, ("holds", "holds", "holds")),
        ({"x": 1, "y": 1}, {"x": 0, "y": 0}, ("holds", "does not hold", "partly")),
        ({"x": 1, "y": 0}, {"x": 1, "y": 0}, ("partly", "partly", "partly")),
        ({"x": 0, "y": 0}, {}, ("does not hold", "not run", "does not hold")),
        ({}, {}, ("not run", "not run", "not run")),
        (
            {"x": 1, "y": 1, "side": 0},
            {"x": 1},
            ("holds", "holds", "holds"),
        ),  # what is no claim counts for nothing
    ],
)
def test_a_claim_is_reproduced_where_it_holds_in_both_families(
    chain: dict, lists: dict, outcomes: tuple
) -> None:
    study = rules(x=True, y=True, side=False)
    rows = [
        row("a", family, **numbers) for family, numbers in (("chain", chain), ("lists", lists)) if numbers
    ]
    rows.append(row("a", REAL, x=0, y=0))  # has its own column
    found = tuple(outcome(study, rows, family) for family in ("chain", "lists"))
    assert (*found, reproduced(study, rows)) == outcomes
    assert decisions(study, rows)["x"]["all"].estimate == (
        None if not (chain or lists) else estimate([n["x"] for n in (chain, lists) if n])
    )


# --- the questions --------------------------------------------------------------------------------------------


def test_there_are_fourteen_questions_and_every_figure_of_the_paper_is_in_one() -> None:
    assert len(STUDIES) == 14 and all(name == study.name for name, study in STUDIES.items())
    shown = {figure for study in STUDIES.values() for figure in study.figures}
    assert shown == {"11a", "11b", *map(str, [*range(2, 11), *range(12, 24)])}  # 1 is the teaser


@pytest.mark.parametrize("name", STUDIES)
def test_a_question_says_what_it_expects_and_its_rules_read_arms_that_are_there(name: str) -> None:
    study = STUDIES[name]
    assert (
        study.claim
        and study.section
        and study.expected
        and len({a.name for a in study.arms}) == len(study.arms)
    )
    rows = _rows(name)
    assert {arm.name for arm in study.arms} == {row["arm"] for row in rows}
    assert [e.name for e in study.expected if e.decide(rows).verdict == "not run"] == []


def _rows(name: str) -> list[dict[str, Any]]:
    return json.loads((TABLES / f"{name}.json").read_text())["rows"]


@pytest.mark.parametrize("name", STUDIES)
def test_the_table_in_the_repository_is_that_of_the_question(name: str) -> None:
    study, rows = STUDIES[name], _rows(name)
    kept = json.loads((TABLES / f"{name}.json").read_text())
    again = json.loads(json.dumps(told(study, rows)))
    assert {k: v for k, v in kept.items() if k not in ("rows", "decisions")} == {
        k: v for k, v in again.items() if k not in ("rows", "decisions")
    }
    for rule, found in again["decisions"].items():
        for family, decision in found.items():
            old = kept["decisions"][rule][family]
            assert old["verdict"] == decision["verdict"]
            assert old.get("value", 0) == pytest.approx(decision.get("value", 0), rel=1e-4, abs=1e-6)
    assert len({place(r) for r in rows}) == len(rows) and all(r["config"] and r["commit"] for r in rows)


def test_pages_and_figures_are_what_the_tables_say(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ran = [(study, rows_in(study, TABLES)) for study in STUDIES.values()]
    for path in PAGES.glob("*.md"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "tables").symlink_to(TABLES)
    write_pages([(s, r) for s, r in ran if r], tmp_path, tables=tmp_path / "tables", front=ran)
    stale = [p.name for p in PAGES.glob("*.md") if (tmp_path / p.name).read_text() != p.read_text()]
    assert stale == [], "opd study report --out docs/studies/tables --pages docs/studies"
    drawn = {p.name for p in (tmp_path / "figures").iterdir()}
    kept = {p.name for p in (PAGES / "figures").iterdir()} - {"predictor.svg"}  # of the fit
    assert drawn == kept and len(drawn) >= 14


# --- running --------------------------------------------------------------------------------------------------

SMALL = Study(
    "small",
    "Does it learn?",
    "none",
    (),
    "none",
    arms=(
        Arm("paper"),
        Arm("full", settings={"objective": {"preset": "full"}}),
        Arm("again"),
        Arm("cut", measured="continuation"),
    ),
    expected=(
        Expectation("both", "full ends as paper does", ahead("full", "paper", "after"), at_least=-1.0),
    ),
)
TWO = Scale("quick", seeds=(0, 1), steps=2, problems=32, families=("chain",))


def test_arms_run_once_share_equal_runs_and_run_again_where_they_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaigns, "family", lambda *_, **__: small_family())
    began: list[Path] = []
    finish = campaigns.finish
    monkeypatch.setattr(
        campaigns, "finish", lambda config, **talk: (began.append(config.run), finish(config, **talk))[1]
    )
    out, said = tmp_path / "out", []

    def go(study: Study) -> list[dict[str, Any]]:
        began.clear()
        campaign([study], TWO, out=out, cache=tmp_path / "cache", say=said.append)
        return [dict(r) for r in rows_in(study, out)]

    first = go(SMALL)
    assert [(r["seed"], r["arm"]) for r in first] == [(s, a.name) for s in (0, 1) for a in SMALL.arms]
    assert len(began) == 6 and len(set(began)) == 4  # `again` is `paper`, read from its folder
    assert go(SMALL) == first and not began
    assert "min left" in said[0] and "[8/8] small · chain 1 · cut: measured" in said[7]

    other = replace(
        SMALL, arms=(*SMALL.arms[:1], replace(SMALL.arms[1], settings={"objective": {"preset": "sampled"}}))
    )
    second = go(other)
    assert len(began) == 2 and [r for r in second if r["arm"] == "paper"] == [
        r for r in first if r["arm"] == "paper"
    ]

    one = first[0]
    run = next(p for p in (out / "runs").glob("*/*") if p.name.endswith(one["config"]))
    again = {**one, **read_run(run, drawn=4)}
    assert (
        {k: again[k] for k in one} == pytest.approx(one, rel=1e-4)
        if False
        else again["after"] == one["after"]
    )
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert one["tokens"] == round(sum(4 * m["response_length"] for m in metrics))
    assert one["overlap_ratio_first"] == pytest.approx(
        np.mean([m["overlap_ratio"] for m in metrics]), rel=1e-4
    )
    cut = next(r for r in first if r["arm"] == "cut")
    assert cut["rollouts"] > 0 and len(cut["curves"]["depth"]) == len(cut["curves"]["advantage"]) > 1


def test_a_failing_arm_does_not_take_the_others_with_it_and_a_signal_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def work(task: Task, **_: Any) -> Mapping[str, Any]:
        ran.append(task.arm.name)
        if task.arm.name == "full":
            raise ended
        return row(task.arm.name, seed=task.seed, before=0.1, after=0.2, recovery=None)

    monkeypatch.setattr(campaigns, "work", work)
    said: list[str] = []

    def go() -> None:
        campaign(
            [SMALL],
            replace(TWO, seeds=(0,)),
            out=tmp_path,
            cache=tmp_path,
            say=lambda s: said.append(s) if "Error" in s else None,
        )

    ended: BaseException = ValueError("no such thing")
    with pytest.raises(RunError, match="1 of 4 arms failed, the first: ValueError: no such thing"):
        go()
    assert said == ["small · chain 0 · full: ValueError: no such thing"]
    assert ran == ["paper", "full", "again", "cut"] and len(rows_in(SMALL, tmp_path)) == 3
    ran.clear()
    ended = SystemExit(143)
    with pytest.raises(SystemExit):
        go()
    assert ran == ["paper", "full"]


def test_a_base_is_worked_on_by_one_process_at_a_time() -> None:
    todo = tasks([SMALL], replace(TWO, families=("chain", "lists")))
    first = campaigns._ready(todo, set(), 3)
    assert [(t.family, t.seed, t.arm.name) for t in first] == [
        ("chain", 0, "paper"),
        ("lists", 0, "paper"),
        ("chain", 1, "paper"),
    ]
    assert campaigns._ready(todo, {("chain", 0)}, 1) == [todo[4]]
    bad = campaigns._work_safely(replace(todo[0], family="none"), Path("o"), Path("c"), None)
    assert pickle.loads(pickle.dumps(bad)) == bad and bad.text.startswith("AssertionError")  # what comes back
    for study in STUDIES.values():
        for task in tasks([study], SCALES["full"]):  # what is sent to a worker
            pickle.dumps(replace(task, study=replace(study, expected=())))


def test_a_variant_is_run_by_the_families_that_have_it() -> None:
    both = tasks([STUDIES["length"], STUDIES["controls"]], SCALES["quick"])
    assert {t.family for t in both if t.study.name == "length"} == {"chain", "lists"}
    assert {t.world for t in both} == {"chain", "lists", "chain-long", "lists-long", "chain-23", "chain-197"}


# --- tables and pages -----------------------------------------------------------------------------------------


def test_rows_of_other_scales_stay_and_the_widest_is_told(tmp_path: Path) -> None:
    study = rules(x=True)
    for scale, seed, x in (("full", 1, 1), ("quick", 1, 0), ("full", 0, 1), ("full", 1, 0.9)):
        keep(study, row("a", seed=seed, x=x) | {"scale": scale}, tmp_path)
    keep(study, row("works", PAPER, x=1) | {"scale": "gpu"}, tmp_path)
    keep(study, row("gone", x=1), tmp_path)
    keep(study, row("a", REAL, x=0) | {"scale": "real"}, tmp_path)
    rows = rows_in(study, tmp_path)
    assert [place(r)[:3] for r in rows] == [
        ("full", "chain", 0), ("full", "chain", 1), ("gpu", PAPER, 0), ("quick", "chain", 1), ("real", REAL, 0)
    ]  # fmt: skip
    assert rows[1]["x"] == 0.9 and [r["scale"] for r in widest(rows)] == ["full", "full", "gpu", "real"]
    document = json.loads((tmp_path / "s.json").read_text())
    assert document["scale"] == "full" and document["outcome"] == {
        "chain": "holds",
        REAL: "does not hold",
        PAPER: "not run",  # its arms have other names
        "all": "holds",
    }
    text = "\n".join(came(study, rows))
    assert "0.95 [0.9, 1]: holds" in text and "**holds**" in text
    front = "\n".join(front_lines([(study, rows)]))
    assert "| holds (1 of 1) | – | does not hold (0 of 1) | **holds** |" in front


@pytest.mark.parametrize(
    "open_ended, after, collapsed",
    [
        ([0.1] * 12, 0.4, 0.0),
        ([0.1] * 6 + [0.9] * 6, 0.4, 1.0),  # responses lost their end
        ([0.1] * 10 + [0.9] * 2, 0.4, 0.0),  # for two steps
        ([0.9] * 12, 0.4, 0.0),  # a cap cuts them from the start
        ([0.9] * 12, 0.1, 1.0),  # the score is gone
    ],
)
def test_what_has_collapsed_did_well_before(
    open_ended: list[float], after: float, collapsed: float, tmp_path: Path
) -> None:
    with RunFolder.create(tmp_path / "run", config_toml="", env={}) as folder:
        for step, share in enumerate(open_ended, start=1):
            folder.log_metrics(
                step, {"truncated_fraction": share, "response_length": 8.0, "seconds/step": 0.1}
            )
        for step, score in ((0, 0.3), (12, after)):
            folder.log_eval({"step": step, "avg_at_k": score, "teacher_avg_at_k": 0.5})
    found = read_run(tmp_path / "run", drawn=4)
    assert found["collapsed"] == collapsed and found["not_ended_worst_five"] == pytest.approx(
        max(sum(open_ended[i : i + 5]) / 5 for i in range(8))
    )
    assert found["recovery"] == pytest.approx((after - 0.3) / 0.2) and found["tokens"] == 12 * 8 * 4


def test_what_people_wrote_on_a_page_stays(tmp_path: Path) -> None:
    study = rules(x=True)
    ran = [(study, [row("a", x=1)])]
    (tmp_path / "s.md").write_text(
        skeleton(study.question, ("about", "figure", "came")) + "\nWhy: because.\n"
    )
    (tmp_path / "README.md").write_text("Before.\n" + FRONT)
    write_pages(ran, tmp_path, tables=tmp_path, front=ran)
    page, front = (tmp_path / "s.md").read_text(), (tmp_path / "README.md").read_text()
    assert "Why: because." in page and "opd study run s --scale full" in page and "**holds**" in page
    assert front.startswith("Before.") and front.index("Fig. 2 ") < front.index("Fig. 11a ")
    write_pages(ran, tmp_path, tables=tmp_path, front=ran)
    assert (tmp_path / "s.md").read_text() == page


def test_the_same_table_draws_the_same_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from opdkit.studies.figures import figures

    study = STUDIES["which-tokens"]
    rows = widest(rows_in(study, TABLES))
    first = figures(study, rows)
    assert figures(study, list(rows)) == first and set(first) == {"which-tokens.svg"}
    assert figures(study, rows[:1]) != first and figures(study, []) == {}


# --- commands -------------------------------------------------------------------------------------------------


def test_the_list_is_for_machines_too(capfd: Any) -> None:
    told_of = json.loads(opd(capfd, "study", "list", "--json").out)["studies"]
    assert [study["name"] for study in told_of] == list(STUDIES)
    assert all(study["claim"] and study["expectation"] and study["arms"] for study in told_of)


def test_a_report_is_told_from_the_tables(capfd: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    said = opd(capfd, "study", "report", "which-tokens", "--out", TABLES, "--pages", tmp_path)
    assert (
        said.code == 0
        and "**Where this differs.**" in said.out
        and (tmp_path / "figures" / "which-tokens.svg").is_file()
    )
    data = json.loads(opd(capfd, "study", "report", "--out", TABLES, "--json").out)["studies"]
    assert [s["name"] for s in data] == list(STUDIES) and all(s["decisions"] for s in data)


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("run", "wich-tokens"), "no study 'wich-tokens'", "opd study run which-tokens"),
        (("run", "which-tokens", "--scale", "huge"), "no scale 'huge'", "--scale quick | full | real | gpu"),
        (("run", "which-tokens", "--family", "chains"), "no family 'chains'", "--family chain"),
        (("run", "which-tokens", "--jobs", "0"), "--jobs 0", "--jobs 1"),
        (("run", "which-tokens", "--set", "steps=2"), "--set changes configuration files", "--scale gpu"),
        (("run", "which-tokens", "--scale", "real"), "nothing of this is run at --scale real", "dynamics"),
        (
            ("run", "dynamics", "--scale", "real"),
            "configs/real/distil.toml is not here",
            "clone of the repository",
        ),
        (("run", "dynamics", "--scale", "gpu"), "configs/paper has no r1-1.5b-justrl.toml", "opd train"),
        (("report",), "nothing was run", "opd study run"),
        (("report", "which-tokens"), "was not run", "opd study run which-tokens"),
    ],
)
def test_what_there_is_not_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
    words: tuple[str, ...],
    message: str,
    hint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = opd(capfd, "study", *words)
    assert said.code == 2 and message in said.error and hint in said.hint
