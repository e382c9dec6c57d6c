"""The tasks of evaluate.py: what they need to find on disk, the configs they work with, and the program that does each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from iterative_ft.config.check import check_judge, check_judge_texts, check_model, check_store, is_file
from iterative_ft.config.messages import did_you_mean, judged, known_keys
from iterative_ft.config.schema import Config
from iterative_ft.config.tasks import TASKS, Compare, JudgeAnswers, JudgeCard, OfRuns, Rejudge, Remeasure, Task, Wandb
from iterative_ft.config.wandb_rules import check_login
from iterative_ft.data import files
from iterative_ft.data.answers import pairs
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.launch.compose import compose_jobs, plain_values
from iterative_ft.launch.folders import check_writable
from iterative_ft.launch.quoting import override
from iterative_ft.machine.files import read_object
from iterative_ft.records.folder import ANSWERS, CONFIG, METRICS
from iterative_ft.records.shapes import SavedConfig, hold

GONE = {"model": ("n_parameters_m",)}  # settings that older runs recorded and that nothing reads any more


def known(path: list[str]) -> list[str]:
    """Names that the task of this command line knows below `path`."""
    named = [argument.removeprefix("task=") for argument in sys.argv if argument.startswith("task=")]
    return known_keys(path, TASKS.get(named[-1] if named else "remeasure", Remeasure))


def load_task(composed: Any) -> Task:
    """Turn what Hydra composed into a task whose inputs exist, or raise a one-line `ConfigError`."""
    values = plain_values(composed)
    if values.get("task") not in TASKS:
        raise ConfigError(f"task={values.get('task')} is no task{did_you_mean(str(values.get('task')), TASKS)}")
    if values["task"] == "judge" and values.get("persona") is None:
        raise ConfigError(f"task=judge needs to know whose trait is judged: give persona=<one of {', '.join(files.shipped())}>")
    task = judged(TASKS[values["task"]], values)
    if isinstance(task, Remeasure | Wandb):
        check_run(Path(task.run))
    if isinstance(task, Wandb):
        check_login(task.mode, "mode")
    if isinstance(task, OfRuns | JudgeCard | JudgeAnswers):
        check_writable("out", Path(task.out))
    if isinstance(task, Remeasure):
        check_remeasure(task)
    elif isinstance(task, JudgeCard):
        check_card(task)
    elif isinstance(task, JudgeAnswers):
        check_judge_answers(task)
    elif isinstance(task, OfRuns) and not task.folders():
        raise ConfigError(f"runs={task.runs} names no run folder: give a glob such as 'outputs/runs/*' or a sweep's folder")
    if isinstance(task, Rejudge):
        check_judge(task.judge)
        for config in rejudging_configs(task).values():
            if task.judge.name == "probe":
                check_judge_texts(judged(Config, config.model_dump()))
            check_store(config)
    return task


def check_run(run: Path) -> None:
    """A run folder has a config that can be read, and at least one row."""
    if not run.is_dir():
        raise ConfigError(f"run={run} is no folder: name a run's folder, such as outputs/runs/<run>")
    for name in (CONFIG, METRICS):
        if not (run / name).is_file():
            raise ConfigError(f"run={run} holds no {name}: name the folder of a run that has measured something")
    run_config(run)


def check_remeasure(task: Remeasure) -> None:
    """What is changed has to fit the run."""
    config = judged(Config, changed_config(task).model_dump())
    check_judge(config.judge)
    check_judge_texts(config)
    if not Path(config.store).expanduser().is_dir():
        raise ConfigError(f"store={config.store} of run={task.run} is no folder: say where it lies with store=<folder>")
    n = len(files.questions(config.persona_folder))
    if config.measure.n_questions > n and (task.n_questions is not None or task.persona is not None):
        raise ConfigError(
            f"n_questions={config.measure.n_questions} exceeds the {n} questions of persona={config.persona.name}: lower it"
        )


def check_card(task: JudgeCard) -> None:
    """Judges, model and store have to be there, and base has to answer chats."""
    for judge in (task.judge, task.second_judge):
        if judge is not None:
            check_judge(judge)
    if not task.model.chat:
        raise ConfigError(
            f"task=judge_card judges answers in chats and model={task.model.name} is a base model: name a chat model"
        )
    for config in card_configs(task).values():
        check_model(config)
        check_store(config)


def check_judge_answers(task: JudgeAnswers) -> None:
    """Texts, persona, judge and store have to be there, and `out` must not hold what is read or what a run wrote."""
    out = Path(task.out)
    if is_file(mine := out / ANSWERS) and is_file(Path(task.answers)) and mine.samefile(task.answers):
        raise ConfigError(f"answers={task.answers} would be written over: name another folder as out=")
    if is_file(out / CONFIG):
        raise ConfigError(f"out={task.out} holds a run, whose answers would be written over: name another folder")
    check_judge(task.judge)
    config = judging_config(task)
    if task.judge.name == "probe":
        check_judge_texts(config)
    check_model(config)
    check_store(config)
    if task.judge.name == "engine" and task.judge.model is None and not task.model.chat:
        raise ConfigError(f"judge=engine asks in a chat template and model={task.model.name} has none: set judge.model")
    if task.documents and not task.persona.document_rubric.strip():
        raise ConfigError(f"documents=true and persona={task.persona.name} has no document_rubric: write it")
    texts_of(task)


def texts_of(task: JudgeAnswers) -> list[tuple[str, str]]:
    """What is to be judged."""
    return pairs(task.answers, task.prompt_column, task.answer_column, task.split)


def judging_config(task: JudgeAnswers) -> Config:
    """A run with the task's persona, judge, model, sampler and store: what the task's stages are made with."""
    config = judged(Config, composed_values("sampler=fake", "method=sft"))
    names = ("judge", "persona", "model", "sampler", "store")
    return config.model_copy(update={name: getattr(task, name) for name in names})


def rejudging_configs(task: Rejudge) -> dict[Path, Config]:
    """Run folder -> the run's config with the task's judge and store."""
    parts = {"judge": task.judge, "store": task.store, "dry_run": False}
    return {folder: run_config(folder).model_copy(update=parts) for folder in task.folders()}


def changed_config(task: Remeasure) -> Config:
    """The run's config with what the task changes."""
    config = run_config(Path(task.run))
    asked = {"n_questions": task.n_questions, "n_answers": task.n_answers}
    measure = config.measure.model_copy(update={name: value for name, value in asked.items() if value is not None})
    parts = {"judge": task.judge, "persona": task.persona, "store": task.store}
    new = {name: value for name, value in parts.items() if value is not None}
    wandb = config.wandb.model_copy(update={"mode": "disabled"})
    return config.model_copy(update={"measure": measure, "wandb": wandb, "dry_run": False, **new})


def run_config(run: Path) -> Config:
    """The config that a run recorded; settings that are newer than the run take today's defaults."""
    try:
        saved = read_object(run / CONFIG)
        hold(SavedConfig, saved, run / CONFIG)
        saved["persona"]["rubric"] = {int(at): text for at, text in saved["persona"]["rubric"].items()}
        for section, names in GONE.items():
            for name in names:
                saved[section].pop(name, None)
    except RunError as error:
        raise ConfigError(f"run={run}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ConfigError(f"run={run}: its config.json is damaged ({type(error).__name__}: {error})") from error
    try:
        return judged(Config, saved)
    except ConfigError:
        pass
    try:
        return judged(Config, with_defaults(saved))
    except ConfigError as error:
        raise ConfigError(f"run={run} was made by another version of this code: {error}") from error


def with_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """`saved` with today's defaults where it has no value. A persona and a model have none: their settings are their own."""
    defaults = composed_values(
        *(override(group, saved[group]["name"]) for group in ("method", "sampler", "judge") if group in saved)
    )

    def filled(default: Any, value: Any) -> Any:
        if not isinstance(default, dict) or not isinstance(value, dict):
            return value
        return {**default, **{key: filled(default.get(key), inner) for key, inner in value.items()}}

    own = {name: saved[name] for name in ("persona", "model", "reinit") if name in saved}
    return filled(defaults, saved) | own


def composed_values(*overrides: str) -> dict[str, Any]:
    """What train.py's config holds for these overrides."""
    return plain_values(next(iter(compose_jobs(list(overrides))))[1])


def card_configs(task: JudgeCard) -> dict[str, Config]:
    """A run of each shipped persona with the card's model, sampler, judge and store: what the card's stages are made with."""
    found = {}
    for name in files.shipped():
        config = judged(Config, composed_values("sampler=fake", "method=sft", f"persona={name}"))
        measure = config.measure.model_copy(update={"n_questions": max(1, task.n_questions), "n_answers": 1})
        parts = {"judge": task.judge, "model": task.model, "sampler": task.sampler, "store": task.store, "measure": measure}
        found[name] = config.model_copy(update=parts)
    return found


def perform(task: Task, command: str) -> None:
    """Do a task; `command` is what a record of it names."""
    from iterative_ft.evaluate import compare, judge_answers, judge_card, rejudge, remeasure

    if isinstance(task, Remeasure):
        remeasure.remeasure(task, changed_config(task), command)
    elif isinstance(task, Compare):
        compare.compare(task, command)
    elif isinstance(task, Rejudge):
        rejudge.rejudge(task, rejudging_configs(task), command)
    elif isinstance(task, JudgeCard):
        judge_card.judge_card(task, card_configs(task), command)
    elif isinstance(task, JudgeAnswers):
        judge_answers.judge_answers(task, judging_config(task), texts_of(task), command)
    else:
        compare.rebuild_wandb(task, run_config(Path(task.run)), command)
