"""What `make bench` runs: decoding, the loss stage, the cost of diagnostics, each in a process of its own.

    python benchmarks/run_all.py

Prints what each prints, then how long it took. The comparison with TRL has an environment of its own and is not part of
this (`make test-peers`). Run on a machine that does nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = ("decode.py", "head_memory.py", "diagnostics_cost.py")


def main() -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    codes = {}
    for name in SCRIPTS:
        print(f"\n# benchmarks/{name}", flush=True)
        began = time.perf_counter()
        codes[name] = subprocess.run([sys.executable, HERE / name], env=environment).returncode
        print(f"({time.perf_counter() - began:.0f} s)", flush=True)
    failed = [name for name, code in codes.items() if code]
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
