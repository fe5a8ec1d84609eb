"""Static checks of a pair: everything that files alone can say, in seconds, before a model is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from opdkit.config import Config
from opdkit.recipes.static_ends import end_findings
from opdkit.recipes.static_prompts import prompt_findings
from opdkit.recipes.static_read import Subject, command, prompts_command, read_subject
from opdkit.recipes.static_sampling import sampling_findings
from opdkit.recipes.static_templates import Rendering, renderings, template_findings
from opdkit.recipes.static_tokens import token_findings
from opdkit.recipes.static_weights import weight_findings
from opdkit.tasks import Task
from opdkit.train.plan import make_plan
from opdkit.types import Finding, UserError

__all__ = ["Rendering", "command", "prompts_command", "static_findings", "static_renderings"]

CHECKS: tuple[Callable[[Subject], list[Finding]], ...] = (
    token_findings,
    end_findings,
    template_findings,
    prompt_findings,
    weight_findings,
    sampling_findings,
)
_ORDER = ("error", "warning", "info")


def static_findings(config: Config, *, task: Task, source: str) -> list[Finding]:
    """What is wrong, doubtful or worth knowing about student, teacher and prompts; errors first.

    No forward pass. `source` is how the user named all this (a config file, or options), for remedies that
    can be typed. An "error" is what makes a run hopeless or impossible as it stands.
    """
    subject, found = read_subject(config, task=task, source=source)
    if subject is not None:
        found += [f for check in CHECKS for f in check(subject)]
    if not any(f.severity == "error" for f in found):
        found += _refusal(config)
    found.sort(key=lambda f: _ORDER.index(f.severity))
    return [replace(f, message=_printable(f.message)) for f in found]


def _printable(text: str) -> str:
    """Names and templates are other people's text: what a terminal would obey is written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def static_renderings(config: Config, *, task: Task, source: str) -> list[Rendering]:
    """The probe conversations in both models' words, in full; empty where a model cannot be opened."""
    subject, _ = read_subject(config, task=task, source=source)
    return [] if subject is None else renderings(subject)


def _refusal(config: Config) -> list[Finding]:
    """What no check above knows by name and training would refuse all the same."""
    try:
        make_plan(config)
    except UserError as error:
        message = f"this cannot be trained as it stands: {error}; {error.hint}"
        return [Finding("plan_refused", "error", message, rule="the plan of the run can be made")]
    return []
