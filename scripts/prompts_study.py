"""Do prompts that suit the teacher help on the testbed, and does the guard hold the student's entropy?

    python scripts/prompts_study.py --bases 14 15 16 17 18 --out FOLDER    # 2 to 4 min a base on a shared core
    python scripts/prompts_study.py --page                                 # only docs/prompts.md

For each base (a world, and the student taught in it) two teachers are improved from the student: one on problems in the
first wording only (template), one on chains of two and three operands only (content). The student then learns from each on
prompts like the teacher's own and on others: the second wording, which the student knows as well, and a third that neither
knows; chains of four. Settings are those of the testbed's pairs but for 60 steps. Base 11 was looked at before: with a floor
of .7 the guard had nothing to do there, so it is .95; the arm with the unseen wording was added. Nothing was changed after.
Expectations, written before the first run on bases 14 to 18, are EXPECTED. Writes docs/studies/tables/prompts.json, and of
that the table of docs/prompts.md.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opdkit.config import Config, WidenConfig
from opdkit.run.folder import RunFolder
from opdkit.studies.blocks import with_blocks
from opdkit.studies.recipes import family
from opdkit.studies.testbed import Workshop, finish
from opdkit.tasks.worlds import open_world
from opdkit.train import Silent
from opdkit.train.widen import decide

TABLE = Path(__file__).parents[1] / "docs" / "studies" / "tables" / "prompts.json"
PAGE = Path(__file__).parents[1] / "docs" / "prompts.md"
EXPECTED = {
    "template_overlap": "aligned wording: higher overlap over the first three steps, in at least 4 of 5 bases",
    "template_score": "aligned wording: at least as high a final score, in at least 4 of 5 bases",
    "unseen_overlap": "unseen wording: lower overlap over the first three steps than aligned, in at least 4 of 5 bases",
    "unseen_score": "unseen wording: a lower final score than aligned, in at least 4 of 5 bases",
    "content_score": "aligned content (guard off, nothing mixed in): a higher final score, in at least 4 of 5 bases",
    "content_entropy": "aligned content: lower student entropy at the end than unaligned, in at least 4 of 5 bases",
    "guard_holds": "with the guard no window of 5 steps after its first change has entropy under the floor, in 5 of 5 bases",
    "guard_needed": "without the guard some window has, in at least 4 of 5 bases",
}
GUARD = WidenConfig(share=0.1, floor=0.95, change=0.1, most=0.5, window=5)
STEPS = 60
ENDS = 3
"""Steps averaged at the beginning, five at the end."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bases", type=int, nargs="+", default=[14, 15, 16, 17, 18])
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/testbed"), help="where students are, or are taught"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/prompts-study"))
    parser.add_argument("--page", action="store_true")
    args = parser.parse_args()
    if not args.page:
        rows: list[dict[str, Any]] = []
        for base in args.bases:
            rows += base_rows(base, cache=args.cache, out=args.out / f"base-{base}")
            told = {
                "expected": EXPECTED,
                "guard": GUARD.model_dump(exclude={"path"}),
                "steps": STEPS,
                "rows": rows,
            }
            told["verdicts"] = verdicts(rows)
            TABLE.write_text(json.dumps(told, indent=1) + "\n")
            print(json.dumps(verdicts(rows)), flush=True)
    told = json.loads(TABLE.read_text())
    PAGE.write_text(with_blocks(PAGE.read_text(), {"study": list(page(told))}))


def base_rows(base: int, *, cache: Path, out: Path) -> Iterator[dict[str, Any]]:
    """One row per arm."""
    known = family("chain", seed=base)
    shop = Workshop(known, cache / f"chain-qwen3-{base}", talk=lambda _: Silent(), problems=512)
    student = shop.make("student").path
    short, long = lengths(shop, out)
    improve = dict(known.recipe("improved").settings)
    wording = taught(shop, improve, {"template": 0}, student, out / "teacher-wording")
    content = taught(shop, improve, {"demonstrations": str(short[0])}, student, out / "teacher-content")
    other = {"path": str(long), **GUARD.model_dump(exclude={"path"})}
    arms: dict[str, tuple[Path, dict[str, Any], dict[str, Any]]] = {
        "template aligned": (wording, {"template": 0}, {}),
        "template unaligned": (wording, {"template": 1}, {}),
        "template unseen": (wording, {"template": 2}, {}),
        "content aligned": (content, {"demonstrations": str(short[1])}, {}),
        "content unaligned": (content, {"demonstrations": str(long)}, {}),
        "content aligned, share": (
            content,
            {"demonstrations": str(short[1])},
            {"widen": {**other, "guard": False}},
        ),
        "content aligned, guard": (content, {"demonstrations": str(short[1])}, {"widen": other}),
    }
    for name, (teacher, task, more) in arms.items():
        run = out / re.sub(r"\W+", "-", name)
        settings = {
            **known.distill,
            **more,
            "steps": STEPS,
            "seed": 5,
            "eval": {"responses": 1, "teacher": True},
        }
        settings["task"] = {**known.distill["task"], **task}
        config = shop.config(settings, student=str(student), teacher={"model": str(teacher)}, run=str(run))
        finish(config, talk=Silent())
        yield {"base": base, "seed": 5, "arm": name, **read(RunFolder.read(run), config)}


def lengths(shop: Workshop, out: Path) -> tuple[tuple[Path, Path], Path]:
    """Files of problems: of two and three operands for the teacher, others of that kind for the student, of four."""
    world = open_world(shop.config({}, student="none").task)  # type: ignore[arg-type]
    out.mkdir(parents=True, exist_ok=True)
    few: list[dict[str, Any]] = []
    many: list[dict[str, Any]] = []
    for prompt in world.prompts(30_000, seed=300):
        size = len(world.parse(prompt.text or "").operands)
        (many if size == 4 else few).append({"id": prompt.id, "prompt": prompt.text})
    paths = [out / name for name in ("teacher.jsonl", "aligned.jsonl", "long.jsonl")]
    for path, rows in zip(paths, (few[:5000], few[5000:13000], many[:8000]), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (paths[0], paths[1]), paths[2]


def taught(
    shop: Workshop, improve: Mapping[str, Any], task: Mapping[str, Any], student: Path, run: Path
) -> Path:
    """The student improved on some prompts only: it samples, and imitates what was right."""
    settings = {**improve, "task": {**improve["task"], **task}, "eval": {"at_ends": False}}
    config = shop.config(settings, student=str(student), run=str(run))
    finish(config, talk=Silent())
    return run / "checkpoints" / f"step_{config.steps}" / "model"


def read(run: RunFolder, config: Config) -> dict[str, Any]:
    metrics = run.read_metrics()
    first, *_, last = run.read_eval()
    entropies = [row.get("entropy_student") for row in metrics]
    window = GUARD.window
    means = [mean(entropies[i : i + window]) for i in range(0, len(entropies), window)]
    floor = GUARD.floor * means[0]
    changes = decide(GUARD, entropies) if config.widen.path is not None and config.widen.guard else []
    settled = means[1:] if not changes else means[changes[0].step // window :]
    return {
        "before": first["avg_at_k"],
        "teacher": first["teacher_avg_at_k"],
        "after": last["avg_at_k"],
        **{
            f"{name}_{end}": mean([row[name] for row in part if name in row])
            for name in (
                "overlap_ratio",
                "overlap_mass_teacher",
                "overlap_mass_student",
                "entropy_student",
                "entropy_teacher",
            )
            for end, part in (("first", metrics[:ENDS]), ("last", metrics[-window:]))
        },
        "floor": floor,
        "lowest_window": min(means[1:]),
        "lowest_window_after_first_change": min(settled) if settled else None,
        "changes": [[c.step, c.after] for c in changes],
    }


def mean(values: Sequence[Any]) -> float:
    return sum(values) / len(values)


def verdicts(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Expectation → in how many bases it held."""
    by = {(row["base"], row["arm"]): row for row in rows}
    bases = sorted({row["base"] for row in rows})

    def held(test: Any) -> str:
        return f"{sum(bool(test(base)) for base in bases)} of {len(bases)}"

    def of(base: int, arm: str, name: str) -> float:
        return by[base, arm][name]

    aligned, other = "template aligned", "template unaligned"
    near, far, guard = "content aligned", "content unaligned", "content aligned, guard"
    return {
        "template_overlap": held(
            lambda b: of(b, aligned, "overlap_ratio_first") > of(b, other, "overlap_ratio_first")
        ),
        "template_score": held(lambda b: of(b, aligned, "after") >= of(b, other, "after")),
        "unseen_overlap": held(
            lambda b: of(b, "template unseen", "overlap_ratio_first") < of(b, aligned, "overlap_ratio_first")
        ),
        "unseen_score": held(lambda b: of(b, "template unseen", "after") < of(b, aligned, "after")),
        "content_score": held(lambda b: of(b, near, "after") > of(b, far, "after")),
        "content_entropy": held(
            lambda b: of(b, near, "entropy_student_last") < of(b, far, "entropy_student_last")
        ),
        "guard_holds": held(
            lambda b: (by[b, guard]["lowest_window_after_first_change"] or 0) >= of(b, guard, "floor")
        ),
        "guard_needed": held(lambda b: of(b, near, "lowest_window") < of(b, near, "floor")),
    }


def page(told: Mapping[str, Any]) -> Iterator[str]:
    yield "| expected, before the runs | held in |"
    yield "|---|---|"
    for name, text in told["expected"].items():
        yield f"| {text} | {told['verdicts'][name]} |"
    yield ""
    yield "| base | arm | before | teacher | after | overlap | student's entropy | floor, lowest window | changes of the share |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in told["rows"]:
        changes = ", ".join(f"{step}: {share:.1f}" for step, share in row["changes"]) or "–"
        yield (
            f"| {row['base']} | {row['arm']} | {row['before']:.3f} | {row['teacher']:.3f} | {row['after']:.3f} "
            f"| {row['overlap_ratio_first']:.3f} → {row['overlap_ratio_last']:.3f} "
            f"| {row['entropy_student_first']:.3f} → {row['entropy_student_last']:.3f} "
            f"| {row['floor']:.3f}, {row['lowest_window']:.3f} | {changes} |"
        )


if __name__ == "__main__":
    main()
