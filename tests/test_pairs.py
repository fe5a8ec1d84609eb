"""The pair factory: its kinds, that its runs are those of the other questions, what a check leaves in a row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from opdkit.recipes.foretell import BANDS, PREDICTOR, foretell, shipped
from opdkit.studies import campaign as campaigns
from opdkit.studies.campaign import campaign, config_key, configured
from opdkit.studies.factory import BEYOND, CHECKED, DRAWS, FACTORY, KINDS, OUTSIDE, Dial, check_name, run_name
from opdkit.studies.fitting import fit_pairs
from opdkit.studies.pages import came
from opdkit.studies.predictor_told import write_page
from opdkit.studies.questions import RUNNABLE, STUDIES
from opdkit.studies.recipes import Family, Recipe, family
from opdkit.studies.study import Arm, Scale
from opdkit.studies.tables import rows_in
from opdkit.studies.testbed import Workshop
from opdkit.train import Silent
from test_studies import small_family

OLD = ("student", "improved", "bigger", "restyled", "cold_started", "other_end", "bigger_improved", "barely_started",
       "own_style_started", "one_wording", "short_only", "base")  # fmt: skip
PAGES = Path(__file__).parent.parent / "docs" / "studies"
TABLES = PAGES / "tables"
SCALE = Scale("full", seeds=(0,), steps=2, problems=16, families=("chain",))


def factory_family(*_: Any, **__: Any) -> Family:
    """A small family with a mixed recipe."""
    small = small_family()
    sft = small.recipe("student").settings
    mixed = Recipe("mixed", sft, start="student", source="mixed", of="restyled")
    return replace(
        small, recipes=(*small.recipes, mixed), distill={**small.distill, "task": {"train_size": 64}}
    )


# --- the grid -----------------------------------------------------------------------------------------------


def test_every_dial_is_turned_and_every_model_is_known() -> None:
    assert {dial for kind in KINDS for dial in kind.dials} == set(get_args(Dial))
    for name in ("chain", "lists"):
        made = {recipe.name for recipe in family(name).recipes}
        assert all({kind.student, kind.teacher} <= made for kind in (*KINDS, *OUTSIDE))
    assert len({arm.name for arm in FACTORY.arms}) == len(FACTORY.arms) == 3 * len(KINDS)
    assert not {(k.student, k.teacher) for k in KINDS} & {(k.student, k.teacher) for k in OUTSIDE}
    assert len({kind.group for kind in KINDS}) >= 8, "too few kinds of teacher to leave one out"


def test_it_runs_beside_the_questions_and_is_none_of_them() -> None:
    assert FACTORY.name not in STUDIES and set(RUNNABLE) == {*STUDIES, FACTORY.name, BEYOND.name}


@pytest.mark.parametrize(
    ("name", "digest"),
    [("chain", "fc776b226b56710a"), ("lists", "5fbd86b63aab4bd9")],
)
def test_models_that_were_made_before_keep_their_keys(name: str, digest: str) -> None:
    """What is in the caches of ten bases would be made again: hours."""
    kin = family(name, seed=14)
    keys = " ".join(kin.key(old, world="w") for old in OLD)
    assert hashlib.blake2b(keys.encode(), digest_size=8).hexdigest() == digest


# --- what is shipped ----------------------------------------------------------------------------------------


def test_what_is_shipped_is_fitted_on_the_table_in_the_repository(tmp_path: Path) -> None:
    fit_pairs(TABLES / "pairs.json", out=tmp_path, final=True)
    for name in (PREDICTOR, BANDS):
        kept, again = shipped(name), json.loads((tmp_path / name).read_text())
        assert kept is not None and again["made"]["tables"] == kept["made"]["tables"]
        assert list(_leaves({**again, "made": None})) == pytest.approx(
            list(_leaves({**kept, "made": None})), rel=2e-3, abs=2e-3
        )


def _leaves(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each)
    elif isinstance(value, int | float):
        yield float(value)


def test_the_forecast_on_real_weights_is_of_what_is_shipped() -> None:
    told = json.loads((PAGES.parent / "real" / "check.json").read_text())
    document = shipped(PREDICTOR)
    assert document is not None
    again = foretell({name: number["value"] for name, number in told["metrics"].items()}, document)
    assert again is not None and again["model"] == "read"
    assert told["prediction"]["gap_recovery"] == pytest.approx(
        {n: again[n] for n in ("value", "low", "high")}, abs=2e-3
    )


def test_the_page_of_the_predictor_is_what_is_shipped(tmp_path: Path) -> None:
    document, page = shipped(PREDICTOR), (PAGES / "predictor.md").read_text()
    assert document is not None
    (tmp_path / "predictor.md").write_text(page)
    write_page(document, tmp_path)
    assert (tmp_path / "predictor.md").read_text() == page, "opd study fit --final --pages docs/studies"
    drawn = Path("figures", "predictor.svg")
    assert (tmp_path / drawn).read_text() == (PAGES / drawn).read_text()


# --- what is run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(factory_family(), tmp_path_factory.mktemp("pairs"), talk=lambda _: Silent(), problems=16)


def test_draw_nought_is_the_run_of_the_other_questions_and_other_draws_are_others(workshop: Workshop) -> None:
    plain, first, second, check = (
        configured(arm, workshop, scale=SCALE, seed=14)
        for arm in (Arm("any"), Arm("a"), Arm("b", draw=1), Arm("c", measured="check", draw=CHECKED))
    )
    assert config_key(plain, None) == config_key(first, None)
    assert len({plain.seed, second.seed, check.seed}) == 3
    assert second == first.model_copy(update={"seed": second.seed})
    nearest = {
        configured(Arm("a", draw=d), workshop, scale=SCALE, seed=s).seed
        for d in (0, 1, 2)
        for s in range(14, 19)
    }
    assert len(nearest) == 15, "a draw of one base is another base's"


def test_a_mixed_model_imitates_itself_and_another_by_turns(workshop: Workshop) -> None:
    workshop.make("mixed")
    (shown,) = workshop.out.glob("models/shown-mixed-*.jsonl")
    rows = [json.loads(line) for line in shown.read_text().splitlines()]
    recipe = workshop.family.recipe("mixed")
    told = {}
    for name in ("student", "restyled"):
        samples = workshop._samples(workshop.make(name).path, recipe)
        told[name] = {row["id"]: row["response"] for row in samples}
    assert told["student"] != told["restyled"] and len(rows) > 10
    for i, row in enumerate(rows):
        assert row["response"] == told[("student", "restyled")[i % 2]][row["id"]]


def test_a_kind_becomes_a_check_and_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaigns, "family", factory_family)
    kind = KINDS[0]
    names = {check_name(kind), *(run_name(kind, draw) for draw in DRAWS)}
    arms = tuple(arm for arm in FACTORY.arms if arm.name in names)
    campaign(
        [replace(FACTORY, arms=arms)],
        SCALE,
        out=tmp_path / "out",
        cache=tmp_path / "cache",
        say=lambda _: None,
    )
    rows = {row["arm"]: row for row in rows_in(FACTORY, tmp_path / "out")}
    check, first, second = (
        rows[name] for name in (check_name(kind), *(run_name(kind, draw) for draw in DRAWS))
    )
    assert set(rows) == names and all("curves" not in row for row in rows.values())
    assert first["config"] != second["config"] and {"before", "teacher", "after"} <= set(first) & set(second)
    assert {"overlap_ratio", "reverse_kl", "teacher_lead", "teachable_share"} <= set(check["metrics"])
    assert check["verdict"] and len(check["sizes"]) == 2 and "after" not in check
    text = "\n".join(came(FACTORY, list(rows.values())))
    assert run_name(kind, 1) in text and "sixty pairs" in text
