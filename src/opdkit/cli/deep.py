"""`opd diagnose --depth` on the terminal: the maps' last column, and how to see all of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from opdkit.config import Config

SHOWN = (
    "entropy_student",
    "entropy_teacher",
    "overlap_ratio",
    "advantage_size",
    "sign_reliability",
    "continuation_advantage",
)


def show_depth(
    config: Config,
    rollouts: Path,
    *,
    out: Path,
    layout: str,
    limit: int | None,
    continued: int,
    say: Callable[[str], None],
    as_json: bool,
) -> None:
    """Make the maps in `out` and say what stands in them."""
    from opdkit.recipes.depth import depth_maps

    rows = depth_maps(config, rollouts, out=out, layout=layout, limit=limit, going_on=continued, say=say)
    if as_json:
        print(json.dumps({"maps": str(out), "columns": rows}))
        return
    print("\n".join(table(rows[-1])))
    print(f"all {len(rows)} steps as maps: opd report {shlex.quote(str(out))}")


def table(row: Mapping[str, Any]) -> Sequence[str]:
    """One step's numbers by position.

    >>> table({"step": 3, "by_position/0/overlap_ratio": 0.5, "by_position/8/overlap_ratio": 0.25})
    ['step 3', 'from position   overlap_ratio', '            0           0.500', '            8           0.250']
    """
    places = sorted({int(key.split("/")[1]) for key in row if key.startswith("by_position/")})
    names = [n for n in SHOWN if any(f"by_position/{place}/{n}" in row for place in places)]
    lines = [f"step {row['step']}", "   ".join(["from position", *names])]
    for place in places:
        values = [row.get(f"by_position/{place}/{name}") for name in names]
        cells = [
            ("–" if value is None else f"{value:.3f}").rjust(len(name))
            for name, value in zip(names, values, strict=True)
        ]
        lines.append("   ".join([str(place).rjust(len("from position")), *cells]))
    return lines
