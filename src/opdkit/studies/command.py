"""What `opd demo` and `opd study build testbed` do and say."""

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
from opdkit.studies.recipes import BODIES, FAMILIES, PAIRS, Family, family
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
