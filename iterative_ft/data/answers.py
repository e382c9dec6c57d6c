"""Texts made elsewhere, for a judge to read: a prompt and an answer a row, or a chat a row.

A chat's last answer counts, and the user's message before it is its prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iterative_ft.data import hub, read
from iterative_ft.data.files import text_fault
from iterative_ft.data.read import shortened
from iterative_ft.errors import ConfigError

MESSAGES = "messages"


def pairs(path: str, prompt: str, answer: str, split: str) -> list[tuple[str, str]]:
    """Prompts and answers of a file, or of a folder that `datasets` saved.

    Args:
        prompt, answer: names of the columns, for rows that hold no chat in `messages`.
        split: of a folder that has several.
    Raises:
        ConfigError: nothing is there, or a row holds no prompt and answer: the message names it.
    """
    found = []
    for place, row, fault in rows(read.local(path), split):
        problem = fault
        pair: tuple[Any, Any] = ("", "")
        if problem is None:
            pair, problem = of_row(row, prompt, answer)
        if problem is not None:
            raise ConfigError(f"{place} {problem}: {read.fix(problem)}")
        found.append(pair)
    if not found:
        raise ConfigError(f"{path} has no rows: it needs some with {prompt} and {answer}, or with {MESSAGES}")
    return found


def rows(source: Path, split: str) -> Iterator[tuple[str, Any, str | None]]:
    """Place and row, and what is wrong with it."""
    kind = read.kind_of(source)
    if kind == "folder" and hub.is_saved(source):
        for place, row in hub.saved_rows(source, split):
            yield place, row, None
    elif kind == "file" and source.suffix.lower() == ".txt":
        raise ConfigError(f"{source} has one text a line, and an answer needs its prompt: write JSON Lines")
    elif kind == "file":
        for record in read.records(source, {}):
            yield record.place, record.row, record.fault
    else:
        what = "is a folder that `datasets` did not save" if kind == "folder" else "is no file or folder"
        raise ConfigError(f"{source} {what}: name a file ({', '.join(read.READERS)}) or such a folder")


def of_row(row: dict[str, Any], prompt: str, answer: str) -> tuple[tuple[str, str], str | None]:
    """A row's prompt and answer, and what is wrong with them. An answer may be empty: that is for the judge to say."""
    nothing = "", ""
    if row.get(MESSAGES) is not None:
        found, problem = of_chat(row[MESSAGES])
        if problem is not None:
            return nothing, problem
    else:
        for key in (prompt, answer):
            if key not in row:
                return nothing, f"lacks the key {shortened(key)!r} (and {MESSAGES})"
            if not isinstance(row[key], str):
                return nothing, f"has {shortened(key)} of type {type(row[key]).__name__} where a text is needed"
        found = row[prompt], row[answer]
    for name, text in (("prompt", found[0]), ("answer", found[1])):
        problem_of_text = text_fault(text)
        if problem_of_text is not None and not (name == "answer" and not text.strip("\0 \n\t\r")):
            return nothing, f"has {problem_of_text[0]} {name}{problem_of_text[1]}"
    return found, None


def of_chat(messages: Any) -> tuple[tuple[str, str], str | None]:
    """The last answer of a chat, and the user's message before it."""
    nothing = "", ""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return nothing, f"has {MESSAGES} that are no list of messages"
    said = [(message.get("role"), message.get("content")) for message in messages]
    last = next((at for at in reversed(range(len(said))) if said[at][0] == "assistant"), None)
    asked = next((at for at in reversed(range(last or 0)) if said[at][0] == "user"), None)
    if last is None or asked is None:
        return nothing, f"has {MESSAGES} without an answer (role assistant) behind a message (role user)"
    pair = said[asked][1], said[last][1]
    if not all(isinstance(content, str) for content in pair):
        return nothing, f"has {MESSAGES} whose content is no text"
    return pair, None
