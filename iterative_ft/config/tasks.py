"""Types of evaluate.py's tasks: one section each, named by `task`."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from iterative_ft.config.schema import Count, JudgeConfig, ModelConfig, PersonaConfig, PositiveInt, SamplerConfig, Section


class Remeasure(Section):
    """Measure a run again. Groups that are not given are the run's own."""

    task: Literal["remeasure"]
    run: str
    n_questions: PositiveInt | None
    n_answers: PositiveInt | None
    store: str | None
    dry_run: bool
    judge: Annotated[JudgeConfig, Field(discriminator="name")] | None = None
    persona: PersonaConfig | None = None


class Compare(Section):
    task: Literal["compare"]
    runs: str
    out: str

    def folders(self) -> list[Path]:
        """Run folders that `runs` names: the glob's matches, and the runs below matches that are none themselves."""
        found: list[Path] = []
        for match in sorted(map(Path, glob.glob(self.runs, recursive=True))):
            if (match / "config.json").is_file():
                found.append(match)
            elif match.is_dir():
                inside = (
                    file.parent for file in sorted(match.rglob("config.json")) if (file.parent / "metrics.jsonl").is_file()
                )
                found += [folder for folder in inside if "evaluations" not in folder.relative_to(match).parts]
        return list(dict.fromkeys(found))


class JudgeCard(Section):
    task: Literal["judge_card"]
    judge: Annotated[JudgeConfig, Field(discriminator="name")]
    second_judge: Annotated[JudgeConfig, Field(discriminator="name")] | None = None
    model: ModelConfig
    sampler: Annotated[SamplerConfig, Field(discriminator="name")]
    n_texts: PositiveInt | None
    n_questions: Count
    store: str
    out: str


class Wandb(Section):
    task: Literal["wandb"]
    run: str
    mode: Literal["offline", "online"]


Task = Remeasure | Compare | JudgeCard | Wandb
TASKS: dict[str, type[Task]] = {"remeasure": Remeasure, "compare": Compare, "judge_card": JudgeCard, "wandb": Wandb}
