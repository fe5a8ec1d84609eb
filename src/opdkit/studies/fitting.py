"""`opd study fit`: the pair factory's table → what `opd check` reads, and how far it carries, in words."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opdkit.recipes.foretell import BANDS, PREDICTOR
from opdkit.run.disk import write_atomic
from opdkit.run.environment import environment
from opdkit.studies.predictor import FROZEN, Pair, bands_document, of_base, pairs_of, predictor_document
from opdkit.studies.tables import short, widest
from opdkit.studies.testbed import table as markdown
from opdkit.types import UserError

HINT = "opd study run pairs --scale full"
ASKED = {"auroc": 0.90, "hard": 0.75, "spearman": 0.80}
"""Out of family; AUROC overall and on the hard subset, and Spearman's correlation. Told beside what came, met or not."""
WORDS = {
    "group_out": "kind of teacher left out",
    "family_out": f"{FROZEN}, by models of the other family",
    "family_and_group_out": f"{FROZEN}, kind of teacher left out too",
}


def fit_pairs(table: Path, *, out: Path, final: bool) -> tuple[dict[str, Any], str]:
    """(the same for machines, for people). Writes OUT/predictor.json and OUT/bands.json.

    Raises UserError where there is no table, or too little in it, or no scikit-learn, or no folder to write to.
    """
    rows = _rows(table)
    found, others = pairs_of(widest(rows))
    used = found if final else [pair for pair in found if pair.family != FROZEN]
    if not out.is_dir():
        raise UserError(f"there is no folder {out}", hint="opd study fit --out DIR")
    made = {**_provenance(table, rows, used), "others": others, "final": final}
    predictor = {"made": made, **predictor_document(found, final=final)}
    documents = {PREDICTOR: predictor, BANDS: {"made": made, **bands_document(used)}}
    for name, document in documents.items():
        write_atomic(out / name, data=f"{_lines(short(document))}\n".encode())
    return {"predictor": predictor, "bands": documents[BANDS]}, "\n".join(told(predictor))


def _rows(table: Path) -> Sequence[Mapping[str, Any]]:
    if not table.is_file():
        raise UserError(f"there is no table {table}", hint=HINT)
    try:
        rows = json.loads(table.read_text(encoding="utf-8"))["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{table} is no table of a study: {error}", hint=HINT) from error
    return rows  # type: ignore[no-any-return]


def _provenance(table: Path, rows: Sequence[Mapping[str, Any]], pairs: Sequence[Pair]) -> dict[str, Any]:
    """Of which table, whatever its folder; which code made its rows, and which code fitted."""
    return {
        "table": table.name,
        "table_blake2b": hashlib.blake2b(table.read_bytes(), digest_size=8).hexdigest(),
        "rows_commits": sorted({str(row["commit"]) for row in rows}),
        "commit": environment()["commit"],
        "date": datetime.date.today().isoformat(),
        "pairs": len(pairs),
        "bases": sorted({f"{family} {seed}" for family, seed in map(of_base, pairs)}),
        "kinds": sorted({pair.kind for pair in pairs}),
    }


def _lines(value: Any, *, levels: int = 4, pad: str = "\n") -> str:
    """JSON with so many levels laid out and what lies deeper on one line: pairs and features are records, a line each.

    >>> print(_lines({"a": [[1, 2], [3]]}, levels=2))
    {
     "a": [
      [1, 2],
      [3]
     ]
    }
    """
    if levels == 0 or not value or not isinstance(value, dict | list):
        return json.dumps(value)
    deeper = f"{pad} "
    inner = value.items() if isinstance(value, dict) else ((None, each) for each in value)
    parts = [
        ("" if key is None else f"{json.dumps(key)}: ") + _lines(each, levels=levels - 1, pad=deeper)
        for key, each in inner
    ]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}{deeper}{f',{deeper}'.join(parts)}{pad}{closing}"


# --- in words -----------------------------------------------------------------------------------------------


def told(predictor: Mapping[str, Any]) -> Iterator[str]:
    """How many pairs, how good, by what weights; what was asked for and was not reached is said."""
    made = predictor["made"]
    yield f"{made['pairs']} pairs of {len(made['bases'])} bases ({_others(made['others'])})"
    yield ""
    yield from _scored(predictor)
    yield ""
    for model in predictor["models"]:
        yield from _weights(model)
        yield ""
    yield from _asked(predictor["scores"]["rehearsed"])


def _others(others: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(others.items())) or "all that were run"


def _scored(predictor: Mapping[str, Any]) -> Iterator[str]:
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


def _best_single(score: Mapping[str, Any]) -> str:
    known = {name: one for name, one in score["singles"].items() if one["auroc"] is not None}
    if not known:
        return "–"
    best = max(known, key=lambda name: known[name]["auroc"])
    return f"{best} {known[best]['auroc']:.2f}; better by {_interval(known[best]['better_by'])}"


def _weights(model: Mapping[str, Any]) -> Iterator[str]:
    yield f"{model['name']}: gap recovery = {model['intercept']:.2f} + Σ weight × (value − mean) ÷ scale"
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


def _asked(scores: Mapping[str, Any]) -> Iterator[str]:
    if "family_out" not in scores:
        yield f"{FROZEN} is frozen: what was asked for is told out of family, by `opd study fit --final`."
        return
    score = scores["family_out"]
    came = {
        "auroc": score["auroc"],
        "hard": score["hard"] and score["hard"]["auroc"],
        "spearman": score["spearman"],
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
    behind = [
        n for n, one in score["singles"].items() if not ((one["better_by"] or {}).get("low") or -1.0) > 0
    ]
    yield f"- better than every single feature: {'no: not surely than ' + ', '.join(behind) if behind else 'yes'}"


def _interval(score: Mapping[str, float | None] | None) -> str:
    if score is None:
        return "–"
    if score["low"] is None:
        return f"{score['value']:.2f}"
    return f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"
