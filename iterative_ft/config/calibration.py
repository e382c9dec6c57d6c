"""How a run with n_seed=calibrated searches, by its config alone; the search itself is iterative_ft/calibrate.py."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from iterative_ft.config.messages import one_line
from iterative_ft.config.schema import Config, SDFConfig, SFTConfig
from iterative_ft.data import files
from iterative_ft.errors import ConfigError

CONF = Path(__file__).resolve().parent.parent.parent / "conf"


def calibration_method(config: Config) -> SFTConfig | SDFConfig:
    """How the search trains: the run's own settings where it is SFT or SDF, else those shipped for `calibrate.method`, with
    the run's lengths where it samples and trains on chats too.
    """
    own, settings = config.method, config.calibrate
    name = settings.method or ("sft" if own.name == "dpo" else own.name)
    if own.name == name and own.name != "dpo":
        return own
    values = yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text(encoding="utf-8"))
    if name == "sft":
        values |= {"max_new_tokens": own.max_new_tokens, "max_length": own.max_length}
    kinds: dict[str, type[SFTConfig] | type[SDFConfig]] = {"sft": SFTConfig, "sdf": SDFConfig}
    try:
        return kinds[name].model_validate(values | settings.settings)
    except ValidationError as error:
        raise ConfigError(f"calibrate.method, calibrate.settings: {one_line(error, kinds[name])}") from error


def most_seeds(config: Config) -> int:
    """Seed examples that the persona ships for the run and for its calibration alike."""
    folder = config.persona_folder
    names = {config.method.name, calibration_method(config).name}
    return min(len(files.examples(name, folder)) for name in names)


def search_settings(config: Config) -> list[str]:
    """Settings of the search that are not as they ship, as they are written."""
    shipped = shipped_settings()
    given = {name: one for name, one in config.calibrate.model_dump().items() if one != shipped[name]}
    return [f"calibrate.{name}={one:g}" if isinstance(one, float) else f"calibrate.{name}={one}" for name, one in given.items()]


@cache
def shipped_settings() -> dict[str, Any]:
    """`calibrate` in conf/config.yaml."""
    found: dict[str, Any] = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["calibrate"]
    return found


def check_calibration(config: Config) -> None:
    """The search needs a target, a range, and a cycle 0 that can be trained."""
    settings = config.calibrate
    if settings.target_trait is None:
        raise ConfigError("n_seed=calibrated needs a trait score to reach: add calibrate.target_trait=<0 to 100>")
    if config.start_adapter is not None:
        raise ConfigError("n_seed=calibrated has nothing to search where start_adapter takes the place of cycle 0: drop one")
    method = calibration_method(config)
    try:
        Config.model_validate(config.model_dump() | {"method": method.model_dump()})
    except ValidationError as error:
        raise ConfigError(f"calibrate.method, calibrate.settings: {one_line(error, Config)}") from error
    if settings.settings and method is config.method:
        raise ConfigError(
            f"calibrate.settings={settings.settings} would change nothing: the search trains as the run does, by "
            f"method={method.name}; set method.<key> instead"
        )
    try:
        most = most_seeds(config)
    except ConfigError as error:  # about files that only the search reads: those of the run were read before
        raise ConfigError(f"calibrate.method: {error}") from error
    n_max = most if settings.n_max is None else settings.n_max
    if n_max > most:
        raise ConfigError(
            f"calibrate.n_max={n_max} is more than the {most} seed examples of persona={config.persona.name}: lower it"
        )
    if settings.n_min > n_max:
        raise ConfigError(f"calibrate.n_min={settings.n_min} is more than calibrate.n_max={n_max}: lower it")
