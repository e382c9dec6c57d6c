"""All that knows Hydra and OmegaConf: composing the jobs of a command line, and turning their complaints into one line.

Hydra refuses a bare `reinit=true` for a group, so it is quoted before Hydra reads it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from iterative_ft.config.check import check
from iterative_ft.config.messages import did_you_mean, judged, known_keys
from iterative_ft.config.schema import Config
from iterative_ft.config.yaml_files import check_yaml, yaml_fault
from iterative_ft.data.read import first_line
from iterative_ft.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCHERS = Path(__file__).resolve().parent / "launchers"
BOOLEAN = re.compile(r"""(?<![\w'"])(true|false)(?![\w'"])""", re.IGNORECASE)
GROUPS = ("model", "method", "persona", "reinit", "sampler", "judge", "experiment", "sweep")
OWN_FOLDERS: list[str] = []  # --config-dir of the command line
Known = Callable[[list[str]], list[str]]
"""Names of the keys below a path, e.g. ["method"]."""


def load_config(composed: Any) -> Config:
    """Turn what Hydra composed into a `Config` whose data files exist and suffice, or raise a one-line `ConfigError`."""
    config = judged(Config, plain_values(composed))
    check(config)
    return config


def known_settings(path: list[str]) -> list[str]:
    """Keys of train.py's config below `path`."""
    return known_keys(path, Config)


def plain_values(composed: Any) -> dict[str, Any]:
    """What Hydra composed, resolved, as plain values."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} must be given: add {error.full_key}=<value>") from error
    except OmegaConfBaseException as error:
        fix = "mend it, or write \\${ for these two characters themselves"
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}: {fix}") from error
    assert isinstance(values, dict)
    return values  # type: ignore[return-value]


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


def register_yaml() -> None:
    """Have every YAML file that Hydra reads looked at first, so that what is wrong with it is one line with file and line.

    A file of --config-dir takes the place of the shipped option of the same group and name: Hydra alone would take the shipped.
    """
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.plugins import Plugins

    class Checked(FileConfigSource):
        def load_config(self, config_path: str) -> Any:
            from omegaconf.errors import OmegaConfBaseException
            from yaml import YAMLError

            name = self._normalize_file_name(config_path)
            if Path(self.path).resolve() == ROOT / "conf" and "/" in name:
                own = next((folder for folder in OWN_FOLDERS if (Path(folder) / name).is_file()), None)
                if own is not None:
                    return Checked(self.provider, own).load_config(config_path)
            file = Path(self.path) / name
            if file.is_file():
                check_yaml(file)
            try:
                return super().load_config(config_path)
            except (YAMLError, RecursionError) as error:
                raise ConfigError(yaml_fault(file, error)) from error
            except (OmegaConfBaseException, AssertionError, TypeError) as error:
                fix = "write key: value, a line each, and \\${ where a text has these two characters"
                raise ConfigError(f"{file} cannot be read as settings ({first_line(error)}): {fix}") from error

    Plugins.instance()  # registers Hydra's own
    SourcesRegistry.instance().types["file"] = Checked


def register_launchers() -> None:
    """Make each file of launch/launchers/ an option of `hydra/launcher`.

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


def jobs_of(
    arguments: list[str], config_name: str = "config", known: Known = known_settings
) -> tuple[list[tuple[list[str], Any]], bool]:
    """Compose every job of a command line: (overrides, composed) each, and whether only to show them.

    Raises:
        ConfigError: the first thing that is wrong with the command line.
    """
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    parsed, unknown = get_args_parser().parse_known_args(arguments)
    if any("=" in argument for argument in unknown):
        raise ConfigError(f"{unknown[0]} stands behind an option: put options such as -m before all key=value settings")
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]}: see python train.py --help; settings are given as key=value")
    if parsed.help or parsed.hydra_help or parsed.shell_completion or parsed.info is not None:
        return [], True
    if parsed.config_path is not None or parsed.config_name is not None:
        raise ConfigError("--config-path and --config-name are not used here: --config-dir=<folder> adds options of your own")
    if parsed.config_dir is not None and not Path(parsed.config_dir).is_dir():
        raise ConfigError(f"--config-dir={parsed.config_dir} is no folder: name one that holds options, e.g. persona/mine.yaml")
    OWN_FOLDERS[:] = [] if parsed.config_dir is None else [str(Path(parsed.config_dir).resolve())]
    try:
        folders = [o for o in (parsed.config_dir,) if o is not None]
        jobs = list(compose_jobs(parsed.overrides, parsed.multirun, folders, config_name))
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: a group set to null, a key without name
        raise ConfigError(explain(error, known)) from error
    return jobs, parsed.cfg is not None


def compose_jobs(
    overrides: list[str], multirun: bool = False, config_dirs: Sequence[str] = (), config_name: str = "config"
) -> Iterator[tuple[list[str], Any]]:
    """Yield (overrides, composed config) of every job."""
    from hydra import compose, initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    GlobalHydra.instance().clear()  # a task of evaluate.py composes train.py's defaults within its own Hydra
    search = (
        [f"hydra.searchpath=[{','.join(quoted('file://' + str(Path(d).resolve())) for d in config_dirs)}]"]
        if config_dirs
        else []
    )
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
            for cell in distinct([list(cell) for batch in batches for cell in batch]):
                yield cell, compose(config_name, overrides=search + cell)
    finally:
        GlobalHydra.instance().clear()


def quoted(value: str) -> str:
    """A value of an override as Hydra's grammar takes it, whatever brackets, commas and quotes it holds."""
    return "'" + re.sub(r"(\\*)(')", r"\1\1\\\2", value) + "'"


def distinct(cells: Sequence[Sequence[str]]) -> list[list[str]]:
    """Keep the last value of a key that is given twice, and each cell once.

    A key that a sweep file varies and the command line fixes would otherwise give as many equal cells as the file has values.
    """
    last = [list({override.split("=")[0]: override for override in cell}.values()) for cell in cells]
    return [cell for number, cell in enumerate(last) if cell not in last[:number]]


def explain(error: Exception, known_keys: Known = known_settings) -> str:
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


def job() -> tuple[Path, list[str]]:
    """The folder that Hydra made for this job, and the overrides it was given."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    return Path(hydra.runtime.output_dir), list(hydra.overrides.task)
