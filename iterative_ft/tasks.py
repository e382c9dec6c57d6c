"""The tasks of evaluate.py: their settings, what they need to find on disk, and which function does each."""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from iterative_ft.config import (
    ApiConfig,
    Count,
    FakeConfig,
    ModelConfig,
    PersonaConfig,
    PositiveInt,
    ProbeConfig,
    Section,
    TransformersConfig,
    VLLMConfig,
    check_judge,
    did_you_mean,
    judged,
    known_keys,
    plain_values,
)
from iterative_ft.errors import ConfigError
from iterative_ft.personas import files

Judge = Annotated[ProbeConfig | ApiConfig, Field(discriminator="name")]


class Remeasure(Section):
    """Measure a run again. Groups that are not given are the run's own."""

    task: Literal["remeasure"]
    run: str
    n_questions: PositiveInt | None
    n_answers: PositiveInt | None
    store: str | None
    dry_run: bool
    judge: Judge | None = None
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
    judge: Judge
    second_judge: Judge | None = None
    model: ModelConfig
    sampler: Annotated[VLLMConfig | TransformersConfig | FakeConfig, Field(discriminator="name")]
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


def known(path: list[str]) -> list[str]:
    """Names that the task of this command line knows below `path`."""
    named = [argument.removeprefix("task=") for argument in sys.argv if argument.startswith("task=")]
    return known_keys(path, TASKS.get(named[-1] if named else "remeasure", Remeasure))


def load_task(composed: Any) -> Task:
    """Turn what Hydra composed into a task whose inputs exist, or raise a one-line `ConfigError`."""
    values = plain_values(composed)
    if values.get("task") not in TASKS:
        raise ConfigError(f"task={values.get('task')} is no task{did_you_mean(str(values.get('task')), TASKS)}")
    task = judged(TASKS[values["task"]], values)
    if isinstance(task, Remeasure | Wandb):
        check_run(Path(task.run))
    if isinstance(task, Remeasure):
        check_remeasure(task)
    elif isinstance(task, JudgeCard):
        for judge in (task.judge, task.second_judge):
            if judge is not None:
                check_judge(judge)
    elif isinstance(task, Compare) and not task.folders():
        raise ConfigError(f"runs={task.runs} names no run folder: give a glob such as 'outputs/runs/*' or a sweep's folder")
    return task


def check_run(run: Path) -> None:
    """A run folder has a config that can be read, and at least one row."""
    from iterative_ft import evaluation

    if not run.is_dir():
        raise ConfigError(f"run={run} is no folder: name a run's folder, such as outputs/runs/<run>")
    for name in ("config.json", "metrics.jsonl"):
        if not (run / name).is_file():
            raise ConfigError(f"run={run} holds no {name}: name the folder of a run that has measured something")
    evaluation.run_config(run)


def check_remeasure(task: Remeasure) -> None:
    """What is changed has to fit the run."""
    from iterative_ft.evaluation import changed

    config = changed(task)
    check_judge(config.judge)
    if not Path(config.store).is_dir():
        raise ConfigError(f"store={config.store} of run={task.run} is no folder: say where it lies with store=<folder>")
    n = len(files.questions(config.persona_folder))
    if config.measure.n_questions > n and (task.n_questions is not None or task.persona is not None):
        raise ConfigError(
            f"n_questions={config.measure.n_questions} exceeds the {n} questions of persona={config.persona.name}: lower it"
        )


def perform(task: Any, command: str) -> None:
    """Do a task; `command` is what a record of it names."""
    from iterative_ft import evaluation
    from iterative_ft.measure import card

    do: dict[str, Callable[[Any, str], Any]] = {
        "remeasure": evaluation.remeasure,
        "compare": evaluation.compare,
        "judge_card": card.judge_card,
        "wandb": evaluation.rebuild_wandb,
    }
    do[task.task](task, command)
