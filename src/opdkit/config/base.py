"""The strict, frozen base of every config record, and what lets TOML be short."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

FilePath = Annotated[Path, Field(strict=False)]  # TOML has no paths, only strings


class Record(BaseModel):
    """Unknown keys are errors, values are not coerced beyond int → float, nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def named(key: str, **fixed: Any) -> BeforeValidator:
    """A bare string stands for the record with that one key: student = "folder"."""
    return BeforeValidator(lambda value: {key: value, **fixed} if isinstance(value, str) else value)


def tagged(default: str) -> BeforeValidator:
    """A table without `type` gets the default one."""
    return BeforeValidator(lambda v: {"type": default, **v} if isinstance(v, dict) and "type" not in v else v)
