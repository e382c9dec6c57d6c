"""What settings are made of: sections, and numbers with both ends.

Every number is finite, and has an upper end where a huge one would hang, fill the memory, or overflow in a library.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["bfloat16", "float32"]
PositiveInt = Annotated[int, Field(ge=1, le=10**7)]
Count = Annotated[int, Field(ge=0, le=10**7)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
Score = Annotated[float, Field(ge=0, le=100)]


class Section(BaseModel):
    """A part of the config: immutable, every unknown key an error, no value turned into another type (seed=true is no 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
