"""Make an environment that holds TRL, liger-kernel and opdkit side by side, if it is missing, and run something in it.

    python benchmarks/peers.py --venv .venv-peers [arguments of against_trl.py]
    python benchmarks/peers.py --venv .venv-peers --tests [arguments of pytest]
    python benchmarks/peers.py --venv .venv-peers --bench [arguments of bench.py]
    python benchmarks/peers.py --venv .venv-peers --gpu [arguments of gpu.py]

Needs nothing but Python. Without an option it is benchmarks/against_trl.py: exit code 1 when our loss on TRL's tokens is
not TRL's loss. With `--tests` it is tests/peers: opdkit attached to the real TRL, and its losses against TRL's and liger's.
With `--bench` it is benchmarks/bench.py (make bench, make bench-check), with `--gpu` benchmarks/gpu.py.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements-peers.txt"
ALONE = ["liger-kernel==0.8.5"]
"""Installed without what they depend on. liger-kernel's metadata asks for triton, 286 MB that a CPU has no use for; the
losses that tests/peers compares ours with (`liger_kernel.chunked_loss`) are plain torch and import without it."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # read when torch is loaded: one core on both sides
    "HF_HUB_OFFLINE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",  # deprecations of TRL's own calls
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venv", type=Path, required=True)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--tests", action="store_true", help="run tests/peers instead of against_trl.py")
    which.add_argument("--bench", action="store_true", help="run bench.py instead of against_trl.py")
    which.add_argument("--gpu", action="store_true", help="run gpu.py instead of against_trl.py")
    given, rest = parser.parse_known_args()
    python = install(given.venv)
    script = HERE / ("gpu.py" if given.gpu else "bench.py" if given.bench else "against_trl.py")
    what = ["-m", "pytest", HERE.parent / "tests" / "peers"] if given.tests else [script]
    return subprocess.run([python, *what, *rest], env={**os.environ, **ENVIRONMENT}).returncode


def install(folder: Path) -> Path:
    """The environment's Python. Installs again when the requirements, or opdkit's own, changed since."""
    python, stamp = folder.absolute() / "bin" / "python", folder / "installed.txt"
    wanted = REQUIREMENTS.read_text() + (HERE.parent / "pyproject.toml").read_text() + "\n".join(ALONE)
    if not (stamp.is_file() and stamp.read_text() == wanted):
        print(f"installing TRL, liger-kernel and opdkit into {folder} (once)", file=sys.stderr)
        if not python.is_file():
            venv.create(folder, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", REQUIREMENTS], check=True)
        subprocess.run([*pip, "--no-deps", *ALONE], check=True)
        subprocess.run([*pip, "-c", REQUIREMENTS, "-e", HERE.parent], check=True)
        stamp.write_text(wanted)
    return python


if __name__ == "__main__":
    sys.exit(main())
