"""Make an environment with vLLM's CPU build and opdkit, if it is missing, and run something in it.

    python scripts/engines.py --venv .venv-engines [arguments of pytest]
    python scripts/engines.py --venv .venv-engines --bench [arguments of benchmarks/engines.py]

Needs nothing but Python. The environment takes 2.7 GB and about two minutes; tests/engines about four.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "constraints" / "engines.txt"
UNUSED = ("torchvision", "torchaudio", "torchcodec", "triton")
"""Builds for CUDA that come along: the first breaks the import of transformers beside a CPU torch, none is used."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument(
        "--bench", action="store_true", help="run benchmarks/engines.py instead of tests/engines"
    )
    given, rest = parser.parse_known_args()
    python = install(given.venv)
    tests = ["-m", "pytest", ROOT / "tests" / "engines", "-p", "no:xdist"]
    what = [ROOT / "benchmarks" / "engines.py"] if given.bench else tests
    return subprocess.run([python, *what, *rest], env={**os.environ, **ENVIRONMENT}).returncode


def install(folder: Path) -> Path:
    """The environment's Python. Installs again when the requirements, or opdkit's own, changed since."""
    python, stamp = folder.absolute() / "bin" / "python", folder / "installed.txt"
    wanted = REQUIREMENTS.read_text() + (ROOT / "pyproject.toml").read_text()
    if not (stamp.is_file() and stamp.read_text() == wanted):
        print(f"installing vLLM (CPU) and opdkit into {folder} (once)", file=sys.stderr)
        if not python.is_file():
            venv.create(folder, with_pip=True)
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        first = [line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch==")]
        subprocess.run([*pip, "install", *first], check=True)  # before what would bring its CUDA build
        subprocess.run([*pip, "install", "-r", REQUIREMENTS], check=True)
        subprocess.run([*pip, "uninstall", "--yes", *UNUSED], check=True)
        subprocess.run([*pip, "install", "-c", REQUIREMENTS, "-e", f"{ROOT}[serve,math]"], check=True)
        stamp.write_text(wanted)
    return python


if __name__ == "__main__":
    sys.exit(main())
