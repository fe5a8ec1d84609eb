"""`opd study`: questions put to small models that are made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from opdkit.cli.checking import Json
from opdkit.cli.errors import going_on
from opdkit.types import UserError

Out = Annotated[Path, typer.Option(metavar="DIR", help="Tables, and runs in runs/.")]

study = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Studies on small models made here.")


@study.command("list")
def list_studies(as_json: Json = False) -> None:
    """The questions, what the paper claims, and what is expected here."""
    from opdkit.studies.command import list_studies as told_of

    told = told_of()
    print(json.dumps(told.data) if as_json else told.text)


@study.command("run")
def run_study(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Which; all.")] = None,
    scale: Annotated[
        str,
        typer.Option(
            help="quick: one base a family, 30 steps; full: five bases, 100 steps; real: SmolLM2-135M; gpu: the paper's models."
        ),
    ] = "quick",
    family: Annotated[list[str] | None, typer.Option(help="Only this family; may come again.")] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Only this base; real, gpu: this seed of the runs; may come again."),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes, one base each; a run uses one core.")] = 1,
    out: Out = Path("runs/studies"),
    cache: Annotated[Path, typer.Option(metavar="DIR", help="Models of the testbed.")] = Path(
        ".cache/testbed"
    ),
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="real, gpu: laid over every arm; may come again."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the arms that are missing on every base, then tell the tables and what came of the expectations."""
    from opdkit.studies.command import run_studies

    with going_on():
        told = run_studies(
            names or (),
            scale=scale,
            families=family,
            seeds=seed,
            jobs=jobs,
            out=out,
            cache=cache,
            changes=changes or (),
            quiet=as_json,
        )
    print(json.dumps(told.data) if as_json else told.text)


@study.command("report")
def report_study(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Which; all.")] = None,
    out: Out = Path("runs/studies"),
    pages: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a page and a figure per question there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell again what `opd study run` found."""
    from opdkit.studies.command import report_studies

    told = report_studies(names or (), out=out, pages=pages)
    print(json.dumps(told.data) if as_json else told.text)


@study.command("build")
def build_study(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="`testbed`: small models of a family, from seeds.")
    ],
    family: Annotated[str, typer.Option(help="Task family: chain or lists.")] = "chain",
    body: Annotated[str, typer.Option(help="Model type: qwen3 or llama.")] = "qwen3",
    seed: Annotated[int, typer.Option(help="Of the world and of first weights: another base.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="Models to make, with what they need; all.")] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Then distil every pair once and tell.")] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Cache.")] = Path(".cache/testbed"),
    as_json: Json = False,
) -> None:
    """Teach the testbed's students and teachers; those whose content is in the cache are left as they are."""
    if what != "testbed":
        raise UserError(f"there is no study {what!r} to build", hint="opd study build testbed")
    from opdkit.studies.command import build_testbed

    with going_on():
        told = build_testbed(
            family=family, body=body, seed=seed, only=only, pairs=pairs, out=out, quiet=as_json
        )
    print(json.dumps(told.data) if as_json else told.text)


@study.command("fit")
def fit_study(
    table: Annotated[
        Path, typer.Option(metavar="FILE", help="The pair factory's table: opd study run pairs --scale full.")
    ] = Path("runs/studies/pairs.json"),
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Where predictor.json and bands.json go: what opd check reads."),
    ] = Path("src/opdkit/recipes"),
    final: Annotated[
        bool,
        typer.Option(
            "--final",
            help="Score on the frozen family as well, once, and ship models fitted on both families.",
        ),
    ] = False,
    pages: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write what it is worth as a page with a figure there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit the predictor of opd check on pairs that were checked and then distilled, and say what it is worth."""
    from opdkit.studies.fitting import fit_pairs

    told, text = fit_pairs(table, out=out, final=final, pages=pages)
    print(json.dumps(told) if as_json else text)
