"""Commands of `opd`. stdout is data, stderr is talk.

Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 130 and 143 stopped by a signal after saving.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from opdkit.cli.checking import Json, Overrides, arguments
from opdkit.cli.errors import going_on, leave
from opdkit.cli.judging import check, diagnose
from opdkit.cli.prompts import prompts as align_prompts
from opdkit.cli.studying import study
from opdkit.types import RunError, UserError

app = typer.Typer(
    name="opd",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="On-policy distillation: train a student on its own rollouts against a teacher, and see how.",
)

app.add_typer(study, name="study")


def main() -> NoReturn:
    """Run a command; every error is one message and a hint."""
    # Set before torch is imported. Threads that wait for a core others use must sleep, not spin: two spinning
    # OpenMP threads on a shared core made a forward 15 to 20 times slower than sleeping (docs/decisions.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        code = app(standalone_mode=False) or 0
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _leave_at_once(code)
        sys.exit(code)
    except (Exception, KeyboardInterrupt) as error:
        leave(error)


def _leave_at_once(code: int) -> NoReturn:
    """Without the interpreter's teardown: about one rank in ten was aborted there by gloo's threads ("terminate called without
    an active exception") after all its work was done and written, and torchrun then calls the run failed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from opdkit import __version__

        print(__version__)
        raise typer.Exit()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the runs and the page go.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Of prompts and sampling.")] = 0,
    base: Annotated[
        int, typer.Option(help="World and first weights; others than 0 are taught first, minutes.")
    ] = 0,
    cache: Annotated[Path, typer.Option(metavar="DIR", help="Where models taught here are kept.")] = Path(
        ".cache/testbed"
    ),
    as_json: Json = False,
) -> None:
    """A pair that works and a pair that scores higher and does not: distilled, explained, offline."""
    from opdkit.studies.command import demo as run

    with going_on():
        told = run(out=out, seed=seed, base=base, cache=cache, quiet=as_json)
    print(json.dumps(told.data) if as_json else told.text)


@app.command()
def train(
    config: Annotated[str | None, typer.Argument(metavar="CONFIG", help="A TOML file.")] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with this run folder.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show every value and where it came from; train nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train the student of CONFIG on its own rollouts; everything goes to the run folder (run=DIR)."""
    path, changes = arguments(config, overrides)
    if resume is not None:
        resolved = _resumed(resume, path, changes)
    else:
        from opdkit.config import load_config

        if path is None and not changes:
            raise UserError("no CONFIG was given", hint="opd train CONFIG.toml, or opd train --resume RUN")
        resolved = load_config(path, changes)
    if print_config:
        _print_config(resolved, path if resume is None else resume / "config.toml", changes, as_json)
        return
    from opdkit.cli.printer import Printer

    printer = Printer(quiet=as_json or os.environ.get("RANK", "0") != "0")
    printer.start(resolved, resume)
    from opdkit.train import run_story

    with printer, going_on(resolved.run):
        code = run_story(resolved, resume=resume, talk=printer)
    if int(os.environ.get("RANK", "0")) == 0:
        if as_json:
            print(json.dumps({"run": str(resolved.run), "exit_code": code, **printer.last}))
        else:
            printer.note(f"run folder: {resolved.run}   next: opd report {resolved.run}")
    raise typer.Exit(code)


app.command()(check)


@app.command()
def coldstart(
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="A TOML file, maybe with a [coldstart].")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with this cold start.")] = None,
    as_json: Json = False,
) -> None:
    """The teacher answers, the student imitates until its own rollouts look right, then it distils (run=DIR)."""
    from opdkit.cli.coldstart import run_coldstart

    path, changes = arguments(config, overrides)
    code, told = run_coldstart(path, changes, resume=resume, as_json=as_json)
    print(told)
    raise typer.Exit(code)


app.command()(diagnose)
app.command("prompts")(align_prompts)


@app.command("eval")
def evaluate_model(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id, model folder, or a checkpoint's model/ folder.")
    ],
    task: Annotated[
        str,
        typer.Option("--task", metavar="FILE", help="A config with a [task], or a prompt file with answers."),
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the responses: JSONL for diagnose, and for story=sft."),
    ] = None,
    training: Annotated[
        bool, typer.Option("--train", help="Answer the training prompts; keep what came to an end.")
    ] = False,
    as_json: Json = False,
) -> None:
    """avg@k, unbiased pass@k, a 95% interval over problems, truncated answers apart."""
    from opdkit.config import load_config

    changes = [f"student.model={json.dumps(model)}", *(overrides or [])]
    if Path(task).suffix == ".toml":
        config = load_config(Path(task), changes)
    else:
        fixed = [f"task.path={json.dumps(task)}", f"task.eval_path={json.dumps(task)}"]
        config = load_config(None, [*fixed, *changes])
    from opdkit.train.examine import examine

    with going_on():
        row = examine(config, keep=out, training=training)
    if as_json:
        print(json.dumps({"model": model, "task": task, **row}))
    else:
        from opdkit.cli.printer import evaluation_lines

        print("\n".join(evaluation_lines(row)))
        if out is not None:
            left = row["responses_left_out"]
            print(f"responses in {out}" + (f"; {left} that did not end were left out" if left else ""))


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, or logs of TRL, verl, NeMo-RL, slime or miles; several are overlaid.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the page; by default report.html in the first run.")
    ] = None,
    as_json: Json = False,
) -> None:
    """One self-contained HTML page that explains a run, or compares several."""
    from opdkit.cli.coldstart import runs_in
    from opdkit.integrations import as_runs
    from opdkit.report import write_report
    from opdkit.report.read import run_names

    runs = [folder for run in runs for folder in runs_in(run)]
    with as_runs(runs) as (folders, beside):
        page = write_report(folders, out or beside, names=run_names(runs))
    print(json.dumps({"report": str(page)}) if as_json else page)


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, going on or over.")],
    every: Annotated[float, typer.Option(min=0.2, metavar="SECONDS", help="How often to look.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one look; what a pipe gets anyway.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="For a folder that is not there yet.")] = False,
    as_json: Json = False,
) -> None:
    """A run on the terminal: progress, curves, findings, times, the last rollout. Ctrl-C leaves."""
    from opdkit.report.live import watch as follow

    raise typer.Exit(follow(run, every=every, once=once, wait=wait, as_json=as_json))


@app.command()
def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or model folder.")],
    host: Annotated[
        str, typer.Option(help="Address; beyond this machine only with OPD_SERVE_TOKEN set.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8017,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float64.")] = "float32",
    revision: Annotated[str | None, typer.Option(help="Hub revision to pin.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:1.")] = "auto",
    max_top_k: Annotated[
        int, typer.Option(min=1, metavar="K", help="Widest top-k a request may ask.")
    ] = 1024,
    max_tokens: Annotated[int, typer.Option(min=2, help="Of one request.")] = 1 << 20,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests in the queue; more get 503.")] = 256,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Padded tokens per forward.")] = 16384,
    as_json: Json = False,
) -> None:
    """Score rollouts for others: a frozen MODEL behind a URL, for teacher.type=server. Ends with Ctrl-C."""
    try:
        from opdkit.serve.run import serve as run
        from opdkit.serve.scoring import Limits
    except ModuleNotFoundError as error:
        raise UserError(f"opd serve needs {error.name}", hint="pip install 'opdkit[serve]'") from None
    from opdkit.config import ModelConfig

    def ready(about: dict[str, object]) -> None:
        said = json.dumps(about) if as_json else f"serving {model} at {about['url']}"
        print(said, flush=True)
        print(f"use it: teacher.type=server teacher.url={about['url']}", file=sys.stderr, flush=True)

    if dtype not in ("float32", "bfloat16", "float64"):
        raise UserError(f"--dtype {dtype} is unknown", hint="--dtype float32, bfloat16 or float64")
    with going_on():
        run(
            ModelConfig(model=model, dtype=dtype, revision=revision),  # type: ignore[arg-type]
            host=host,
            port=port,
            device=device,
            batch_tokens=batch_tokens,
            limits=Limits(tokens=max_tokens, top_k=max_top_k, waiting=max_waiting),
            ready=ready,
        )


@app.command()
def selftest(
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PART", help="objectives, invariances or metrics; all three, unless named."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove on this install that gradients and metrics are what they are said to be: under a minute, offline.

    Exit code 1 when something does not hold.
    """
    from opdkit.cli.printer import Printer
    from opdkit.proofs.selftest import selftest as prove
    from opdkit.proofs.table import lines

    with going_on():
        told = prove(only=only or (), say=Printer(quiet=as_json).note)
    print(json.dumps(told) if as_json else "\n".join(lines(told)))
    if not told["holds"]:
        first, *rest = told["failures"]
        more = f" (and {len(rest)} more)" if rest else ""
        raise RunError(
            f"does not hold: {first}{more}", hint="opd selftest --json  # every row, with the versions"
        )


MAY_CHANGE = (
    *("steps", "device", "threads", "eval.", "save.", "health."),
    *("learner.batch_tokens", "sampling.batch_rows"),
    *(
        "teacher.url",
        "teacher.patience.",
        "sampling.url",
        "sampling.patience.",
        "sampling.memory",
        "sampling.share",
    ),
)
"""What may differ when a run is resumed: how long, where and how often; never what is trained on what."""


def _resumed(run: Path, path: Path | None, changes: list[str]) -> Any:
    from opdkit.config import load_config, parse_overrides

    if path is not None:
        raise UserError(f"--resume takes its configuration from {run}", hint=f"opd train --resume {run}")
    for key, _ in parse_overrides(changes):
        if not key.startswith(MAY_CHANGE):
            raise UserError(
                f"{key} cannot change in a resumed run: it would not be the same run",
                hint=f"leave it out ({', '.join(MAY_CHANGE)} may change), or begin a new run: run=DIR",
            )
    if not (run / "config.toml").is_file():
        what = "is not a run folder: no config.toml in it" if run.is_dir() else "is not there"
        raise UserError(f"{run} {what}", hint=_near_run(run))
    config = load_config(run / "config.toml", [*changes, f"run={json.dumps(str(run))}"])
    if config.optim.schedule == "cosine" and any(key == "steps" for key, _ in parse_overrides(changes)):
        raise UserError(
            "steps shapes the cosine schedule, so it cannot change in a resumed run",
            hint="resume without steps=",
        )
    return config


def _near_run(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path(".")
    runs = [p for p in [*folder.glob("*/config.toml"), *Path("runs").glob("*/config.toml")]]
    near = difflib.get_close_matches(path.name, [p.parent.name for p in runs], n=1, cutoff=0.4)
    found = next((p.parent for p in runs if near and p.parent.name == near[0]), None)
    return "name the folder that run=… named" if found is None else f"did you mean {found}?"


def _print_config(config: Any, path: Path | None, changes: list[str], as_json: bool) -> None:
    from opdkit.config import explain

    rows = explain(config, path, changes)
    if as_json:
        print(
            json.dumps({key: {"value": value, "source": source} for key, value, source in rows}, default=str)
        )
        return
    width = max(len(key) for key, _, _ in rows)
    shown = [
        (key, "unset" if value is None else json.dumps(value, default=str), source)
        for key, value, source in rows
    ]
    middle = min(48, max(len(value) for _, value, _ in shown))
    for key, value, source in shown:
        print(f"{key:{width}}  {value:{middle}}  # {source}")
