"""The predictor of gap recovery: scores against oracles, what a fit may see, the shipped documents, what opd check says."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from commands import opd
from opdkit.diagnostics import gap_recovery
from opdkit.recipes import predict as predicting
from opdkit.recipes.document import Opinion, document, lines, schema
from opdkit.recipes.features import FEATURES, READ
from opdkit.recipes.foretell import BANDS, PREDICTOR, bands, foretell, lies
from opdkit.recipes.predict import RECOVERED, among, predict
from opdkit.recipes.probe import Number
from opdkit.studies import predictor, scores
from opdkit.studies.factory import DRAWS, KINDS, OUTSIDE, check_name, run_name
from opdkit.studies.fitting import fit_pairs
from opdkit.studies.predictor import (
    CLIP,
    FROZEN,
    Fitted,
    Pair,
    fit,
    fitted,
    left_out,
    matrix,
    of_base,
    of_group,
    pairs_of,
    target,
)
from opdkit.studies.predictor_document import (
    CLEAR_LEAD,
    bands_document,
    hard_subset,
    predictor_document,
    residuals_of,
    run_by_run,
    scored,
)
from opdkit.types import UserError, Verdict

GO = Verdict("go", "because", "opd train my.toml", ())


def metrics_of(quality: float, rng: np.random.Generator) -> dict[str, float]:
    """Numbers of a check as a pair of that quality might have them, each with noise of its own."""
    q = lambda spread=0.1: quality + spread * rng.normal()  # noqa: E731
    return {
        "rehearsed_loss_ratio": math.exp(-2 * max(0.02, q())),
        "teachable_share": q(),
        "success_slope": 0.3 * q(),
        "reverse_kl": math.exp(-2 * q()),
        "response_length": 9.0,
        "teacher_lead": 0.1 + 0.2 * rng.random(),
        "overlap_ratio": 0.4 + 0.4 * q(0.5),
        "overlap_chance_at_16": 0.09,
        "overlap_mass_teacher": min(1.0, 0.7 + 0.3 * q()),
        "sequence_reward_auroc": 0.5 + 0.4 * q(),
    }


def pairs(
    *, families: tuple[str, ...] = ("chain",), bases: int = 3, signal: bool = True, seed: int = 0
) -> list[Pair]:
    """Every kind on every base; without `signal` what comes has nothing to do with what was checked."""
    rng, made = np.random.Generator(np.random.Philox(seed)), []
    for family in families:
        for base in range(bases):
            for kind in KINDS:
                quality, other = rng.random(2)
                recovery = 1.4 * (quality if signal else other) - 0.2 + 0.05 * rng.normal()
                metrics = metrics_of(quality, rng)
                made.append(Pair(family, base, kind.name, kind.group, recovery, metrics, (100, 200)))
    return made


def rows_of(some: list[Pair]) -> list[dict[str, Any]]:
    """The factory's table that has these pairs: a check and two runs that differ by what sampling does."""
    rows = []
    for pair in some:
        kind = next(kind for kind in (*KINDS, *OUTSIDE) if kind.name == pair.kind)
        place = {"scale": "full", "family": pair.family, "seed": pair.seed, "commit": "c0ffee"}
        rows.append(
            {
                **place,
                "arm": check_name(kind),
                "metrics": pair.metrics,
                "sizes": list(pair.sizes),
                "verdict": "go",
            }
        )
        for draw in DRAWS:
            scores_ = {
                "before": 0.2 + 0.02 * draw,
                "teacher": 0.6,
                "after": 0.21 + 0.39 * pair.recovery + (0.01 if draw else -0.01),
            }
            recovery = gap_recovery(scores_["before"], scores_["after"], scores_["teacher"])
            rows.append({**place, "arm": run_name(kind, draw), "recovery": recovery, **scores_})
    return rows


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Two penalties to choose from, and resamples enough for a bound of two digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "PENALTIES", (3.0, 30.0))
        patch.setattr(scores, "RESAMPLES", 300)
        yield


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """The document of a table of both families, as it comes back from disk."""
    made = {"made": {"pairs": 108}, **predictor_document(pairs(families=("chain", FROZEN)), final=True)}
    return json.loads(json.dumps(made))


# --- scores against oracles -----------------------------------------------------------------------------------

few = st.integers(min_value=0, max_value=4).map(float)


@given(st.lists(st.tuples(few, few, st.booleans(), st.integers(0, 2)), min_size=2, max_size=25))
@settings(max_examples=60, deadline=None)
def test_auroc_and_spearman_are_those_of_sklearn_and_scipy(drawn: list[Any]) -> None:
    a, b, positive, _ = (np.array(column) for column in zip(*drawn, strict=True))
    ours = scores.auroc(a, positive)
    if 0 < positive.sum() < len(positive):
        assert ours == pytest.approx(roc_auc_score(positive, a))
    else:
        assert ours is None
    ranked = scores.spearman(a, b)
    if np.ptp(a) and np.ptp(b):
        assert ranked == pytest.approx(float(spearmanr(a, b).statistic))
    else:
        assert ranked is None


def test_a_resample_is_whole_bases_drawn_with_replacement() -> None:
    """The quadratic form in the counts against AUROC of the rows written out as often as their base was drawn."""
    rng = np.random.Generator(np.random.Philox(3))
    base = scores.numbered(list("aaabbbbccdddd"))
    score, positive = rng.integers(0, 5, len(base)).astype(float), rng.random(len(base)) < 0.5
    drawn = scores.auroc_drawn(score, positive, base)
    counts = scores._counts(base).astype(int)
    assert len(drawn) == scores.RESAMPLES and (counts.sum(1) == 4).all()
    for value, often in list(zip(drawn, counts, strict=True))[:200]:
        index = np.repeat(np.arange(len(base)), often[base])
        if 0 < positive[index].sum() < len(index):
            assert value == pytest.approx(roc_auc_score(positive[index], score[index]))
        else:
            assert np.isnan(value)


def test_intervals_hold_the_middle_of_the_resamples_and_differences_are_paired() -> None:
    rng = np.random.Generator(np.random.Philox(4))
    base = np.repeat(np.arange(10), 12)
    quality = rng.random(120)
    positive, good, bad = quality > 0.5, quality + 0.1 * rng.normal(size=120), rng.random(120)
    ours = scores.auroc_score(good, positive, base)
    assert ours is not None and ours.low is not None and ours.high is not None
    inside = (scores.auroc_drawn(good, positive, base) >= ours.low) & (
        scores.auroc_drawn(good, positive, base) <= ours.high
    )
    assert 0.94 < inside.mean() < 1
    ahead, same = (scores.better_by(good, other, positive, base) for other in (bad, good))
    assert ahead is not None and ahead.low is not None and ahead.low > 0.2
    assert same == scores.Score(0.0, 0.0, 0.0), "the same predictions on the same resamples"
    ranked = scores.spearman_score(good, quality, base)
    assert ranked is not None and ranked.low is not None and 0.8 < ranked.low < ranked.value


def test_a_mean_over_pairs_resamples_bases_too() -> None:
    base = np.repeat([0, 1], [30, 10])
    found = scores.mean_score((base == 0).astype(float), base)
    assert found == scores.Score(0.75, 0.0, 1.0)


# --- the fit --------------------------------------------------------------------------------------------------


def test_a_fit_is_sklearns_on_standardised_features_turned_by_their_signs() -> None:
    train, test = pairs(), pairs(seed=1)
    signs = np.array([feature.sign for feature in FEATURES])
    oracle = make_pipeline(StandardScaler(), Ridge(alpha=3.0, positive=True, tol=1e-10, max_iter=10_000))
    oracle.fit(matrix(train, FEATURES) * signs, target(train))
    ours = fit(train, FEATURES, 3.0)
    assert ours.predict(test) == pytest.approx(oracle.predict(matrix(test, FEATURES) * signs), abs=1e-5)


@pytest.mark.parametrize("signal", [True, False])
def test_no_weight_goes_against_its_sign(signal: bool) -> None:
    for seed in range(3):
        weights = fit(pairs(signal=signal, seed=seed), FEATURES, 0.3).coefficients
        assert all(weight * feature.sign >= 0 for weight, feature in zip(weights, FEATURES, strict=True))
    free = pairs(signal=False)
    turned = [replace(pair, recovery=-pair.metrics["teachable_share"]) for pair in free]
    weight = dict(zip((f.name for f in FEATURES), fit(turned, FEATURES, 0.3).coefficients, strict=True))
    assert weight["teachable_share"] == 0, "what came out is against what was expected of it"


def test_the_penalty_is_the_one_that_foretells_left_out_kinds_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "PENALTIES", (100.0, 0.3, 3.0))
    some = pairs()

    def error(penalty: float) -> float:
        told = left_out(some, of_group, lambda train: fit(train, FEATURES, penalty))
        return float(((told - target(some)) ** 2).sum())

    chosen = fitted(some, FEATURES).penalty
    assert error(chosen) == min(map(error, predictor.PENALTIES)) < max(map(error, predictor.PENALTIES))
    assert chosen != predictor.PENALTIES[0]


def test_half_of_the_gap_is_a_success() -> None:
    some = [replace(p, recovery=r) for p, r in zip(pairs(), (0.5, 0.49, 0.51, -2.0, 0.2), strict=False)]
    found = scored(some, np.array([0.9, 0.1, 0.8, 0.2, 0.3]), residuals=(0.0, 0.0))
    assert (found["pairs"], found["succeeded"], found["auroc"]["value"]) == (5, 2, 1.0)


def test_a_missing_number_is_as_the_mean_and_moves_nothing() -> None:
    train = pairs()
    bare = replace(train[0], metrics={n: v for n, v in train[0].metrics.items() if n != "teachable_share"})
    model = fit([bare, *train[1:]], FEATURES, 3.0)
    at = [feature.name for feature in FEATURES].index("teachable_share")
    known = [pair.metrics["teachable_share"] for pair in train[1:]]
    assert model.means[at] == pytest.approx(np.mean(known)) and model.scales[at] == pytest.approx(
        np.std(known)
    )
    filled = replace(bare, metrics={**bare.metrics, "teachable_share": model.means[at]})
    assert model.predict([bare]) == pytest.approx(model.predict([filled]))


def test_a_group_that_is_left_out_has_no_part_in_what_it_is_told() -> None:
    """The leak: its outcomes and its other pairs are changed, the penalty's choice included, and nothing moves."""
    some, group = pairs(), KINDS[0].group
    leaky = [
        replace(p, recovery=9.0, metrics={**p.metrics, "teachable_share": 50.0}) if p.group == group else p
        for p in some
    ]
    mine = [i for i, pair in enumerate(some) if pair.group == group]
    first = mine[0]
    planted = [*leaky]
    planted[first] = some[first]

    def go(these: list[Pair]) -> np.ndarray:
        return left_out(these, of_group, lambda train: fitted(train, FEATURES))

    honest, leaked = go(some), go(planted)
    assert honest[first] == leaked[first]
    others = [i for i in range(len(some)) if i not in mine]
    assert not np.allclose(honest[others], leaked[others]), "what is left in does count"
    assert fitted(some, FEATURES).predict([some[first]]) != pytest.approx(
        fitted(planted, FEATURES).predict([some[first]])
    )


def test_every_fit_of_a_left_out_group_is_of_other_groups() -> None:
    some, seen = pairs(), list[tuple[set[str], int]]()

    def spy(train: Any) -> Fitted:
        seen.append(({pair.group for pair in train}, len(train)))
        return fit(train, FEATURES, 3.0)

    left_out(some, of_group, spy)
    groups = {pair.group for pair in some}
    assert [groups - inside for inside, _ in seen] == [
        {group} for group in dict.fromkeys(p.group for p in some)
    ]
    assert all(count == sum(pair.group in inside for pair in some) for inside, count in seen)


def test_the_frozen_family_is_unseen_until_the_end() -> None:
    """Its rows may be anything: nothing that is told of the other family moves."""
    both = pairs(families=("chain", FROZEN))
    other = [replace(p, recovery=0.95 - p.recovery) if p.family == FROZEN else p for p in both]
    first, second = (predictor_document(some, final=False) for some in (both, other))
    assert first == second and set(first["scores"]["rehearsed"]) == {"group_out"}
    assert all(pair["pair"].startswith("chain") for pair in first["models"][0]["seen"])
    ends = [predictor_document(some, final=True) for some in (both, other)]
    aurocs = [end["scores"]["rehearsed"]["family_out"]["auroc"]["value"] for end in ends]
    assert aurocs[0] > 0.9 and aurocs[1] < 0.1, (
        "models of the one family rank the other's pairs as they were checked"
    )
    assert ends[0]["scores"]["rehearsed"]["group_out"] == first["scores"]["rehearsed"]["group_out"]


def test_a_signal_is_found_and_noise_is_not() -> None:
    found = predictor_document(pairs(bases=5), final=False)["scores"]["rehearsed"]["group_out"]
    assert (
        found["auroc"]["low"] > 0.9
        and found["spearman"]["low"] > 0.8
        and found["hard"]["auroc"]["value"] > 0.85
    )
    assert found["in_interval"]["value"] == pytest.approx(0.9, abs=0.05)
    train, test = (pairs(bases=10, signal=False, seed=seed) for seed in (1, 2))
    told = fitted(train, FEATURES).predict(test)
    noise = scored(test, told, residuals=(-1.0, 1.0))
    assert noise["auroc"]["low"] < 0.5 < noise["auroc"]["high"] and not noise["better_than_every_single"]
    assert abs(noise["auroc"]["value"] - 0.5) < 0.1 and abs(noise["spearman"]["value"]) < 0.2


def test_features_that_say_a_little_each_say_more_together() -> None:
    """Of independent noise on every number, most averages out."""
    rng = np.random.Generator(np.random.Philox(5))
    some = []
    for pair in pairs(bases=10):
        own = {
            "teachable_share": rng.normal(),
            "overlap_mass_teacher": rng.normal(),
            "sequence_reward_auroc": rng.normal(),
        }
        some.append(replace(pair, recovery=0.5 + 0.3 * sum(own.values()), metrics={**pair.metrics, **own}))
    told = left_out(some, of_group, lambda train: fit(train, FEATURES, 3.0))
    found = scored(some, told, residuals=(-1.0, 1.0))
    assert found["better_than_every_single"] and found["auroc"]["value"] > 0.95
    assert found["singles"]["teachable_share"]["better_by"]["low"] > 0.1


def test_a_single_feature_that_says_it_all_is_not_beaten() -> None:
    some = [replace(p, recovery=p.metrics["teachable_share"]) for p in pairs(bases=5)]
    score = predictor_document(some, final=False)["scores"]["rehearsed"]["group_out"]
    assert score["singles"]["teachable_share"]["auroc"] == 1.0 and not score["better_than_every_single"]
    assert score["singles"]["size"]["auroc"] == 0.5 and score["singles"]["size"]["better_by"]["low"] > 0


def test_the_hard_subset_is_a_clear_lead_and_a_middling_overlap() -> None:
    some = pairs(bases=5)
    overlap = np.array([pair.metrics["overlap_ratio"] for pair in some])
    low, high = np.quantile(overlap, [0.25, 0.75])
    shy = replace(
        some[0], metrics={**some[0].metrics, "overlap_ratio": (low + high) / 2, "teacher_lead": 0.09}
    )
    led = replace(shy, metrics={**shy.metrics, "teacher_lead": CLEAR_LEAD})
    assert 0 not in hard_subset([shy, *some[1:]]) and 0 in hard_subset([led, *some[1:]])
    for i in hard_subset(some):
        assert low <= overlap[i] <= high and some[i].metrics["teacher_lead"] >= CLEAR_LEAD


@given(st.lists(st.floats(-1, 1), min_size=5, max_size=60))
def test_nine_in_ten_of_what_came_lie_in_the_interval(errors: list[float]) -> None:
    some = [replace(pairs(bases=1)[0], recovery=0.3 + error) for error in errors]
    low, high = residuals_of(some, np.full(len(some), 0.3))
    found = target(some) - 0.3
    assert ((found >= low) & (found <= high)).mean() >= 0.9 - 1e-9
    assert low in found and high in found


# --- the table ------------------------------------------------------------------------------------------------


def test_pairs_come_from_a_check_and_the_mean_of_its_runs() -> None:
    some = pairs(bases=2)
    rows = rows_of(some)
    found, others = pairs_of(rows)
    assert [(p.name, p.group) for p in found] == [(p.name, p.group) for p in some] and others == {}
    assert [p.recovery for p in found] == pytest.approx([p.recovery for p in some])
    without = [row for row in rows if row["arm"] != run_name(KINDS[1], 1)]
    level = [
        {**row, "teacher": 0.24} if row["arm"] in {run_name(KINDS[2], d) for d in DRAWS} else row
        for row in without
    ]
    bare = [{**row, "metrics": {}} if row["arm"] == check_name(KINDS[3]) else row for row in level]
    found, others = pairs_of(bare)
    assert others == {"not run": 2, "no lead": 2, "refused by files": 2} and len(found) == len(some) - 6
    assert not {p.kind for p in found} & {kind.name for kind in KINDS[1:4]}


def test_verdicts_are_counted_by_what_came() -> None:
    some = [replace(p, verdict="go" if i % 2 else "cold_start") for i, p in enumerate(pairs(bases=2))]
    found = predictor_document(some, final=False)["verdicts"]
    for name in ("go", "cold_start"):
        mine = [p.recovery >= 0.5 for p in some if p.verdict == name]
        assert found["grid"][name] == {"worked": sum(mine), "not": len(mine) - sum(mine)}
    assert found["outside"] == {}


def test_a_run_is_held_against_the_other_of_its_pair() -> None:
    draws = [(0.1, 0.2), (0.9, 0.4), (0.7, 1.2), (0.6, 0.7), (None, 0.3)]
    some = [replace(p, draws=d, recovery=0.4) for p, d in zip(pairs(bases=1), draws, strict=False)]
    found = run_by_run(some)
    first, second = np.array(draws[:4], dtype=float).T
    assert found["pairs"] == 4 and found["spearman"]["value"] == pytest.approx(spearmanr(first, second)[0])
    assert found["auroc"]["value"] == pytest.approx(roc_auc_score(second >= 0.5, first))
    assert found["mean_absolute_error"] == pytest.approx(np.abs(first - second).mean())
    assert run_by_run(pairs(bases=1)) is None
    for pair in pairs_of(rows_of(pairs(bases=1)))[0]:
        assert np.mean(pair.draws) == pytest.approx(pair.recovery, abs=0.05)


def test_recovery_is_fitted_within_bounds() -> None:
    extreme = [replace(p, recovery=r) for p, r in zip(pairs()[:3], (-9.0, 0.4, 9.0), strict=True)]
    assert target(extreme).tolist() == [CLIP[0], 0.4, CLIP[1]]


# --- what is shipped ------------------------------------------------------------------------------------------


def test_the_documents_evaluation_is_the_fitted_models(told: Mapping[str, Any]) -> None:
    seen, new = pairs(families=("chain", FROZEN)), pairs(seed=7)
    for features in (FEATURES, READ):
        expected = fitted(seen, features).predict(new)
        dropped = {n for f in FEATURES if f not in features for n in f.needs}
        for pair, value in zip(new, expected, strict=True):
            found = foretell({n: v for n, v in pair.metrics.items() if n not in dropped}, told)
            assert found is not None and found["value"] == pytest.approx(value, abs=1e-9)
            assert set(found["parts"]) == {feature.name for feature in features}
            assert found["low"] < found["value"] < found["high"]


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_outside_is_beyond_the_range_of_some_feature(told: Mapping[str, Any], data: st.DataObject) -> None:
    """Of features that are numbers of the check as they are, each alone moved beyond its range or within it."""
    model, plain = told["models"][0], ("teachable_share", "overlap_mass_teacher", "sequence_reward_auroc")
    start = dict(pairs(families=("chain", FROZEN))[data.draw(st.integers(0, 50))].metrics)
    moved = {}
    for name in plain:
        low, high = model["features"][name]["low"], model["features"][name]["high"]
        share = data.draw(st.floats(-1, 2).filter(lambda x: x in (0, 1) or min(abs(x), abs(x - 1)) > 1e-6))
        moved[name] = (
            low + share * (high - low)
            if 0 < share < 1 or share in (-1, 2)
            else (low if share <= 0 else high) + share
        )
    found = foretell(start | moved, told)
    assert found is not None
    beyond = {n for n in plain if not model["features"][n]["low"] <= moved[n] <= model["features"][n]["high"]}
    assert {one["feature"] for one in found["outside"]} == beyond


def test_a_pair_that_was_seen_is_its_own_nearest_and_nothing_of_it_lies_outside(
    told: Mapping[str, Any],
) -> None:
    seen = pairs(families=("chain", FROZEN))
    for pair in seen:
        found = foretell(pair.metrics, told)
        assert found is not None and found["outside"] == [] and found["nearest"]["pair"] == pair.name
        assert found["nearest"]["distance"] == pytest.approx(0, abs=1e-9)
    reach, at = told["models"][0]["reach"], fitted(seen, FEATURES).standard(seen)
    nearest = [
        min(
            np.sqrt(((row - at[j]) ** 2).mean())
            for j in range(len(seen))
            if of_base(seen[j]) != of_base(pair)
        )
        for row, pair in zip(at, seen, strict=True)
    ]
    assert reach == pytest.approx(np.quantile(nearest, 0.95))
    far = foretell({**seen[0].metrics, "teachable_share": 40.0}, told)
    assert (
        far is not None
        and far["nearest"]["distance"] > reach
        and far["outside"][0]["feature"] == "teachable_share"
    )


def test_bands_are_quantiles_of_pairs_that_worked_and_that_failed() -> None:
    some = pairs(families=("chain", FROZEN))
    found = bands_document(some)["bands"]
    assert set(found) == {"all", "chain", FROZEN}
    for family in found:
        working = [p.metrics["reverse_kl"] for p in some if p.recovery >= 0.5 and family in ("all", p.family)]
        failing = [p.metrics["reverse_kl"] for p in some if p.recovery <= 0.2 and family in ("all", p.family)]
        band = found[family]["reverse_kl"]
        assert band["working"]["quantiles"] == pytest.approx(
            np.quantile(working, [0, 0.1, 0.5, 0.9, 1]).tolist()
        )
        assert (band["working"]["count"], band["failing"]["count"]) == (len(working), len(failing))
    assert "entropy_gap" not in found["all"], "nobody measured it here"


@given(st.floats(-2, 2), st.lists(st.floats(-1, 1), min_size=5, max_size=5).map(sorted))
def test_a_number_lies_where_it_lies(value: float, quantiles: list[float]) -> None:
    said = lies(value, quantiles)
    assert ("below" in said) == (value < quantiles[1]) and ("above" in said) == (value > quantiles[3])
    assert said.endswith("all") == (value < quantiles[0] or value > quantiles[4])


# --- what opd check says --------------------------------------------------------------------------------------


def numbers(metrics: Mapping[str, float]) -> dict[str, Number]:
    return {name: Number(value, 100) for name, value in metrics.items()}


@pytest.fixture
def ship(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(**documents: Any) -> None:
        named = {"predictor": PREDICTOR, "bands": BANDS}
        known = {named[name]: document for name, document in documents.items()}
        monkeypatch.setattr(predicting, "shipped", known.get)

    return put


def whole(metrics: Mapping[str, float]) -> dict[str, Any]:
    """A document with what is foretold, which its schema allows."""
    given_ = numbers(metrics)
    opinion = Opinion("T", GO, (), given_, prediction=predict(GO, given_), bands=tuple(among(given_)))
    found = document(
        "check",
        opinion,
        student="S",
        cost={"rollouts": 1, "tokens": 1, "seconds_expected": 1.0, "seconds": 1.0},
    )
    jsonschema.validate(found, schema())
    return found


def test_without_the_documents_the_range_is_the_verdicts(ship: Any) -> None:
    ship()
    some = pairs()[0].metrics
    found = whole(some)
    assert found["prediction"]["gap_recovery"] == dict(zip(("low", "high"), RECOVERED["go"], strict=True))
    assert found["bands"] == [] and "parts" not in found["prediction"]
    assert "this verdict" in "\n".join(lines(found)) and "most like" not in "\n".join(lines(found))


def test_with_them_a_number_its_reasons_and_its_place_are_told(ship: Any, told: Mapping[str, Any]) -> None:
    seen = pairs(families=("chain", FROZEN))
    ship(predictor=told, bands=bands_document(seen))
    best, worst = (
        pick(seen, key=lambda p: foretell(p.metrics, told)["value"])  # type: ignore[index]
        for pick in (max, min)
    )
    for pair, side in ((best, "for: "), (worst, "against: ")):
        found = whole(pair.metrics)
        own, text = found["prediction"]["gap_recovery"], "\n".join(lines(found))
        assert own["value"] == pytest.approx(foretell(pair.metrics, told)["value"])  # type: ignore[index]
        assert f"expected gap recovery: {own['value']:.0%}, {own['low']:.0%} to {own['high']:.0%}" in text
        assert (
            side in text
            and f"most like {pair.name}" in text
            and "outside" not in text
            and "108 pairs" in text
        )
        band = next(band for band in found["bands"] if band["name"] == "reverse_kl")
        where = lies(band["value"], band["working"]["quantiles"])
        row = next(line for line in text.splitlines() if line.startswith("reverse_kl") and where in line)
        assert row.split()[1] == f"{band['value']:.3f}" and row.split()[2] == where.split()[0]
    strange = whole({**best.metrics, "teachable_share": 40.0})
    text = "\n".join(lines(strange))
    assert "outside what was seen: teachable_share 40.00" in text and "unlike any pair seen" in text


def test_a_pair_that_was_not_rehearsed_is_told_by_reading_and_one_that_lacks_more_by_its_verdict(
    ship: Any, told: Mapping[str, Any]
) -> None:
    ship(predictor=told)
    read = {n: v for n, v in pairs()[0].metrics.items() if n != "rehearsed_loss_ratio"}
    found = whole(read)["prediction"]
    assert "loss_fall" not in found["parts"] and "without a rehearsal" in found["basis"]
    lacking = whole({n: v for n, v in read.items() if n != "teachable_share"})["prediction"]
    assert "parts" not in lacking and lacking["gap_recovery"] == dict(
        zip(("low", "high"), RECOVERED["go"], strict=True)
    )
    assert "parts" not in whole({**read, "sequence_reward_auroc": math.nan})["prediction"]
    level = whole({**pairs()[0].metrics, "teacher_lead": 0.04})["prediction"]
    assert level["gap_recovery"] is None, "a share of no lead is anything"


def test_bands_say_nothing_of_what_was_not_measured() -> None:
    document_ = bands_document(pairs())
    assert [band["name"] for band in bands({"reverse_kl": 0.1}, document_)] == ["reverse_kl"]
    assert bands({}, document_) == []


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("table") / "pairs.json"
    place.write_text(json.dumps({"rows": rows_of(pairs(families=("chain", FROZEN), bases=2))}))
    return place


def test_fit_writes_what_check_reads(table: Path, tmp_path: Path, capfd: Any) -> None:
    said = opd(capfd, "study", "fit", "--table", table, "--out", tmp_path, "--json")
    assert said.code == 0
    shipped, found = (json.loads((tmp_path / name).read_text()) for name in (PREDICTOR, BANDS))
    assert json.loads(said.out)["predictor"]["made"] == shipped["made"] == found["made"]
    made = shipped["made"]
    assert (made["pairs"], list(made["tables"]), made["rows_commits"], made["final"]) == (
        36,
        ["pairs.json"],
        ["c0ffee"],
        False,
    )
    assert (
        made["bases"] == ["chain 0", "chain 1"]
        and FROZEN not in found["bands"]
        and str(table.parent) not in json.dumps(made)
    )
    metrics = pairs(bases=2)[0].metrics
    assert foretell(metrics, shipped) is not None and bands(metrics, found)
    longest = max(map(len, (tmp_path / PREDICTOR).read_text().splitlines()))
    assert longest < 1300, "a line a record"


def test_the_end_is_told_with_what_was_asked_for(table: Path, tmp_path: Path, capfd: Any) -> None:
    first = opd(capfd, "study", "fit", "--table", table, "--out", tmp_path)
    assert f"{FROZEN} is frozen" in first.out and "family_out" not in first.out
    last = opd(capfd, "study", "fit", "--table", table, "--out", tmp_path, "--final")
    assert "72 pairs of 4 bases" in last.out and f"{FROZEN}, by models of the other family" in last.out
    score = json.loads((tmp_path / PREDICTOR).read_text())["scores"]["rehearsed"]["family_out"]["auroc"]
    line = next(line for line in last.out.splitlines() if line.startswith("- AUROC "))
    assert f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}], asked for 0.90" in line
    assert ("reached, lower bound too" in line) == (score["low"] >= 0.9)


def test_a_page_says_what_the_command_says_and_keeps_what_people_wrote(
    table: Path, tmp_path: Path, capfd: Any
) -> None:
    pages = tmp_path / "pages"
    fit_ = ("study", "fit", "--table", table, "--out", tmp_path, "--pages", pages)
    assert opd(capfd, *fit_).code == 0
    first = (pages / "predictor.md").read_text()
    assert f"{FROZEN} is frozen" in first and FROZEN not in (pages / "figures" / "predictor.svg").read_text()
    (pages / "predictor.md").write_text(first + "\nOurs.\n")
    said = opd(capfd, *fit_, "--final").out
    page, drawn = (pages / "predictor.md").read_text(), (pages / "figures" / "predictor.svg").read_text()
    assert page.endswith("Ours.\n") and page.count("| rehearsed |") == 4 and "by chains" in drawn
    missing = [line for line in said.splitlines()[1:] if line and line not in page]
    assert missing == []
    document = json.loads((tmp_path / PREDICTOR).read_text())
    made = [one for one in document["forecasts"]["rehearsed"] if one["scored_on"] == "family_out"]
    score = document["scores"]["rehearsed"]["family_out"]
    told_, came = (np.array([one[name] for one in made]) for name in ("told", "came"))
    assert scores.auroc(told_, came >= 0.5) == pytest.approx(score["auroc"]["value"], abs=1e-4)
    kinds = [line for line in page.splitlines() if line.startswith(("| improved | ", "| later self | "))]
    assert len(kinds) == 2
    first_kind = [one["came"] for one in made if one["pair"].endswith(" · improved")]
    assert f"{len(first_kind)}: {np.mean(first_kind):.2f}".replace("-", "−") in kinds[0]


def test_pairs_outside_the_grid_are_foretold_before_they_are_learnt_from(tmp_path: Path, capfd: Any) -> None:
    known = pairs(families=("chain", FROZEN), bases=2)
    strange = [replace(p, kind=OUTSIDE[0].name, group="other") for p in known[::18]]
    table = tmp_path / "pairs.json"
    table.write_text(json.dumps({"rows": rows_of(known)}))
    fit_ = ("study", "fit", "--table", table, "--out", tmp_path, "--pages", tmp_path, "--final")
    assert opd(capfd, *fit_).code == 0
    grid = json.loads((tmp_path / PREDICTOR).read_text())
    assert "Not run" in (tmp_path / "predictor.md").read_text() and grid["outside"] == []
    (tmp_path / "pairs-outside.json").write_text(json.dumps({"rows": rows_of(strange)}))
    assert opd(capfd, *fit_[:-1]).code == 0
    first = json.loads((tmp_path / PREDICTOR).read_text())
    assert first["outside"] == [] and first["made"]["pairs"] == len(known) // 2, (
        "no part in anything until the end"
    )
    assert opd(capfd, *fit_).code == 0
    shipped = json.loads((tmp_path / PREDICTOR).read_text())
    assert [one["pair"] for one in shipped["outside"]] == [p.name for p in strange]
    for one, pair in zip(shipped["outside"], strange, strict=True):
        assert one["value"] == pytest.approx(foretell(pair.metrics, grid)["value"], rel=1e-3), (
            "by models that saw none"
        )
        assert one["came"] == pytest.approx(pair.recovery, rel=1e-4)
    assert list(shipped["made"]["tables"]) == ["pairs.json", "pairs-outside.json"]
    assert shipped["made"]["pairs"] == len(known) + len(strange) == len(shipped["models"][0]["seen"])
    assert {k: v for k, v in shipped["scores"]["read"].items() if k != "shipped"} == grid["scores"]["read"]
    page = (tmp_path / "predictor.md").read_text()
    inside = sum(
        one["low"] <= min(max(one["came"], CLIP[0]), CLIP[1]) <= one["high"] for one in shipped["outside"]
    )
    assert f"{inside} of {len(strange)} in their intervals" in page
    (tmp_path / "predictor.md").write_text(page.replace("<!-- outside -->", ""))
    damaged = opd(capfd, *fit_)
    assert (
        damaged.code == 2 and "no place for `outside`" in damaged.error and "<!-- outside -->" in damaged.hint
    )


def test_noise_is_said_to_fall_short(tmp_path: Path) -> None:
    place = tmp_path / "pairs.json"
    place.write_text(json.dumps({"rows": rows_of(pairs(families=("chain", FROZEN), bases=2, signal=False))}))
    _, text = fit_pairs(place, out=tmp_path, final=True)
    assert (
        "asked for 0.80: not reached" in text and f"better than every single number, on {FROZEN}: no" in text
    )


def test_what_is_missing_is_said_with_what_mends_it(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    none = opd(capfd, "study", "fit", "--table", tmp_path / "none.json")
    assert none.code == 2 and "there is no table" in none.error and "opd study run pairs" in none.hint
    (tmp_path / "odd.json").write_text("[]")
    assert "is no table" in opd(capfd, "study", "fit", "--table", tmp_path / "odd.json").error
    nowhere = opd(capfd, "study", "fit", "--table", table, "--out", tmp_path / "no" / "folder")
    assert "there is no folder" in nowhere.error and not (tmp_path / "no").exists()
    few = tmp_path / "few.json"
    few.write_text(
        json.dumps({"rows": [r for r in rows_of(pairs(bases=1)) if r["arm"].startswith("improved")]})
    )
    assert "fewer than three kinds" in opd(capfd, "study", "fit", "--table", few, "--out", tmp_path).error
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    bare = opd(capfd, "study", "fit", "--table", table, "--out", tmp_path)
    assert "scikit-learn" in bare.error and bare.hint == "pip install 'opdkit[study]'"
    with pytest.raises(UserError, match="scikit-learn"):
        fit(copy.copy(pairs(bases=1)), FEATURES, 1.0)
