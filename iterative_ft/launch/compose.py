"""All that knows Hydra and OmegaConf: composing the jobs of a command line, and turning their complaints into one line.

Hydra refuses a bare `reinit=true` for a group, so it is quoted before Hydra reads it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iterative_ft.config.check import check
from iterative_ft.config.messages import judged
from iterative_ft.config.schema import Config
from iterative_ft.config.yaml_files import check_yaml, yaml_fault
from iterative_ft.errors import ConfigError, first_line
from iterative_ft.launch.overrides import GROUPS as GROUPS  # those who compose ask here
from iterative_ft.launch.overrides import Known, check_overrides, explain, known_settings, n_swept, read_override
from iterative_ft.launch.quoting import MOST_CELLS, quoted

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCHERS = Path(__file__).resolve().parent / "launchers"
BOOLEAN = re.compile(r"""(?<![\w'"])(true|false)(?![\w'"])""", re.IGNORECASE)
OWN_FOLDERS: list[str] = []  # --config-dir of the command line


def load_config(composed: Any) -> Config:
    """Turn what Hydra composed into a `Config` whose data files exist and suffice, or raise a one-line `ConfigError`."""
    config = judged(Config, plain_values(composed))
    check(config)
    return config


def plain_values(composed: Any) -> dict[str, Any]:
    """What Hydra composed, resolved, as plain values."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} must be given: add {error.full_key}=<value>") from error
    except OmegaConfBaseException as error:
        text = str(error).splitlines()[0]
        hint = ": a text that holds ${ is written with \\${" if "nterpolation" in text or "resolver" in text.lower() else ""
        raise ConfigError(f"{error.full_key}: {text}{hint}") from error
    except RecursionError:
        raise ConfigError("a setting refers to itself: write the value in place of ${...}") from None
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
    from hydra._internal.core_plugins import file_config_source
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.plugins import Plugins

    class FileConfigSource(file_config_source.FileConfigSource):  # Hydra, in a job's process, tells sources by their names
        def load_config(self, config_path: str) -> Any:
            from omegaconf.errors import OmegaConfBaseException
            from yaml import YAMLError

            name = self._normalize_file_name(config_path)
            if Path(self.path).resolve() == ROOT / "conf" and "/" in name:
                own = next((folder for folder in OWN_FOLDERS if (Path(folder) / name).is_file()), None)
                if own is not None:
                    return FileConfigSource(self.provider, own).load_config(config_path)
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
    SourcesRegistry.instance().types["file"] = FileConfigSource


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


def quiet_failures() -> None:
    """Have Hydra hand a job's error on without a line of its own: the error says all that there is to say."""
    from hydra.core.utils import JobReturn, JobStatus

    def value(self: JobReturn) -> Any:
        if self.status is JobStatus.FAILED:
            raise self._return_value
        return self._return_value

    JobReturn.return_value = property(value, JobReturn.return_value.fset)  # type: ignore[assignment, attr-defined]


@dataclass(frozen=True)
class CommandLine:
    """What a command asks for: one run, or every cell of a multirun; composed one by one."""

    cells: list[list[str]]
    """Overrides of each run."""
    multirun: bool
    only_shown: bool
    """--help, --cfg and the like: nothing is to be run."""
    fixed: list[str]
    """Overrides that all cells share."""
    search: list[str]
    config_name: str
    known: Known

    def job(self, number: int) -> tuple[list[str], Any]:
        """Overrides and config of a run."""
        return self.cells[number], self.composed(self.cells[number])

    def composed(self, overrides: list[str], with_hydra: bool = False) -> Any:
        """What Hydra makes of these overrides.

        Raises:
            ConfigError: it makes nothing of them.
        """
        from hydra import compose, initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra

        GlobalHydra.instance().clear()  # a task of evaluate.py composes train.py's defaults within its own Hydra
        try:
            with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3", job_name="train"):
                return compose(self.config_name, overrides=self.search + overrides, return_hydra_config=with_hydra)
        except Exception as error:  # Hydra and OmegaConf raise errors of every type
            raise ConfigError(explain(error, self.known)) from error
        finally:
            GlobalHydra.instance().clear()


def command_line(arguments: list[str], config_name: str = "config", known: Known = known_settings) -> CommandLine:
    """Read a command line.

    Raises:
        ConfigError: the first thing that is wrong with it.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = wrong_option  # type: ignore[method-assign]
    parsed, unknown = parser.parse_known_args(arguments)
    if any("=" in argument for argument in unknown):
        raise ConfigError(f"{unknown[0]} stands behind an option: put options such as -m before all key=value settings")
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]}: see python train.py --help; settings are given as key=value")
    if parsed.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun reads a pickle, which may run any code: give the run's command again")
    if parsed.help or parsed.hydra_help or parsed.shell_completion or parsed.info is not None:
        return CommandLine([], False, True, [], [], config_name, known)
    if parsed.config_path is not None or parsed.config_name is not None:
        raise ConfigError("--config-path and --config-name are not used here: --config-dir=<folder> adds options of your own")
    if parsed.config_dir is not None and not Path(parsed.config_dir).is_dir():
        raise ConfigError(f"--config-dir={parsed.config_dir} is no folder: name one that holds options, e.g. persona/mine.yaml")
    OWN_FOLDERS[:] = [] if parsed.config_dir is None else [str(Path(parsed.config_dir).resolve())]
    if parsed.package is not None and parsed.cfg is None:
        raise ConfigError("--package is a part of what --cfg shows: give --cfg job too")
    if parsed.multirun and parsed.cfg is not None:
        raise ConfigError("--cfg shows one run: leave -m out, or give dry_run=true to see the runs of a sweep")
    folders = [o for o in (parsed.config_dir,) if o is not None]
    line = planned(parsed.overrides, parsed.multirun, folders, config_name, known)
    if parsed.cfg is not None:
        line.job(0)  # for the message, should it not compose
        return CommandLine([], False, True, line.fixed, line.search, config_name, known)
    return line


def wrong_option(message: str) -> Any:
    raise ConfigError(f"{message}: see python train.py --help")


def planned(
    overrides: list[str], multirun: bool, config_dirs: Sequence[str], config_name: str, known: Known = known_settings
) -> CommandLine:
    """Which runs these overrides ask for; a sweep's file is read, the runs are not composed yet."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    parsed = [read_override(parser, argument) for argument in overrides]
    check_overrides(parsed, multirun, sorted(file.stem for file in (ROOT / "sweeps").glob("*.yaml")))
    search = [f"hydra.searchpath=[{','.join(quoted('file://' + str(Path(d).resolve())) for d in config_dirs)}]"]
    search = search if config_dirs else []
    fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    if not multirun:
        return CommandLine([overrides], False, False, fixed, search, config_name, known)
    line = CommandLine([], True, False, fixed, search, config_name, known)
    whole = line.composed(fixed, with_hydra=True)
    by_file = [read_override(parser, f"{key}={value}") for key, value in (whole.hydra.sweeper.get("params") or {}).items()]
    n = 1
    for swept in {o.key_or_group: o for o in [*by_file, *parsed]}.values():
        n *= n_swept(swept)
    if n > MOST_CELLS:
        raise ConfigError(f"{n} runs in one command: {MOST_CELLS} is the most, give fewer values or several commands")
    try:
        batches = BasicSweeper.split_arguments([*by_file, *parsed], max_batch_size=None)
    except Exception as error:
        raise ConfigError(f"{' '.join(overrides)}: {explain(error, known)}") from error
    cells = distinct([list(cell) for batch in batches for cell in batch])
    return CommandLine(cells, True, False, fixed, search, config_name, known)


def given_folder(line: CommandLine, name: str, n_gpus: int = 1) -> tuple[Path, bool]:
    """The folder that `name` (hydra.run.dir, hydra.sweep.dir) sets, and whether it is one to go on in: its name holds no time.

    Args:
        n_gpus: that a run needs; a launcher gives each cell so many, however many are seen here.

    Raises:
        ConfigError: it is no path, the process would change its folder, or the launcher would start nothing.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    composed = line.composed(line.fixed, with_hydra=True)
    section = composed.hydra.run if name == "hydra.run.dir" else composed.hydra.sweep
    raw = OmegaConf.to_container(section, resolve=False)
    assert isinstance(raw, dict)
    if composed.hydra.job.chdir:
        raise ConfigError("hydra.job.chdir=true would move relative paths such as the store's into the run's folder: leave out")
    launcher = composed.hydra.launcher
    for key, least in (("n_at_once", 1), ("gpus_per_cell", 0)):
        value = launcher.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ConfigError(f"hydra.launcher.{key}={value} is wrong: give a whole number of {least} or more")
    for key in ("gpus_per_cell", "gpus_per_node"):
        if isinstance(share := launcher.get(key), int) and n_gpus > max(1, share):
            raise ConfigError(
                f"hydra.launcher.{key}={share} is less than the {n_gpus} GPUs that a run of this command takes: raise it"
            )
    try:
        path = section.dir
    except OmegaConfBaseException as error:
        raise ConfigError(f"{name}={raw['dir']}: {str(error).splitlines()[0]}") from error
    if not isinstance(path, str) or not path.strip():
        raise ConfigError(f"{name}={path} is no folder: name one, or leave it out")
    named = any(override.startswith(f"{name}=") for override in line.fixed)
    try:
        folder = Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{name}={path} names a user that this machine does not know: write the whole path") from None
    return folder, named or "${now:" not in str(raw["dir"])


def check_subdirs(line: CommandLine) -> None:
    """A user's own name for the cells' folders has to tell them apart.

    Raises:
        ConfigError: two cells would write into one folder.
    """
    from omegaconf.errors import OmegaConfBaseException

    named = [override for override in line.fixed if override.startswith("hydra.sweep.subdir=")]
    if not named or re.search(r"\$\{hydra[.:]job\.(num|id|override_dirname)\}", named[-1]):
        return
    folders: dict[str, list[str]] = {}
    for cell in line.cells:
        composed = line.composed(cell, with_hydra=True)
        try:
            folder = str(composed.hydra.sweep.subdir)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{named[-1]}: {str(error).splitlines()[0]}") from error
        if folder in folders:
            raise ConfigError(
                f"{named[-1]} gives two cells the folder {folder} ({' '.join(folders[folder])}; {' '.join(cell)}): leave it "
                "out, or add ${hydra.job.num} to it"
            )
        folders[folder] = cell


def with_folders(cells: Sequence[Sequence[str]], suffixes: Sequence[str], config: Any) -> list[list[str]]:
    """Each cell's overrides, and a folder's name that ends in its suffix; the user's own name for it stays."""
    from omegaconf import OmegaConf

    raw = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    assert isinstance(raw, dict)
    given: Any = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)  # one may name what a cell alone has
    if any(override.startswith("hydra.sweep.subdir=") for override in given):
        return [list(cell) for cell in cells]
    return [[*cell, f'hydra.sweep.subdir="{raw["subdir"]}{suffix}"'] for cell, suffix in zip(cells, suffixes, strict=True)]


def compose_jobs(
    overrides: list[str], multirun: bool = False, config_dirs: Sequence[str] = (), config_name: str = "config"
) -> Iterator[tuple[list[str], Any]]:
    """Yield (overrides, composed config) of every job."""
    line = planned(overrides, multirun, config_dirs, config_name)
    yield from (line.job(number) for number in range(len(line.cells)))


def distinct(cells: Sequence[Sequence[str]]) -> list[list[str]]:
    """Keep the last value of a key that is given twice, and each cell once.

    A key that a sweep file varies and the command line fixes would otherwise give as many equal cells as the file has values.
    """
    last = [list({override.partition("=")[0].lstrip("+/"): override for override in cell}.values()) for cell in cells]
    return [cell for number, cell in enumerate(last) if cell not in last[:number]]


def job() -> tuple[Path, list[str]]:
    """The folder that Hydra made for this job, and the overrides it was given."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    return Path(hydra.runtime.output_dir), list(hydra.overrides.task)


def own_options() -> list[str]:
    """--config-dir of this job's command, from where it was given; nothing where there was none."""
    from hydra.core.hydra_config import HydraConfig

    runtime = HydraConfig.get().runtime
    here = Path(runtime.cwd)
    given = [Path(source.path) for source in runtime.config_sources if source.provider == "command-line"]
    return [f"--config-dir={path.relative_to(here) if path.is_relative_to(here) else path}" for path in given]
