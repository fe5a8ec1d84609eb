"""Cold start on pairs that fail: a hand-over decided by probes against fixed numbers of steps, too few and too many.

    python scripts/coldstart_study.py --seeds 14 15 16 17 18 19 --cache .cache/testbed      # about 5 min each on a shared core
    python scripts/coldstart_study.py --page                                                # docs/coldstart.md's tables only

A seed is a base of the testbed: its world, first weights and training. The pair is `student` with `restyled`, a teacher of
another style. Arms: `plain` distillation; `fixed N` steps of SFT before it; `adaptive` (the default rule), `forward_kl` (the
same with a forward KL on the teacher's text). Settings were found on bases 11 and 12 (docs/coldstart.md); what was expected
of the others, EXPECTED, was committed before any of them was run. Everything is resumable; rows are kept as they come.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opdkit.config import Config
from opdkit.diagnostics import gap_recovery
from opdkit.recipes.coldstart import coldstart
from opdkit.recipes.coldstart_config import distill_config
from opdkit.run.folder import RunFolder
from opdkit.studies.blocks import with_blocks
from opdkit.studies.recipes import family
from opdkit.studies.testbed import Workshop, finish, table
from opdkit.train import Silent

FAILS, RECOVERS, LEAD = 0.2, 0.7, 0.1
FIXED = (50, 100, 200, 400, 800)
EXPECTED = {
    "adaptive": "pairs that fail by themselves (gap recovery ≤ .2, lead ≥ .1) recover ≥ .7 with the adaptive hand-over",
    "steps": "the adaptive hand-over trains at most 1.2 times the SFT steps of the best fixed setting (highest mean recovery)",
    "short": "50 steps of SFT before distillation recover ≤ .2 in every failing pair: the old style is lost, the new not learned",
    "long": "800 steps have a lower overlap at the hand-over than the adaptive one, in at least 4 of 5 pairs: too long forgets",
    "forward_kl": "a forward KL on the teacher's text is handed over after no more steps than likelihood, and recovers as much "
    "(difference within .1)",
}
"""Committed before the first run on bases other than 11 and 12."""
SETTINGS = {
    "prompts": 8000,
    "lr": 1e-3,
    "prompts_per_step": 48,
    "probe_every": 25,
    "least": 100,
    "steps": 800,
    "probe_prompts": 128,
    "probe_responses": 1,
}
ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "studies" / "tables" / "coldstart.json"
PAGE = ROOT / "docs" / "coldstart.md"
PROBLEMS = 512


class Quiet(Silent):
    """Says nothing."""

    def progress(self, what: str, done: int, count: int) -> None: ...
    def probed(self, row: dict[str, Any]) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(14, 20)))
    parser.add_argument("--cache", type=Path, default=Path(".cache/testbed"))
    parser.add_argument("--runs", type=Path, default=Path("runs/coldstart"))
    parser.add_argument("--arms", nargs="+", default=["plain", "adaptive", "fixed", "forward_kl"])
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--page", action="store_true", help="write docs/coldstart.md's tables, run nothing")
    args = parser.parse_args()
    if not args.page:
        for seed in args.seeds:
            for arm in args.arms:
                study(args, seed, arm)
    PAGE.write_text(page(json.loads(args.out.read_text())))


def study(args: argparse.Namespace, seed: int, arm: str) -> None:
    """Run an arm on a base and keep its rows, unless they are there."""
    told = json.loads(args.out.read_text()) if args.out.is_file() else {}
    rows = told.get("rows", [])
    if any(row["seed"] == seed and row["arm"].split()[0] == arm for row in rows):
        return
    runs = args.runs / f"base-{seed}"
    config = pair(args.cache, seed, runs)
    new = {"plain": plain, "adaptive": adaptive, "fixed": fixed, "forward_kl": adaptive}[arm](config, arm)
    for row in new:
        print(seed, {k: v for k, v in row.items() if k != "curve"}, flush=True)
    rows += [{"seed": seed, **row} for row in new]
    told = {"expected": EXPECTED, "settings": SETTINGS, "rows": rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(told, indent=1) + "\n")


def pair(cache: Path, seed: int, runs: Path) -> Config:
    """The testbed's run of the student with a teacher of another style."""
    known = family("chain", seed=seed)
    here = Workshop(known, cache / f"chain-qwen3-{seed}", talk=lambda _: Silent(), problems=PROBLEMS)
    student, teacher = here.make("student").path, here.make("restyled").path
    settings = {**known.distill, "seed": 5, "eval": {"responses": 1, "teacher": True}, "coldstart": SETTINGS}
    task = {**known.distill["task"], "train_size": 8192}
    return here.config(
        {**settings, "task": task}, student=str(student), teacher={"model": str(teacher)}, run=str(runs)
    )


def plain(config: Config, arm: str) -> list[dict[str, Any]]:
    """Distillation as it is."""
    run = config.run / arm
    finish(config.model_copy(update={"run": run, "coldstart": None}), talk=Silent())
    return [{"arm": arm, "steps": 0, "trained": 0, **_scores(run)}]


def adaptive(config: Config, arm: str, **until: Any) -> list[dict[str, Any]]:
    """`opd coldstart` with the default rule; `until` changes it."""
    cold = config.coldstart
    assert cold is not None
    warm_up = "forward_kl" if arm == "forward_kl" else "likelihood"
    changed = cold.model_copy(update={"warm_up": warm_up, "until": cold.until.model_copy(update=until)})
    run = config.run / arm
    here = config.model_copy(update={"coldstart": changed, "run": run})
    code, told = coldstart(here, resume=(run / "coldstart.json").is_file(), show=Quiet())
    if code:
        raise SystemExit(code)
    over, probes = told["stages"]["sft"], _probes(run)
    row = {
        "arm": arm,
        "steps": over["step"],
        "trained": over["trained"],
        "why": over["why"],
        **_at(probes, over["step"]),
        **_scores(run / "distill"),
        "before": round(told["scores"]["before"], 3),
    }
    curve = [
        {name: round(p[name], 3) for name in ("step", *CURVE) if name in p} | {"step": p["step"]}
        for p in probes
    ]
    return [{**_recovered(row), "curve": curve}]


CURVE = ("overlap_ratio", "overlap_mass_teacher_before_end", "reverse_kl", "accuracy")


def fixed(config: Config, arm: str) -> list[dict[str, Any]]:
    """One SFT to the longest setting; the shorter ones are its checkpoints, which are what a shorter SFT ends at."""
    [longest] = adaptive(config, arm, steps=FIXED[-1], patience=FIXED[-1])  # which keeps every checkpoint
    run, rows = config.run / arm, []
    for steps in FIXED[:-1]:
        student = run / "sft" / "checkpoints" / f"step_{steps}" / "model"
        short = distill_config(config.model_copy(update={"run": run}), str(student))
        place = config.run / f"{arm}-{steps}"
        finish(short.model_copy(update={"run": place}), talk=Silent())
        row = {"arm": f"fixed {steps}", "steps": steps, "trained": steps, **_at(_probes(run), steps)}
        rows.append(_recovered({**row, **_scores(place), "before": longest["before"]}))
    return [*rows, {**longest, "arm": f"fixed {FIXED[-1]}"}]


def _probes(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "probes.jsonl").read_text().splitlines()]


def _at(probes: Sequence[Mapping[str, Any]], step: int) -> dict[str, float]:
    here = next(p for p in probes if p["step"] == step)
    return {"overlap": round(here["overlap_ratio"], 3), "mass": round(here[CURVE[1]], 3)}


def _scores(run: Path) -> dict[str, Any]:
    first, *_, last = RunFolder.read(run).read_eval()
    scores = {
        "before": first["avg_at_k"],
        "handed_over": first["avg_at_k"],
        "teacher": first["teacher_avg_at_k"],
        "after": last["avg_at_k"],
    }
    return _recovered({name: round(value, 3) for name, value in scores.items()})


def _recovered(row: dict[str, Any]) -> dict[str, Any]:
    share = gap_recovery(row["before"], row["after"], row["teacher"])
    return {**row, "recovery": None if share is None else round(share, 3)}


# --- the page ------------------------------------------------------------------------------------------------


def page(told: Mapping[str, Any]) -> str:
    """docs/coldstart.md with its tables made anew."""
    return with_blocks(PAGE.read_text(), {"arms": list(arms(told["rows"])), "held": list(held(told["rows"]))})


def failing(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Bases whose pair fails by itself, with a lead that a recovery can be told of."""
    plain_rows = [r for r in rows if r["arm"] == "plain" and r["teacher"] - r["before"] >= LEAD]
    return sorted(r["seed"] for r in plain_rows if r["recovery"] is not None and r["recovery"] <= FAILS)


def arms(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line per base: what each arm recovered, and where it handed over."""
    names = ["plain", *(f"fixed {n}" for n in FIXED), "adaptive", "forward_kl"]
    fails = failing(rows)
    lines = []
    for seed in sorted({r["seed"] for r in rows}):
        mine = {r["arm"]: r for r in rows if r["seed"] == seed}
        head = mine["plain"]
        cells = [_cell(mine.get(name)) for name in names]
        lines.append(
            [
                f"{seed}{'' if seed in fails else ' (does not fail)'}",
                f"{head['before']:.3f}, {head['teacher']:.3f}",
                *cells,
            ]
        )
    yield from table(["base", "student, teacher", *names], lines)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    share = "–" if row["recovery"] is None else f"{row['recovery']:.0%}"
    where = f" @{row['steps']} of {row['trained']}" if row["arm"] in ("adaptive", "forward_kl") else ""
    overlap = f" [{row['overlap']:.2f}]" if "overlap" in row else ""
    return f"{row['after']:.3f}, {share}{where}{overlap}"


def held(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Each expectation against what came."""
    fails = failing(rows)
    by = {
        name: {r["seed"]: r for r in rows if r["arm"] == name and r["seed"] in fails}
        for name in sorted({r["arm"] for r in rows})
    }
    adaptive_rows = by.get("adaptive", {})
    means = {
        n: statistics.mean(r["recovery"] for r in by[f"fixed {n}"].values())
        for n in FIXED
        if by.get(f"fixed {n}")
    }
    yield f"Pairs that fail by themselves: {len(fails)} (bases {', '.join(map(str, fails))})."
    yield ""
    if not adaptive_rows or not means:
        return
    best = max(means, key=lambda n: means[n])
    recovered = [r["recovery"] for r in adaptive_rows.values()]
    trained = [r["trained"] for r in adaptive_rows.values()]
    short = [r["recovery"] for r in by["fixed 50"].values()]
    longer = [
        by["fixed 800"][s]["overlap"] < r["overlap"] for s, r in adaptive_rows.items() if s in by["fixed 800"]
    ]
    lines = [
        [
            "adaptive",
            f"{sum(x >= RECOVERS for x in recovered)} of {len(recovered)} recover ≥ {RECOVERS:.0%}; {_range(recovered)}",
        ],
        [
            "steps",
            f"best fixed setting {best} (mean {means[best]:.0%}); adaptive trained {min(trained)} to {max(trained)}, at most "
            f"{1.2 * best:.0f} in {sum(t <= 1.2 * best for t in trained)} of {len(trained)}; "
            + ", ".join(f"fixed {n}: mean {m:.0%}" for n, m in means.items()),
        ],
        ["short", f"{sum(x <= FAILS for x in short)} of {len(short)} recover ≤ {FAILS:.0%}; {_range(short)}"],
        ["long", f"overlap lower than at the adaptive hand-over in {sum(longer)} of {len(longer)}"],
    ]
    forward = {s: r for s, r in by.get("forward_kl", {}).items() if s in adaptive_rows}
    if forward:
        sooner = sum(r["steps"] <= adaptive_rows[s]["steps"] for s, r in forward.items())
        near = sum(abs(r["recovery"] - adaptive_rows[s]["recovery"]) <= 0.1 for s, r in forward.items())
        lines.append(
            [
                "forward_kl",
                f"no more steps in {sooner} of {len(forward)}; recovery within .1 in {near} of {len(forward)}",
            ]
        )
    yield from table(["expectation", "what came"], lines)
    yield ""
    later = [r["after"] - r["handed_over"] for r in adaptive_rows.values()]
    yield (
        f"Distillation after the adaptive hand-over changed accuracy by {min(later):+.3f} to {max(later):+.3f}, "
        f"mean {statistics.mean(later):+.3f}; the imitation before them had brought {_gains(adaptive_rows.values())}."
    )


def _gains(rows: Iterable[Mapping[str, Any]]) -> str:
    gains = [r["handed_over"] - r["before"] for r in rows]
    return f"{min(gains):+.3f} to {max(gains):+.3f}, mean {statistics.mean(gains):+.3f}"


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.0%} to {max(values):.0%}, mean {statistics.mean(values):.0%}"


if __name__ == "__main__":
    main()
