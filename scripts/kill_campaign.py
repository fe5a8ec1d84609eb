"""Kill runs at random moments, resume them, and compare them bit for bit with runs that nobody disturbed.

    python scripts/kill_campaign.py --kills 20 --seed 0 [--json FILE] [--keep FOLDER]

Of the kills (SIGKILL to the whole process group), two in three come at a moment drawn uniformly over the
uninterrupted run's duration, one in three inside a save, recognised by its temporary folder. Every fourth run
is killed a second time while it resumes. Compared are the last checkpoint's files (weights, optimizer, moving
teacher, counters), metrics.jsonl without wall-clock values, eval.jsonl, findings.jsonl and every sampled
token. Exit code 1 unless all are the same. The seed draws the moments; what they hit depends on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from killing import SETTINGS, VARIANTS, Case, Kill, Nursery, Struck, Trial
from opdkit.run import environment

SAVES = SETTINGS["steps"] // SETTINGS["save.every"]
SAVE_SECONDS = 0.02  # a save of the tiny model on an idle core, to draw a moment inside it


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="runs that are killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write what happened here")
    parser.add_argument("--keep", type=Path, help="keep the run folders here")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        with Nursery(folder) as nursery:
            trials = campaign(nursery, folder, kills=args.kills, seed=args.seed)
    same = sum(trial.identical for _, trial in trials)
    print(f"{same} of {len(trials)} bit-identical  ({time.monotonic() - began:.0f} s, seed {args.seed})")
    if args.json:
        args.json.write_text(json.dumps(told(trials, args.kills, args.seed), indent=1) + "\n")
    sys.exit(0 if same == args.kills else 1)


def campaign(nursery: Nursery, folder: Path, *, kills: int, seed: int) -> list[tuple[str, Trial]]:
    """(variant, trial) per killed run; a draw that came after the run's end is drawn again."""
    cases = {variant: Case.make(nursery, folder, variant) for variant in VARIANTS}
    for variant, case in cases.items():
        print(f"uninterrupted {variant}: {case.settings['steps']} steps, {case.seconds:.1f} s")
    trials: list[tuple[str, Trial]] = []
    for number in range(kills):
        variant = list(cases)[number % len(cases)]
        for attempt in range(20):
            draw = random.Random(f"{seed}-{number}-{attempt}")
            moments = drawn(draw, cases[variant].seconds, saving=number % 3 == 2, twice=number % 4 == 3)
            trial = cases[variant].trial(f"{number + 1}-{attempt}", moments)
            if not trial.identical or all(map(told_by, trial.struck, moments)):
                break
        trials.append((variant, trial))
        print(line(number + 1, variant, trial), flush=True)
    return trials


def drawn(draw: random.Random, seconds: float, *, saving: bool, twice: bool) -> list[Kill]:
    """The first kill, and one of the resumed run if asked for: uniform over a run's time, or in a save."""
    first = Kill(at=draw.uniform(0, seconds))
    if saving:
        first = Kill(save=draw.randint(1, SAVES), delay=draw.uniform(0, SAVE_SECONDS))
    second = [Kill(at=draw.uniform(0, seconds))] if draw.random() < 0.5 else [Kill(save=1)]
    return [first, *(second if twice else [])]


def told_by(met: Struck, kill: Kill) -> bool:
    """Whether the kill came before the run's end and, where it was aimed at a save, inside one."""
    return met.hit and (bool(met.torn) or not kill.save)


def line(number: int, variant: str, trial: Trial) -> str:
    told = [f"{met.aim}: {met.rows} steps, {where(met)}" for met in trial.struck]
    resumed = ["from the start" if s is None else f"after step {s}" for s in trial.resumed_from]
    verdict = "identical" if trial.identical else f"DIFFERENT: {', '.join(trial.differences)}"
    steps = "; ".join(f"{t}; resumed {r}" for t, r in zip(told, resumed, strict=True))
    return f"kill {number:2d}  {variant:5}  {steps}; {verdict}"


def where(met: Struck) -> str:
    if met.torn:
        return (
            f"{met.torn[-1].partition('-')[0]} half written"
            if "tmp" in met.torn[-1]
            else "old one half deleted"
        )
    return met.checkpoints[-1] if met.checkpoints else "no checkpoint" if met.is_run else "no run folder"


def told(trials: list[tuple[str, Trial]], kills: int, seed: int) -> dict[str, Any]:
    rows = [{"variant": variant, "identical": trial.identical, **asdict(trial)} for variant, trial in trials]
    same = sum(trial.identical for _, trial in trials)
    return {"seed": seed, "kills": kills, "identical": same, "environment": environment(), "trials": rows}


if __name__ == "__main__":
    main()
