"""Prompts with or without answers, templating, and graders in a killable child. Torch-free, and light to
import: readers of parquet, generators and checkers are loaded where they are used, most of them only in the
child."""

from opdkit.tasks.encode import demonstrations, encode, fit
from opdkit.tasks.layouts import Said
from opdkit.tasks.rollouts import read_rollouts
from opdkit.tasks.steps import step_prompts, walk
from opdkit.tasks.task import Task, load_task

__all__ = [
    "Said",
    "Task",
    "demonstrations",
    "encode",
    "fit",
    "load_task",
    "read_rollouts",
    "step_prompts",
    "walk",
]
