"""Errors in one line: what is wrong, where, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from iterative_ft.data.read import shortened
from iterative_ft.errors import ConfigError

AnyModel = TypeVar("AnyModel", bound=BaseModel)
# Of unions, as pydantic names their members in an error's place.
BRANCHES = ("sft", "sdf", "dpo", "vllm", "transformers", "fake", "probe", "api", "engine", "str")
BRANCH_KINDS = ("list[", "literal[")  # beginnings of such names


def judged(model: type[AnyModel], values: dict[str, Any]) -> AnyModel:
    """`values` as a `model`, or a one-line `ConfigError`."""
    for key, text in texts_of(values):
        problem = text_problem(text)
        if problem is not None:
            raise ConfigError(f"{key}={shortened(text)} has {problem}: take it out")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(one_line(error, model)) from error


def texts_of(values: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every text in some settings, names included, and its key."""
    if isinstance(values, str):
        yield ".".join(place), values
    elif isinstance(values, Mapping):
        for name, value in values.items():
            inner = (*place, shortened(str(name)))
            if isinstance(name, str):
                yield ".".join(inner), name
            yield from texts_of(value, inner)
    elif isinstance(values, Sequence):
        for value in values:
            yield from texts_of(value, place)


def text_problem(text: str) -> str | None:
    """What no file, path or reply may hold."""
    if "\0" in text:
        return "a NUL character"
    return "bytes that are not UTF-8, or half a surrogate pair" if any("\ud800" <= c <= "\udfff" for c in text) else None


def one_line(error: ValidationError, root: type[BaseModel]) -> str:
    """The first of pydantic's complaints as one line that names the key, its value and what it should be."""
    errors = error.errors()
    first = errors[0]
    location = [str(part) for number, part in enumerate(first["loc"]) if number == 0 or not is_branch(str(part))]
    key = ".".join(location)
    kind, value = first["type"], first["input"]
    if kind == "extra_forbidden":
        text = f"unknown key {key}{did_you_mean(location[-1], known_keys(location[:-1], root))}"
    elif kind == "missing":
        text = f"{key} is missing: give it a value"
    elif kind == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        text = message if not key or message.split("=")[0].split()[0].startswith(key.split(".")[0]) else f"{key}: {message}"
    elif kind == "union_tag_invalid":
        text = f"{key}.name={first['ctx']['tag']} is wrong: it is one of {first['ctx']['expected_tags']}"
    elif kind == "string_type" and isinstance(value, bool | int | float):
        word = str(value).lower()
        text = f"""{key}={value!r} is no text: put quotes around it (a number as text is quoted: '{key}="{word}"')"""
    else:
        text = f"{key}={shortened(repr(value), 200)} is wrong: {first['msg'][0].lower()}{first['msg'][1:]}"
        if isinstance(value, str) and is_list(location, root):
            text += f", or write a list: '{key}=[{shortened(value)}]'"
    return text + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


def is_branch(part: str) -> bool:
    return part in BRANCHES or part.startswith(BRANCH_KINDS)


def known_keys(path: list[str], root: type[BaseModel]) -> list[str]:
    """Names that the config knows below `path`, e.g. ["method"]."""
    sections: list[type[BaseModel]] = [root]
    for part in path:
        found: list[type[BaseModel]] = []
        for section in sections:
            field = section.model_fields.get(part)
            if field is not None:
                members = getattr(field.annotation, "__args__", None) or (field.annotation,)
                found += [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
        sections = found
    return [name for section in sections for name in section.model_fields]


def is_text(path: list[str], root: type[BaseModel]) -> bool:
    """Whether the key at `path` holds a text of a person's own, such as model.system_prompt."""
    return any(members <= {str, type(None)} for members in types_at(path, root))


def is_list(path: list[str], root: type[BaseModel]) -> bool:
    """Whether the key at `path` may hold a list, such as lora.targets."""
    return any(get_origin(member) is list for members in types_at(path, root) for member in members)


def types_at(path: list[str], root: type[BaseModel]) -> list[set[Any]]:
    """What the key at `path` may hold: the members of its type, for each kind of its section."""
    sections, annotations = [root], []

    def bare(found: Any) -> Any:
        return found.__origin__ if hasattr(found, "__metadata__") else found

    for part in path:
        annotations = [section.model_fields[part].annotation for section in sections if part in section.model_fields]
        members = [member for found in annotations for member in (getattr(found, "__args__", None) or (found,))]
        sections = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
    unions = [get_args(found) if get_origin(found) in (Union, UnionType) else (found,) for found in annotations]
    return [{bare(member) for member in members} for members in unions]


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, else all of them where they fit a line."""
    names = sorted(set(known))
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if close:
        return f": did you mean {close[0]}?"
    return f": known are {', '.join(names)}" if len(names) <= 30 else ": remove it"
