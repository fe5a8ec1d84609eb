"""The demo's models as they are shipped: taught by `opd study build testbed`, copied into the package.

python scripts/ship_models.py        # src/opdkit/studies/shipped; about 3 minutes of one core
"""

import shutil
import subprocess
import sys
from pathlib import Path

from opdkit.studies.demo import SHIPPED, SHIPPED_MODELS
from opdkit.studies.recipes import family
from opdkit.studies.testbed import Workshop
from opdkit.train import Silent

CACHE = Path(".cache/testbed")


def main() -> None:
    only = [word for name in SHIPPED_MODELS for word in ("--only", name)]
    subprocess.run([sys.executable, "-m", "opdkit", "study", "build", "testbed", *only], check=True)
    workshop = Workshop(family("chain"), CACHE / "chain-qwen3-0", talk=lambda _: Silent())
    for name in SHIPPED_MODELS:
        made = workshop.make(name)
        shutil.rmtree(SHIPPED / name, ignore_errors=True)
        shutil.copytree(made.path, SHIPPED / name)
        print(f"{name}: {sum(f.stat().st_size for f in made.path.iterdir()):,} bytes, key {made.key}")


if __name__ == "__main__":
    main()
