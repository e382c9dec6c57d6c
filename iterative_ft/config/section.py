"""What all parts of a config have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the config: immutable, every unknown key an error, no value turned into another type (seed=true is no 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
