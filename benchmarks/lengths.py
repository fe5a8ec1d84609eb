"""Makes benchmarks/lengths.json: response lengths that both sides of against_trl.py are forced to in its ragged part.

    python benchmarks/lengths.py

Geometric with mean 51 (an end token of probability 1/51 at every position), cut off at 256. Stored, so that no
version of a random generator changes the workload.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

FILE = Path(__file__).resolve().parent / "lengths.json"
MEAN, LONGEST, STEPS, ROWS, SEED = 51, 256, 16, 32, 0


def geometric(rng: random.Random) -> int:
    return min(LONGEST, 1 + int(math.log(1.0 - rng.random()) / math.log(1.0 - 1.0 / MEAN)))


def main() -> None:
    rng = random.Random(SEED)
    steps = [[geometric(rng) for _ in range(ROWS)] for _ in range(STEPS)]
    lines = ",\n".join("  " + json.dumps(row) for row in steps)
    FILE.write_text(f"[\n{lines}\n]\n")
    flat = [n for row in steps for n in row]
    print(f"mean {sum(flat) / len(flat):.1f}, longest of a step {[max(row) for row in steps]}")


if __name__ == "__main__":
    main()
