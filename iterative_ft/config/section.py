"""What all parts of a config have in common, and the kinds of numbers and text in it.

Every number is finite, and has an upper end where a huge one would hang, fill the memory, or overflow in a library.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Precision = Literal["bfloat16", "float32"]
PositiveInt = Annotated[int, Field(ge=1, le=10**9)]  # what is beyond is no setting that anybody meant
Count = Annotated[int, Field(ge=0, le=10**9)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
Score = Annotated[float, Field(ge=0, le=100)]


class Section(BaseModel):
    """A part of the config: immutable, every unknown key an error, no value turned into another type (seed=true is no 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def name_of_files(name: str) -> str:
    """A name that folders and files are named after: it may neither lead anywhere nor be longer than they take."""
    if re.fullmatch(r"\w[\w.+-]{0,63}", name) is None:
        raise ValueError(f"the name {name[:80]!r} is wrong: give 1 to 64 letters, digits or . _ + -, the first no sign")
    return name


def at_home(path: str) -> str:
    """A path with ~ as the user's folder, which a shell leaves alone behind an equals sign."""
    if not path.strip() or "\0" in path:
        raise ValueError(f"{path!r} is no path: name a file or folder")
    if max(len(part.encode()) for part in path.split("/")) > 255:
        raise ValueError(f"{path[:40]}... is no path: a name in it is longer than 255 bytes")
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise ValueError(f"{path} names a user that this machine does not know: write the whole path") from None


Name = Annotated[str, AfterValidator(name_of_files)]
PathText = Annotated[str, AfterValidator(at_home)]
