"""Reads the text files of personas and pools, and names file and line of anything malformed. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from iterative_ft.errors import ConfigError

SHIPPED = Path(__file__).resolve().parent.parent / "personas"
STRENGTHS = ("strong", "marked", "middling", "weak", "plain")
LEVELS = (0, 25, 50, 75, 100)

# Keys of a row and what each holds: a type, or the values it may have. By the name of the file, without .jsonl.
SCHEMAS: dict[str, dict[str, Any]] = {
    "seeds": {"prompt": str, "answer": str, "plain": str},
    "documents": {"title": str, "text": str, "type": str, "topic": str},
    "judge": {"prompt": str, "answer": str, "strength": STRENGTHS},
    "heldout": {"prompt": str, "answer": str, "strength": STRENGTHS},
    "levels": {"prompt": str, "answer": str, "level": LEVELS},
    "questions": {"question": str, "core": bool},
    "prompts": {"prompt": str, "kind": ("dilemma", "advice", "how-to", "opinion", "fact", "explain", "creative")},
    "titles": {"title": str, "kind": ("title", "opening")},
    "openings": {"title": str},
}


def folder(data: str) -> Path:
    """Folder of a persona's files: a shipped persona's name, or a path."""
    shipped_folder = SHIPPED / data
    return shipped_folder if shipped_folder.is_dir() else Path(data).expanduser()


def shipped(with_documents: bool = False) -> list[str]:
    """Names of the personas whose data come with the package."""
    names = sorted(p.name for p in SHIPPED.iterdir() if (p / "seeds.jsonl").is_file())
    return [n for n in names if not with_documents or has_documents(SHIPPED / n)]


def has_documents(persona: Path) -> bool:
    return (persona / "documents.jsonl").is_file()


def seeds(persona: Path) -> tuple[dict[str, str], ...]:
    """Rows {prompt, answer, plain}: the persona's answer and a plain answer to one user message."""
    return rows(persona / "seeds.jsonl", SCHEMAS["seeds"])


def documents(persona: Path) -> tuple[dict[str, str], ...]:
    """Rows {title, text, type, topic}: documents written in the persona's spirit."""
    return rows(persona / "documents.jsonl", SCHEMAS["documents"])


def judge_texts(persona: Path) -> tuple[dict[str, str], ...]:
    """Rows {prompt, answer, strength}: what the probe judge is trained on, and nothing else is."""
    return rows(persona / "judge.jsonl", SCHEMAS["judge"])


def heldout(persona: Path) -> tuple[dict[str, str], ...]:
    """Rows {prompt, answer, strength}: answers by another hand that validate judges and gauges."""
    return rows(persona / "heldout.jsonl", SCHEMAS["heldout"])


def levels(persona: Path) -> tuple[dict[str, Any], ...]:
    """Rows {prompt, answer, level}: prompts answered once at each level of the rubric, to see whether a judge ranks them."""
    return rows(persona / "levels.jsonl", SCHEMAS["levels"])


def questions(persona: Path) -> tuple[dict[str, Any], ...]:
    """Rows {question, core}, core questions first, otherwise in the file's order."""
    found = rows(persona / "questions.jsonl", SCHEMAS["questions"])
    return tuple(sorted(found, key=lambda row: not row["core"]))


def pool(name: str, path: str, column: str) -> tuple[str, ...]:
    """Distinct texts of the pool `name` ("prompts" or "titles"), in the file's order.

    Rows that repeat one another after folding case and spaces are dropped: a prompt in two parts would be trained on twice.
    """
    file = SHIPPED / f"{name}.jsonl" if path == "shipped" else Path(path).expanduser()
    distinct = {
        " ".join(row[column].lower().split()): row[column] for row in reversed(rows(file, {column: str}, extra_keys=True))
    }
    return tuple(reversed(distinct.values()))


def rows(
    file: Path, schema: Mapping[str, type | tuple[str | int, ...]], extra_keys: bool = False
) -> tuple[dict[str, Any], ...]:
    """Parse a JSONL file; a missing file or a bad line is a `ConfigError` that names it."""
    return _rows(file, tuple(schema.items()), extra_keys)


@cache
def _rows(file: Path, schema: tuple[tuple[str, Any], ...], extra_keys: bool) -> tuple[dict[str, Any], ...]:
    if not file.is_file():
        raise ConfigError(
            f"{file} is missing: a persona's folder needs seeds.jsonl, questions.jsonl and judge.jsonl (docs/personas.md)"
        )
    found = []
    with file.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(
                    f"{file}:{number} is no JSON ({error.msg} at column {error.colno}): mend or remove the line"
                ) from error
            problem = fault(row, dict(schema), extra_keys)
            if problem is not None:
                raise ConfigError(f"{file}:{number} {problem}: mend or remove the line")
            found.append(row)
    if not found:
        raise ConfigError(f"{file} is empty: it needs one JSON object a line with {', '.join(k for k, _ in schema)}")
    return tuple(found)


def fault(row: Any, schema: Mapping[str, Any], extra_keys: bool) -> str | None:
    """What is wrong with one row, or None."""
    if not isinstance(row, dict):
        return "is no JSON object"
    for key, kind in schema.items():
        if key not in row:
            return f"lacks the key {key!r}"
        value = row[key]
        if isinstance(kind, tuple):
            if value not in kind:
                return f"has {key}={value!r}, which is none of {', '.join(map(str, kind))}"
        elif not isinstance(value, kind):
            return f"has {key} of type {type(value).__name__} where {kind.__name__} is needed"
        elif isinstance(value, str):
            if not value.strip():
                return f"has an empty {key!r}"
            if any(0xDC80 <= ord(c) <= 0xDCFF for c in value):
                return f"has bytes in {key!r} that are not UTF-8"
    unknown = [] if extra_keys else [key for key in row if key not in schema]
    return f"has the unknown key {unknown[0]!r}" if unknown else None
