"""Peak memory of each side of a row, in a process of its own: the resident peaks of two sides in one process do not alternate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("against_trl.py")


def resident(what: str = "VmRSS") -> float:
    """MB (2**20 bytes) that this process has in memory now; `VmHWM`: had at most. Linux.

    Not getrusage: its peak survives exec, so a child would tell of the process that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


def tell_peak(before: float) -> None:
    """`before`: with the models loaded and nothing done; what is above is the step's own."""
    print(json.dumps({"peak_mb": round(resident("VmHWM")), "before_mb": round(before)}))


def peak_of_both(row: str, assets: Path) -> dict[str, Any]:
    """Side → MB at most over two steps; None where the child ended badly."""
    return {side: _child(side, row, assets) for side in ("theirs", "ours")}


def _child(side: str, row: str, assets: Path) -> float | None:
    command = [sys.executable, SCRIPT, "--row", row, "--assets", assets, "--alone", side]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"peak_mb"')]
    return None if done.returncode or not lines else float(json.loads(lines[-1])["peak_mb"])
