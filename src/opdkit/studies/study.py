"""A question put to small models: its arms, what was expected of them before they ran, what came.

Every arm is a change to one and the same run of `distill`; a seed is a base of the testbed: another world, other first weights,
another training, and its own prompts and sampling. Rows are kept as they come under a hash of their run's configuration, so a
study that was stopped goes on, and an arm whose configuration has changed runs anew.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opdkit.config import Config, dump_toml
from opdkit.diagnostics import gap_recovery
from opdkit.run.disk import write_atomic
from opdkit.run.environment import environment
from opdkit.run.folder import RunFolder
from opdkit.studies.pairs import watched
from opdkit.studies.recipes import family
from opdkit.studies.testbed import Workshop, finish, table
from opdkit.train import Talk

Row = Mapping[str, Any]
Rows = Sequence[Row]
Verdict = Literal["holds", "does not hold", "not run"]


@dataclass(frozen=True)
class Expectation:
    """Written before the runs. `holds` reads the table; None where what it needs has not run."""

    name: str
    text: str
    holds: Callable[[Rows], bool | None]


@dataclass(frozen=True)
class Scale:
    """How much is run."""

    seeds: tuple[int, ...]
    steps: int
    problems: int


SCALES: Mapping[str, Scale] = {
    "quick": Scale(seeds=(14,), steps=30, problems=256),
    "full": Scale(seeds=(14, 15, 16, 17, 18), steps=100, problems=512),
}


@dataclass(frozen=True)
class Study:
    """`claim` names the section and the figures it is about; `arms` are settings over the pair's run."""

    name: str
    question: str
    claim: str
    student: str
    teacher: str
    arms: Mapping[str, Mapping[str, Any]]
    expected: tuple[Expectation, ...]


def run(study: Study, scale: Scale, *, out: Path, cache: Path, talk: Callable[[Config], Talk]) -> list[Row]:
    """All rows of the study at this scale, those in OUT/NAME.json as they are. Written after every run."""
    out.mkdir(parents=True, exist_ok=True)
    kept = {row["config"]: row for row in rows_in(study, out)}
    rows: list[Row] = []
    for seed in scale.seeds:
        known = family("chain", seed=seed)
        shop = Workshop(known, cache / f"chain-qwen3-{seed}", talk=talk, problems=scale.problems)
        for arm, settings in study.arms.items():
            config = configured(study, shop, settings, steps=scale.steps, seed=seed)
            key = _key(config)
            config = config.model_copy(
                update={"run": out / study.name / f"seed-{seed}" / f"{slug(arm)}-{key}"}
            )
            row = kept.get(key) or _read(config, arm=arm, seed=seed, key=key, talk=talk(config))
            rows.append(row)
            write_atomic(table_of(study, out), data=f"{json.dumps(told(study, rows), indent=1)}\n".encode())
    return rows


def configured(study: Study, shop: Workshop, settings: Mapping[str, Any], *, steps: int, seed: int) -> Config:
    """An arm's run, wherever it will lie."""
    student, teacher = shop.make(study.student), shop.make(study.teacher)
    usual = {**shop.family.distill, "steps": steps, "eval": {"responses": 1, "teacher": True}, **settings}
    return shop.config(
        usual, student=str(student.path), teacher={"model": str(teacher.path)}, run="run", seed=seed
    )


def slug(arm: str) -> str:
    """An arm's name as part of a folder's.

    >>> slug("rest, raw")
    'rest-raw'
    """
    return "-".join("".join(c if c.isalnum() else " " for c in arm).split())


def _key(config: Config) -> str:
    """Of what is run, wherever it lies: models by the name of their folder, which has their content's hash."""
    assert config.teacher is not None and config.teacher.type == "local"
    names = {
        config.student.model: Path(config.student.model).name,
        config.teacher.model: Path(config.teacher.model).name,
    }
    text = dump_toml(config)
    for path, name in names.items():
        text = text.replace(path, name)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _read(config: Config, *, arm: str, seed: int, key: str, talk: Talk) -> Row:
    """Distil, or read what was distilled, and say what came of it."""
    finish(config, talk=talk)
    folder = RunFolder.read(config.run)
    first, last = folder.read_eval()[0], folder.read_eval()[-1]
    before, teacher, after = first["avg_at_k"], first["teacher_avg_at_k"], last["avg_at_k"]
    ends = {name: list(pair) for name, pair in watched(folder.read_metrics()).items()}
    return {
        "arm": arm,
        "seed": seed,
        "config": key,
        "commit": environment()["commit"],
        "before": before,
        "teacher": teacher,
        "after": after,
        "recovery": gap_recovery(before, after, teacher),
        "watched": ends,
    }


def table_of(study: Study, out: Path) -> Path:
    """Where the study's table is kept."""
    return out / f"{study.name}.json"


def rows_in(study: Study, out: Path) -> Rows:
    """The rows kept there; none where it was not run."""
    path = table_of(study, out)
    rows: Rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    return rows


# --- what is told ---------------------------------------------------------------------------------------------


def about(study: Study) -> dict[str, Any]:
    """What is known before any run."""
    return {
        "name": study.name,
        "question": study.question,
        "claim": study.claim,
        "pair": [study.student, study.teacher],
        "arms": {arm: dict(settings) for arm, settings in study.arms.items()},
        "expectation": {e.name: e.text for e in study.expected},
    }


def told(study: Study, rows: Rows) -> dict[str, Any]:
    """The study with its table, for machines."""
    return {**about(study), "rows": rows, "verdicts": verdicts(study, rows)}


def verdicts(study: Study, rows: Rows) -> dict[str, Verdict]:
    words: Mapping[bool | None, Verdict] = {True: "holds", False: "does not hold", None: "not run"}
    return {e.name: words[e.holds(rows)] for e in study.expected}


def lines(study: Study, rows: Rows) -> Iterator[str]:
    """The table and what came of the expectations, as Markdown."""
    head = ["arm", "seeds", "before", "teacher", "after (least to most)", "gap recovery", "overlap@16"]
    body = []
    for arm in study.arms:
        mine = of_arm(rows, arm)
        if mine:
            after = [row["after"] for row in mine]
            gained = recovery(rows, arm)
            overlap = [row["watched"]["overlap_ratio"] for row in mine]
            body.append(
                [
                    arm,
                    str(len(mine)),
                    f"{_mean(row['before'] for row in mine):.3f}",
                    f"{_mean(row['teacher'] for row in mine):.3f}",
                    f"{_mean(after):.3f} ({min(after):.3f} to {max(after):.3f})",
                    "–" if gained is None else f"{gained:.0%}",
                    f"{_mean(o[0] for o in overlap):.3f} → {_mean(o[1] for o in overlap):.3f}",
                ]
            )
    yield from table(head, body)
    yield ""
    came = verdicts(study, rows)
    for expectation in study.expected:
        yield f"- {expectation.text}: **{came[expectation.name]}**."


def of_arm(rows: Rows, arm: str) -> list[Row]:
    return [row for row in rows if row["arm"] == arm]


def recovery(rows: Rows, arm: str) -> float | None:
    """Mean gap recovery of an arm over the seeds whose teacher has a lead; None where there is none."""
    known = [row["recovery"] for row in of_arm(rows, arm) if row["recovery"] is not None]
    return _mean(known) if known else None


def _mean(values: Any) -> float:
    return statistics.fmean(values)
