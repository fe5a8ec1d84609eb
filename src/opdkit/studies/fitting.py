"""`opd study fit`: the pair factory's table → what `opd check` reads, and how far it carries, in words."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opdkit.recipes.foretell import BANDS, PREDICTOR
from opdkit.run.disk import write_atomic
from opdkit.run.environment import environment
from opdkit.studies.estimate import Rows
from opdkit.studies.factory import BEYOND, OUTSIDE
from opdkit.studies.predictor import FROZEN, Pair, of_base, pairs_of
from opdkit.studies.predictor_document import bands_document, predictor_document
from opdkit.studies.predictor_told import told, write_page
from opdkit.studies.tables import short, widest
from opdkit.types import UserError

HINT = "opd study run pairs --scale full"


def fit_pairs(
    table: Path, *, out: Path, final: bool, pages: Path | None = None
) -> tuple[dict[str, Any], str]:
    """(the same for machines, for people). Writes OUT/predictor.json and OUT/bands.json; a page and a figure into `pages`.

    Raises UserError where there is no table, or too little in it, or no scikit-learn, or no folder to write to.
    """
    rows = _rows(table)
    found, others = pairs_of([row for row in widest(rows) if final or row["family"] != FROZEN])
    if not out.is_dir():
        raise UserError(f"there is no folder {out}", hint="opd study fit --out DIR")
    more = _outside(table) if final else []
    beyond, _ = pairs_of(more, kinds=OUTSIDE)
    tables = [table, *([_beside(table)] if more else [])]
    made = {**_provenance(tables, [*rows, *more], [*found, *beyond]), "others": others, "final": final}
    predictor = short({"made": made, **predictor_document(found, final=final, beyond=beyond)})
    documents = {PREDICTOR: predictor, BANDS: short({"made": made, **bands_document([*found, *beyond])})}
    for name, document in documents.items():
        write_atomic(out / name, data=f"{_lines(document)}\n".encode())
    if pages is not None:
        write_page(predictor, pages)
    return {"predictor": predictor, "bands": documents[BANDS]}, "\n".join(told(predictor))


def _rows(table: Path) -> Rows:
    if not table.is_file():
        raise UserError(f"there is no table {table}", hint=HINT)
    try:
        rows = json.loads(table.read_text(encoding="utf-8"))["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{table} is no table of a study: {error}", hint=HINT) from error
    return rows  # type: ignore[no-any-return]


def _outside(table: Path) -> Rows:
    """Of kinds outside the grid: their table, if it lies beside this one."""
    place = _beside(table)
    return widest(_rows(place)) if place.is_file() else []


def _beside(table: Path) -> Path:
    return table.with_name(f"{BEYOND.name}.json")


def _provenance(tables: Sequence[Path], rows: Rows, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Of which tables, whatever their folder; which code made their rows, and which code fitted."""
    return {
        "tables": {t.name: hashlib.blake2b(t.read_bytes(), digest_size=8).hexdigest() for t in tables},
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
