"""Who judges responses, and the graders that run in a process that can be killed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from opdkit.tasks.worker import Worker
from opdkit.types import Grade, Prompt, Rollout, UserError

MAX_CHARACTERS = 20_000  # of a response that a grader reads, from its end: answers stand there


class Grading(Protocol):
    """Who judges responses."""

    def grades(self, rollouts: Sequence[Rollout]) -> list[Grade | None]:
        """One per rollout; None where there is nothing to judge by."""
        ...

    def close(self) -> None: ...


class ChildGrading:
    """Graders that run foreign code on foreign text, in a process that can be killed.

    Only the last 20,000 characters of a response are read; a longer one is never an exact answer. A grader
    that took too long or raised gives no score but `failed`.
    """

    def __init__(self, worker: Worker, *, timeout_seconds: float):
        self.worker, self.timeout_seconds = worker, timeout_seconds

    def grades(self, rollouts: Sequence[Rollout]) -> list[Grade | None]:
        asked = [i for i, r in enumerate(rollouts) if _gradable(r.prompt)]
        replies = self.worker.ask(
            [_request(rollouts[i]) for i in asked], timeout_seconds=self.timeout_seconds
        )
        found = {i: Grade(r.get("score"), r.get("failed")) for i, r in zip(asked, replies, strict=True)}
        return [found.get(i) for i in range(len(rollouts))]

    def close(self) -> None:
        self.worker.close()


def open_grading(type_: str, *, pattern: str = "", timeout_seconds: float) -> ChildGrading:
    """The grader `exact`, `regex` or `math` in a process that is started now, so that a missing package shows
    before a model is loaded. Raises UserError where it refuses to start."""
    worker = Worker({"type": type_, "pattern": pattern})
    greeting = worker.start()
    if "ready" not in greeting:
        worker.close()
        raise _refusal(greeting, type_)
    return ChildGrading(worker, timeout_seconds=timeout_seconds)


def _request(rollout: Rollout) -> dict[str, Any]:
    text = rollout.text.strip()
    return {
        "op": "grade",
        "text": text[-MAX_CHARACTERS:],
        "cut": len(text) > MAX_CHARACTERS,
        "answer": rollout.prompt.answer,
        **rollout.prompt.extra,
    }


def _gradable(prompt: Prompt) -> bool:
    return prompt.answer is not None or "index" in prompt.extra


def _refusal(greeting: dict[str, Any], type_: str) -> UserError:
    if greeting["refused"] == "missing":
        return UserError(f"grader {type_!r} needs {greeting['module']}", hint="pip install 'opdkit[math]'")
    return UserError(f"grader {type_!r} does not start: {greeting['message']}", hint="task.grader=exact")
