"""What a valid config needs of the disk and the environment: counts of rows, files, folders, keys. Nothing heavy is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from iterative_ft.config.calibration import check_calibration
from iterative_ft.config.environment import check_endpoint
from iterative_ft.config.schema import ApiConfig, Config, ProbeConfig
from iterative_ft.data import files, pools
from iterative_ft.errors import ConfigError
from iterative_ft.machine.libraries import EMBEDDED


def check(config: Config) -> None:
    """Raise a one-line `ConfigError` for the first thing that a run of `config` would miss."""
    check_judge(config.judge)
    check_persona(config)
    check_pool(config)
    check_model(config)
    check_store(config)


def check_judge(judge: ProbeConfig | ApiConfig) -> None:
    """An endpoint needs what the environment holds for it: a key that can be sent, proxies that can be asked."""
    if judge.name == "api":
        check_endpoint(judge)


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
    if config.model.path.startswith(("/", "./", "../", "~")) and not path.expanduser().is_dir():
        raise ConfigError(f"model.path={config.model.path} is no folder: name a saved checkpoint or a hub id")
    if config.start_adapter is not None and not (Path(config.start_adapter) / "adapter_config.json").is_file():
        raise ConfigError(f"start_adapter={config.start_adapter} holds no adapter_config.json: name a folder saved by PEFT")


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
