"""`make bench` and `make bench-check`: every row in a process of its own, results on disk after each. Run through peers.py.

    python benchmarks/peers.py --venv .venv-peers --bench [--rows equal,ragged]       measure, write results/DATE-MACHINE.json
    python benchmarks/peers.py --venv .venv-peers --bench --check [--rows …]          fewer pairs, compared with what is stored

A call with `--rows` replaces those rows in today's file. Exit codes of the check: 0 no ratio fell, 1 one did (check.py has the
rule), 2 nothing is stored for this machine. Of the measurement: 1 if a row ended badly or our loss is not TRL's.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import check
from machine import facts
from opdkit.run.environment import environment
from peers import ENVIRONMENT
from record import RESULTS, Book, slug, stored
from rows import ROWS, Row, chosen

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", help=f"separated by commas: {', '.join(row.name for row in ROWS)}")
    parser.add_argument("--check", action="store_true", help="compare ratios with the stored ones")
    parser.add_argument("--pairs", type=int, help="timed pairs of every row, in place of its own number")
    parser.add_argument("--assets", type=Path, default=Path(".cache/bench"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="another folder for result files")
    given = parser.parse_args()
    try:
        rows = chosen(given.rows, short=given.check)
    except ValueError as error:
        parser.error(str(error))
    machine = facts("trl", "accelerate", "datasets")
    name = slug(machine["cpu"], machine["cores"])
    if given.check:
        return checked(rows, given, name)
    return measured(rows, given, name, machine)


def measured(rows: list[Row], given: argparse.Namespace, name: str, machine: dict[str, Any]) -> int:
    path = given.results / f"{datetime.date.today()}-{name}.json"
    kept = json.loads(path.read_text())["rows"] if given.rows and path.is_file() else []
    book = Book(path, header(machine), keep=kept)
    fine, began = True, time.perf_counter()
    for row in rows:
        book.forget(row.name)
        for record in records(row, given.pairs or row.pairs, given.assets):
            book.add(record)
            fine &= record.get("checked", True) and record.get("expected", "failed" not in record)
            tell(record)
    book.finish(row.name for row in ROWS)
    print(f"{time.perf_counter() - began:.0f} s, written to {path.name}", flush=True)
    return 0 if fine else 1


def checked(rows: list[Row], given: argparse.Namespace, name: str) -> int:
    files = stored(given.results, machine=name)
    if not files:
        print(f"error: nothing is stored for this machine ({name})\nhint:  make bench", file=sys.stderr)
        return 2
    before = json.loads(files[-1].read_text())["rows"]
    now = []
    for row in rows:
        pairs = given.pairs or row.short or row.pairs
        for record in records(row, pairs, given.assets, short=True):
            now.append(record)
            tell(record)
    lines = check.compare(now, before)
    print(f"\nagainst {files[-1].name}\n{check.shown(lines)}")
    return int(check.fell(lines))


def header(machine: dict[str, Any]) -> dict[str, Any]:
    about = environment()
    return {
        "machine": machine,
        "commit": about["commit"],
        "command": f"python benchmarks/{about['command']}",
        "dry_run": False,
        "trainers_without_a_row": _others(),
    }


def records(row: Row, pairs: int, assets: Path, *, short: bool = False) -> Iterator[dict[str, Any]]:
    """What the row's script prints, line by line as it comes; its end in words if it ended badly."""
    load, commit = round(os.getloadavg()[0], 2), environment()["commit"]
    stamp = {"commit": commit, "at": f"{datetime.datetime.now():%Y-%m-%d %H:%M}", "load": load}
    command = [sys.executable, HERE / row.script, "--row", row.name, "--pairs", str(pairs), "--records"]
    command += ["--assets", assets, *(["--short"] if short else [])]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT})
    assert child.stdout is not None
    seen = 0
    with child:
        for line in child.stdout:
            if line.startswith('{"name":'):
                seen += 1
                yield json.loads(line) | stamp
            else:
                print(line, end="", file=sys.stderr)
    if child.returncode or not seen:
        name = row.name if not seen else f"{row.name}/end"
        yield {"name": name, "failed": f"{row.script} ended with code {child.returncode}"} | stamp


def tell(record: dict[str, Any]) -> None:
    if "failed" in record:
        said = f"not measured: {record['failed']}"
    elif "ratio" in record:
        ratio = record["ratio"]
        said = f"{ratio['of']} {ratio['median']:.3g} ({ratio['min']:.3g} to {ratio['max']:.3g}, {ratio['pairs']} pairs)"
        if "checked" in record:
            said += "  agrees" if record["checked"] else "  DOES NOT AGREE"
    else:
        said = record["what"]
    print(f"{record['name']:20} {said}", flush=True)


def _others() -> dict[str, str]:
    """Distilling trainers of the installed TRL that no row has, with the reason."""
    done = subprocess.run([sys.executable, HERE / "trainers.py"], stdout=subprocess.PIPE, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(json.loads(lines[-1])) if lines else {"trainers.py": f"ended with code {done.returncode}"}


if __name__ == "__main__":
    sys.exit(main())
