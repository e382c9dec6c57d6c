"""How a text stands on the command line: quoted for Hydra, and then for the shell."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence

from iterative_ft.errors import ConfigError

MOST_CELLS = 500  # runs of one command; judging each takes a tenth of a second
MOST_COMMAS = 5000  # in one setting
RANGE = re.compile(r"\brange\(([^()]*)\)")


def quoted(text: str) -> str:
    """A text as Hydra reads it back, whatever letters it has."""
    text = re.sub(r'(\\*)"', lambda found: found.group(1) * 2 + '\\"', text)
    text = re.sub(r"\\+$", lambda found: found.group() * 2, text)
    return '"' + text.replace("${", "\\${") + '"'


def override(key: str, text: str) -> str:
    """A setting as Hydra takes it."""
    return f"{key}={quoted(text)}"


def for_shell(key: str, text: str) -> str:
    """A setting as a person types it."""
    return shlex.quote(override(key, text))


def command_text(program: str, arguments: Sequence[str], options: Sequence[str] = ()) -> str:
    """The command of one run, as a person types it; a cell of a sweep's file is again a multirun, of one cell.

    Args:
        options: such as --config-dir, which stand before all settings.
    """
    plain = [re.sub(r"^(\+?/?reinit)='(true|false)'$", r"\1=\2", argument) for argument in arguments]
    multirun = ["-m"] if any(argument.startswith("+sweep=") for argument in plain) else []
    return shlex.join(["python", program, *options, *multirun, *plain])


def how_to_quote(argument: str) -> str:
    """What to say of a text that was given without the quotes it needs."""
    key, _, text = argument.partition("=")
    return f"{argument} is a text with letters that mean something to Hydra: write {for_shell(key, unquoted(text))}"


def unquoted(text: str) -> str:
    """A text without quotes around the whole of it."""
    whole = len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in text[1:-1]
    return text[1:-1] if whole else text


def check_size(argument: str) -> None:
    """Refuse what would take minutes to read, before it is read."""
    if argument.count(",") > MOST_COMMAS:
        raise ConfigError(f"{argument[:60]}... has {argument.count(',')} commas: give fewer values")
    for found in RANGE.finditer(argument):
        n = n_values(found.group(1))
        if n is not None and not n <= MOST_CELLS:
            count = f"{n:.0f}" if math.isfinite(n) else "endlessly many"
            raise ConfigError(f"{argument} asks for {count} runs, and a command may have {MOST_CELLS}: give fewer values")


def n_values(arguments: str) -> float | None:
    """How many values `range(...)` has; None where that is for Hydra to complain about."""
    named = {"start": 0.0, "stop": math.nan, "step": 1.0}
    parts = [part.strip() for part in arguments.split(",")]
    names = ["start", "stop", "step"] if len(parts) > 1 else ["stop"]
    try:
        for name, part in zip(names, parts, strict=False):
            key, equals, value = part.partition("=")
            named[key.strip() if equals else name] = float(value if equals else part)
    except ValueError:
        return None
    start, stop, step = (named[name] for name in ("start", "stop", "step"))
    if step == 0 or not all(map(math.isfinite, (start, stop, step))):
        return math.inf
    return max(0.0, math.ceil((stop - start) / step))
