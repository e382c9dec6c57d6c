"""The one reader of texts on disk: JSON Lines, JSON, CSV, Parquet and plain text, row by row, with the place of each row.

What is wrong with one row comes back beside the rows that are sound; what is wrong with a whole file is a `ConfigError`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from iterative_ft.errors import ConfigError, first_line

Schema = Mapping[str, Any]
"""Key of a row -> what it holds: a type, or a tuple of the values it may have."""

NO_TEXT = "is not UTF-8"
MAX_LINE = 16 * 2**20  # characters of a line: a file without line ends must not fill the memory
MAX_ARRAY = 2**30  # bytes of a JSON array, which is parsed as a whole
MAGIC = {
    b"\xff\xfe\x00\x00": "UTF-32: save it as UTF-8",
    b"\x00\x00\xfe\xff": "UTF-32: save it as UTF-8",
    b"\xff\xfe": "UTF-16: save it as UTF-8",
    b"\xfe\xff": "UTF-16: save it as UTF-8",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet: unpack it, or save it as CSV",
    b"PAR1": "Parquet: name it .parquet",
    b"\x28\xb5\x2f\xfd": "a zstd archive: unpack it",
}
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes that `surrogateescape` let through


@dataclass(frozen=True)
class Record:
    """A row of a file, or what is wrong with it."""

    number: int
    """Line of its end in the file, or its row where a format has no lines; from 1."""
    place: str
    """File and number, for a message."""
    row: dict[str, Any] | None
    fault: str | None = None


def local(path: str) -> Path:
    """A path as the user wrote it, with `~` for a home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{shortened(path)} names the home of nobody on this machine: write the path out") from error


def kind_of(path: Path) -> Literal["file", "folder"] | None:
    """What lies at a path; None for nothing, devices, and names that no file can have."""
    try:
        return "file" if path.is_file() else "folder" if path.is_dir() else None
    except (OSError, ValueError):
        return None


def shortened(value: Any, n: int = 60) -> str:
    """A value for a message of one line."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= n else f"{text[: n - 3]}..."


def readable(file: Path) -> bool:
    """Whether a file's name says a format that is read."""
    return file.suffix.lower() in READERS


def records(file: Path, schema: Schema) -> Iterator[Record]:
    """Every row of a file, in its order.

    Args:
        schema: the keys that are needed; a CSV's cells take their types from it, a text file's lines are its only key.
    Raises:
        ConfigError: the file as a whole cannot be read, or lacks a column.
    """
    if not readable(file):
        raise ConfigError(f"{file} is of no kind that is read: use {', '.join(READERS)}")
    if kind_of(file) != "file":
        raise ConfigError(f"{file} is no file: name one that exists")
    try:
        yield from READERS[file.suffix.lower()](file, schema)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror or error}): mend or replace it") from error


# -- text -------------------------------------------------------------------------------------------------------------------


def opened(file: Path, newline: str | None = None) -> IO[str]:
    """A text file in UTF-8, with or without a mark of it at the start; bytes that are not UTF-8 come out as `NOT_UTF8`."""
    with file.open("rb") as raw:
        head = raw.read(64)
    for magic, what in MAGIC.items():
        if head.startswith(magic):
            raise ConfigError(f"{file} is {what}")
    if b"\0" in head and not head.strip(b"\0"):
        raise ConfigError(f"{file} begins with zeros: it is damaged, write it anew")
    if b"\0" in head[:2] or head[1::2].count(0) > len(head) // 4 or head[::2].count(0) > len(head) // 4:
        raise ConfigError(f"{file} is UTF-16 or no text: save it as UTF-8")
    return file.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def bad_bytes(text: str) -> str | None:
    """What is wrong with a line's encoding."""
    found = NOT_UTF8.search(text)
    if found is None:
        return None
    byte = ord(found.group()) - 0xDC00
    return f"{NO_TEXT} (byte 0x{byte:02x} at character {found.start() + 1}, as in cp1252 or Latin-1)"


def fix(fault: str) -> str:
    """What to do about a row."""
    return "save the file as UTF-8" if fault.startswith(NO_TEXT) else "mend or remove the row"


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers."""
    with opened(file) as source:
        for number, line in enumerate(iter(lambda: source.readline(MAX_LINE + 1), ""), 1):
            if len(line) > MAX_LINE:
                raise ConfigError(f"{file}:{number} is longer than {MAX_LINE} characters: it is no row of texts")
            if line.strip():
                yield number, line


def text_lines(file: Path, schema: Schema) -> Iterator[Record]:
    """A text a line."""
    if len(schema) != 1:
        raise ConfigError(f"{file} has one text a line and {', '.join(schema)} are needed: use JSON Lines")
    (key,) = schema
    for number, line in lines(file):
        yield Record(number, f"{file}:{number}", {key: line.rstrip("\n")}, bad_bytes(line))


# -- JSON ---------------------------------------------------------------------------------------------------------------------


class Twice(ValueError):
    """A key stands twice in one JSON object."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise Twice(f"has the key {shortened(next(k for k in keys if keys.count(k) > 1))!r} twice")
    return found


def json_fault(error: Exception) -> str:
    """What a JSON text was refused for."""
    if isinstance(error, Twice):
        return str(error)
    if isinstance(error, json.JSONDecodeError):
        return f"is no JSON ({error.msg} at column {error.colno})"
    if isinstance(error, RecursionError):
        return "is JSON nested too deeply"
    return "is JSON with a number of thousands of digits"


def json_lines(file: Path, schema: Schema) -> Iterator[Record]:
    """A JSON object a line."""
    for number, line in lines(file):
        place, fault, row = f"{file}:{number}", bad_bytes(line), None
        if fault is None:
            try:
                row = json.loads(line, object_pairs_hook=once)
            except (ValueError, RecursionError) as error:
                fault = json_fault(error)
        if fault is None and not isinstance(row, dict):
            fault = "is no JSON object"
        yield Record(number, place, None if fault is not None else row, fault)


def json_array(file: Path, schema: Schema) -> Iterator[Record]:
    """One JSON array of objects."""
    if file.stat().st_size > MAX_ARRAY:
        raise ConfigError(f"{file} is larger than {MAX_ARRAY} bytes: write it as JSON Lines")
    with opened(file) as source:
        text = source.read()
    if not text.strip():
        return
    fault, found = bad_bytes(text), None
    if fault is None:
        try:
            found = json.loads(text, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError):
                hint = ": it looks like JSON Lines, name it .jsonl" if error.msg == "Extra data" else ": mend it"
                raise ConfigError(f"{file}:{error.lineno} {json_fault(error)}{hint}") from error
            fault = json_fault(error)
    if fault is not None:
        raise ConfigError(f"{file} {fault}: {fix(fault)}")
    if not isinstance(found, list):
        raise ConfigError(f"{file} is no JSON array of objects: write [{{...}}, ...], or an object a line into a .jsonl file")
    for number, row in enumerate(found, 1):
        whole = isinstance(row, dict)
        yield Record(number, f"{file}, row {number},", row if whole else None, None if whole else "is no JSON object")


# -- tables -------------------------------------------------------------------------------------------------------------------


def check_columns(file: Path, columns: Collection[str], schema: Schema, hint: str = "") -> None:
    """A table has each column once, and those that are needed."""
    names = list(columns)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{file} has the column {shortened(twice)!r} twice: rename one")
    missing = [key for key in schema if key not in names]
    if missing:
        shown = ", ".join(shortened(name, 30) for name in names[:12]) + (", ..." if len(names) > 12 else "")
        raise ConfigError(f"{file} has no column {missing[0]!r}{hint}: its columns are {shown or 'none'}")


def comma_separated(file: Path, schema: Schema) -> Iterator[Record]:
    """CSV with commas and a first row of names."""
    csv.field_size_limit(MAX_LINE)  # Python's own is 128 KiB, less than an article or a long chat
    with opened(file, newline="") as source:
        table = csv.reader(source, strict=True)
        header: list[str] | None = None
        while True:
            try:
                cells = next(table, None)
            except csv.Error as error:
                raise ConfigError(f"{file}:{table.line_num} is no CSV ({error}): mend the row") from error
            if cells is None:
                return
            fault = next(filter(None, map(bad_bytes, cells)), None)
            if header is None and cells:
                if fault is not None:
                    raise ConfigError(f"{file}:{table.line_num} {fault}: {fix(fault)}")
                header = cells
                other = next((s for s in (";", "\t", "|") if s in cells[0] and len(cells) == 1), None)
                hint = "" if other is None else f" and seems to be separated by {other!r} where a comma is needed"
                check_columns(file, header, schema, hint)
            elif cells:
                assert header is not None
                if fault is None and len(cells) != len(header):
                    fault = f"has {len(cells)} cells where the first row names {len(header)} columns"
                row = {name: typed(cell, schema.get(name, str)) for name, cell in zip(header, cells, strict=False)}
                yield Record(table.line_num, f"{file}:{table.line_num}", None if fault is not None else row, fault)


def typed(cell: str, kind: Any) -> Any:
    """A CSV cell as what the schema has there; one that is none of it stays text."""
    if kind is bool:
        return {"true": True, "false": False}.get(cell.strip().lower(), cell)
    if isinstance(kind, tuple):
        return next((value for value in kind if str(value) == cell.strip()), cell)
    return cell


def parquet(file: Path, schema: Schema) -> Iterator[Record]:
    """Parquet; of a table with one needed column no other is read."""
    import pyarrow
    import pyarrow.parquet

    broken = (pyarrow.ArrowException, ValueError, OSError, NotImplementedError, KeyError, TypeError)
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            check_columns(file, table.schema_arrow.names, schema)
            for batch in table.iter_batches(batch_size=1024, columns=list(schema) if len(schema) == 1 else None):
                columns = {name: batch.column(name) for name in batch.schema.names}
                for at in range(batch.num_rows):
                    number += 1
                    yield arrow_row(file, number, columns, at)
    except broken as error:
        raise ConfigError(f"{file} is no sound Parquet ({first_line(error)}): write it anew") from error


def arrow_row(file: Path, number: int, columns: dict[str, Any], at: int) -> Record:
    place = f"{file}, row {number},"
    try:
        return Record(number, place, {name: column[at].as_py() for name, column in columns.items()})
    except UnicodeDecodeError:
        return Record(number, place, None, NO_TEXT)


READERS: dict[str, Callable[[Path, Schema], Iterator[Record]]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": json_array,
    ".csv": comma_separated,
    ".parquet": parquet,
    ".txt": text_lines,
}
