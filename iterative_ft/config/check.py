"""What a valid config needs of the disk and the environment: counts of rows, files, folders, keys. Nothing heavy is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from iterative_ft.config.calibration import check_calibration, search_settings
from iterative_ft.config.environment import check_endpoint
from iterative_ft.config.gpu import check_gpu
from iterative_ft.config.schema import Config, JudgeConfig
from iterative_ft.config.wandb_rules import check_login
from iterative_ft.data import files, pools, read
from iterative_ft.errors import ConfigError
from iterative_ft.machine.libraries import EMBEDDED

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}")  # what a Hugging Face model can be called
LEAST_STYLED = 8  # prompts with judge texts of the persona: each fold of the judge's calibration has to leave it some


def check(config: Config) -> None:
    """Raise a one-line `ConfigError` for the first thing that a run of `config` would miss."""
    check_judge(config.judge)
    check_login(config.wandb.mode)
    check_persona(config)
    check_model(config)
    check_gpu(config)
    check_store(config)
    check_pool(config)  # last: a dataset of the hub takes a library, and time


def check_judge(judge: JudgeConfig) -> None:
    """An endpoint needs what the environment holds for it: a key that can be sent, proxies that can be asked. A second model
    that judges has to be one.
    """
    if judge.name == "api":
        check_endpoint(judge)
    elif judge.name == "engine" and judge.model is not None:
        check_model_path("judge.model", judge.model)


def check_persona(config: Config) -> None:
    """Hold the counts that a run needs of its persona against what the persona's files have."""
    folder = config.persona_folder
    if read.kind_of(folder) != "folder":
        raise ConfigError(
            f"persona.data={read.shortened(config.persona.data, 120)} is no folder: name one that holds seeds.jsonl and "
            "questions.jsonl, or a shipped persona"
        )
    sdf = config.method.name == "sdf"
    n_seeds = len(files.examples(config.method.name, folder))
    what = files.table(folder, "documents" if sdf else "seeds").name
    if config.n_seed == "calibrated":
        check_calibration(config)
    elif unread := search_settings(config):
        raise ConfigError(f"{', '.join(unread)} would be read only with n_seed=calibrated: add that, or leave these out")
    elif config.n_seed > n_seeds:
        raise ConfigError(
            f"n_seed={config.n_seed} is more than the {n_seeds} examples of {folder.name}/{what}: lower n_seed or add some"
        )
    if config.method.n_original_mix > n_seeds:
        raise ConfigError(
            f"method.n_original_mix={config.method.n_original_mix} is more than the {n_seeds} examples of {what}: lower it"
        )
    n_questions = len(files.questions(folder))
    if config.measure.n_questions > n_questions:
        raise ConfigError(
            f"measure.n_questions={config.measure.n_questions} is more than the {n_questions} questions of "
            f"persona={config.persona.name}: lower it or add questions"
        )
    check_questions(config)
    n_openings = len(files.openings())
    if sdf and config.measure.n_openings > n_openings:
        raise ConfigError(
            f"measure.n_openings={config.measure.n_openings} is more than the {n_openings} beginnings of documents: lower it"
        )
    check_judge_texts(config)
    if config.gauges.perplexity:
        files.heldout(folder)


def check_questions(config: Config) -> None:
    """What a policy is measured with is asked once, and is nothing that it, or the offline judge, learns from."""
    folder = config.persona_folder
    file = files.table(folder, "questions")
    taken = {files.fold(prompt): "is what the run trains on" for prompt in files.learnt(folder, config.method.name == "sdf")}
    if config.judge.name == "probe":
        taken |= {files.fold(row["prompt"]): "is what the offline judge learns from" for row in files.judge_texts(folder)}
    for row in files.questions(folder)[: config.measure.n_questions]:
        question = files.fold(row["question"])
        if question in taken:
            raise ConfigError(f"{file}: {read.shortened(row['question'])!r} {taken[question]}: take another question")
        taken[question] = "is there twice"


def check_judge_texts(config: Config) -> None:
    """The offline judge learns a persona from texts that show it, and `plain` from such as show nothing."""
    folder, name = config.persona_folder, config.persona.name
    texts = files.judge_texts(folder)
    styled = {row["prompt"] for row in texts if row["strength"] != "plain"}
    file = files.table(folder, "judge")
    if name == "plain" and styled:
        raise ConfigError(
            f"persona.name=plain is the control without a trait, and {file} has texts that are not plain: give the persona a "
            "name of its own"
        )
    if name != "plain" and config.judge.name == "probe" and len(styled) < LEAST_STYLED:
        raise ConfigError(
            f"{file} has texts of the persona on {len(styled)} prompts, and judge=probe learns from {LEAST_STYLED} or more: "
            "add some, or set judge=api"
        )


def check_pool(config: Config) -> None:
    """Hold the prompts (SDF: titles) that the cycles need against what the pool has."""
    pool_name, pool = config.pool_name, config.pool
    if config.n_sampled > pool.per_cycle:
        raise ConfigError(
            f"n_sampled={config.n_sampled} is more than the {pool.per_cycle} prompts of a cycle: lower n_sampled, "
            f"or raise {pool_name}.per_cycle (a larger pool: {pool_name}.path=<dataset>)"
        )
    try:
        texts = pools.load_pool(pool_name, pool.path, pool.column, pool.split, pool.revision)
    except ConfigError as error:
        if str(error).startswith(f"{pool_name}."):  # it names the setting that is wrong
            raise
        path, column = read.shortened(pool.path, 120), read.shortened(pool.column)
        raise ConfigError(f"{pool_name}.path={path}, {pool_name}.column={column}: {error}") from error
    taken = frozenset(files.never_sampled(config.persona_folder, config.method.name == "sdf"))
    n_pool = len(pools.in_order(pool_name, texts, taken, config.seed))
    n_parts = n_pool // pool.per_cycle
    if config.n_cycles > n_parts:
        raise ConfigError(
            f"n_cycles={config.n_cycles} needs as many parts of {pool.per_cycle} rows and {pool_name}.path={pool.path} "
            f"({n_pool} rows) has {n_parts}: lower n_cycles or {pool_name}.per_cycle, or set {pool_name}.path=<dataset>"
        )


def check_unread_pools(configs: Sequence[Config]) -> None:
    """A pool that somebody names and no run of the command reads is a mistake: SDF samples titles, the others prompts."""
    for name, other in (("prompts", "titles"), ("titles", "prompts")):
        path = getattr(configs[0], name).path
        if path != "shipped" and not any(config.pool_name == name for config in configs):
            raise ConfigError(f"{name}.path={path} is not read by method={configs[0].method.name}: set {other}.path")


def check_model(config: Config) -> None:
    """The base model's folder and an adapter to start from have to exist."""
    check_model_path("model.path", config.model.path)
    if config.start_adapter is not None and not (Path(config.start_adapter) / "adapter_config.json").is_file():
        raise ConfigError(f"start_adapter={config.start_adapter} holds no adapter_config.json: name a folder saved by PEFT")


def check_model_path(setting: str, path: str) -> None:
    """A model is embedded, in a folder, or on the hub."""
    embedded = [name for name, (_, file, _) in EMBEDDED.items() if file.endswith(".gguf")]
    if path.startswith("embedded:") and path.removeprefix("embedded:") not in embedded:
        raise ConfigError(f"{setting}={path} is not embedded: embedded models are {', '.join(embedded)}")
    folder = Path(path)
    if not path.startswith("embedded:") and not is_folder(folder):
        if is_file(folder):
            raise ConfigError(f"{setting}={path} is a file: name the folder of a saved model, or a hub id")
        if HUB_ID.fullmatch(path) is None or any(word in path for word in ("--", "..")):
            raise ConfigError(f"{setting}={path[:200]} is no folder: name a saved model's, or a hub id (owner/name)")


def is_folder(path: Path) -> bool:
    try:
        return path.expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):  # a name that no file can have, or a home that does not exist
        return False


def is_file(path: Path) -> bool:
    try:
        return path.expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def check_store(config: Config) -> None:
    """The store is a folder, or the one that it will lie in takes files. One that may only be read can serve what it holds."""
    if not config.store.strip():
        raise ConfigError("store= names no folder: give one, such as store=outputs/store")
    try:
        store = Path(config.store).expanduser()
        nearest = next(p for p in (store, *store.absolute().parents) if is_there(p))
    except (OSError, RuntimeError, ValueError) as error:  # too long, ~ of an unknown user, a NUL
        raise ConfigError(f"store={config.store!r} is no path ({error}): choose another folder") from error
    if not nearest.is_dir():
        raise ConfigError(f"store={config.store}: {nearest} is no folder: choose another folder")
    if nearest != store and not os.access(nearest, os.W_OK):
        raise ConfigError(f"store={config.store} cannot be written to: choose another folder")


def is_there(path: Path) -> bool:
    """Whether anything lies there, a dead link included; what is no path at all raises an error, unlike in `os.path`."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
