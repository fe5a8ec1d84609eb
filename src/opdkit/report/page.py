"""One HTML page out of run folders: read, put into words, plots and tables, rendered, written in one move."""

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from opdkit.report import figures, tables, words
from opdkit.report.read import Row, Run, read_run, run_names
from opdkit.report.text import number, percent, shown
from opdkit.types import UserError

SHOWN_CHARS = 20_000  # of a prompt or response; a runaway rollout must not make the page unusable
ROLLOUT_FACTS = ("id", "sample", "finish_reason", "score", "length", "sequence_reward")


@dataclass(frozen=True)
class Note:
    """A rollout or a finding as the page shows it: labelled numbers and texts, and further numbers below."""

    facts: Sequence[tuple[str, str]]
    texts: Sequence[tuple[str, str]]
    more: Sequence[tuple[str, str]] = ()


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of `runs`, overlaid when there are several, and return where it is (first run).

    The page is one file that asks the network for nothing; what a run wrote is data in it, never markup.
    """
    if not runs:
        raise UserError("no run to report on", hint="opd report RUN")
    read = [read_run(path, name=name) for path, name in zip(runs, run_names(runs), strict=True)]
    target = out or runs[0] / "report.html"
    _write(target, render(read))
    return target


def render(runs: Sequence[Run]) -> str:
    """The page as text. Plots are known by their order: the n-th `.plot` draws the n-th payload."""
    sections, evaluation = figures.sections(runs), figures.evaluation(runs)
    drawn = [*evaluation, *(figure for section in sections for figure in (*section.figures, *section.more))]
    scripts = _scripts()
    return _template().render(
        runs=runs,
        sections=sections,
        evaluation=evaluation,
        payload=_script_safe([figure.payload() for figure in drawn]),
        scripts=scripts,
        policy=_policy(scripts),
        style=_file("page.css"),
        words=words,
        tables=tables,
        window=max(-(-len(run.metrics) // 10) for run in runs),
        finding=_finding,
        rollout=_rollout,
    )


def _template() -> Any:
    import jinja2  # heavy, and only this command needs it

    loader = jinja2.FunctionLoader(_file)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2")


def _scripts() -> list[str]:
    """The two scripts of the page: plotly, and ours. Nothing a run wrote is ever part of a script."""
    from plotly.offline import get_plotlyjs

    return [get_plotlyjs(), _file("page.js")]


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


def _write(target: Path, text: str) -> None:
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


# --- what a run wrote, made ready to be shown ---------------------------------------------------------------


def _finding(row: Row) -> Note:
    numbers = row.get("numbers")
    facts = [("step", shown(number(row["step"])))] if number(row.get("step")) is not None else []
    facts += _facts(numbers) if isinstance(numbers, dict) else []
    return Note(facts, [(key, _text(row[key])) for key in ("message", "remedy") if row.get(key)])


def _rollout(row: Row) -> Note:
    texts = [(key, _text(row.get(key, ""))) for key in ("prompt", "response")]
    apart = {"step", "prompt", "response", *ROLLOUT_FACTS}
    rest = {key: value for key, value in row.items() if key not in apart}
    return Note(_facts({key: row[key] for key in ROLLOUT_FACTS if key in row}), texts, _facts(rest))


def _facts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Numbers and short words of a record; long texts and lists stay in the run folder."""
    facts = []
    for key, value in row.items():
        if number(value) is not None:
            facts.append((key, percent(number(value)) if key.endswith("_fraction") else shown(number(value))))
        elif isinstance(value, bool) or (isinstance(value, str) and 0 < len(value) <= 200):
            facts.append((key, str(value)))
    return facts


def _text(value: Any) -> str:
    """A text, or messages as JSON; cut when very long, saying by how much."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
    rest = len(text) - SHOWN_CHARS
    return text if rest <= 0 else f"{text[:SHOWN_CHARS]}\n… {rest:,} more characters in the run folder"
