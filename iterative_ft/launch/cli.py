"""From the command line to the loop: every cell is judged before the first one runs.

Errors are one line and exit code 2, before a run folder is made or a model library imported.
"""

from __future__ import annotations

import io
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache, partial
from pathlib import Path
from typing import Any

from iterative_ft.config.check import check_unread_pools
from iterative_ft.config.gpu import gpus_taken
from iterative_ft.config.schema import Config
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.launch.compose import (
    CommandLine,
    Known,
    check_subdirs,
    command_line,
    explain,
    given_folder,
    job,
    known_settings,
    load_config,
    own_options,
    quiet_failures,
    quote_reinit,
    register_launchers,
    register_sweeps,
    register_yaml,
)
from iterative_ft.launch.folders import all_or_none, check_folder, made, run_folder
from iterative_ft.launch.guard import failed, guarded, reason
from iterative_ft.launch.quoting import command_text, override
from iterative_ft.machine.libraries import prepare_libraries
from iterative_ft.models.policy import Policy
from iterative_ft.records.folder import free, give_back, held
from iterative_ft.store import Event

HELP_WIDTH = 128
LONG_GROUP = re.compile(rf"^sweep: .{{{HELP_WIDTH - 7},}}$", re.MULTILINE)
MANY = 40  # runs whose settings take several seconds to judge
CELLS: list[Any] = []  # the configs of this command's jobs, where they run in this process


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
    return guarded(lambda: app(main, config_name, load, known))


def app(main: Callable[[], None], config_name: str, load: Callable[[Any], Any], known: Known) -> int:
    """Judge the command line, then show what it asks for or run it in a folder of its own."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being printed as tracebacks
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/")  # ours go before Hydra's own
    for argument in sys.argv[1:]:
        check_text(argument)
    sys.argv[1:] = [quote_reinit(argument) for argument in sys.argv[1:]]
    register_yaml()
    register_sweeps()
    register_launchers()
    quiet_failures()
    line = command_line(sys.argv[1:], config_name, known)
    if line.multirun and config_name != "config" and not line.only_shown:
        raise ConfigError("evaluate.py does one task a command, in one folder: leave -m out")
    configs = judged_jobs(line, load)
    CELLS[:] = configs
    plans_of_all.cache_clear()  # a process may run several commands, as tests do
    if line.only_shown:
        shown(main)
    elif config_name != "config":
        main()
    elif len({config.dry_run for config in configs}) > 1:
        raise ConfigError("dry_run=true,false asks for a plan and for runs at once: give one of them")
    elif configs[0].dry_run:
        dry_run(configs)  # without Hydra's main, which would make a run folder
    else:
        look_first(configs)
        in_folder(main, line, configs)
    return 0


def shown(main: Callable[[], None]) -> None:
    """Have Hydra show what was asked for; what it cannot show was asked for wrongly."""
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            main()
    except (ConfigError, RunError, BrokenPipeError):
        raise
    except Exception as error:
        raise ConfigError(explain(error)) from error
    finally:
        print(LONG_GROUP.sub(folded, said.getvalue()), end="")


def folded(group: re.Match[str]) -> str:
    """A group with many options, on lines of a terminal's width or two."""
    return textwrap.fill(group[0], HELP_WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def check_text(argument: str) -> None:
    """What the shell passed on has to be text."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:
        shown = argument.encode("utf-8", "backslashreplace").decode()
        raise ConfigError(f"{shown} is no text in this terminal's encoding: give it in UTF-8") from None


def in_folder(main: Callable[[], None], line: CommandLine, configs: list[Config]) -> None:
    """Run with the folder of the run or sweep taken beforehand: two commands of one second never write into the same."""
    name = "hydra.sweep.dir" if line.multirun else "hydra.run.dir"
    path, given = given_folder(line, name, max(map(gpus_taken, configs)))
    if line.multirun:
        check_subdirs(line)
    stores = list(dict.fromkeys(Path(config.store) for config in configs))
    check_folder(name, path, stores)
    if given:
        free(path)
    existed = path.exists()
    with all_or_none(*stores, path):
        for store in stores:
            made("store", store)
        folder = run_folder(name, path, given)
    try:
        with held(folder):
            sys.argv.append(override(name, str(folder)))
            main()
    finally:
        if not (given and existed):
            give_back(folder)


def check_command_line(arguments: list[str]) -> list[Any]:
    """Compose and judge every job of a command of `train.py`; raise `ConfigError` for the first that is wrong."""
    return judged_jobs(command_line(arguments, "config", known_settings), load_config)


def judged_jobs(line: CommandLine, load: Callable[[Any], Any]) -> list[Any]:
    """What `load` makes of every job. In a large sweep the last comes second: where a range goes too far, its end is wrong."""
    if line.only_shown:
        return []
    n = len(line.cells)
    order = list(range(n)) if n <= MANY else [0, n - 1, *range(1, n - 1)]
    if n > MANY:
        print(f"judging the settings of {n} runs first", flush=True)
    found: dict[int, Any] = {}
    for number in order:
        overrides, composed = line.job(number)
        try:
            found[number] = load(composed)
        except ConfigError as error:
            raise ConfigError(f"{error} (in the cell {' '.join(overrides)})" if n > 1 else str(error)) from error
        except Exception as error:  # of a path that no system call takes, or a file that no reader does
            raise ConfigError(f"the settings name something that cannot be read ({reason(error)})") from error
    configs = [found[number] for number in range(n)]
    if isinstance(configs[0], Config):
        check_unread_pools(configs)
    if n > 1 and os.environ.get("WANDB_RUN_ID") and any(isinstance(c, Config) and c.wandb.mode != "disabled" for c in configs):
        raise ConfigError(f"WANDB_RUN_ID is set, and these {n} runs would be one W&B run: unset WANDB_RUN_ID")
    return configs


def dry_run(configs: list[Config]) -> None:
    """Print the stages of a run or of a whole sweep, each once, and what is still to build. Writes nothing."""
    prepare_libraries()
    from iterative_ft.calibrate import dry_text, with_likely_seeds
    from iterative_ft.evaluate.plan import plan_text
    from iterative_ft.loop import plan

    for line in dict.fromkeys(line for config in different(configs) for line in look_lines(config)):
        print(line)
    for text in dict.fromkeys(dry_text(config) for config in configs if config.n_seed == "calibrated"):
        print(text)
    configs = [with_likely_seeds(config) for config in configs]
    print(plan_text(configs, [plan(config) for config in configs]))


def look_first(configs: list[Config]) -> None:
    """Look at the models of all cells that have work to do, before a folder is made for any of them."""
    cells = different(configs)
    if not cells:
        return
    prepare_libraries()
    from iterative_ft.calibrate import with_likely_seeds
    from iterative_ft.loop import plan
    from iterative_ft.stages.look import examine, unseen_work

    for config in cells:
        if unseen_work(plan(with_likely_seeds(config))):
            examine(config)


def different(configs: list[Config]) -> list[Config]:
    """One each of the cells that differ in what the model is asked; each run looks again for itself."""
    sections = ("model", "method", "sampler", "persona", "prompts", "titles", "lora", "start_adapter", "store", "judge")
    found = {repr([getattr(config, name) for name in sections]): config for config in configs if not config.fake}
    return list(found.values())


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
    """One job, in the folder that Hydra made for it.

    Raises:
        RunError: whatever went wrong, in one line; the traceback is in the folder.
    """
    prepare_libraries()
    folder, overrides = job()
    command = command_text("train.py", overrides, own_options())
    try:
        from iterative_ft.loop import run

        print(f"{folder}\n{command}")
        return run(config, folder, command, partial(plans_of_cells, config) if len(CELLS) > 1 else None)
    except ConfigError:
        raise
    except Exception as error:
        raise failed(error, folder) from error


def plans_of_cells(config: Config, policy: Policy) -> list[Event]:
    """The stages of this multirun's cells that may ask a policy of the cell `config`: base all, policy[0] those that share it.

    Later policies are taken to be the cell's own. Where two cells do share one, each asks for what it wants.
    """
    if policy.adapter is None:
        return plans_of_all()
    if policy.name != "policy[0]":
        return []
    mine = of_cycle_0(config)
    return plans([cell for cell in CELLS if of_cycle_0(cell) == mine])


@cache
def plans_of_all() -> list[Event]:
    """Of all cells, as they stood when the first was asked for: planning many takes a while."""
    return plans(CELLS)


def plans(cells: list[Config]) -> list[Event]:
    """Stages of cells; a cell whose search is still to be made is left out, since nobody knows what it will want."""
    from iterative_ft.calibrate import settled
    from iterative_ft.loop import plan

    return [event for cell in map(settled, cells) if cell is not None for event in plan(cell)]


def of_cycle_0(config: Config) -> dict[str, Any]:
    """The settings without those that only later cycles read."""
    return {name: value for name, value in config.model_dump().items() if name not in ("n_sampled", "n_cycles", "reinit")}
