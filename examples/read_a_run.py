"""The numbers of a run with the standard library alone: metrics.jsonl has one JSON object per step.

    python examples/read_a_run.py runs/demo/run        (without an argument: a made-up run of four steps)

A line counts once its newline is there: a run killed while it writes leaves a torn last line. A number that was not
finite is null; one that could not be measured is absent.
"""

import json
import sys
import tempfile
from pathlib import Path

NAMES = ("loss", "reverse_kl", "overlap_advantage", "overlap_ratio", "overlap_mass_student", "entropy_gap")


def rows(folder):
    """One dictionary per step, in order."""
    whole, _, _torn = (Path(folder) / "metrics.jsonl").read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()]


def curve(steps, name):
    """[(step, value)] where there is a value."""
    return [(row["step"], row[name]) for row in steps if row.get(name) is not None]


def along_the_response(row, name):
    """{first response token of a bin: its mean} of one step, in order."""
    keys = [key.split("/") for key in row if key.startswith("by_position/") and key.endswith(f"/{name}")]
    return {start: row[f"by_position/{start}/{name}"] for start in sorted(int(key[1]) for key in keys)}


def main(folder):
    steps = rows(folder)
    curves = {name: points for name in NAMES if (points := curve(steps, name))}
    for name, points in curves.items():
        print("{:22} step {} {:9.4f}  →  step {} {:9.4f}".format(name, *points[0], *points[-1]))
    last = along_the_response(steps[-1], "reverse_kl")
    print("KL of the last step " + ", ".join(f"from token {t}: {x:.3f}" for t, x in last.items()))
    return curves


def made_up(folder):
    """Four steps, one number not finite, and a torn fifth."""
    lines = [
        {"step": step, "loss": 1 / step, "entropy_gap": None if step == 2 else 0.1}
        | {f"by_position/{start}/reverse_kl": (0.1 + start / 80) / step for start in (0, 8, 16)}
        for step in range(1, 5)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo'
    (Path(folder) / "metrics.jsonl").write_text(text)
    return folder


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else made_up(scratch))
