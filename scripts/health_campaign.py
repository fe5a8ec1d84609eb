"""Does the health monitor catch what fails, early, and leave alone what works? Runs of the testbed, each watched.

    python scripts/health_campaign.py --cache .cache/testbed FOLDER --out RUNS    # run what is missing, judge, tell
    python scripts/health_campaign.py --replay RUNS                               # judge anew, run nothing

Models must be there: `opd study build testbed [--body llama] [--family lists]`, and `--seed N` of it for each of the bases.
Every run is a run folder in RUNS; one that is finished is read, not run again. Thresholds were set on runs whose role is
"tuned" (world 0, seeds 0 and 1). Those of role "first look" (bases 11 to 15, and seeds 5 to 7 of world 0) were looked at
once: three false alarms in 64, two of them a lone gradient spike, which has been a note and no alarm since. Those of role
"held out" (bases 17 to 19) were looked at after that, and nothing was changed.

What counts: a failing run is caught if a finding of severity warning or error comes before 40 % of its steps; such a
finding at any step of a healthy run is a false alarm. Writes docs/studies/tables/health.json; docs/health.md is made of that.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opdkit.config import Config
from opdkit.diagnostics import CONDITIONS, Monitor, gap_recovery
from opdkit.diagnostics.health import conditions_table
from opdkit.diagnostics.monitor import WATCHED
from opdkit.run.folder import RunFolder
from opdkit.studies.recipes import family
from opdkit.studies.testbed import Workshop, finish, table
from opdkit.train import Silent

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "studies" / "tables" / "health.json"
PAGE = ROOT / "docs" / "health.md"
FIXTURES = ROOT / "tests" / "data" / "health"
EARLY = 0.4
"""Share of the steps before which a failing run must be caught."""
PROBLEMS = 512
"""Held-out problems of the evaluation before and after."""


@dataclass(frozen=True)
class Kind:
    """Who learns from whom, and what differs from the testbed's usual settings."""

    student: str
    teacher: str
    healthy: bool
    settings: Mapping[str, Any]


def _kind(student: str, teacher: str, /, *, healthy: bool, **settings: Any) -> Kind:
    return Kind(student, teacher, healthy, settings)


KINDS: Mapping[str, Kind] = {
    "new capability": _kind("student", "improved", healthy=True),
    "lr 1e-4": _kind("student", "improved", healthy=True, optim={"lr": 1e-4}),
    "lr 6e-4": _kind("student", "improved", healthy=True, optim={"lr": 6e-4}),
    "64 prompts": _kind("student", "improved", healthy=True, prompts_per_step=64),
    "60 steps": _kind("student", "improved", healthy=True, steps=60),
    "exact Eq. 5": _kind("student", "improved", healthy=True, objective={"preset": "paper-eq5"}),
    "full": _kind("student", "improved", healthy=True, objective={"preset": "full"}),
    "sampled": _kind("student", "improved", healthy=True, objective={"preset": "sampled"}),
    "after a cold start": _kind("cold_started", "restyled", healthy=True),
    "self": _kind("student", "self", healthy=True),
    "bigger": _kind("student", "bigger", healthy=False),
    "other style": _kind("student", "restyled", healthy=False),
    "other end token": _kind("student", "other_end", healthy=False),
    "reverse, own": _kind("improved", "student", healthy=False),
    "reverse, bigger": _kind("improved", "bigger", healthy=False),
    "lr 3e-2": _kind("student", "improved", healthy=False, optim={"lr": 3e-2}),
    "lr 1e-6": _kind("student", "improved", healthy=False, optim={"lr": 1e-6}),
    "hot teacher": _kind("student", "improved", healthy=False, teacher={"temperature": 3.0}),
    "other end token, long": _kind(
        "student", "other_end", healthy=False, sampling={"max_tokens": 48}, optim={"lr": 6e-4}
    ),
}


@dataclass(frozen=True)
class Case:
    """One run: of a kind, with the models of a place ("chain-qwen3-0": family, body, base), from a seed."""

    kind: str
    place: str
    seed: int

    @property
    def name(self) -> str:
        kind = "".join(c if c.isalnum() or c in "-." else "_" for c in self.kind)
        return f"{kind}-{self.place}-seed{self.seed}"

    @property
    def role(self) -> str:
        if self.place in FRESH:
            return "held out"
        return "tuned" if self.place.endswith("-0") and self.seed < 5 else "first look"


CHAIN, LLAMA, LISTS = "chain-qwen3-0", "chain-llama-0", "lists-qwen3-0"
BASES = tuple(f"chain-qwen3-{base}" for base in (11, 12, 13, 14, 15))
FRESH = tuple(f"chain-qwen3-{base}" for base in (17, 18, 19))
VARIANTS = ("lr 1e-4", "lr 6e-4", "64 prompts", "60 steps", "exact Eq. 5", "full", "sampled")
PLANTED = ("lr 3e-2", "lr 1e-6", "hot teacher")
REVERSE = ("reverse, own", "reverse, bigger")
OTHER = ("other style", "other end token", "other end token, long")
ROLES = ("held out", "first look", "tuned")


def cases() -> Iterator[Case]:
    """Tuned first. The kinds that matter most come with most seeds."""
    for seed in (0, 1):
        yield from (Case(kind, CHAIN, seed) for kind in (*OTHER, *PLANTED, *REVERSE, "after a cold start"))
        for place in (CHAIN, LLAMA, LISTS):
            yield from (Case(kind, place, seed) for kind in ("new capability", "bigger"))
    yield from (Case(kind, CHAIN, 0) for kind in (*VARIANTS, "self"))
    yield from (
        Case("lr 1e-6", LISTS, seed) for seed in (0, 1, 5, 6)
    )  # where the loss is small from the start
    for place in BASES:
        yield from (
            Case(kind, place, 5)
            for kind in ("new capability", "bigger", *REVERSE, *PLANTED, *VARIANTS, "self")
        )
    for seed in (6, 7):
        yield from (Case("new capability", place, seed) for place in BASES)
    yield from (Case("bigger", place, 6) for place in BASES)
    for seed in (5, 6, 7):
        yield from (
            Case(kind, place, seed) for place in (LLAMA, LISTS) for kind in ("new capability", "bigger")
        )
        yield from (Case(kind, CHAIN, seed) for kind in ("after a cold start", *OTHER))
    for place in FRESH:
        well = ("new capability", *VARIANTS)
        yield from (Case(kind, place, seed) for seed in (5, 6) for kind in (*well, "bigger"))
        yield from (Case("new capability", place, seed) for seed in (7, 8, 9))
        yield from (
            Case(kind, place, 5)
            for kind in (*REVERSE, *PLANTED, "self", "after a cold start", "other style", "other end token")
        )


def config_of(case: Case, shop: Workshop, out: Path) -> Config:
    """The testbed's run of such a pair, with what the kind changes."""
    kind = KINDS[case.kind]
    student = str(shop.make(kind.student).path)
    changed = dict(kind.settings)
    told = {"type": "self"} if kind.teacher == "self" else {"model": str(shop.make(kind.teacher).path)}
    told |= changed.pop("teacher", {})
    usual = shop.family.distill
    settings = {
        **usual,
        **{
            name: {**usual.get(name, {}), **value} if isinstance(value, dict) else value
            for name, value in changed.items()
        },
        "eval": {"responses": 1, "teacher": True},
    }
    return shop.config(settings, student=student, teacher=told, run=str(out / case.name), seed=case.seed)


def run(case: Case, shops: Mapping[str, Workshop], out: Path) -> None:
    """Distil, unless it was done before."""
    config = config_of(case, shops[case.place], out)
    if not (config.run / "checkpoints" / f"step_{config.steps}" / "manifest.json").is_file():
        finish(config, talk=Silent())


def workshops(folders: Sequence[Path]) -> dict[str, Workshop]:
    """One per place whose models are there."""
    found = {}
    for place in (CHAIN, LLAMA, LISTS, *BASES, *FRESH):
        name, body, base = place.split("-")
        folder = next((f / place for f in folders if (f / place).is_dir()), None)
        if folder is not None:
            made = family(name, kind=body, seed=int(base))
            found[place] = Workshop(made, folder, talk=lambda _: Silent(), problems=PROBLEMS)
    return found


# --- judging -------------------------------------------------------------------------------------------------


def judged(case: Case, folder: RunFolder) -> dict[str, Any]:
    """What the monitor of today says of a finished run, beside what became of it."""
    rows, evals = folder.read_metrics(), folder.read_eval()
    findings = Monitor(steps=len(rows)).replay(rows, [])
    alarms = [f.step for f in findings if f.severity in ("warning", "error") and f.step is not None]
    before, after = evals[0], evals[-1]
    scores = [before["avg_at_k"], before.get("teacher_avg_at_k"), after["avg_at_k"]]
    recovery = None if scores[1] is None else gap_recovery(scores[0], scores[2], scores[1])
    return {
        "kind": case.kind,
        "place": case.place,
        "seed": case.seed,
        "role": case.role,
        "healthy": KINDS[case.kind].healthy,
        "steps": len(rows),
        "scores": [None if s is None else round(s, 3) for s in scores],
        "recovery": None if recovery is None else round(recovery, 2),
        "fired": {f.name: f.step for f in findings},
        "alarm": min(alarms, default=None),
    }


def caught(row: Mapping[str, Any]) -> bool:
    return row["alarm"] is not None and row["alarm"] < EARLY * row["steps"]


def replayed(out: Path) -> list[dict[str, Any]]:
    """Every finished run of the campaign in a folder, in the campaign's order."""
    finished = [case for case in cases() if _complete(out / case.name)]
    return [judged(case, RunFolder.read(out / case.name)) for case in finished]


def _complete(run: Path) -> bool:
    return any(run.glob("checkpoints/step_*/manifest.json"))


def unlike(out: Path) -> list[str]:
    """Runs whose findings, written while they ran, are not what a replay of their rows gives."""
    return [
        run.name
        for run in sorted(out.iterdir())
        if _complete(run) and _told_live(run) not in (None, _told_again(run))
    ]


def _told_live(run: Path) -> list[Any] | None:
    """None for a run made before runs were watched."""
    names = {condition.name for condition in CONDITIONS}
    watched = "health.enabled = true" in (run / "config.toml").read_text()
    found = [row for row in RunFolder.read(run).read_findings() if row["name"] in names]
    return [(f["name"], f["step"], f["numbers"]) for f in found] if watched else None


def _told_again(run: Path) -> list[Any]:
    rows = RunFolder.read(run).read_metrics()
    return [(f.name, f.step, f.numbers) for f in Monitor(steps=len(rows)).replay(rows, [])]


# --- telling -------------------------------------------------------------------------------------------------


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """docs/health.md: the conditions from their records, the campaign from its table."""
    parts = [
        INTRODUCTION,
        "\n".join(conditions_table()),
        RULES,
        *(_figures(rows, role) for role in ROLES),
    ]
    return "\n\n".join([*parts, _outcomes(rows), _kinds(rows), _misses(rows), AFTERWORD]) + "\n"


INTRODUCTION = """# Health during training

`opd train` watches its own metrics. Each condition below is told once per run, on the terminal, in `findings.jsonl` and in
the report, with the numbers behind it, the rule that fired and a command to type. `health.on_critical = "stop"` saves a
checkpoint and stops (exit code 1) at a finding of severity `error`; `"mask"` and `"shorten"` go on and halve the horizon at a
condition of the tail of responses ([horizon.md](horizon.md)); `health.ignore` silences conditions by name;
`health.patience` is the share of the steps before a trend is judged; `health.enabled = false` switches the monitor off.

```console
$ python -m opdkit.diagnostics.health        # every condition, and a few made-up steps that have it
$ opd train CONFIG health.on_critical=stop
$ opd train --resume RUN                     # goes on after such a stop: what was told is not told again
```

The monitor reads rows and keeps no clock and no randomness, so a resumed run finds what an uninterrupted one finds.

## Conditions

`first` is the mean over the run's first window, a bare name the mean over the last one. Made from the records in
`src/opdkit/diagnostics/conditions.py` by `python scripts/health_campaign.py --page`; do not edit."""

RULES = """## How well it does

Small pairs of the [testbed](testbed.md), 60 to 100 steps, one thread; `python scripts/health_campaign.py` repeats the runs, with
`--replay FOLDER` it judges those on disk anew. An alarm is a finding of severity `warning` or `error`. A failing run
counts as caught when its first alarm comes before 40 % of its steps; any alarm in a healthy run, at any step, is a false one.

What is failing was said before the runs: teachers that are bigger only, speak another style, end in another token, are the
student's earlier self, or are read at temperature 3; learning rates a hundred times too high or three hundred times too low.
Thresholds were set on the tuned runs (world 0, seeds 0 and 1; as another machine made them). The first look at others
(bases 11 to 15, on world 0 seeds 5 to 7) showed three false alarms in 64 healthy runs, two of them a lone gradient spike;
since then `gradient_spike` is a note and no alarm, and nothing else was changed. The held-out runs (bases 17 to 19) were
judged once, with everything as it stands."""

AFTERWORD = """## What it cannot see

A teacher that is imitated well and knows nothing: loss, Eq. 7 and overlap look like success, and only graded responses tell
(`accuracy_fall`, and nothing where there is no grader). A teacher that is merely no better gives no alarm at all: that is for
`opd check`. Runs of fewer than 20 steps are too short for windows to mean much. All runs here are of tiny models on
two made-up languages; thresholds for long responses (`tail_first_decay`, `repetition`, `length_inflation`) rest on few runs."""


def _figures(rows: Sequence[Mapping[str, Any]], role: str) -> str:
    failing, healthy = (
        [r for r in rows if r["role"] == role and r["healthy"] == well] for well in (False, True)
    )
    early = sum(map(caught, failing))
    false = sum(r["alarm"] is not None for r in healthy)
    return (
        f"**{role.capitalize()}**: {early} of {len(failing)} failing runs caught before {EARLY:.0%} of the steps; "
        f"{false} false alarm{'' if false == 1 else 's'} in {len(healthy)} healthy runs."
    )


def _worked(row: Mapping[str, Any]) -> bool:
    """By what came of it: half the gap recovered; where there is no lead, nothing lost."""
    before, _, after = row["scores"]
    return bool(row["recovery"] >= 0.5 if row["recovery"] is not None else after >= before - 0.05)


def _outcomes(rows: Sequence[Mapping[str, Any]]) -> str:
    """Kinds were labelled before the runs; some runs came out otherwise."""
    other = [r for r in rows if _worked(r) != r["healthy"]]
    kinds = Counter(r["kind"] for r in other)
    failed, worked = ([r for r in rows if _worked(r) == well] for well in (False, True))
    named = [
        f"{count} of {sum(r['kind'] == kind for r in rows)} of “{kind}”" for kind, count in kinds.items()
    ]
    alarmed = sum(r["alarm"] is not None for r in worked)
    return (
        f"By what came of them instead (half the gap recovered, or nothing lost where there is no lead): "
        f"{sum(map(caught, failed))} of {len(failed)} that failed caught, {alarmed} of {len(worked)} that worked alarmed. "
        f"Otherwise than their kind was labelled came out {', '.join(named) or 'none'}: a student beside a teacher of another "
        "style or end may gain by the steps that both write alike, and keeps that only as long as it keeps its own end."
    )


def _kinds(rows: Sequence[Mapping[str, Any]]) -> str:
    head = [
        "kind",
        "should be",
        "runs",
        "alarmed",
        "before 40 %",
        "first alarm, share of the steps",
        "conditions (runs)",
        "gap recovery",
    ]
    lines = []
    for name, kind in KINDS.items():
        own = [r for r in rows if r["kind"] == name]
        if own:
            lines.append([name, "silent" if kind.healthy else "caught", str(len(own)), *_summary(own)])
    return "\n".join(table(head, lines))


def _summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    alarms = sorted(r["alarm"] / r["steps"] for r in rows if r["alarm"] is not None)
    fired = Counter(name for r in rows for name in r["fired"])
    known = [r["recovery"] for r in rows if r["recovery"] is not None]
    return [
        str(len(alarms)),
        str(sum(map(caught, rows))),
        f"{alarms[0]:.2f} to {alarms[-1]:.2f}" if alarms else "–",
        ", ".join(f"{name} ({count})" for name, count in fired.most_common()) or "–",
        f"{min(known):.0%} to {max(known):.0%}" if known else "–",
    ]


def _misses(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every run that went the other way, by name."""
    wrong = [r for r in rows if (r["alarm"] is not None if r["healthy"] else not caught(r))]
    if not wrong:
        return "No run was missed, and none alarmed for nothing."
    lines = [
        [r["kind"], r["place"], str(r["seed"]), r["role"], " → ".join(map(str, r["scores"])), _told(r)]
        for r in wrong
    ]
    head = ["kind", "place", "seed", "role", "student, teacher, after", "what was told"]
    return "Missed, late, or for nothing:\n\n" + "\n".join(table(head, lines))


def _told(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} at {step}" for name, step in row["fired"].items()) or "nothing"


# --- fixtures of the tests -----------------------------------------------------------------------------------

RECORDED: Mapping[str, Case] = {
    "healthy": Case("new capability", CHAIN, 0),
    "healthy_cold_started": Case("after a cold start", CHAIN, 0),
    "healthy_self": Case("self", CHAIN, 0),
    "bigger": Case("bigger", CHAIN, 0),
    "other_style": Case("other style", CHAIN, 0),
    "other_end": Case("other end token", CHAIN, 0),
    "other_end_long": Case("other end token, long", CHAIN, 0),
    "high_lr": Case("lr 3e-2", CHAIN, 0),
    "low_lr": Case("lr 1e-6", "chain-qwen3-13", 5),
    "reverse": Case("reverse, own", CHAIN, 0),
}


def record(out: Path) -> None:
    """Columns of what the monitor reads, five digits: small enough for the repository, real enough for a test."""
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name, case in RECORDED.items():
        rows = RunFolder.read(out / case.name).read_metrics()
        names = [n for n in rows[0] if n in WATCHED or n.endswith("/entropy_student")]
        columns = {n: [_digits(row.get(n)) for row in rows] for n in names}
        text = json.dumps({"run": case.name, "steps": len(rows), "columns": columns}, separators=(",", ":"))
        (FIXTURES / f"{name}.json").write_text(text.replace('],"', '],\n"') + "\n")


def _digits(value: Any) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cache", type=Path, nargs="+", default=[Path(".cache/testbed")], help="models, one folder per place"
    )
    parser.add_argument("--out", type=Path, help="where runs go, and are taken from")
    parser.add_argument("--role", choices=ROLES, help="only these")
    parser.add_argument(
        "--replay", type=Path, metavar="FOLDER", help="judge the runs of FOLDER anew, run nothing"
    )
    parser.add_argument(
        "--record", type=Path, metavar="FOLDER", help="write the tests' fixtures from the runs of FOLDER"
    )
    parser.add_argument(
        "--page", action="store_true", help="write docs/health.md from the table and the records"
    )
    parser.add_argument("--check", action="store_true", help="fail when docs/health.md is stale")
    args = parser.parse_args()
    if args.record:
        record(args.record)
    if args.out:
        carry_out(args.out, args.cache, args.role)
    if args.replay or args.out:
        write_table(replayed(args.replay or args.out))
        print(
            "\n".join(unlike(args.replay or args.out)) or "every run's own findings are those of the replay"
        )
    if not (args.page or args.replay or args.out or args.check):
        return
    text = page(json.loads(TABLE.read_text())["runs"])
    if args.check and PAGE.read_text() != text:
        sys.exit("docs/health.md is stale: python scripts/health_campaign.py --page")
    if args.page or args.replay or args.out:
        PAGE.write_text(text)


def carry_out(out: Path, cache: Sequence[Path], role: str | None) -> None:
    shops = workshops(cache)
    for case in cases():
        if case.place in shops and role in (None, case.role):
            began = time.perf_counter()
            run(case, shops, out)
            print(f"{case.name}: {time.perf_counter() - began:.0f} s", flush=True)


def write_table(rows: Sequence[Mapping[str, Any]]) -> None:
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    TABLE.write_text(f'{{"early": {EARLY}, "problems": {PROBLEMS}, "runs": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
