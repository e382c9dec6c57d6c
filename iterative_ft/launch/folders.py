"""Which folder a run, a sweep or a cell gets."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from iterative_ft.errors import ConfigError
from iterative_ft.records.folder import new_folder, resumed

IN_NAME = ("method", "reinit", "persona", "seed")  # keys that the name of a cell's folder has in any case
LONGEST_VALUE, LONGEST_NAME = 40, 120  # letters: a folder's name has 255 bytes at most


def check_folder(name: str, folder: Path, stores: Sequence[Path]) -> None:
    """A run's or sweep's folder can be made or gone on in, and lies outside the store.

    Raises:
        ConfigError: it cannot; nothing was made.
    """
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        inside = [store for store in stores if folder.resolve().is_relative_to(store.resolve())]
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{name}={folder} is no name for a folder ({error}): give another") from None
    if not nearest.is_dir():
        raise ConfigError(f"{name}={folder}: {nearest} is a file: name a folder")
    if inside:
        raise ConfigError(f"{name}={folder} lies in store={inside[0]}, which holds stages alone: name another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{name}={folder} cannot be made: {nearest} cannot be written to, name another folder")
    if len(folder.name.encode()) > 255:
        raise ConfigError(f"{name}={folder}: its name is longer than 255 bytes: give a shorter one")


def run_folder(name: str, wanted: Path, given: bool) -> Path:
    """The folder of this command, taken for it.

    Args:
        name: the setting that names it.
        given: the user named it: to go on in, where no living process works there. Else it is a new one, but for a job that
            Slurm has started again: that goes on in its own.
    """
    if given:
        return made(name, wanted)
    made(name, wanted.parent)
    return resumed(wanted.parent) or new_folder(wanted)


@contextmanager
def all_or_none(*folders: Path) -> Iterator[None]:
    """Where the inside ends with an error, the folders on the way to these that were not there before are taken away again."""
    new = not_there(folders)
    try:
        yield
    except BaseException:
        take_away(new)
        raise


def not_there(folders: Iterable[Path]) -> list[Path]:
    """What is still to be made on the way to these folders, the folders themselves included."""
    ways = {path for folder in folders for path in (folder.absolute(), *folder.absolute().parents)}
    return [path for path in ways if not os.path.exists(path)]


def take_away(folders: Iterable[Path]) -> None:
    """Remove those that are empty."""
    for path in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):
            path.rmdir()  # of one that somebody uses by now nothing is lost


def check_writable(name: str, folder: Path) -> None:
    """A file is written into the folder for a trial; where the folder was not there before, it is gone again afterwards.

    Raises:
        ConfigError: that fails.
    """
    new: list[Path] = []
    try:
        new = not_there([folder])
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise ConfigError(f"{name}={folder} cannot be written ({said}): name another folder") from error
    finally:
        take_away(new)


def made(name: str, folder: Path) -> Path:
    """A folder that is there; `ConfigError` where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{name}={folder} cannot be made ({error.strerror}): name another, or make room") from error
    return folder


def cell_suffixes(cells: Sequence[Sequence[str]]) -> list[str]:
    """What the folders' names of a sweep's cells end in: the settings that differ between them, those in `IN_NAME` left out."""
    values = [dict(override.lstrip("+").partition("=")[::2] for override in cell) for cell in cells]
    keys = list(dict.fromkeys(key for cell in values for key in cell if key not in IN_NAME and not key.startswith("hydra")))
    differ = [key for key in keys if len({cell.get(key) for cell in values}) > 1]
    return ["".join(part(key, cell[key]) for key in differ if key in cell)[:LONGEST_NAME] for cell in values]


def part(key: str, value: str) -> str:
    """A setting in letters that every file system and every command line takes."""
    letters = re.sub(r"[^\w.+]+", "-", value, flags=re.ASCII).strip("-.")[:LONGEST_VALUE]
    return f"_{re.sub(r'[^A-Za-z0-9_]', '-', key.rpartition('.')[2])}-{letters or 'none'}"
