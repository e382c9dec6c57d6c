"""Settings of a command line, one by one: what Hydra reads in them, and what is wrong with them in one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from iterative_ft.config.messages import did_you_mean, is_list, is_text, known_keys
from iterative_ft.config.schema import Config
from iterative_ft.config.tasks import TASKS
from iterative_ft.errors import ConfigError
from iterative_ft.launch.quoting import check_size, for_shell, how_to_quote, unquoted

GROUPS = ("model", "method", "persona", "reinit", "sampler", "judge", "experiment", "sweep")
ADDED = ("experiment", "sweep")  # groups of which the defaults choose nothing
Known = Callable[[list[str]], list[str]]
"""Names of the keys below a path, e.g. ["method"]."""


def known_settings(path: list[str]) -> list[str]:
    """Keys of train.py's config below `path`."""
    return known_keys(path, Config)


def n_swept(override: Any) -> int:
    """How many values a setting takes."""
    if not override.is_sweep_override() or not override.is_discrete_sweep():
        return 1
    value = override.value()
    return len(value.list) if hasattr(value, "list") else len(list(value.range())) if hasattr(value, "range") else 1


def read_override(parser: Any, argument: str) -> Any:
    """One setting as Hydra reads it; a text that it cannot read is told with the quotes it needs."""
    check_size(argument)
    try:
        found = parser.parse_overrides([argument])[0]
    except Exception as error:
        if is_free_text(argument):
            raise ConfigError(how_to_quote(argument)) from error
        raise ConfigError(unreadable(argument, explain(error))) from error
    structured = not found.is_sweep_override() and isinstance(found.value(), list | dict)
    if is_free_text(argument) and (structured or (found.is_sweep_override() and in_prose(argument))):
        raise ConfigError(how_to_quote(argument))
    return found


def unreadable(argument: str, why: str) -> str:
    """What to say of a setting that Hydra cannot read."""
    key, equals, text = argument.partition("=")
    if not equals or not key.strip():
        return f"{argument}: settings are given as key=value"
    of_grammar = any(word in why for word in ("LexerNoViable", "expecting", "viable", "token recognition"))
    reason = "" if of_grammar else f" ({why.removeprefix(f'Error parsing override {argument!r}').strip()})"
    return f"{argument} cannot be read{reason}: a value with such letters is quoted, {for_shell(key, unquoted(text))}"


def is_free_text(argument: str) -> bool:
    """Whether the setting is a text of a person's own, of train.py or a task of evaluate.py."""
    key, equals, _ = argument.lstrip("+").partition("=")
    return bool(equals) and any(is_text(key.split("."), root) for root in (Config, *TASKS.values()))


def in_prose(argument: str) -> bool:
    """Whether values that Hydra would take apart read as one sentence: a blank stands outside of all quotes."""
    return " " in re.sub(r"""("(\\.|[^"\\])*"|'(\\.|[^'\\])*')""", "", argument.partition("=")[2]).strip()


def check_overrides(parsed: Sequence[Any], multirun: bool, sweeps: Sequence[str]) -> None:
    """What Hydra would take and this project cannot.

    Args:
        sweeps: names of the files of sweeps/.
    """
    for override in parsed:
        line, key = override.input_line, override.key_or_group
        if override.is_sweep_override() and not multirun:
            text = how_to_quote(line) if is_free_text(line) else f"{line} lists several values: add -m to run them all"
            if is_list(key.split("."), Config):
                name, _, values = line.partition("=")
                text = f"{line}: {key} is a list, write '{name}=[{values}]'"
            raise ConfigError(text)
        if type(override.value()).__name__ == "Glob":
            raise ConfigError(f"{line} is not used here: list the options, separated by commas")
        if key == "hydra.mode":
            raise ConfigError(f"{line} is not used here: -m makes a multirun")
        if key == "hydra.job.chdir" and override.value() not in (False, None):
            raise ConfigError(f"{line} would move store=... and other relative paths into the run's folder: leave it out")
        if key == "hydra/sweeper" or (key.startswith("hydra.sweeper.") and not key.startswith("hydra.sweeper.params")):
            raise ConfigError(f"{line} is not used here: a sweep is key=value1,value2 with -m, or a file of sweeps/")
        if key == "sweep":
            if not multirun:
                raise ConfigError(f"{line} names many runs: add -m (python train.py -m +{line.lstrip('+')})")
            if override.value() not in sweeps:
                raise ConfigError(f"{line} is no option: sweeps/ has {', '.join(sweeps) or 'no files'}")


def explain(error: Exception, known_keys: Known = known_settings) -> str:
    """One line of what Hydra or OmegaConf has to say, with the fix."""
    text = str(error)
    unknown_group = re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text)
    if unknown_group is not None and unknown_group.group(1) in ADDED:
        return f"{unknown_group.group(1)}=... adds to a command: write it with a plus, +{unknown_group.group(1)}=<option>"
    unknown_key = re.search(r"Key '([^']+)' is not in struct\s+full_key: (\S+)", text) or re.search(
        r"Could not override '([^']+)'()", text
    )
    if unknown_key is not None:
        key = unknown_key.group(2) or unknown_key.group(1)
        if key.startswith("hydra.launcher."):
            return f"{key} is a setting of another launcher: add hydra/launcher=submitit_local or hydra/launcher=submitit_slurm"
        parent, _, leaf = key.rpartition(".")
        known = known_keys(parent.split(".") if parent else [])
        if parent and not known:  # an open dict: Hydra wants a plus for a new key
            return f"unknown key {key}: to add it to {parent} write +{key}=<value>"
        if leaf in known:
            return f"{key} has no such key yet: to add one write +{key}.<key>=<value>"
        return f"unknown key {key}{did_you_mean(leaf, known)}"
    missing_option = re.search(
        r"Could not find '([^']+)/([^/']+)'(?:\s+Available options in '[^']+':\s*(.*?))?(?=\s*Config search path|$)",
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
    if "group override must be a string" in text:
        return f"a group is set to no option ({text.split('. ')[-1]}): give {', '.join(GROUPS)} one of its options"
    if text.startswith("Error merging override") and error.__cause__ is not None:
        text += f" ({str(error.__cause__).splitlines()[0]})"
    return " ".join(text.split()).partition(" See https://hydra.cc")[0] or type(error).__name__
