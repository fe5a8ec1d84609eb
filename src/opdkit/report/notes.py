"""What a run wrote, made ready to be shown: labelled numbers, texts of bearable length."""

import json
from collections.abc import Mapping
from typing import Any

from opdkit.report.text import number, percent, shown

SHOWN_CHARS = 20_000  # of a prompt or response; a runaway rollout must not make the page unusable


def facts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Numbers and short words of a record; long texts and lists stay in the run folder."""
    told = []
    for key, value in row.items():
        if number(value) is not None:
            told.append((key, percent(number(value)) if key.endswith("_fraction") else shown(number(value))))
        elif isinstance(value, bool) or (isinstance(value, str) and 0 < len(value) <= 200):
            told.append((key, str(value)))
    return told


def text(value: Any) -> str:
    """A text, or messages as JSON; cut when very long, saying by how much."""
    found = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
    rest = len(found) - SHOWN_CHARS
    return found if rest <= 0 else f"{found[:SHOWN_CHARS]}\n… {rest:,} more characters in the run folder"
