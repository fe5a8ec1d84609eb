"""The strict, frozen base of every config record."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Unknown keys are errors, values are not coerced beyond int → float, nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
