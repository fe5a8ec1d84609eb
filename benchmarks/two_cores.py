"""Two cores against our best step on one: data-parallel ranks under torchrun, gloo, on-policy, in turns of processes.

    python benchmarks/two_cores.py [--pairs 5]

One block is a process (or two ranks of one thread, a core each) that takes one step to warm up and three that count; blocks
of one core and of two alternate, and each pair of neighbours gives one ratio of medians. A rank samples, scores and trains
half of the 32 prompts; gradients and weights go through FSDP2, and each rank decodes with a whole copy of the weights. Both
blocks must have the same first loss: random streams belong to prompts, not to ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import digits, ratio, spread
from work import HELD_OUT, Work, works

COUNTED = 3
SAME = 1e-5  # of the first loss


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, default=Path(".cache/bench"))
    parser.add_argument("--row", default="two-cores", help=argparse.SUPPRESS)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--records", action="store_true", help="a line of JSON (the only form there is)")
    parser.add_argument("--short", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--block", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.block:
        block(given.assets)
        return 0
    print(json.dumps(compare(given.assets, given.pairs)))
    return 0


def compare(assets: Path, pairs: int) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return {"name": "two-cores", "failed": f"this process may use {len(cores)} core"}
    blocks: dict[str, list[dict[str, Any]]] = {"one": [], "two": []}
    for _ in range(pairs):
        for side, ranks in (("one", 1), ("two", 2)):
            blocks[side].append(_child(ranks, assets))
    seconds = {side: [statistics.median(b["seconds"]) for b in found] for side, found in blocks.items()}
    losses = {side: found[0]["loss"] for side, found in blocks.items()}
    tokens = _work().tokens(0)
    return {
        "name": "two-cores",
        "what": "one core / two ranks, ours `full`, the work of `equal`",
        "work": _work().facts(),
        "ratio": ratio(seconds["one"], seconds["two"], of="one core / two ranks"),
        "seconds": {side: spread(values) for side, values in seconds.items()},
        "tokens_per_second": {side: spread([tokens / s for s in v]) for side, v in seconds.items()},
        "peak_mb": {side: max(b["peak_mb"] for b in found) for side, found in blocks.items()},
        "losses": losses,
        "checked": abs(losses["one"] - losses["two"]) <= SAME,
        "not_compared": f"first loss differs by {abs(losses['one'] - losses['two']):.0e} between the two",
    }


def _work() -> Work:
    return replace(works()["equal"], warm_up=1, pairs=COUNTED)


def _child(ranks: int, assets: Path) -> dict[str, Any]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if ranks == 2 else []
    command = [sys.executable, *launcher, __file__, "--block", "--assets", str(assets)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{ranks} rank(s) ended with code {done.returncode}:\n{done.stdout}{done.stderr[-6000:]}"
        )
    return dict(json.loads(next(x for x in done.stdout.splitlines() if x.startswith('{"seconds"'))))


def block(assets: Path) -> None:
    """In the child: this rank's share of some steps; rank 0 prints the times of the slower rank."""
    import torch

    from opdkit.run.world import World
    from opdkit.train.record import peak_mb
    from opdkit.types import Prompt
    from ours import CPU, Ours
    from weights import Weights

    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ.get("LOCAL_RANK", "0"))]})
    work, world = _work(), World(CPU)
    weights = Weights(work, assets)
    ours, rows = Ours(work, weights, world=world), weights.prompts()[HELD_OUT:]
    seconds, losses = [], []
    try:
        for step in range(work.steps):
            taken = rows[step * work.rows : (step + 1) * work.rows]
            prompts = [Prompt(id=f"{step}-{i}", ids=tuple(row["ids"])) for i, row in enumerate(taken)]
            world.barrier()
            began = time.perf_counter()
            losses.append(ours.step(prompts[world.rank :: world.size], step).tally.means()["loss"])
            seconds.append(max(world.gather(time.perf_counter() - began)))
        peak = sum(world.gather(peak_mb(CPU)))
        if world.main:
            found = {"seconds": [digits(s, 6) for s in seconds[work.warm_up :]], "loss": losses[0]}
            print(json.dumps(found | {"peak_mb": round(peak)}), flush=True)
        world.barrier()  # nobody leaves while another still reads from it
    finally:
        world.close()
    if world.size > 1:
        # PyTorch 2.13 sometimes aborts a rank at its very end ("terminate called without an active exception"), after all
        # that is measured here; the interpreter's own end is left out.
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
