"""Between the command line and the loop: quote `reinit=true` for Hydra, judge every cell before the first one runs.

Errors are one line and exit code 2, before a run folder is made or a model library imported.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iterative_ft.config import Config, did_you_mean, known_keys, load_config
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.sweep import distinct_cells

ROOT = Path(__file__).resolve().parent.parent
LAUNCHERS = ROOT / "iterative_ft" / "launchers"
BOOLEAN = re.compile(r"""(?<![\w'"])(true|false)(?![\w'"])""", re.IGNORECASE)

__all__ = ["load_config", "run_app", "train"]


def run_app(
    main: Callable[[], None],
    config_name: str = "config",
    load: Callable[[Any], Any] = load_config,
    known: Callable[[list[str]], list[str]] = known_keys,
) -> int:
    """Run a Hydra entry point; return its exit code.

    Args:
        config_name: its root file under conf/.
        load: judges what Hydra composed of it.
        known: the keys below a path, for messages about unknown ones.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being printed as tracebacks
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/")  # conf/hydra/launcher goes before Hydra's own, on purpose
    sys.argv[1:] = [quote_reinit(argument) for argument in sys.argv[1:]]
    try:
        register_sweeps()
        register_launchers()
        configs = check_command_line(sys.argv[1:], config_name, load, known)
        if config_name == "config" and configs and all(config.dry_run for config in configs):
            dry_run(configs)  # without Hydra's main, which would make a run folder
        else:
            main()
    except (ConfigError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("interrupted: finished stages are kept, the same command goes on from them", file=sys.stderr)
        return 130
    return 0


def quote_reinit(argument: str) -> str:
    """Hydra takes the group option of `reinit=true` for a boolean and refuses it: quote each one."""
    name, equals, value = argument.partition("=")
    if not equals or name.lstrip("+") not in ("reinit", "/reinit"):
        return argument
    choice = re.fullmatch(r"choice\((.*)\)", value)
    value = BOOLEAN.sub(lambda m: f"'{m.group(1).lower()}'", choice.group(1) if choice is not None else value)
    return f"{name}={re.sub(chr(34) + '(true|false)' + chr(34), lambda m: repr(m.group(1)), value)}"


def register_sweeps() -> None:
    """Make each file of sweeps/ an option of the group `sweep`, wherever the command is run from."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    for file in sorted((ROOT / "sweeps").glob("*.yaml")):
        try:
            node = OmegaConf.load(file)
        except Exception as error:
            raise ConfigError(f"{file} is no YAML ({' '.join(str(error).split())}): mend it") from error
        reinit = OmegaConf.select(node, "hydra.sweeper.params.reinit")
        if reinit is not None:
            values = reinit if OmegaConf.is_list(reinit) else [reinit]
            quoted = quote_reinit("reinit=" + ",".join(str(value) for value in values))
            OmegaConf.update(node, "hydra.sweeper.params.reinit", quoted.removeprefix("reinit="))
        ConfigStore.instance().store(group="sweep", name=file.stem, node=node, package="_global_")


def register_launchers() -> None:
    """Make each file of iterative_ft/launchers/ an option of `hydra/launcher`.

    Hydra takes launchers from the namespace `hydra_plugins` alone: the folder that holds ours goes on the path, of the
    processes that submitit starts as well.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins
    from omegaconf import OmegaConf

    if str(LAUNCHERS) not in sys.path:
        sys.path.append(str(LAUNCHERS))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(LAUNCHERS)]))
    plugins = Plugins.instance()  # the submitit plugin stores launchers of the same names when it is loaded: ours replace them
    from hydra_plugins import iterative_ft_launchers as ours

    for launcher in (ours.InProcess, ours.Local, ours.Slurm):
        plugins.register(launcher)  # where Hydra looked for plugins before the folder was on the path
    for file in sorted(LAUNCHERS.glob("*.yaml")):
        ConfigStore.instance().store(group="hydra/launcher", name=file.stem, node=OmegaConf.load(file))


def check_command_line(
    arguments: list[str],
    config_name: str = "config",
    load: Callable[[Any], Any] = load_config,
    known: Callable[[list[str]], list[str]] = known_keys,
) -> list[Any]:
    """Compose and judge every job of this command; raise `ConfigError` for the first that is wrong."""
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    parsed, unknown = get_args_parser().parse_known_args(arguments)
    if any("=" in argument for argument in unknown):
        raise ConfigError(f"{unknown[0]} stands behind an option: put options such as -m before all key=value settings")
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]}: see python train.py --help; settings are given as key=value")
    if parsed.help or parsed.hydra_help or parsed.shell_completion or parsed.info is not None:
        return []
    if parsed.config_path is not None or parsed.config_name is not None:
        raise ConfigError("--config-path and --config-name are not used here: --config-dir=<folder> adds options of your own")
    if parsed.config_dir is not None and not Path(parsed.config_dir).is_dir():
        raise ConfigError(f"--config-dir={parsed.config_dir} is no folder: name one that holds options, e.g. persona/mine.yaml")
    try:
        folders = [o for o in (parsed.config_dir,) if o is not None]
        jobs = list(compose_jobs(parsed.overrides, parsed.multirun, folders, config_name))
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: a group set to null, a key without name
        raise ConfigError(explain(error, known)) from error
    configs = []
    if parsed.cfg is None:
        for overrides, composed in jobs:
            try:
                configs.append(load(composed))
            except ConfigError as error:
                raise ConfigError(f"{error} (in the cell {' '.join(overrides)})" if len(jobs) > 1 else str(error)) from error
    return configs


def compose_jobs(overrides: list[str], multirun: bool, config_dirs: list[str], config_name: str = "config") -> Any:
    """Yield (overrides, composed config) of every job."""
    from hydra import compose, initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    GlobalHydra.instance().clear()  # a task of evaluate.py composes train.py's defaults within its own Hydra
    search = [f"hydra.searchpath=[{','.join('file://' + str(Path(d).resolve()) for d in config_dirs)}]"] if config_dirs else []
    try:
        with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
            parser = OverridesParser.create()
            parsed = parser.parse_overrides(overrides)
            swept = [o for o in parsed if o.is_sweep_override()]
            if swept and not multirun:
                raise ConfigError(f"{swept[0].input_line} lists several values: add -m to run them all")
            for sweep in (o for o in parsed if o.get_key_element().lstrip("+") == "sweep"):
                if not multirun:
                    raise ConfigError(f"{sweep.input_line} names many runs: add -m (python train.py -m {sweep.input_line})")
                names = sorted(file.stem for file in (ROOT / "sweeps").glob("*.yaml"))
                if sweep.value() not in names:
                    raise ConfigError(f"{sweep.input_line} is no option: sweeps/ has {', '.join(names) or 'no files'}")
            fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
            if not multirun:
                yield overrides, compose(config_name, overrides=search + overrides)
                return
            whole = compose(config_name, overrides=search + fixed, return_hydra_config=True)
            params = whole.hydra.sweeper.get("params") or {}
            swept_by_file = [f"{key}={value}" for key, value in params.items()]
            batches = BasicSweeper.split_arguments(parser.parse_overrides([*swept_by_file, *overrides]), max_batch_size=None)
            for cell in distinct_cells([list(cell) for batch in batches for cell in batch]):
                yield cell, compose(config_name, overrides=search + cell)
    finally:
        GlobalHydra.instance().clear()


def explain(error: Exception, known_keys: Callable[[list[str]], list[str]] = known_keys) -> str:
    """One line of what Hydra or OmegaConf has to say, with the fix."""
    from hydra.errors import OverrideParseException

    text = str(error)
    unknown_key = re.search(r"Key '([^']+)' is not in struct\s+full_key: (\S+)", text) or re.search(
        r"Could not override '([^']+)'()", text
    )
    if unknown_key is not None:
        key = unknown_key.group(2) or unknown_key.group(1)
        parent, _, leaf = key.rpartition(".")
        known = known_keys(parent.split(".") if parent else [])
        if parent and not known:  # an open dict: Hydra wants a plus for a new key
            return f"unknown key {key}: to add it to {parent} write +{key}=<value>"
        if leaf in known:
            return f"{key} has no such key yet: to add one write +{key}.<key>=<value>"
        return f"unknown key {key}{did_you_mean(leaf, known)}"
    missing_option = re.search(
        r"Could not find '([^/']+)/([^']+)'(?:\s+Available options in '[^']+':\s*(.*?))?(?=\s*Config search path|$)",
        text,
        re.DOTALL,
    )
    if missing_option is not None:
        options = re.findall(r"\S+", missing_option.group(3) or "")
        group, option = missing_option.group(1), missing_option.group(2)
        return (
            f"{group}={option} is no option: {group} is one of {', '.join(options)}"
            if options
            else f"{group}={option} is no option"
        )
    unknown_group = re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text)
    if unknown_group is not None:
        return f"unknown group {unknown_group.group(1)}{did_you_mean(unknown_group.group(1), GROUPS)}"
    if "group override must be a string" in text:
        return f"a group is set to no option ({text.split('. ')[-1]}): give {', '.join(GROUPS)} one of its options"
    line = " ".join(text.split()).partition(" See https://hydra.cc")[0]
    return f"{line}: settings are given as key=value" if isinstance(error, OverrideParseException) else line


GROUPS = ("model", "method", "persona", "reinit", "sampler", "judge", "experiment", "sweep")


def dry_run(configs: list[Config]) -> None:
    """Print the stages of a run or of a whole sweep, each once, and what is still to build. Writes nothing."""
    from iterative_ft.calibrate import at_most, dry_text
    from iterative_ft.costs import plan_text
    from iterative_ft.loop import plan

    for text in dict.fromkeys(dry_text(config) for config in configs if config.n_seed == "calibrated"):
        print(text)
    configs = [at_most(config) for config in configs]
    print(plan_text(configs, [plan(config) for config in configs]))


def train(config: Config) -> Any:
    """One job, in the folder that Hydra made for it."""
    from hydra.core.hydra_config import HydraConfig

    from iterative_ft.loop import run

    hydra = HydraConfig.get()
    prepare_libraries()
    command = " ".join(["python", "train.py", *hydra.overrides.task])
    folder = Path(hydra.runtime.output_dir)
    print(f"{folder}\n{command}")
    return run(config, folder, command)


def prepare_libraries() -> None:
    """Settings that libraries read when they are imported; what the user set stays."""
    for name, value in (
        ("THP_MEM_ALLOC_ENABLE", "1"),  # torch: huge pages for large tensors on a CPU, an eighth of the page faults
        ("TOKENIZERS_PARALLELISM", "false"),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TQDM_DISABLE", "1"),  # a run has a display of its own
        ("TORCH_CPP_LOG_LEVEL", "ERROR"),
        ("PYTHONWARNINGS", "ignore"),
        ("TRL_EXPERIMENTAL_SILENCE", "1"),
    ):
        os.environ.setdefault(name, value)
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # warns that there is no Triton on a CPU
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
