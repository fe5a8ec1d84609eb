"""Two documents of `opd check` side by side: what the remedy changed, number by number."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opdkit.recipes.document import SCHEMA, SHOWN
from opdkit.types import UserError


def read_document(path: Path) -> dict[str, Any]:
    """A document that `opd check` or `opd diagnose` left. UserError where it is none."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}", hint="--against FILE.check.json of an earlier check"
        ) from error
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict) or told.get("schema") != SCHEMA:
        raise UserError(
            f"{path} is no document of opd check", hint="--against FILE.check.json of an earlier check"
        )
    return told


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Verdicts and every metric that both have: before, after, change; `apart` where their intervals do not meet."""
    both = [name for name in new["metrics"] if name in old["metrics"]]
    return {
        "student": [old["student"], new["student"]],
        "teacher": [old["teacher"], new["teacher"]],
        "verdict": [old["verdict"]["name"], new["verdict"]["name"]],
        "metrics": {name: _change(old["metrics"][name], new["metrics"][name]) for name in both},
    }


def _change(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    known = None not in (old["low"], old["high"], new["low"], new["high"])
    apart = (new["low"] > old["high"] or new["high"] < old["low"]) if known else None
    return {
        "before": old["value"],
        "after": new["value"],
        "change": new["value"] - old["value"],
        "apart": apart,
    }


def lines(told: Mapping[str, Any]) -> list[str]:
    """The same for people, with the numbers that a terminal shows."""
    rows = [f"against the earlier check: {told['verdict'][0]} → {told['verdict'][1]}"]
    for what in ("student", "teacher"):
        if told[what][0] != told[what][1]:
            rows.append(f"  {what} {told[what][0]} → {told[what][1]}")
    rows.append(f"  {'':30} {'before':>8} {'now':>8} {'change':>8}")
    for name in (n for n in SHOWN if n in told["metrics"]):
        m = told["metrics"][name]
        sure = {True: "", False: "  intervals meet", None: ""}[m["apart"]]
        rows.append(f"  {name:30} {m['before']:8.3f} {m['after']:8.3f} {m['change']:+8.3f}{sure}")
    return rows
