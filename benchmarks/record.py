"""What a benchmark writes down: records, one file per machine and day, written after every record. No torch, no opdkit.

A record is a dictionary. `name` is always there; then either `failed` (the error, in its own words) or

    what                     one line: what was compared
    ratio                    of paired times: median, min, max, pairs, values; `of` says which over which, `better` where to
    ratio_of_processor_time  the same of processor seconds
    seconds                  side → median, min, max of a step
    tokens_per_second        side → the same
    peak_mb                  side → resident MB at most, each side in a process of its own (MB = 2**20 bytes)
    held_out_reverse_kl      before, and of both sides after the same number of tokens; nats per token
    agreement, checked       our loss and gradient norm on their tokens; and that the check notices one changed token
    commit, at, load         of this record: files may be made in several calls

and whatever else the row has to say. benchmarks/gpu.py writes the same kind of file.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
DATED = re.compile(r"(\d{4}-\d{2}-\d{2})-(.+)\.json")


def digits(value: float, count: int = 4) -> float:
    return float(f"{value:.{count}g}")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, min and max, four digits each.

    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'min': 1.0, 'max': 3.0}
    """
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: digits(value) for name, value in found.items()}


def ratio(
    over: Sequence[float], under: Sequence[float], *, of: str = "TRL / ours", better: str = "higher"
) -> dict[str, Any]:
    """The statistics of pairwise quotients: pairs that were measured one after the other, never medians of each side.

    >>> ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0])["median"], ratio([2.0], [1.0])["pairs"]
    (2.0, 1)
    """
    values = [a / b for a, b in zip(over, under, strict=True)]
    return {
        "of": of,
        "better": better,
        **spread(values),
        "pairs": len(values),
        "values": [digits(v) for v in values],
    }


def slug(cpu: str, cores: int) -> str:
    """A machine in one word.

    >>> slug("Intel(R) Xeon(R) CPU @ 2.20GHz", 2), slug("AMD EPYC", 2)
    ('intel-xeon-2-20ghz-2', 'amd-epyc-2')
    """
    words = re.sub(r"\((R|TM|r|tm)\)|\bCPU\b|@|\bProcessor\b", " ", cpu)
    return "-".join(re.findall(r"[a-z0-9]+", f"{words} {cores}".lower()))


def stored(folder: Path = RESULTS, *, machine: str | None = None) -> list[Path]:
    """Result files of a machine, or of any, oldest first."""
    found = [(match[1], match[2], path) for path in folder.glob("*.json") if (match := DATED.fullmatch(path.name))]  # fmt: skip
    return [path for _, name, path in sorted(found) if machine in (None, name)]


class Book:
    """The file as it grows: what was measured so far is on disk, and `complete` says whether that is all."""

    def __init__(self, path: Path | None, header: dict[str, Any], *, keep: Iterable[dict[str, Any]] = ()):
        self.path = path
        self.content: dict[str, Any] = {**header, "complete": False, "rows": list(keep)}

    def add(self, record: dict[str, Any]) -> None:
        """One record, in the place of an earlier one of its name."""
        rows = self.content["rows"]
        at = next((i for i, row in enumerate(rows) if row["name"] == record["name"]), len(rows))
        rows[at : at + 1] = [record]
        self.write()

    def forget(self, row: str) -> None:
        """Records of a row that is measured again: a failure of today must not leave yesterday's figures standing."""
        self.content["rows"] = [r for r in self.content["rows"] if r["name"].partition("/")[0] != row]

    def finish(self, wanted: Iterable[str]) -> None:
        """`complete` if there is a record of every wanted row."""
        there = {row["name"].partition("/")[0] for row in self.content["rows"]}
        self.content["complete"] = set(wanted) <= there
        self.write()

    def write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n")
        partial.rename(self.path)
