"""JSON and JSONL files, written so that a reader never sees half of one, and digests of what files hold."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from iterative_ft.errors import RunError

UNFINISHED = ".writing-"  # how the name of a file begins that is being written; a kill may leave one, and none is content
LEFTOVERS = (UNFINISHED, ".nfs")  # the second: what a network disk keeps of a deleted file until it is closed


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Have the system's errors say which file they are about: those of writing and syncing do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """A text file to write: a reader sees the old file or the whole new one, never half, whenever the process dies."""
    temporary = path.with_name(f"{UNFINISHED}{path.name}.{os.getpid()}")
    try:
        with named(path), temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def clear_unfinished(folder: Path) -> None:
    """Remove what killed processes were writing in `folder`. For its only writer."""
    for file in folder.glob(f"{UNFINISHED}*"):
        file.unlink(missing_ok=True)


def as_json(value: Any, path: Path, indent: int | None = None) -> str:
    """`value` as JSON. NaN and infinity are no JSON, and no result: they are an error that names the file."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError as error:
        raise RunError(
            f"{path.name} would hold a number that is not finite: nothing of it was written ({path.parent})"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    text = as_json(value, path, indent=1)
    with replacing(path) as file:
        file.write(text + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows, one JSON object a line, whole or not at all."""
    lines = [as_json(row, path) + "\n" for row in rows]
    with replacing(path) as file:
        file.writelines(lines)


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows at the end, and have them on disk."""
    lines = [as_json(row, path) + "\n" for row in rows]
    with named(path), path.open("a", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


class DamagedFile(RunError, ValueError):
    """A file does not hold what it should; the message names it and its line."""


def read_jsonl(path: Path, torn: bool = False) -> list[Any]:
    """Rows of a JSONL file.

    Args:
        torn: the file may be missing, or end in a line that a kill cut off; that line is no row.

    Raises:
        DamagedFile: a line is no JSON.
    """
    if torn and not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        if not torn:
            raise DamagedFile(f"{path} is no UTF-8 text") from None
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                if not (torn and number == len(lines)):
                    raise DamagedFile(f"{path}:{number} is no JSON ({str(error)[:80]})") from None
    return rows


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        DamagedFile: it holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is no JSON ({str(error)[:80]})") from None
    if not isinstance(value, dict):
        raise DamagedFile(f"{path} holds no object but {type(value).__name__}")
    return value


def text_digest(value: Any) -> str:
    """Hash of a JSON value, for inputs too long to record."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:32]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """Path below `folder` -> sha256 of every finished file."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(LEFTOVERS))
    return {p.relative_to(folder).as_posix(): file_sha256(p) for p in files}


def sync_folder(folder: Path) -> None:
    """Have a folder's entries on disk, after a rename in it; some network disks cannot, and need not be asked."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def folder_bytes(folder: Path) -> int:
    """Size of all files below; links are not followed, and what goes away meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def remove_tree(folder: Path) -> None:
    """Remove a folder and all below it; another process may be doing the same. Links are removed, never followed."""

    def gone(function: Any, name: str, info: tuple[type[BaseException], BaseException, Any]) -> None:
        if not isinstance(info[1], FileNotFoundError):
            raise info[1]

    shutil.rmtree(folder, onerror=gone)
