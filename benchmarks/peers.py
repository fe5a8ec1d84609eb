"""Make an environment that holds TRL and opdkit side by side, if it is missing, and run benchmarks/against_trl.py in it.

    python benchmarks/peers.py --venv .venv-peers [arguments of against_trl.py]

Needs nothing but Python. Exit code 1 when our loss on TRL's tokens is not TRL's loss.
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
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # read when torch is loaded: one core on both sides
    "HF_HUB_OFFLINE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venv", type=Path, required=True)
    given, rest = parser.parse_known_args()
    python = install(given.venv)
    script = HERE / "against_trl.py"
    return subprocess.run([python, script, *rest], env={**os.environ, **ENVIRONMENT}).returncode


def install(folder: Path) -> Path:
    """The environment's Python. Installs again when the requirements changed since."""
    python, stamp = folder.absolute() / "bin" / "python", folder / "installed.txt"
    wanted = REQUIREMENTS.read_text()
    if not (stamp.is_file() and stamp.read_text() == wanted):
        print(f"installing TRL and opdkit into {folder} (once)", file=sys.stderr)
        venv.create(folder, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", REQUIREMENTS], check=True)
        subprocess.run([*pip, "-c", REQUIREMENTS, "-e", HERE.parent], check=True)
        stamp.write_text(wanted)
    return python


if __name__ == "__main__":
    sys.exit(main())
