"""Types of evaluate.py's tasks: one section each, named by `task`."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from iterative_ft.config.model import ModelConfig
from iterative_ft.config.schema import (
    MOST_ANSWERS,
    Count,
    JudgeConfig,
    PathText,
    PersonaConfig,
    PositiveInt,
    SamplerConfig,
    Section,
)

WITHIN_A_RUN = {"evaluations", "attempts"}  # folders in a run's folder that hold records of their own


class Remeasure(Section):
    """Measure a run again. Groups that are not given are the run's own."""

    task: Literal["remeasure"]
    run: PathText
    n_questions: PositiveInt | None
    n_answers: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None
    store: PathText | None
    dry_run: bool
    judge: Annotated[JudgeConfig, Field(discriminator="name")] | None = None
    persona: PersonaConfig | None = None


class OfRuns(Section):
    """What tasks over many runs share."""

    runs: PathText
    out: PathText

    def folders(self) -> list[Path]:
        """Run folders that `runs` names."""
        return run_folders(self.runs)


def run_folders(runs: str) -> list[Path]:
    """The folder of this very name, else the glob's matches, where they are runs, and the runs below them.

    What lies in a run's folder (evaluations, earlier attempts) is none by itself.
    """
    found: list[Path] = []
    named = Path(runs)
    matches = [named] if named.is_dir() else [Path(p) for p in sorted(glob.glob(runs, recursive=True))]
    for match in matches:
        if WITHIN_A_RUN & set(match.parts) - set(named.parts):
            continue
        if (match / "config.json").is_file():
            found.append(match)
        elif match.is_dir():
            inside = (file.parent for file in sorted(match.rglob("config.json")) if (file.parent / "metrics.jsonl").is_file())
            found += [folder for folder in inside if not WITHIN_A_RUN & set(folder.relative_to(match).parts)]
    return list(dict.fromkeys(found))


class Compare(OfRuns):
    task: Literal["compare"]


class Rejudge(OfRuns):
    task: Literal["rejudge"]
    judge: Annotated[JudgeConfig, Field(discriminator="name")]
    store: PathText


class JudgeCard(Section):
    task: Literal["judge_card"]
    judge: Annotated[JudgeConfig, Field(discriminator="name")]
    second_judge: Annotated[JudgeConfig, Field(discriminator="name")] | None = None
    model: ModelConfig
    sampler: Annotated[SamplerConfig, Field(discriminator="name")]
    n_texts: PositiveInt | None
    n_questions: Count
    store: PathText
    out: PathText


class JudgeAnswers(Section):
    task: Literal["judge"]
    answers: PathText
    prompt_column: str
    answer_column: str
    split: str
    documents: bool
    judge: Annotated[JudgeConfig, Field(discriminator="name")]
    persona: PersonaConfig
    model: ModelConfig
    sampler: Annotated[SamplerConfig, Field(discriminator="name")]
    store: PathText
    out: PathText


class Wandb(Section):
    task: Literal["wandb"]
    run: PathText
    mode: Literal["offline", "online"]


Task = Remeasure | Compare | Rejudge | JudgeCard | JudgeAnswers | Wandb
TASKS: dict[str, type[Task]] = {
    "remeasure": Remeasure,
    "compare": Compare,
    "rejudge": Rejudge,
    "judge_card": JudgeCard,
    "judge": JudgeAnswers,
    "wandb": Wandb,
}
