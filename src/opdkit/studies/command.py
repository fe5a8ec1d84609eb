"""What `opd demo` and `opd study` do and say."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opdkit.config import Config
from opdkit.studies.demo import run_demo
from opdkit.studies.pairs import pair_lines, run_pair
from opdkit.studies.progress import StoryBar
from opdkit.studies.questions import STUDIES
from opdkit.studies.recipes import BODIES, FAMILIES, PAIRS, Family, family
from opdkit.studies.study import SCALES, Rows, Scale, Study, about, rows_in, run, told
from opdkit.studies.study import lines as table_lines
from opdkit.studies.tell import demo_data, demo_lines
from opdkit.studies.testbed import Made, Workshop, lines
from opdkit.train import Silent, Talk
from opdkit.types import UserError


@dataclass(frozen=True)
class Told:
    """The same for machines and for people."""

    data: dict[str, Any]
    text: str


def demo(*, out: Path, seed: int, base: int, cache: Path, quiet: bool) -> Told:
    """Two pairs and a control, told. What is in `out` already is read, and gone on with."""

    def talk(config: Config, title: str) -> Talk:
        return Silent() if quiet else StoryBar(config, title=title)

    outcomes, page = run_demo(out, seed=seed, base=base, cache=cache, talk=talk)
    data = demo_data(outcomes, page, seed=seed, base=base)
    return Told(data, "\n".join(demo_lines(outcomes, page)))


def list_studies() -> Told:
    """Every question with its claim, its arms and what is expected."""
    told = [about(study) for study in STUDIES.values()]
    text = [f"{study.name}  {study.question}\n  {study.claim}" for study in STUDIES.values()]
    return Told({"studies": told}, "\n".join(text))


def run_studies(names: Sequence[str], *, scale: str, out: Path, cache: Path, quiet: bool) -> Told:
    """Run what is missing and tell. Raises UserError for names that are none."""
    chosen, size = _chosen(names), _scale(scale)

    def talk(config: Config) -> Talk:
        return Silent() if quiet else StoryBar(config, title=f"{config.run.parent.name} {config.run.name}")

    ran = [(study, run(study, size, out=out, cache=cache, talk=talk)) for study in chosen]
    return _told(ran)


def report_studies(names: Sequence[str], *, out: Path) -> Told:
    """What was run so far. Raises UserError where nothing was."""
    found = []
    for study in _chosen(names):
        rows = rows_in(study, out)
        if not rows:
            raise UserError(
                f"{study.name} was not run into {out}", hint=f"opd study run {study.name} --out {out}"
            )
        found.append((study, rows))
    return _told(found)


def _told(ran: Sequence[tuple[Study, Rows]]) -> Told:
    data = [told(study, rows) for study, rows in ran]
    text = [
        "\n".join([f"## {study.question}", "", study.claim, "", *table_lines(study, rows)])
        for study, rows in ran
    ]
    return Told({"studies": data}, "\n\n".join(text))


def _chosen(names: Sequence[str]) -> list[Study]:
    for name in names:
        if name not in STUDIES:
            near = difflib.get_close_matches(name, STUDIES, n=1, cutoff=0.4)
            hint = f"opd study run {near[0]}" if near else "opd study list"
            raise UserError(f"there is no study {name!r}", hint=hint)
    return [STUDIES[name] for name in names or STUDIES]


def _scale(name: str) -> Scale:
    if name not in SCALES:
        raise UserError(f"there is no scale {name!r}", hint=f"--scale {' | '.join(SCALES)}")
    return SCALES[name]


def build_testbed(
    *, family: str, body: str, seed: int, only: Sequence[str] | None, pairs: bool, out: Path, quiet: bool
) -> Told:
    """Make models, maybe distil every pair. Raises UserError for names that are none."""
    made_of = open_family(family, body=body, seed=seed)
    names = [recipe.name for recipe in made_of.recipes]
    for name in only or ():
        known(name, names, what="model", option="--only")

    def talk(config: Config) -> Talk:
        return Silent() if quiet else StoryBar(config)

    workshop = Workshop(made_of, out / f"{family}-{body}-{seed}", talk=talk)
    models = [workshop.make(name) for name in only or names]
    told = {"family": family, "body": body, "seed": seed, "models": [_plain(m) for m in models]}
    text = lines(models)
    if pairs:
        here = {*(only or names), "self"}
        results = [run_pair(workshop, p, seed=0) for p in PAIRS if {p.student, p.teacher} <= here]
        told["pairs"] = [asdict(r) for r in results]
        text += ["", *pair_lines(results)]
    return Told(told, "\n".join(text))


def open_family(name: str, *, body: str, seed: int) -> Family:
    known(name, FAMILIES, what="family", option="--family")
    known(body, BODIES, what="model type", option="--body")
    return family(name, kind=body, seed=seed)  # type: ignore[arg-type]


def known(name: str, names: Sequence[str], *, what: str, option: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        raise UserError(
            f"there is no {what} {name!r} in the testbed",
            hint=f"{option} {near[0]}" if near else f"{option} {' | '.join(names)}",
        )


def _plain(made: Made) -> dict[str, Any]:
    return {**asdict(made), "path": str(made.path)}
