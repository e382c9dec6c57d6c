"""From the command line to the loop: every cell is judged before the first one runs.

Errors are one line and exit code 2, before a run folder is made or a model library imported.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from iterative_ft.config.schema import Config
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.launch.compose import (
    Known,
    job,
    jobs_of,
    known_settings,
    load_config,
    quote_reinit,
    register_launchers,
    register_sweeps,
)
from iterative_ft.machine.libraries import prepare_libraries


def run_app(
    main: Callable[[], None],
    config_name: str = "config",
    load: Callable[[Any], Any] = load_config,
    known: Known = known_settings,
) -> int:
    """Run a Hydra entry point; return its exit code.

    Args:
        config_name: its root file under conf/.
        load: judges what Hydra composed of it.
        known: the keys below a path, for messages about unknown ones.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being printed as tracebacks
    warnings.filterwarnings(
        "ignore", message=r"\s*'hydra/launcher/"
    )  # our launchers go before those of the same names, on purpose
    sys.argv[1:] = [quote_reinit(argument) for argument in sys.argv[1:]]
    try:
        register_sweeps()
        register_launchers()
        configs = check_command_line(sys.argv[1:], config_name, load, known)
        if config_name == "config" and configs and all(config.dry_run for config in configs):
            dry_run(configs)  # without Hydra's main, which would make a run folder
        else:
            if config_name == "config":
                look_first(configs)
            main()
    except (ConfigError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("interrupted: finished stages are kept, the same command goes on from them", file=sys.stderr)
        return 130
    return 0


def check_command_line(
    arguments: list[str],
    config_name: str = "config",
    load: Callable[[Any], Any] = load_config,
    known: Known = known_settings,
) -> list[Any]:
    """Compose and judge every job of this command; raise `ConfigError` for the first that is wrong."""
    jobs, only_shown = jobs_of(arguments, config_name, known)
    configs = []
    for overrides, composed in [] if only_shown else jobs:
        try:
            configs.append(load(composed))
        except ConfigError as error:
            raise ConfigError(f"{error} (in the cell {' '.join(overrides)})" if len(jobs) > 1 else str(error)) from error
    return configs


def dry_run(configs: list[Config]) -> None:
    """Print the stages of a run or of a whole sweep, each once, and what is still to build. Writes nothing."""
    prepare_libraries()
    from iterative_ft.calibrate import at_most, dry_text
    from iterative_ft.evaluate.plan import plan_text
    from iterative_ft.loop import plan

    for line in dict.fromkeys(line for config in configs if not config.fake for line in look_lines(config)):
        print(line)
    for text in dict.fromkeys(dry_text(config) for config in configs if config.n_seed == "calibrated"):
        print(text)
    configs = [at_most(config) for config in configs]
    print(plan_text(configs, [plan(config) for config in configs]))


def look_first(configs: list[Config]) -> None:
    """Look at the models of all cells that have work to do, before a folder is made for any of them."""
    real = [config for config in configs if not config.fake]
    if not real:
        return
    prepare_libraries()
    from iterative_ft.calibrate import at_most
    from iterative_ft.loop import plan
    from iterative_ft.stages.look import examine, unseen_work

    for config in real:
        if unseen_work(plan(at_most(config))):
            examine(config)


def look_lines(config: Config) -> list[str]:
    """What a dry run says of a model."""
    from iterative_ft.stages.look import examine

    try:
        found = examine(config, download=False)
    except ConfigError as error:
        if "could not be reached" in str(error):  # a dry run downloads nothing
            return [f"model {config.model.name}: not on this machine yet, looked at when a run starts"]
        raise
    if found is None:
        return [f"model {config.model.name}: unpacked by the first stage, then looked at"]
    return [f"model {config.model.name}: {fact}" for fact in found.facts] + [f"note: {note}" for note in found.notes]


def train(config: Config) -> Any:
    """One job, in the folder that Hydra made for it."""
    prepare_libraries()
    from iterative_ft.loop import run

    folder, overrides = job()
    command = " ".join(["python", "train.py", *overrides])
    print(f"{folder}\n{command}")
    return run(config, folder, command)
