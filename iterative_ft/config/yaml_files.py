"""Looks at a YAML file before it is built into values: what is wrong with it in one line, with file and line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from iterative_ft.data.read import MAGIC, shortened
from iterative_ft.errors import ConfigError

MAX_BYTES = 2**20  # a persona's file has six thousand
MAX_DEPTH = 100  # levels of a file
MAX_NODES = 20_000  # values of a file once its aliases are written out
FIXES = (
    (r"\\t", "indent with spaces"),
    (r"quoted scalar", "close the quote, or double the one inside it"),
    (r"could not determine a constructor", "take the tag (!...) out"),
    (r"mapping values are not allowed", "put a text that holds a colon in quotes, or below >-"),
    (r"alias", "put a text that begins with * in quotes"),
    (r"special characters", "take the control characters out"),
    (r"cannot start any token", "put the text in quotes"),
)


def check_yaml(file: Path) -> None:
    """Raise a `ConfigError` for a file that cannot be read as YAML, or whose aliases go round or blow up."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}): mend or replace it") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{file} has {len(raw)} bytes, more than the {MAX_BYTES} of any settings: name another file")
    for magic, what in MAGIC.items():
        if raw.startswith(magic):
            raise ConfigError(f"{file} is {what}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line} is not UTF-8 (byte 0x{raw[error.start]:02x}): save the file as UTF-8") from error
    if depth(text) > MAX_DEPTH:
        raise ConfigError(yaml_fault(file, RecursionError()))
    try:
        look(file, composed(text))
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(yaml_fault(file, error)) from error


def composed(text: str) -> Any:
    """The tree of nodes of a YAML text; aliases are nodes that stand in it several times."""
    try:
        return yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return yaml.compose(text, Loader=yaml.SafeLoader)  # thirty times slower, and says what is wrong more plainly


def depth(text: str) -> int:
    """How deep brackets, or dashes in one line, stand in one another at most; texts in quotes count too."""
    level = most = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        level = max(0, level + (1 if bracket in "[{" else -1))
        most = max(most, level)
    return max(most, *(len(dashes) // 2 for dashes in re.findall(r"(?:- )+", text)), 0)


def look(file: Path, root: Any) -> None:
    """Refuse keys that stand twice in a mapping, and aliases that go round or come to too much."""
    sizes: dict[int, int] = {}
    above: set[int] = set()

    def size(node: Any) -> int:
        """Number of values once aliases are written out."""
        place = f"{file}:{node.start_mark.line + 1}"
        if id(node) in above:
            raise ConfigError(f"{place} has an alias of what it stands in: write the value out")
        if id(node) not in sizes:
            above.add(id(node))
            children: list[Any] = list(node.value) if isinstance(node, yaml.SequenceNode) else []
            if isinstance(node, yaml.MappingNode):
                twice(file, [key for key, _ in node.value])
                children = [part for pair in node.value for part in pair]
            total = 1 + sum(map(size, children))
            if total > MAX_NODES:
                raise ConfigError(f"{place} has aliases that come to more than {MAX_NODES} values: write the values out")
            above.remove(id(node))
            sizes[id(node)] = total
        return sizes[id(node)]

    if root is not None:
        size(root)


def twice(file: Path, keys: list[Any]) -> None:
    """A mapping's keys are all different, in whatever way they are written (25, 25.0)."""
    seen: set[Any] = set()
    for key in keys:
        if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
            name = key.value if key.style or key.tag.endswith(":str") else yaml.safe_load(key.value)
            if name in seen:
                place = f"{file}:{key.start_mark.line + 1}"
                raise ConfigError(f"{place} has the key {shortened(key.value)} for the second time: keep one of the two")
            seen.add(name)


def yaml_fault(file: Path, error: Exception) -> str:
    """One line about an error of the YAML library."""
    if isinstance(error, RecursionError):
        return f"{file} is nested too deeply: write it with fewer levels"
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = None if mark is None else mark.line + 1
    if isinstance(error, yaml.reader.ReaderError):
        line = file.read_text(encoding="utf-8", errors="replace").count("\n", 0, error.position) + 1
    place = str(file) if line is None else f"{file}:{line}"
    said = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    said = " ".join(str(said).split())
    context = str(getattr(error, "context", None) or "")
    fix = next((fix for pattern, fix in FIXES if re.search(pattern, f"{context} {said}")), "mend the line")
    return f"{place} is no YAML ({shortened(said, 120)}): {fix}"


def load_yaml(file: Path) -> Any:
    """The values of a YAML file."""
    check_yaml(file)
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(yaml_fault(file, error)) from error
