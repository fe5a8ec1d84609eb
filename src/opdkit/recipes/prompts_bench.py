"""The models of `opd prompts`, opened once: the student answers prompts, both read what it wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opdkit.config import Config, LocalTeacher, MixConfig, WidenConfig, as_local
from opdkit.models.load import LoadedModel, check_weights, open_model, pick_device
from opdkit.models.pair import Reader
from opdkit.models.sampler import LocalSampler
from opdkit.recipes.probe import Piece, read_all
from opdkit.tasks import Task
from opdkit.train.plan import Plan, make_plan
from opdkit.train.prompts import encoded_prompts
from opdkit.types import Finding, Prompt, Rollout, UserError

STREAM = -6
"""The `step` of the draws: none of a run, nor of the preflight."""


@dataclass(frozen=True)
class _Asked:
    """The task with other training prompts, as `encoded_prompts` looks at it."""

    train: Sequence[Prompt]
    graded: bool
    training_graded: bool
    evaluation: tuple[Prompt, ...] = ()
    findings: tuple[Finding, ...] = ()


class Bench:
    """`teacher` may be missing: then nothing is read, and prompts are only answered and graded."""

    def __init__(self, config: Config, task: Task):
        self.task, self.said = task, config
        alone = config.teacher is None
        self.config = config.model_copy(
            update={
                "sampling": as_local(config.sampling),  # some hundred rollouts need no engine
                "mix": MixConfig(),
                "widen": WidenConfig(),
                **({"story": "push_down"} if alone else {"story": "distill"}),
            }
        )
        self._plans: dict[str, Plan] = {}
        self._student: LoadedModel | None = None
        self._teacher: LoadedModel | None = None
        self.rows = self.plan("student").rows

    @property
    def has_teacher(self) -> bool:
        return isinstance(self.config.teacher, LocalTeacher)

    def plan(self, render: str) -> Plan:
        if render not in self._plans:
            self._plans[render] = make_plan(self._rendered(render))
        return self._plans[render]

    def _rendered(self, render: str) -> Config:
        task = self.config.task.model_copy(update={"render": render})
        return self.config.model_copy(update={"task": task})

    def encoded(self, prompts: Sequence[Prompt], *, render: str | None = None) -> list[Prompt]:
        """With ids, as a run would read them; what leaves no room for a response is left out. UserError as of a run."""
        render = render or self.config.task.render
        asked = _Asked(prompts, self.task.graded, self.task.training_graded)
        bare: Any = replace(asked, train=[replace(p, ids=()) for p in prompts])
        return list(encoded_prompts(self._rendered(render), bare, self.plan(render)).train)

    @property
    def student(self) -> LoadedModel:
        if self._student is None:
            check_weights(self.config.student)
            self._student = open_model(self.config.student, device=pick_device(self.config.device))
        return self._student

    @property
    def teacher(self) -> LoadedModel:
        """UserError where there is none whose weights can be read."""
        teacher = self.config.teacher
        if not isinstance(teacher, LocalTeacher):
            raise UserError(
                "this needs a teacher whose weights are at hand",
                hint="--teacher MODEL, the folder or Hub id of the teacher",
            )
        if self._teacher is None:
            check_weights(teacher)
            self._teacher = open_model(teacher, device=pick_device(self.config.device), rows=self.rows)
        return self._teacher

    def rollouts(self, encoded: Sequence[Prompt], *, responses: int) -> list[Rollout]:
        """The student's responses, graded where there is a grader; prompt-major."""
        sampling = self.config.sampling.model_copy(update={"responses": responses})
        drawn = LocalSampler(self.student).sample(
            encoded, sampling=sampling, seed=self.config.seed, step=STREAM
        )
        return self.task.grade(drawn) if self.task.training_graded else drawn

    def read(self, rollouts: Sequence[Rollout]) -> Piece:
        """Both models' opinion of them."""
        return read_all(
            rollouts,
            student=self._reader(self.student, self.config.sampling.temperature),
            teacher=self.reader,
            max_tokens=self.config.sampling.max_tokens,
        )

    @property
    def reader(self) -> Reader:
        """The teacher as a reader."""
        teacher = self.config.teacher
        return self._reader(self.teacher, teacher.temperature if teacher is not None else 1.0)

    def _reader(self, loaded: LoadedModel, temperature: float) -> Reader:
        stops = self.config.sampling.stop_ids if loaded is self._student else None
        return Reader(loaded, temperature, tuple(stops or loaded.stop_ids))


Say = Callable[[str], None]
