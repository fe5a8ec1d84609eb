"""`opd study`: expectations as predicates over a table, arms run once, what is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commands import opd
from opdkit.studies import study as studies
from opdkit.studies.questions import STUDIES
from opdkit.studies.study import Expectation, Scale, Study, lines, recovery, run, verdicts
from opdkit.studies.which_tokens import WHICH_TOKENS
from opdkit.train import Silent
from test_studies import small_family

ENDS = {"overlap_ratio": [0.5, 0.7]}


def row(arm: str, gained: float | None, seed: int = 0) -> dict[str, Any]:
    after = 0.3 + 0.4 * (gained or 0.0)
    return {
        "arm": arm,
        "seed": seed,
        "before": 0.3,
        "teacher": 0.7,
        "after": after,
        "recovery": gained,
        "watched": ENDS,
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"overlap": "holds", "rest": "holds", "wider": "holds"}),
        ({"overlap": 0.6}, {"overlap": "does not hold", "rest": "holds", "wider": "holds"}),
        ({"rest, raw": 0.5}, {"overlap": "holds", "rest": "does not hold", "wider": "holds"}),
        ({"full": 1.1}, {"overlap": "holds", "rest": "holds", "wider": "does not hold"}),
        ({"union": None}, {"overlap": "holds", "rest": "holds", "wider": "not run"}),
        ({"student top-k": None}, {"overlap": "not run", "rest": "holds", "wider": "not run"}),
    ],
)
def test_which_tokens_is_decided_by_its_table(changes: dict, expected: dict) -> None:
    gained = {arm: 0.1 if arm.startswith("rest") else 0.9 for arm in WHICH_TOKENS.arms} | changes
    rows = [row(arm, value) for arm, value in gained.items()]
    assert verdicts(WHICH_TOKENS, rows) == expected


def test_an_arm_counts_by_its_mean_over_the_seeds_that_have_a_gap() -> None:
    rows = [row("a", 0.2), row("a", 0.6, seed=1), row("a", None, seed=2), row("b", None)]
    assert recovery(rows, "a") == pytest.approx(0.4) and recovery(rows, "b") is None


def test_every_question_says_what_it_expects_and_what_of_the_paper_it_is_about() -> None:
    for name, study in STUDIES.items():
        assert name == study.name and study.claim and study.expected and len(study.arms) > 1
        assert set(verdicts(study, ()).values()) == {"not run"}


SMALL = Study(
    name="small",
    question="Does it learn?",
    claim="none",
    student="student",
    teacher="improved",
    arms={"paper": {}, "full": {"objective": {"preset": "full"}}},
    expected=(Expectation("both", "both arms ran", lambda rows: len(rows) == 4),),
)


def test_arms_run_once_and_again_where_they_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "family", lambda *_, **__: small_family())
    scale, began = Scale(seeds=(0, 1), steps=2, problems=32), []
    finish = studies.finish
    monkeypatch.setattr(
        studies, "finish", lambda config, **talk: (began.append(config.run), finish(config, **talk))[1]
    )

    def go(study: Study) -> list[Any]:
        began.clear()
        return list(
            run(study, scale, out=tmp_path / "out", cache=tmp_path / "cache", talk=lambda _: Silent())
        )

    first = go(SMALL)
    ours = [path for path in began if path.is_relative_to(tmp_path / "out")]
    assert [(r["arm"], r["seed"]) for r in first] == [(a, s) for s in (0, 1) for a in SMALL.arms] and len(
        ours
    ) == 4
    assert go(SMALL) == first and not began
    told = json.loads((tmp_path / "out" / "small.json").read_text())
    assert told["rows"] == first and told["verdicts"] == {"both": "holds"} and told["arms"]["paper"] == {}
    assert "**holds**" in "\n".join(lines(SMALL, first))

    other = replace(SMALL, arms={**SMALL.arms, "full": {"objective": {"preset": "sampled"}}})
    second = go(other)
    assert [path.name.split("-")[0] for path in began if path.is_relative_to(tmp_path / "out")] == [
        "full",
        "full",
    ]
    assert [r for r in second if r["arm"] == "paper"] == [r for r in first if r["arm"] == "paper"]


def test_the_list_is_for_machines_too(capfd: Any) -> None:
    told = json.loads(opd(capfd, "study", "list", "--json").out)["studies"]
    assert [study["name"] for study in told] == list(STUDIES)
    assert all(study["claim"] and study["expectation"] and study["arms"] for study in told)


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("run", "wich-tokens"), "no study 'wich-tokens'", "opd study run which-tokens"),
        (("run", "which-tokens", "--scale", "gpu"), "no scale 'gpu'", "--scale quick | full"),
        (("report",), "was not run", "opd study run which-tokens"),
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
