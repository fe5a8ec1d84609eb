"""What `opd demo` and `opd study` do and say."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from opdkit.config import Config
from opdkit.studies.campaign import campaign
from opdkit.studies.demo import run_demo
from opdkit.studies.estimate import Rows
from opdkit.studies.from_configs import OF_CONFIGS, run_from_configs
from opdkit.studies.pages import came, front_lines, write_pages
from opdkit.studies.pairs import pair_lines, run_pair
from opdkit.studies.progress import SilentShow, StoryBar
from opdkit.studies.questions import RUNNABLE, STUDIES
from opdkit.studies.recipes import BODIES, FAMILIES, PAIRS, Family, family
from opdkit.studies.study import SCALES, Scale, Study
from opdkit.studies.tables import about, rows_in, told
from opdkit.studies.tell import demo_data, demo_lines
from opdkit.studies.testbed import Made, Workshop, model_lines
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
    text = [
        f"{study.name:<18}{study.question}\n{'':<18}{study.section}: {study.claim}"
        for study in STUDIES.values()
    ]
    return Told({"studies": told}, "\n".join(text))


def run_studies(
    names: Sequence[str],
    *,
    scale: str,
    families: Sequence[str] | None,
    seeds: Sequence[int] | None,
    jobs: int,
    out: Path,
    cache: Path,
    changes: Sequence[str],
    quiet: bool,
) -> Told:
    """Run what is missing, in several processes if asked, and tell. Raises UserError for names that are none.

    `changes` (key=value) are laid over every arm of the scales that are made of configuration files.
    """

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    chosen = _chosen(names)
    if scale in OF_CONFIGS:
        if families:
            raise UserError(f"--scale {scale} has no families", hint=f"opd study run --scale {scale}")
        show = SilentShow if quiet else StoryBar
        run_from_configs(chosen, scale=scale, out=out, seeds=seeds or (), changes=changes, show=show, say=say)
        return _told([(study, rows) for study in chosen if (rows := rows_in(study, out))])
    size = _scale(scale)
    if changes:
        raise UserError(
            f"--set changes configuration files, and --scale {scale} has none", hint="--scale gpu"
        )
    for name in families or ():
        known(name, FAMILIES, what="family", option="--family")
    if jobs < 1:
        raise UserError(f"--jobs {jobs} runs nothing", hint="--jobs 1")
    size = replace(size, families=tuple(families or size.families), seeds=tuple(seeds or size.seeds))
    campaign(chosen, size, out=out, cache=cache, jobs=jobs, say=say)
    return _told([(study, rows_in(study, out)) for study in chosen])


def report_studies(names: Sequence[str], *, out: Path, pages: Path | None = None) -> Told:
    """What was run so far; with a page and a figure per question in `pages`. Raises UserError where nothing was."""
    found = [(study, rows_in(study, out)) for study in _chosen(names)]
    if missing := [study for study, rows in found if names and not rows]:
        name = missing[0].name
        raise UserError(f"{name} was not run into {out}", hint=f"opd study run {name} --out {out}")
    found = [(study, rows) for study, rows in found if rows]
    if not found:
        raise UserError(f"nothing was run into {out}", hint=f"opd study run --out {out}")
    front = [(study, rows_in(study, out)) for study in STUDIES.values()]
    if pages is not None:
        write_pages(found, pages, tables=out, front=front)
    return _told(found, front=() if names else front)


def _told(ran: Sequence[tuple[Study, Rows]], *, front: Sequence[tuple[Study, Rows]] = ()) -> Told:
    data = [told(study, rows) for study, rows in ran]
    text = ["\n".join(["", *front_lines(front)])] if front else []
    text += [
        "\n".join([f"## {study.question}", "", f"{study.section}: {study.claim}.", "", *came(study, rows)])
        for study, rows in ran
    ]
    return Told({"studies": data}, "\n\n".join(text))


def _chosen(names: Sequence[str]) -> list[Study]:
    for name in names:
        if name not in RUNNABLE:
            near = difflib.get_close_matches(name, RUNNABLE, n=1, cutoff=0.4)
            hint = f"opd study run {near[0]}" if near else "opd study list"
            raise UserError(f"there is no study {name!r}", hint=hint)
    return [RUNNABLE[name] for name in names or STUDIES]


def _scale(name: str) -> Scale:
    if name not in SCALES:
        raise UserError(f"there is no scale {name!r}", hint=f"--scale {' | '.join((*SCALES, *OF_CONFIGS))}")
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
    document = {"family": family, "body": body, "seed": seed, "models": [_plain(m) for m in models]}
    text = model_lines(models)
    if pairs:
        here = {*(only or names), "self"}
        results = [run_pair(workshop, p, seed=0) for p in PAIRS if {p.student, p.teacher} <= here]
        document["pairs"] = [asdict(r) for r in results]
        text += ["", *pair_lines(results)]
    return Told(document, "\n".join(text))


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
