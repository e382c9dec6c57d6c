"""What a valid config needs of the disk and the environment: counts of rows, files, folders, keys. Nothing heavy is loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path

from iterative_ft.config.calibration import check_calibration
from iterative_ft.config.schema import ApiConfig, Config, ProbeConfig
from iterative_ft.data import files, pools
from iterative_ft.errors import ConfigError
from iterative_ft.machine.libraries import EMBEDDED

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}")  # what a Hugging Face model can be called


def check(config: Config) -> None:
    """Raise a one-line `ConfigError` for the first thing that a run of `config` would miss."""
    check_judge(config.judge)
    check_persona(config)
    check_pool(config)
    check_model(config)
    check_store(config)


def check_judge(judge: ProbeConfig | ApiConfig) -> None:
    """An endpoint elsewhere needs a key in the environment."""
    if judge.name == "api" and not judge.is_loopback and not os.environ.get(judge.api_key_env):
        raise ConfigError(
            f"judge=api needs a key and judge.api_key_env={judge.api_key_env} is not set: export {judge.api_key_env}=<key>, "
            "or name a server on this machine (judge.base_url=http://127.0.0.1:8000/v1)"
        )


def check_persona(config: Config) -> None:
    """Hold the counts that a run needs of its persona against what the persona's files have."""
    folder = config.persona_folder
    if config.persona.data != config.persona.name and not folder.is_dir():
        raise ConfigError(
            f"persona.data={config.persona.data} is no folder: name one that holds seeds.jsonl and questions.jsonl"
        )
    sdf = config.method.name == "sdf"
    n_seeds = len(files.documents(folder) if sdf else files.seeds(folder))
    what = "documents.jsonl" if sdf else "seeds.jsonl"
    if config.n_seed == "calibrated":
        check_calibration(config)
    elif config.calibrate.target_trait is not None:
        raise ConfigError(
            f"calibrate.target_trait={config.calibrate.target_trait:g} means something only with n_seed=calibrated: add it, or "
            "leave the target out"
        )
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
    files.judge_texts(folder)
    if config.gauges.perplexity:
        files.heldout(folder)


def check_pool(config: Config) -> None:
    """Hold the prompts (SDF: titles) that the cycles need against what the pool has."""
    pool_name, pool = config.pool_name, config.pool
    if config.n_sampled > pool.per_cycle:
        raise ConfigError(
            f"n_sampled={config.n_sampled} is more than the {pool.per_cycle} prompts of a cycle: lower n_sampled, "
            f"or raise {pool_name}.per_cycle (a larger pool: {pool_name}.path=<dataset>)"
        )
    if pools.is_file(pool.path):
        if pool.path != "shipped" and not Path(pool.path).expanduser().is_file():
            raise ConfigError(f"{pool_name}.path={pool.path} is no file: name a JSONL file or a Hugging Face dataset")
        try:
            n_pool = len(files.pool(pool_name, pool.path, pool.column))
        except ConfigError as error:
            raise ConfigError(f"{pool_name}.path={pool.path}, {pool_name}.column={pool.column}: {error}") from error
        n_parts = n_pool // pool.per_cycle
        if config.n_cycles > n_parts:
            raise ConfigError(
                f"n_cycles={config.n_cycles} needs as many parts of {pool.per_cycle} rows and {pool_name}.path={pool.path} "
                f"({n_pool} rows) has {n_parts}: lower n_cycles or {pool_name}.per_cycle, or set {pool_name}.path=<dataset>"
            )


def check_model(config: Config) -> None:
    """The base model's folder and an adapter to start from have to exist."""
    embedded = [name for name, (_, file, _) in EMBEDDED.items() if file.endswith(".gguf")]
    if config.model.path.startswith("embedded:") and config.model.path.removeprefix("embedded:") not in embedded:
        raise ConfigError(f"model.path={config.model.path} is not embedded: embedded models are {', '.join(embedded)}")
    path = Path(config.model.path)
    if not config.model.path.startswith("embedded:") and not is_folder(path):
        if is_file(path):
            raise ConfigError(f"model.path={config.model.path} is a file: name the folder of a saved model, or a hub id")
        if HUB_ID.fullmatch(config.model.path) is None or any(word in config.model.path for word in ("--", "..")):
            raise ConfigError(
                f"model.path={config.model.path[:200]} is no folder: name a saved model's, or a hub id (owner/name)"
            )
    if config.start_adapter is not None and not (Path(config.start_adapter) / "adapter_config.json").is_file():
        raise ConfigError(f"start_adapter={config.start_adapter} holds no adapter_config.json: name a folder saved by PEFT")


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
    """The store, or the folder that it will lie in, has to take files."""
    store = Path(config.store)
    nearest = next(p for p in (store, *store.absolute().parents) if p.exists())
    if not os.access(nearest, os.W_OK):
        raise ConfigError(f"store={config.store} cannot be written to: choose another folder")
