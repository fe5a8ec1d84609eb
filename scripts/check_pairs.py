"""Does every pair of the testbed get the verdict that its kind deserves? Thresholds were set on bases 0 and 11 to 13,
and one was moved after 14 to 16 had been looked at; nothing was after 17 to 19.

    python scripts/check_pairs.py --bases 17 18 19 --cache .cache/testbed
    python scripts/check_pairs.py --bases 17 18 19 --distil RUNS    # and what becomes of each pair, whatever was said
    python scripts/check_pairs.py --page               # only docs/check.md, from the table as it is

For each base: the eight pairs of `opd study build testbed --pairs`, and a ninth, a teacher with the new capability
that grew up from other first weights on the same texts. Models that are not in the cache are taught first, minutes
per base. Writes docs/studies/tables/check.json, and of that and of the rules the tables of docs/check.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opdkit.config import Config, LocalTeacher
from opdkit.diagnostics import gap_recovery
from opdkit.diagnostics.verdict import rules_table
from opdkit.recipes.features import features_table
from opdkit.recipes.foretell import PREDICTOR, shipped
from opdkit.recipes.predict import LEAD
from opdkit.recipes.preflight import check
from opdkit.run.folder import RunFolder
from opdkit.studies.blocks import with_blocks
from opdkit.studies.predictor_told import asked, weights
from opdkit.studies.recipes import PAIRS, Family, Pair, family
from opdkit.studies.testbed import Workshop, finish, table
from opdkit.train import Silent

EXPECTED = {
    "new capability, same style": "go",
    "new capability, other lineage": "go",
    "bigger, same pipeline, higher score": "change_teacher",
    "other style": "cold_start",
    "other style after a cold start": "go",
    "reverse: own earlier self": "change_teacher",
    "reverse: bigger, not improved": "change_teacher",
    "other end token": "fix_first",
    "self": "nothing_to_learn",
}
"""By the kind of a pair, written before any base but 0 was looked at."""
LINEAGE = Pair("new capability, other lineage", "student", "stranger", "succeeds")
SHOWN = (
    *(
        "accuracy",
        "teacher_accuracy",
        "rehearsed_loss_ratio",
        "teachable_share",
        "success_slope",
        "sequence_reward_auroc",
        "reverse_kl",
    ),
    *("overlap_ratio", "overlap_mass_teacher_before_end", "stop_teacher_same_at_end"),
)


ROOT = Path(__file__).parent.parent
TABLES = ROOT / "docs" / "studies" / "tables"
PAGE = ROOT / "docs" / "check.md"
TUNED, SEEN = (0, 11, 12, 13), (14, 15, 16)
"""Bases on which thresholds were set; and that were looked at before the last one was moved."""
PROBLEMS = 512
"""Held-out problems of the evaluation before and after."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bases", type=int, nargs="+", default=[0, *range(11, 20)])
    parser.add_argument("--cache", type=Path, default=Path(".cache/testbed"))
    parser.add_argument("--family", default="chain")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of prompts and sampling")
    parser.add_argument("--out", type=Path, default=TABLES / "check.json")
    parser.add_argument(
        "--distil", type=Path, metavar="RUNS", help="distil every pair as well, in this folder"
    )
    parser.add_argument("--page", action="store_true", help="write docs/check.md's tables, run nothing")
    parser.add_argument("--check", action="store_true", help="fail when docs/check.md is stale")
    args = parser.parse_args()
    if not (args.page or args.check):
        look(args)
    text = page(json.loads(args.out.read_text()))
    if args.check and PAGE.read_text() != text:
        sys.exit("docs/check.md is stale: python scripts/check_pairs.py --page")
    if not args.check:
        PAGE.write_text(text)


def look(args: argparse.Namespace) -> None:
    """Judge, and distil, what is not in the table yet."""
    told = json.loads(args.out.read_text()) if args.out.is_file() else {}
    rows, outcomes = told.get("rows", []), told.get("outcomes", [])
    judged_before = {(r["family"], r["base"], r["kind"], r["seed"]) for r in rows}
    distilled_before = {(r["family"], r["base"], r["kind"]) for r in outcomes}
    for base in args.bases:
        known = family(args.family, seed=base)
        place = args.cache / f"{args.family}-qwen3-{base}"
        here = Workshop(known, place, talk=lambda _: Silent(), problems=PROBLEMS)
        for pair in [*PAIRS, LINEAGE]:
            about = {"family": args.family, "base": base, "kind": pair.name}
            for seed in args.seeds:
                if (args.family, base, pair.name, seed) not in judged_before:
                    rows.append({**about, **judged(here, known, pair, seed=seed, cache=args.cache)})
                    print(base, seed, pair.name, rows[-1]["verdict"], rows[-1]["right"], flush=True)
            if args.distil and (args.family, base, pair.name) not in distilled_before:
                outcomes.append({**about, **outcome(here, known, pair, cache=args.cache, runs=args.distil)})
                print(base, pair.name, outcomes[-1]["scores"], flush=True)
            told = {"expected": EXPECTED, "rows": rows, "outcomes": outcomes}
            args.out.write_text(json.dumps(told, indent=1) + "\n")


def configured(
    here: Workshop, known: Family, pair: Pair, *, seed: int, cache: Path, run: str, **more: Any
) -> Config:
    """The testbed's run of a pair."""
    student = here.make(pair.student).path
    teacher = student if pair.teacher == "self" else model(here, known, pair.teacher, cache=cache)
    settings = {**known.distill, "seed": seed, **more}
    return here.config(settings, student=str(student), teacher={"model": str(teacher)}, run=run)


def outcome(here: Workshop, known: Family, pair: Pair, *, cache: Path, runs: Path) -> dict[str, Any]:
    """Distilled, whatever the verdict: student and teacher before, student after. Seed 5: no verdict saw its prompts."""
    run = runs / f"{here.out.name}-{''.join(c if c.isalnum() else '_' for c in pair.name)}"
    exam = {"responses": 1, "teacher": True}
    finish(configured(here, known, pair, seed=5, cache=cache, run=str(run), eval=exam), talk=Silent())
    first, *_, last = RunFolder.read(run).read_eval()
    scores = first["avg_at_k"], first["teacher_avg_at_k"], last["avg_at_k"]
    recovery = gap_recovery(scores[0], scores[2], scores[1])
    return {
        "scores": [round(s, 3) for s in scores],
        "recovery": None if recovery is None else round(recovery, 2),
    }


def judged(here: Workshop, known: Family, pair: Pair, *, seed: int, cache: Path) -> dict[str, Any]:
    config = configured(here, known, pair, seed=seed, cache=cache, run="runs/unused")
    assert isinstance(config.teacher, LocalTeacher)
    told = check(config, teachers=[config.teacher], source=lambda _: "pair.toml", say=lambda _: None)
    verdict = told["verdict"]
    return {
        "kind": pair.name,
        "seed": seed,
        "verdict": verdict["name"],
        "expected": EXPECTED[pair.name],
        "right": verdict["name"] == EXPECTED[pair.name],
        "because": verdict["because"],
        "seconds": told["cost"]["seconds"],
        "rollouts": told["rollouts"],
        "metrics": {n: told["metrics"][n] for n in SHOWN if n in told["metrics"]},
    }


def model(here: Workshop, known: Family, name: str, *, cache: Path) -> Path:
    if name != "stranger":
        return here.make(name).path
    other = tuple(
        dataclasses.replace(r, seed=r.seed + 70) if r.body else r
        for r in known.recipes
        if r.name in ("student", "improved")
    )
    place = cache / f"{here.out.name}-stranger"
    return (
        Workshop(dataclasses.replace(known, recipes=other), place, talk=lambda _: Silent())
        .make("improved")
        .path
    )


# --- the page ------------------------------------------------------------------------------------------------


def page(told: Mapping[str, Any]) -> str:
    """docs/check.md with its blocks made anew."""
    return with_blocks(
        PAGE.read_text(),
        {
            "rules": rules_table(),
            "pairs": list(pairs(told["rows"])),
            "recovered": list(recovered(told)),
            "features": features_table(),
            "predictor": list(predicted()),
        },
    )


def predicted() -> Iterator[str]:
    """What the fitted predictor is worth, and its weights, of the document that is shipped."""
    document = shipped(PREDICTOR)
    if document is None:
        yield "Not fitted yet: ranges are those of verdicts, above."
        return
    yield from asked(document)
    for model in document["models"]:
        yield ""
        yield from weights(model)


def pairs(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    parts = {"Fresh bases": [], "Bases seen before": [], "Bases of the thresholds": []}  # type: dict[str, list[Any]]
    for r in rows:
        name = (
            "Bases of the thresholds"
            if r["base"] in TUNED
            else "Bases seen before"
            if r["base"] in SEEN
            else "Fresh bases"
        )
        parts[name].append(r)
    for name, some in parts.items():
        bases = sorted({r["base"] for r in some})
        yield f"**{name} {', '.join(map(str, bases))}**: {sum(r['right'] for r in some)} of {len(some)} as expected."
        yield ""
    head = [
        "kind",
        "expected",
        "fresh",
        "seen",
        "tuned",
        "lead",
        "loss ratio",
        "teachable share",
        "reverse KL",
        "overlap",
    ]
    head += ["shared mass", "because"]
    shown = ("rehearsed_loss_ratio", "teachable_share", "reverse_kl", "overlap_ratio")
    lines = []
    for kind, expected in EXPECTED.items():
        own = [r for r in rows if r["kind"] == kind]
        if own:
            counts = []
            for some in parts.values():
                part = [r for r in some if r["kind"] == kind]
                counts.append(f"{sum(r['right'] for r in part)} of {len(part)}")
            ranges = [
                _lead(own),
                *(_range(own, name) for name in (*shown, "overlap_mass_teacher_before_end")),
            ]
            because = sorted({name for r in own if r["right"] for name in r["because"]})
            lines.append([kind, expected, *counts, *ranges, ", ".join(f"`{n}`" for n in because)])
    yield from table(head, lines)
    wrong = [r for r in rows if not r["right"]]
    if wrong:
        yield ""
        yield "Not as expected:"
        yield ""
        for r in wrong:
            numbers = ", ".join(f"{n} {r['metrics'][n]['value']:.2f}" for n in shown if n in r["metrics"])
            yield f"- base {r['base']}, seed {r['seed']}, {r['kind']}: {r['verdict']} ({', '.join(r['because'])}; {numbers})"


def _range(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [r["metrics"][name]["value"] for r in rows if name in r["metrics"]]
    return f"{min(values):.2f} to {max(values):.2f}" if values else "–"


def _lead(rows: Sequence[Mapping[str, Any]]) -> str:
    scored = [r["metrics"] for r in rows if "teacher_accuracy" in r["metrics"]]
    leads = [m["teacher_accuracy"]["value"] - m["accuracy"]["value"] for m in scored]
    return f"{min(leads):+.2f} to {max(leads):+.2f}" if leads else "–"


def recovered(told: Mapping[str, Any]) -> Iterator[str]:
    """What came of pairs, by the verdicts they got."""
    lines = []
    for verdict in dict.fromkeys(EXPECTED.values()):
        said = {(r["base"], r["kind"]) for r in told["rows"] if r["verdict"] == verdict}
        own = [o for o in told["outcomes"] if (o["base"], o["kind"]) in said]
        if own:
            change = [after - before for before, _, after in (o["scores"] for o in own)]
            known = [o["recovery"] for o in own if o["scores"][1] - o["scores"][0] >= LEAD]
            share = "no lead"
            if known:
                low, half, high = np.quantile(known, [0.05, 0.5, 0.95])
                share = f"{low:.0%} to {high:.0%}, median {half:.0%} ({len(known)} pairs)"
            kinds = "; ".join(
                f"{n}: {sum(o['kind'] == n for o in own)}"
                for n in EXPECTED
                if any(o["kind"] == n for o in own)
            )
            lines.append([verdict, str(len(own)), f"{min(change):+.2f} to {max(change):+.2f}", share, kinds])
    yield from table(
        [
            "verdict",
            "pairs",
            "change in accuracy",
            f"gap recovery (leads from {LEAD}), 5 to 95 %",
            "kinds",
        ],
        lines,
    )


if __name__ == "__main__":
    main()
