"""The config of a persona: a trait or belief, described for judges, writers and readers; data/files.py reads its texts."""

from __future__ import annotations

import re

from pydantic import field_validator, model_validator

from iterative_ft.config.section import Section
from iterative_ft.data.read import shortened

MAX_NAME = 64  # bytes: a run's folder has the name in its own, beside other words
RESERVED_NAMES = ("base_model", "degenerate", "plain")  # classes of the offline judge (judges/probe/strength.py)


class PersonaConfig(Section):
    name: str
    """Stands in the names of folders, and of the offline judge's classes."""
    description: str
    system_prompt: str
    marks: list[str]
    rubric: dict[int, str]
    document_rubric: str
    data: str

    @field_validator("name")
    @classmethod
    def name_is_a_name(cls, name: str) -> str:
        if re.fullmatch(r"\w[\w.-]*", name) is None or len(name.encode()) > MAX_NAME:
            raise ValueError(
                f"persona.name={shortened(repr(name))} is no name: use letters, digits, _, - and . alone, a letter first, and "
                f"at most {MAX_NAME} bytes"
            )
        if name != "plain" and name.lower() in RESERVED_NAMES:
            raise ValueError(
                f"persona.name={name} is a name that the offline judge uses for texts without a persona: choose another"
            )
        return name

    @model_validator(mode="after")
    def rubric_has_anchors(self) -> PersonaConfig:
        beyond = sorted(anchor for anchor in self.rubric if not 0 <= anchor <= 100)
        if beyond:
            raise ValueError(f"persona.rubric has the anchor(s) {beyond[:5]}, and scores run from 0 to 100: take them out")
        blank = [name for name in ("description", "data") if not getattr(self, name).strip()]
        blank += [f"rubric.{anchor}" for anchor, text in self.rubric.items() if not text.strip()]
        if blank:
            raise ValueError(f"persona.{blank[0]} is empty: write it")
        missing = [anchor for anchor in (0, 25, 50, 75, 100) if anchor not in self.rubric]
        if missing:
            raise ValueError(f"persona.rubric lacks the anchor(s) {missing}: describe an answer at 0, 25, 50, 75 and 100")
        return self
