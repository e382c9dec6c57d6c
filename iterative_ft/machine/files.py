"""JSON and JSONL files, written so that a reader never sees half of one, and digests of what files hold."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from iterative_ft.errors import RunError

UNFINISHED = ".writing-"  # how the name of a file begins that is being written; a kill may leave one, and none is content


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """A text file to write: a reader sees the old file or the whole new one, never half, whenever the process dies."""
    temporary = path.with_name(f"{UNFINISHED}{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def read_jsonl(path: Path, torn: bool = False) -> list[Any]:
    """Rows of a JSONL file.

    Args:
        torn: the file may be missing, or end in a line that a kill cut off; that line is no row.
    """
    if torn and not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace" if torn else "strict").split("\n")
    whole, rest = lines[:-1], lines[-1]
    rows = [json.loads(line) for line in whole if line.strip()]
    if rest.strip():
        try:
            rows.append(json.loads(rest))
        except json.JSONDecodeError:
            if not torn:
                raise
    return rows


def text_digest(value: Any) -> str:
    """Hash of a JSON value, for inputs too long to record."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:32]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(folder: Path, without: Sequence[str] = ()) -> dict[str, str]:
    """Path below `folder` -> sha256 of every finished file but those that are named in `without`."""
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(UNFINISHED) and p.relative_to(folder).as_posix() not in without
    )
    return {p.relative_to(folder).as_posix(): file_sha256(p) for p in files}


def sync_folder(folder: Path) -> None:
    """Have a folder's entries on disk, after a rename in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
