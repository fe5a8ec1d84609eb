"""TRL's distilling trainers against our step, on one core, in one process, alternately. Run through benchmarks/peers.py.

    python benchmarks/peers.py --venv .venv-peers [--row equal …] [--pairs 12]        agreement and ratios (make test-peers)

Both sides do the same work per step (work.py): the same prompts, the same number of new tokens per row, the objective
that both have (trainers.py), float32, AdamW, gradient norm clipped at 1. Each side has its own student and draws its own
samples. Our step runs inside TRL's `on_step_end`; TRL's time is what passes from there to the next `on_step_end`, so A
and B alternate. Ours measures its diagnostics (256 positions) and builds its metrics row; TRL tokenises its prompts and logs.

Agreement, checked first of all: our loss and gradient norm on the tokens that TRL sampled in its first step
against what TRL logged for that step. Exit code 1 if they differ by more than 1e-5 (gradient norm: relative),
or if they do not differ once one of the tokens is changed: a check that cannot fail says nothing.

With `--records` (make bench) every record is one line of JSON on stdout, with peak memory and held-out KL.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from alone import peak_of_both
from machine import one_core
from opdkit.types import Prompt
from weights import Missing, Weights
from work import NEED_A_SERVER, Work, works

DEFAULT = ("equal", "ragged", "four", "gkd", "gold", "iw_opd", "sdft", "sdpo")


def main() -> int:
    known = works()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, default=Path(".cache/bench"))
    parser.add_argument("--row", choices=known, action="append", help=f"default: {', '.join(DEFAULT)}")
    parser.add_argument("--pairs", type=int, help="timed pairs per row")
    parser.add_argument("--records", action="store_true", help="lines of JSON, with memory and held-out KL")
    parser.add_argument("--short", action="store_true", help="with --records: times and agreement only")
    parser.add_argument("--alone", choices=("theirs", "ours"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    one_core()
    if given.alone:
        run_alone(given.alone, known[given.row[0]], given.assets)
        return 0
    fine = True
    for name in given.row or DEFAULT:
        work = replace(known[name], pairs=given.pairs) if given.pairs else known[name]
        record = measure(work, given.assets, full=given.records and not given.short)
        fine &= record.get("checked", True) and (given.records or "failed" not in record)
        print(json.dumps(record) if given.records else said(record), flush=True)
    return 0 if fine or given.records else 1


def measure(work: Work, assets: Path, *, full: bool) -> dict[str, Any]:
    """The record of a row, or of the error that a trainer gave: it is told, never left out."""
    from turns import compare, what

    try:
        weights = Weights(work, assets)
        record = compare(work, weights, full=full)
    except Missing as error:
        return {"name": work.name, "failed": str(error)}
    except Exception as error:  # whatever TRL raises is what there is to tell
        expected = work.peer in NEED_A_SERVER
        if not expected:
            traceback.print_exc()
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return {"name": work.name, "what": what(work), "failed": told[:300], "expected": expected}
    return record | ({"peak_mb": peak_of_both(work.name, assets)} if full else {})


def run_alone(side: str, work: Work, assets: Path) -> None:
    """Two steps of one side by itself (the optimizer's state is there in the second); prints its peak memory."""
    from alone import resident, tell_peak

    work = replace(work, pairs=1, warm_up=1)
    weights = Weights(work, assets)
    if side == "theirs":
        from theirs import trainer

        with tempfile.TemporaryDirectory() as folder:
            peer, _ = trainer(work, weights, folder)
            before = resident()
            peer.train()
        tell_peak(before)
        return
    from ours import Ours
    from work import HELD_OUT

    ours, rows = Ours(work, weights), weights.prompts()[HELD_OUT:]
    each, before = work.rows // work.responses, resident()
    for step in range(work.steps):
        taken = rows[step * each : (step + 1) * each]
        prompts = [Prompt(id=f"{step}-{i}", ids=tuple(row["ids"])) for i, row in enumerate(taken)]
        ours.step(prompts, step)
    tell_peak(before)


def said(record: dict[str, Any]) -> str:
    if "failed" in record:
        return f"{record['name']:8} FAILED: {record['failed']}"
    ratio, seconds, told = record["ratio"], record["seconds"], record.get("agreement")
    agrees = "" if told is None else (
        f"  on TRL's tokens: loss {told['loss_theirs']:.7f} / {told['loss_ours']:.7f}, gradient norm differs by "
        f"{told['gradient_norm_relative']:.1e} {'agrees' if record['checked'] else 'FAILED'}"
        f" (one token changed: {told['with_one_token_changed']['gradient_norm_relative']:.1e})"
    )  # fmt: skip
    return (
        f"{record['name']:8} TRL / ours {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}, processor time "
        f"{record['ratio_of_processor_time']['median']:.2f})  s/step {seconds['theirs']['median']:.3f} / "
        f"{seconds['ours']['median']:.3f}{agrees}"
    )


if __name__ == "__main__":
    sys.exit(main())
