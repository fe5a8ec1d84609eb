"""What a person sees of a run, on stderr: a progress bar on a terminal, and one aligned line per step."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Self

COLUMNS = (
    ("loss", "loss", "{:8.4f}"),
    ("reverse_kl", "reverse_kl", "{:10.4f}"),
    ("overlap_ratio", "overlap_ratio", "{:13.3f}"),
    ("overlap_mass_student", "mass", "{:5.3f}"),
    ("entropy_gap", "entropy_gap", "{:11.3f}"),
    ("grad_norm", "grad_norm", "{:9.3f}"),
    ("response_length", "length", "{:6.1f}"),
    ("accuracy", "accuracy", "{:8.3f}"),
    ("seconds/step", "sec", "{:6.2f}"),
)
"""metric, heading, form. The words are the metric names."""


class Printer:
    """`Talk` of the training loop. Keeps the last rows for `--json`."""

    def __init__(self, *, quiet: bool = False):
        self.quiet = quiet
        self.last: dict[str, Any] = {"metrics": None, "eval": None}
        self._bar: Any = None  # a train.bar.Bar from the first step on: till then nothing heavy is loaded
        self._headed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, config: Any, resume: Path | None) -> None:
        verb = f"going on with {resume}" if resume is not None else f"run folder {config.run}"
        self.note(f"{config.student.model} {_plot(config)} · {config.steps} steps · {verb}")

    def note(self, text: str) -> None:
        if not self.quiet:
            self._print(text)

    def step(self, row: dict[str, Any], steps: int) -> None:
        self.last["metrics"] = row
        if self.quiet:
            return
        if self._bar is None:
            from opdkit.train.bar import Bar

            self._bar = Bar("step")
        self._bar.advance(int(row["step"]), steps)
        if not self._headed:
            self._print("  step  " + "  ".join(self._wide(heading, form) for _, heading, form in COLUMNS))
            self._headed = True
        cells = [
            form.format(row[name]) if name in row else self._wide("-", form) for name, _, form in COLUMNS
        ]
        if _spoken(int(row["step"]), steps):
            self._print(f"{int(row['step']):6d}  " + "  ".join(cells))

    def evaluation(self, row: dict[str, Any]) -> None:
        self.last["eval"] = row
        if not self.quiet:
            self._print(f"eval after step {row['step']}: " + "; ".join(evaluation_lines(row)))

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.say(text)
        else:
            print(text, file=sys.stderr, flush=True)

    @staticmethod
    def _wide(text: str, form: str) -> str:
        return text.rjust(len(form.format(0.0)))


LINES = 200  # of a run at most: a run of many small steps says every so-manieth


def _spoken(step: int, steps: int) -> bool:
    """Whether a step gets its line.

    >>> [step for step in range(1, 1001) if _spoken(step, 1000)][:3]
    [1, 5, 10]
    """
    return step in (1, steps) or step % max(1, steps // LINES) == 0


def _teacher(cfg: Any) -> str:
    if cfg is None:
        return "no teacher"
    if cfg.type == "self":
        return "its own earlier copy"
    if cfg.type == "router":
        return ", ".join(f"{_teacher(member)} ({name})" for name, member in cfg.teachers.items())
    return str(cfg.url if cfg.type == "server" else cfg.model)


def _plot(config: Any) -> str:
    """What happens to the student in this story."""
    if config.story == "distill":
        return f"learns from {_teacher(config.teacher)} · objective {config.objective.preset}"
    return {
        "sft": "imitates demonstrations",
        "grpo": "follows its scores, group by group",
        "improve": "imitates its own right answers",
        "push_down": "pushes its least likely tokens down, without a teacher",
    }[str(config.story)]


def evaluation_lines(row: dict[str, Any]) -> list[str]:
    """An evaluation in words.

    >>> row = {"problems": 2, "responses": 1, "response_length": 3.0, "truncated_fraction": 0.5}
    >>> evaluation_lines({**row, "graded": False})
    ['2 problems x 1 responses', 'no grader, so nothing about accuracy', 'length 3.0 tokens, truncated 50.0%']
    """
    lines = [f"{row['problems']} problems x {row['responses']} responses"]
    if row["graded"]:
        k = row["responses"]
        lines.append(f"avg@{k} {row['avg_at_k']:.3f} (95% interval {row['low']:.3f} to {row['high']:.3f})")
        lines.append("  ".join(f"pass@{n} {value:.3f}" for n, value in row["pass_at_k"].items()))
        if "avg_of_benchmarks" in row:
            each = "  ".join(f"{name} {value:.3f}" for name, value in row["by_group"].items())
            lines.append(f"{each}  mean of benchmarks {row['avg_of_benchmarks']:.3f}")
        if row["ungraded_fraction"]:
            lines.append(f"grading failed on {row['ungraded_fraction']:.1%}, counted as not passed")
        if row["truncated_correct_fraction"]:
            lines.append(
                "cut off with the right answer in it, counted as not passed: "
                f"{row['truncated_correct_fraction']:.1%}"
            )
    else:
        lines.append("no grader, so nothing about accuracy")
    lines.append(f"length {row['response_length']:.1f} tokens, truncated {row['truncated_fraction']:.1%}")
    if row.get("prompts_dropped"):
        lines.append(f"{row['prompts_dropped']} prompts left no room for a response and were left out")
    return [*lines, *row.get("findings", [])]
