"""The fitted predictor in words, and as a page: what it foretold of pairs that it had not seen, and what came.

DIR/predictor.md            scores, kinds of pairs, weights
DIR/figures/predictor.svg

What people wrote between the blocks stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from opdkit.run.disk import write_atomic
from opdkit.studies.blocks import skeleton, write_blocks
from opdkit.studies.factory import KINDS
from opdkit.studies.figures import foretold
from opdkit.studies.pages import FIGURES
from opdkit.studies.predictor import CLIP, FROZEN
from opdkit.studies.predictor_document import SUCCESS
from opdkit.studies.scores import auroc
from opdkit.studies.testbed import table as markdown

Outside = Sequence[Mapping[str, Any]]
"""Forecasts of pairs of other kinds, with what `came`."""
ASKED = {"AUROC": 0.90, "AUROC on the hard subset": 0.75, "Spearman": 0.80}
"""Out of family; AUROC overall and on the hard subset, and Spearman's correlation. Told beside what came, met or not."""
WORDS = {
    "group_out": "kind of teacher left out",
    "family_out": f"{FROZEN}, by models of the other family",
    "family_and_group_out": f"{FROZEN}, kind of teacher left out too",
    "all": f"all: chains as in the first line, {FROZEN} as in the third",
    "shipped": "with the kinds outside the grid, kind of teacher left out",
}
FAMILY_OF = {"group_out": "chain", "family_out": FROZEN}
"""Whose pairs are scored."""
ALONE = {**FAMILY_OF, "all": "all"}

NAME = "predictor"
NOT_RUN = "Not run: `opd study run pairs-outside --scale full`."
PANELS = {
    "group_out": "chain, kind of teacher left out",
    "family_out": f"{FROZEN}, by chains",
    "family_and_group_out": f"{FROZEN}, by chains, kind left out",
}
QUESTION = "Can it be known before training how much of its gap a pair will recover?"


def told(predictor: Mapping[str, Any]) -> Iterator[str]:
    """How many pairs, how good, by what weights; what was asked for and was not reached is said; and pairs of other kinds."""
    made = predictor["made"]
    yield f"{made['pairs']} pairs of {len(made['bases'])} bases ({_others(made['others'])})"
    yield ""
    yield from scored(predictor)
    yield ""
    for model in predictor["models"]:
        yield from weights(model)
        yield ""
    yield from asked(predictor)
    if predictor["outside"]:
        yield ""
        yield from outside(predictor["outside"])


def _others(others: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(others.items())) or "all that were run"


def scored(predictor: Mapping[str, Any]) -> Iterator[str]:
    """Both models on every scoring."""
    head = [
        "model",
        "scored on",
        "pairs (worked)",
        "AUROC",
        "hard subset",
        "Spearman",
        "in the interval",
        "best single",
    ]
    rows = []
    for name, scores in predictor["scores"].items():
        for where, score in scores.items():
            hard = score["hard"]
            rows.append(
                [
                    name,
                    WORDS[where],
                    f"{score['pairs']} ({score['succeeded']})",
                    _interval(score["auroc"]),
                    "–"
                    if hard is None
                    else f"{_interval(hard['auroc'])}, {hard['pairs']} pairs ({hard['succeeded']})",
                    _interval(score["spearman"]),
                    _interval(score["in_interval"]),
                    _best_single(score),
                ]
            )
    yield from markdown(head, rows)
    yield from _ceiling(predictor["run_by_run"])


def _ceiling(scores: Mapping[str, Any]) -> Iterator[str]:
    """How well a run foretells another of the same pair."""
    for family, score in scores.items():
        if score is not None:
            yield ""
            yield (
                f"For scale, {family}: one run of a pair foretells another, that differs by sampling alone, with an AUROC of "
                f"{_interval(score['auroc'])} and a Spearman of {_interval(score['spearman'])}."
            )


def singles(predictor: Mapping[str, Any]) -> Iterator[str]:
    """Every number alone, in the direction that does better on these very pairs, and how much better the predictor is."""
    scores = {where: score for where, score in predictor["scores"]["rehearsed"].items() if where in ALONE}
    head = [
        "alone",
        *(f"{ALONE[where]}: {what}" for where in scores for what in ("AUROC", "better by", "hard subset")),
    ]
    rows = []
    for name in predictor["scores"]["rehearsed"]["group_out"]["singles"]:
        cells = [name]
        for score in scores.values():
            one, hard = score["singles"][name], (score["hard"] or {}).get("singles", {}).get(name)
            hard_one = "–" if hard is None or hard["auroc"] is None else f"{hard['auroc']:.2f}"
            cells += [f"{one['auroc']:.2f}", _interval(one["better_by"]), hard_one]
        rows.append(cells)
    yield from markdown(head, rows)


def _best_single(score: Mapping[str, Any]) -> str:
    known = {name: one for name, one in score["singles"].items() if one["auroc"] is not None}
    if not known:
        return "–"
    best = max(known, key=lambda name: known[name]["auroc"])
    return f"{best} {known[best]['auroc']:.2f}; better by {_interval(known[best]['better_by'])}"


def weights(model: Mapping[str, Any]) -> Iterator[str]:
    """One model, whole: anybody can foretell with it."""
    yield f"**{model['name']}**: gap recovery = {model['intercept']:.2f} + Σ weight × (value − mean) ÷ scale"
    yield ""
    head = ["feature", "weight", "mean", "scale", "seen"]
    yield from markdown(
        head,
        [
            [
                name,
                f"{f['coefficient']:+.3f}",
                f"{f['mean']:.3f}",
                f"{f['scale']:.3f}",
                f"{f['low']:.2f} to {f['high']:.2f}",
            ]
            for name, f in model["features"].items()
        ],
    )


def asked(predictor: Mapping[str, Any]) -> Iterator[str]:
    """What was asked for, what came of it on the frozen family, and whether it was reached."""
    scores = predictor["scores"]["rehearsed"]
    if "family_out" not in scores:
        yield f"{FROZEN} is frozen: what was asked for is told out of family, by `opd study fit --final`."
        return
    score = scores["family_out"]
    came = {
        "AUROC": score["auroc"],
        "AUROC on the hard subset": score["hard"] and score["hard"]["auroc"],
        "Spearman": score["spearman"],
    }
    for name, least in ASKED.items():
        found = came[name]
        reached = found is not None and found["low"] is not None and found["low"] >= least
        near = found is not None and found["value"] >= least
        word = (
            "reached, lower bound too"
            if reached
            else "reached, its lower bound not"
            if near
            else "not reached"
        )
        yield f"- {name} {_interval(found)}, asked for {least:.2f}: {word}"
    whole = scores["all"]
    yield f"- better than every single number, on {FROZEN}: {_better(score)}; on all {whole['pairs']} pairs: {_better(whole)}"


def _better(score: Mapping[str, Any]) -> str:
    """Whether the intervals of all differences lie above 0."""
    behind = [
        name
        for name, one in score["singles"].items()
        if not ((one["better_by"] or {}).get("low") or -1.0) > 0
    ]
    return f"no, not surely than {', '.join(behind)}" if behind else "yes"


def outside(beyond: Outside) -> Iterator[str]:
    """Pairs of kinds that nobody thought of when it was made."""
    head = ["pair", "foretold", "came", "in the interval", "outside what was seen", "most like"]
    rows = []
    for one in beyond:
        names = [o["feature"] for o in one["outside"]]
        far = one["nearest"]["distance"] > one["nearest"]["reach"]
        rows.append(
            [
                one["pair"],
                f"{one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]".replace("-", "−"),
                f"{one['came']:.2f}".replace("-", "−"),
                "yes" if _held(one) else "no",
                ", ".join([*names, *(["unlike any"] if far else [])]) or "–",
                one["nearest"]["pair"],
            ]
        )
    yield from markdown(head, rows)
    values = np.array([one["value"] for one in beyond])
    worked = np.array([one["came"] >= SUCCESS for one in beyond])
    ranked = auroc(values, worked)
    yield ""
    yield (
        f"{sum(map(_held, beyond))} of {len(beyond)} in their intervals; {int(worked.sum())} recovered half of their gap or more"
        + ("." if ranked is None else f", AUROC {ranked:.2f}.")
    )


def verdicts(predictor: Mapping[str, Any]) -> Iterator[str]:
    """What the verdict of the very checks was worth."""
    parts = {name: some for name, some in predictor["verdicts"].items() if some}
    head = ["verdict", *(f"{name}: recovered half or more" for name in parts)]
    names = sorted(
        {verdict for some in parts.values() for verdict in some}, key=lambda name: (name != "go", name)
    )
    rows = []
    for name in names:
        cells = [some.get(name, {"worked": 0, "not": 0}) for some in parts.values()]
        rows.append([name, *(f"{c['worked']} of {c['worked'] + c['not']}" for c in cells)])
    yield from markdown(head, rows)


def _held(one: Mapping[str, Any]) -> bool:
    low, high = CLIP
    return bool(one["low"] <= min(max(one["came"], low), high) <= one["high"])


def _interval(score: Mapping[str, float | None] | None) -> str:
    if score is None:
        return "–"
    if score["low"] is None:
        return f"{score['value']:.2f}"
    return f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"


# --- the page -----------------------------------------------------------------------------------------------


def write_page(predictor: Mapping[str, Any], place: Path) -> None:
    """The page and its figure in `place`, made where they are not."""
    (place / FIGURES).mkdir(parents=True, exist_ok=True)
    write_atomic(place / FIGURES / f"{NAME}.svg", data=foretold(predictor, PANELS).encode())
    blocks = _blocks(predictor)
    write_blocks(place / f"{NAME}.md", blocks, new=skeleton(QUESTION, blocks))


def _blocks(predictor: Mapping[str, Any]) -> dict[str, Iterator[str]]:
    return {
        "asked": asked(predictor),
        "figure": _figure(),
        "scores": scored(predictor),
        "singles": singles(predictor),
        "kinds": _kinds(predictor),
        "outside": outside(beyond) if (beyond := predictor["outside"]) else iter([NOT_RUN]),
        "verdicts": verdicts(predictor),
        "weights": _all_weights(predictor),
    }


def _figure() -> Iterator[str]:
    yield f"![Gap recovery foretold, and that came]({FIGURES}/{NAME}.svg)"
    yield ""
    yield "A point is a pair; on the line it did as foretold, above the dashed line it recovered half of its gap."


def _all_weights(predictor: Mapping[str, Any]) -> Iterator[str]:
    for model in predictor["models"]:
        yield from weights(model)
        yield ""


def _kinds(predictor: Mapping[str, Any]) -> Iterator[str]:
    """Kind by kind: pairs with a lead, what came of them and what was foretold by models that had seen none like them."""
    made = predictor["forecasts"]["rehearsed"]
    columns = [name for name in PANELS if any(one["scored_on"] == name for one in made)]
    head = ["kind", "kind of teacher", *(f"{FAMILY_OF[c]}: pairs, came" for c in columns if c in FAMILY_OF)]
    head += [f"foretold: {PANELS[name]}" for name in columns]
    body = []
    for kind in KINDS:
        mine = [one for one in made if one["kind"] == kind.name]
        parts = {name: [one for one in mine if one["scored_on"] == name] for name in columns}
        came = [_spread([one["came"] for one in parts[name]]) for name in columns if name in FAMILY_OF]
        said = [_spread([one["told"] for one in parts[name]], counted=False) for name in columns]
        body.append([kind.name, kind.group, *came, *said])
    yield from markdown(head, body)


def _spread(values: Sequence[float], *, counted: bool = True) -> str:
    """The mean, from the least to the most."""
    if not values:
        return "no lead" if counted else "–"
    count = f"{len(values)}: " if counted else ""
    return f"{count}{fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})".replace("-", "−")
