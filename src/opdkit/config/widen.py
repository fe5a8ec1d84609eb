"""Prompts of another kind beside the task's own, on which the student answers as well."""

from typing import Literal, Self

from pydantic import Field, model_validator

from opdkit.config.base import FilePath, Record


class WidenConfig(Record):
    """A share of every step's prompts from a second file, and the guard that raises it when the student's entropy falls.

    Prompts near the teacher's own give better scores and a student that explores less (arXiv 2604.13016, 5.2), so some others are
    mixed in; the paper names no share, and the guard finds one.
    """

    path: FilePath | None = None
    """JSONL or parquet, read and templated like a file task's prompts; unset mixes nothing in. Rows without an answer are not
    graded."""
    share: float = Field(default=0.1, ge=0, lt=1)
    """Of `prompts_per_step`, from the first step on; the guard never goes below it."""
    guard: bool = True
    """Raise the share while `entropy_student` is under the floor, lower it again after."""
    floor: float = Field(default=0.7, gt=0)
    """Of `entropy_student`, in the unit of `floor_of`."""
    floor_of: Literal["first_window", "nats"] = "first_window"
    """`first_window`: the floor is a factor of the mean over the first `window` steps · `nats`: as it is."""
    window: int = Field(default=5, ge=1)
    """Steps whose mean is compared with the floor; a decision falls after each such window, so that the last one shows first."""
    change: float = Field(default=0.1, gt=0, lt=1)
    """By how much the share is raised or lowered."""
    most: float = Field(default=0.5, ge=0, lt=1)
    """The guard goes no higher."""
    clear: float = Field(default=1.1, ge=1)
    """The share is lowered once the mean is above the floor times this: between the two nothing changes."""

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.most < self.share:
            raise ValueError(
                f"most = {self.most} lies below share = {self.share} (use most = {max(self.share, 0.5)})"
            )
        return self
