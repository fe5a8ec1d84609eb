"""One HTML page out of run folders: read, put into words, plots and tables, rendered, written in one move."""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from opdkit.report import (
    compare,
    figures,
    foretold,
    outcome,
    points,
    preflight,
    samples,
    stories,
    tables,
    timeline,
    words,
)
from opdkit.report.read import Run, read_run, run_names
from opdkit.types import UserError


def write_report(
    runs: Sequence[Path], out: Path | None = None, *, names: Sequence[str] | None = None
) -> Path:
    """Write the page of `runs`, overlaid when there are several, and return where it is (first run).

    A document of `opd check` is shown by itself, or beside the runs.

    `names` are what the page calls the runs; unset, the ends of their paths that tell them apart. The page is
    one file that asks the network for nothing; what a run wrote is data in it, never markup.
    """
    if not runs:
        raise UserError("no run to report on", hint="opd report RUN")
    called = names or run_names(runs)
    read = [read_run(path, name=name) for path, name in zip(runs, called, strict=True)]
    target = out or (runs[0].with_suffix(".html") if runs[0].is_file() else runs[0] / "report.html")
    write_page(target, render(read))
    return target


def render(runs: Sequence[Run]) -> str:
    """The page as text. Plots are known by their order: the n-th `.plot` draws the n-th payload."""
    sections, evaluation = figures.sections(runs), figures.evaluation(runs)
    both = len(runs) == 2 and all(run.ran for run in runs)
    evidence = figures.evidence(runs) if both else []
    profiles = [preflight.figures(run, index) for index, run in enumerate(runs)]
    drawn = [*evidence, *(figure for parts in profiles for part in parts for figure in part), *evaluation]
    drawn += [figure for section in sections for figure in (*section.figures, *section.more)]
    rolled = samples.groups(runs)
    ran = any(run.ran for run in runs)
    scripts = _scripts(rollouts=ran)
    return template("page.html.j2").render(
        runs=runs,
        both=both,
        ran=ran,
        profiles=profiles,
        sections=sections,
        evaluation=evaluation,
        evidence=evidence,
        payload=_script_safe([figure.payload() for figure in drawn]),
        samples=rolled,
        filters=samples.filters(rolled),
        place_of=samples.place_of,
        shown_rollouts=samples.SHOWN_ROLLOUTS,
        coloured=any(sample.tokens for group in rolled for sample in group.samples),
        candidates=_script_safe(samples.payload(rolled)),
        scripts=scripts,
        policy=_policy(scripts),
        style=_file("page.css") + _file("tokens.css"),
        words=words,
        stories=stories,
        compare=compare,
        points=points,
        tables=tables,
        window=max(-(-len(run.metrics) // 10) for run in runs),
        outcome=outcome,
        preflight=preflight,
        foretold=foretold,
        timeline=timeline,
    )


def template(name: str) -> Any:
    """A page's template: what is put into it is escaped, what is missing is an error."""
    import jinja2  # heavy, and only this command needs it

    loader = jinja2.FunctionLoader(_file)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def _scripts(*, rollouts: bool) -> list[str]:
    """The scripts of the page: the rollouts', plotly, the plots'. Nothing a run wrote is ever part of a script.

    Plotly stands after the rollouts': it takes a while to be read, and the rollouts need not wait for it.
    """
    from plotly.offline import get_plotlyjs

    return [*([_file("tokens.js")] if rollouts else []), get_plotlyjs(), _file("page.js")]


def _policy(scripts: Sequence[str]) -> str:
    """Content security: exactly these scripts run, and no address is asked for anything.

    Styles may be inline because plotly sets them element by element; a heatmap is an image made in the page.
    """
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    rules = ["default-src 'none'", f"script-src {hashes}", "style-src 'unsafe-inline'", "img-src data: blob:"]
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _script_safe(data: Any) -> str:
    """JSON that no HTML parser can mistake for markup and no script parser for a line end."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _file(name: str) -> str:
    return (files("opdkit.report") / name).read_text(encoding="utf-8")


def write_page(target: Path, text: str) -> None:
    """All or nothing: a page that is being looked at is never half a page."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8", newline="\n")
        os.replace(draft, target)
    except OSError as error:
        if draft.is_file():
            draft.unlink()
        raise UserError(
            f"cannot write {target}: {error.strerror}", hint="give another place: --out FILE"
        ) from error
