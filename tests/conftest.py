"""One thread per test process: two OpenMP threads on a shared core are slower than one, and the suite runs in parallel."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from jaxtyping import install_import_hook

# Annotations of the maths are checked here and nowhere else: shapes at the door of every function of these rooms.
install_import_hook(["opdkit.support", "opdkit.objectives", "opdkit.diagnostics"], "beartype.beartype")

torch.set_num_threads(1)
