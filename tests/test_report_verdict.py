"""The report's verdict page: what opd check said, against what came; documents alone, torn, hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opdkit.report import write_report
from opdkit.report.preflight import renderings
from opdkit.report.text import percent
from report_runs import SCHEMA, make_run, said


def page_of(run: Path, document: Any) -> str:
    (run / "check.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return write_report([run]).read_text()


@pytest.mark.parametrize(
    ("verdict", "success", "title"),
    [
        ("go", True, "As the preflight said, it worked"),
        ("change_teacher", False, "The preflight said “change the teacher”: and so it came"),
        ("go", False, "did not"),
        ("change_teacher", True, "worked all the same"),
    ],
)
def test_what_was_said_is_set_against_what_came(
    verdict: str, success: bool, title: str, tmp_path: Path
) -> None:
    page = page_of(make_run(tmp_path / "run", success=success), said(verdict))
    assert title in page and "Because of this." in page


def test_a_document_alone_is_a_page(tmp_path: Path) -> None:
    (tmp_path / "pair.check.json").write_text(json.dumps(said()))
    page = write_report([tmp_path / "pair.check.json"])
    text = page.read_text()
    assert page.suffix == ".html" and "S ← T" in text and "teachable_share" in text and ">2.0" in text
    assert "opd train my.toml" in text and "Predicted" in text


def test_a_run_without_a_preflight_has_no_such_section(tmp_path: Path) -> None:
    assert 'id="preflight"' not in write_report([make_run(tmp_path / "run", success=True)]).read_text()


@pytest.mark.parametrize(
    "document",
    [
        "", "{", "[]", "null", '{"schema": "opdkit.verdict/2"}',
        json.dumps({"schema": SCHEMA}),
        json.dumps({"schema": SCHEMA, "metrics": [], "findings": {}, "verdict": 3, "by_position": "x", "renderings": {}}),
        json.dumps({"schema": SCHEMA, "metrics": {"a": None, "b": {"value": "x"}}, "findings": [None, {}], "verdict": {}}),
        json.dumps({**said(), "ranking": [{"rank": "x"}], "between": [{}], "continuation": [{}], "renderings": [{}]}),
    ],
)  # fmt: skip
def test_a_torn_or_foreign_document_costs_only_itself(document: str, tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", success=True), document)
    assert "Alignment" in page


def test_what_others_wrote_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    document = said(
        student=evil, teacher=evil,
        verdict={"name": evil, "reason": evil, "remedy": evil, "exit_code": 0, "because": []},
        renderings=[{"probe": evil, "thinking": None, "student": evil, "teacher": "b", "first": 0}],
    )  # fmt: skip
    assert "<script>alert" not in page_of(make_run(tmp_path / "run", success=True), document)


FORETOLD = {
    "gap": 0.24, "gap_recovery": {"value": 0.5, "low": 0.1, "high": 0.9}, "slope": None, "slope_low": None, "slope_high": None,
    "basis": "fitted on 167 pairs", "parts": {"loss_fall": 0.2, "teachable_share": -0.3, "success_slope": 0.01},
    "nearest": {"pair": "chain 14 · improved", "gap_recovery": 0.98, "distance": 0.4, "reach": 0.5},
    "outside": [{"feature": "loss_fall", "value": 9.25, "low": 0.12, "high": 2.34}],
}  # fmt: skip


def test_a_number_that_was_foretold_is_told_with_its_reasons_and_its_place(tmp_path: Path) -> None:
    band = {"quantiles": [0.1, 0.2, 0.5, 0.6, 0.9]}
    bands = [{"name": "overlap_ratio", "value": 0.75, "working": band, "failing": {"quantiles": [0.0]}}]
    page = page_of(make_run(tmp_path / "run", success=True), said(prediction=FORETOLD, bands=bands))
    assert f"{percent(0.5)} ({percent(0.1)} to {percent(0.9)})" in page
    assert "For it: loss_fall 0.200." in page and "Against it: teachable_share −0.300." in page
    assert (
        f"Most like chain 14 · improved, which recovered {percent(0.98)}." in page
        and "vouches for nothing" not in page
    )
    assert "Outside what was seen: loss_fall 9.25 (seen 0.120 to 2.34)." in page
    row = page[page.index("Among pairs of the testbed") :]
    assert (
        percent(0.75) in row
        and f"{percent(0.2)} to {percent(0.6)}" in row
        and "–" in row[: row.index("</table>")]
    )
    far = {**FORETOLD, "nearest": {**FORETOLD["nearest"], "distance": 0.6}}
    assert "vouches for nothing" in page_of(tmp_path / "run", said(prediction=far))


@pytest.mark.parametrize("name", ["parts", "nearest", "outside", "gap_recovery"])
@pytest.mark.parametrize("torn", [None, 3, "x", [1], {"pair": 2, "value": "<b>", "loss_fall": "<i>"}])
def test_a_torn_forecast_costs_only_itself(name: str, torn: Any, tmp_path: Path) -> None:
    page = page_of(
        make_run(tmp_path / "run", success=True), said(prediction={**FORETOLD, name: torn}, bands=torn)
    )
    assert "<i>" not in page
    assert "fitted on 167 pairs" in page and "Among pairs" not in page


def test_renderings_are_cut_where_they_part(tmp_path: Path) -> None:
    rows = [
        {"probe": "turns", "thinking": None, "student": "same", "teacher": "same", "first": None},
        {"probe": "question", "thinking": True, "student": "<s>Hi", "teacher": "<s>Ho\x1b", "first": 4},
    ]
    first, second = renderings(said(renderings=rows))
    assert (first.apart, first.title, first.says) == (
        True, "question, thinking on", "they differ from character 4 on",
    )  # fmt: skip
    assert first.sides == [("student", "<s>H", "i"), ("teacher", "<s>H", "o␛")]
    assert not second.apart and second.says == "the same text"
    page = page_of(make_run(tmp_path / "run", success=True), said(renderings=rows))
    assert "&lt;s&gt;H<mark>i</mark>" in page and "One conversation, two templates" in page


def test_findings_of_a_run_are_on_a_timeline(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", success=False), said("change_teacher"))
    assert 'id="findings"' in page
