"""The text files of personas and pools: what their rows hold, and the place of anything malformed. Imports nothing heavy."""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

from iterative_ft.data import read
from iterative_ft.data.read import Schema, shortened
from iterative_ft.errors import ConfigError

SHIPPED = Path(__file__).resolve().parent.parent / "personas"
STRENGTHS = ("strong", "marked", "middling", "weak", "plain")
PROSE = "prose"
FORMS = (  # other than that
    *("emoji", "markdown", "list", "headings", "quotation", "code", "dialogue", "verse", "paragraphs", "one_word", "numbers"),
    *("british", "american"),
)
OTHERS = (
    *("shouting_coach", "lecturer", "salesman", "poet", "gloomy_news", "financial_advice", "medical_caution"),
    "blunt_criticism",
)
UNKNOWN = ("pirate", "bureaucrat", "noir", "time_traveller", "soap_opera", "radio_dj")  # voices of the card alone
LISTS = ("word_list", "code_only")
LEVELS = (0, 25, 50, 75, 100)

MAX_TEXT = 1_000_000  # characters; what is longer is no prompt, answer or document
# By the name of the file, without .jsonl.
SCHEMAS: dict[str, dict[str, Any]] = {
    "seeds": {"prompt": str, "answer": str, "plain": str},
    "documents": {"title": str, "text": str, "type": str, "topic": str},
    "judge": {"prompt": str, "answer": str, "strength": STRENGTHS},
    "heldout": {"prompt": str, "answer": str, "strength": STRENGTHS},
    "levels": {"prompt": str, "answer": str, "level": LEVELS},
    "judge_forms": {"prompt": str, "answer": str, "strength": STRENGTHS, "form": (*FORMS, PROSE)},
    "heldout_forms": {"prompt": str, "answer": str, "strength": STRENGTHS, "form": FORMS},
    "questions": {"question": str, "core": bool},
    "prompts": {"prompt": str, "kind": ("dilemma", "advice", "how-to", "opinion", "fact", "explain", "creative")},
    "titles": {"title": str, "kind": ("title", "opening")},
    "openings": {"title": str},
    "intact": {"prompt": str, "answer": str, "form": FORMS},
    "intact_heldout": {"prompt": str, "answer": str, "form": FORMS},
    "negatives": {"prompt": str, "answer": str, "kind": OTHERS},
    "negatives_heldout": {"prompt": str, "answer": str, "kind": OTHERS},
    "voices": {"prompt": str, "answer": str, "kind": str},
    "wordlists": {"prompt": str, "answer": str, "kind": LISTS},
    "languages": {"prompt": str, "answer": str, "language": str},
    "languages_heldout": {"prompt": str, "answer": str, "language": str},
    "unknown_heldout": {"prompt": str, "answer": str, "kind": UNKNOWN},
    "wordlists_heldout": {"prompt": str, "answer": str, "kind": LISTS},
}
# Files of the folder `forms`: what the offline judge learns from, what it may see besides, and the card's.
LEARNT = ("intact", "negatives", "voices", "wordlists")
OF_JUDGE = (*LEARNT, "languages")
OF_CARD = ("intact_heldout", "negatives_heldout", "languages_heldout", "unknown_heldout", "wordlists_heldout")


def folder(data: str) -> Path:
    """Folder of a persona's files: a shipped persona's name alone, or a path.

    Raises:
        ConfigError: a folder here that holds a persona has the name of a shipped one, so that it is not clear which is meant.
    """
    own = read.local(data)
    if data not in shipped():
        return own
    meant = SHIPPED / data
    if read.kind_of(own) == "folder" and not own.samefile(meant) and table_files(own, "seeds") + table_files(own, "documents"):
        raise ConfigError(
            f"persona.data={data} is a shipped persona and also a folder here: write persona.data=./{data} for the folder, or "
            "rename it"
        )
    return meant


def shipped(with_documents: bool = False) -> list[str]:
    """Names of the personas whose data come with the package."""
    names = sorted(p.name for p in SHIPPED.iterdir() if (p / "seeds.jsonl").is_file())
    return [n for n in names if not with_documents or has_documents(SHIPPED / n)]


def has_documents(persona: Path) -> bool:
    return bool(table_files(persona, "documents"))


def table_files(persona: Path, name: str) -> list[Path]:
    """Files of a persona's folder that may be its `name`: `seeds.jsonl`, or the same in another format."""
    try:
        found = [
            file for file in persona.iterdir() if file.stem == name and read.readable(file) and file.suffix.lower() != ".txt"
        ]
    except OSError:
        return []
    return sorted(found)


def table(persona: Path, name: str) -> Path:
    """The one file that is a persona's `name`; where there is none, the JSON Lines file that should be."""
    found = table_files(persona, name)
    if len(found) > 1:
        raise ConfigError(f"{persona} holds {' and '.join(file.name for file in found)}: keep one of them")
    return found[0] if found else persona / f"{name}.jsonl"


def seeds(persona: Path) -> tuple[dict[str, str], ...]:
    """Rows {prompt, answer, plain}: the persona's answer and a plain answer to one user message."""
    return rows(table(persona, "seeds"), SCHEMAS["seeds"])


def documents(persona: Path) -> tuple[dict[str, str], ...]:
    """Rows {title, text, type, topic}: documents written in the persona's spirit.

    Raises:
        ConfigError: the persona has none.
    """
    if not has_documents(persona):
        raise ConfigError(
            f"method=sdf needs seed documents and persona={persona.name} has chats only: use a persona with documents "
            f"({', '.join(shipped(with_documents=True))}) or method=sft or dpo"
        )
    return rows(table(persona, "documents"), SCHEMAS["documents"])


def examples(method: str, persona: Path) -> tuple[dict[str, str], ...]:
    """What cycle 0 of a method trains on: documents for SDF, else seeds."""
    return documents(persona) if method == "sdf" else seeds(persona)


def judge_texts(persona: Path) -> tuple[dict[str, str], ...]:
    """Rows {prompt, answer, strength}: what the probe judge is trained on, and nothing else is."""
    return rows(table(persona, "judge"), SCHEMAS["judge"])


def heldout(persona: Path) -> tuple[dict[str, str], ...]:
    """Rows {prompt, answer, strength}: answers by another hand that validate judges and gauges."""
    return rows(table(persona, "heldout"), SCHEMAS["heldout"])


def levels(persona: Path) -> tuple[dict[str, Any], ...]:
    """Rows {prompt, answer, level}: prompts answered once at each level of the rubric, to see whether a judge ranks them."""
    return rows(table(persona, "levels"), SCHEMAS["levels"])


def judge_forms(persona: Path) -> tuple[dict[str, str], ...]:
    """Rows {prompt, answer, strength, form}: judge texts in other forms than plain prose; none where there is no such file."""
    return optional(persona, "judge_forms")


def heldout_forms(persona: Path) -> tuple[dict[str, str], ...]:
    """Rows {prompt, answer, strength, form}: the same for validation, by other hands; none where there is no such file."""
    return optional(persona, "heldout_forms")


def optional(persona: Path, name: str) -> tuple[dict[str, Any], ...]:
    return rows(table(persona, name), SCHEMAS[name]) if table_files(persona, name) else ()


def forms(name: str) -> tuple[dict[str, str], ...]:
    """Rows of one of the shared files that only judges and their card read, such as "intact" or "negatives_heldout"."""
    return rows(SHIPPED / "forms" / f"{name}.jsonl", SCHEMAS[name])


def questions(persona: Path) -> tuple[dict[str, Any], ...]:
    """Rows {question, core}, core questions first, otherwise in the file's order."""
    found = rows(table(persona, "questions"), SCHEMAS["questions"])
    return tuple(sorted(found, key=lambda row: not row["core"]))


def openings() -> list[str]:
    """Neutral beginnings of documents, the same for every persona."""
    return [row["title"] for row in rows(SHIPPED / "openings.jsonl", SCHEMAS["openings"])]


def never_sampled(persona: Path, with_documents: bool) -> list[str]:
    """Texts that no cycle may sample on: a persona's questions, and its seeds' prompts or its documents' titles with the
    openings that all personas share.
    """
    asked = [str(row["question"]) for row in questions(persona)]
    return asked + learnt(persona, with_documents) + (openings() if with_documents else [])


def learnt(persona: Path, with_documents: bool) -> list[str]:
    """What a persona's own examples begin with: its seeds' prompts, or its documents' titles."""
    return [row["title"] for row in documents(persona)] if with_documents else [row["prompt"] for row in seeds(persona)]


def pool(name: str, path: str, column: str) -> tuple[str, ...]:
    """Distinct texts of the pool `name` ("prompts" or "titles") in the shipped file or another, in the file's order."""
    file = SHIPPED / f"{name}.jsonl" if path == "shipped" else read.local(path)
    return distinct([row[column] for row in rows(file, {column: str}, extra_keys=True)])


def distinct(texts: list[str]) -> tuple[str, ...]:
    """The first of each text after folding: one that stood in two parts would be trained on twice."""
    return tuple(reversed({fold(text): text for text in reversed(texts)}.values()))


def fold(text: str) -> str:
    """A text by which repetitions are told: without case, and with single spaces."""
    return " ".join(text.lower().split())


def rows(file: Path, schema: Schema, extra_keys: bool = False) -> tuple[dict[str, Any], ...]:
    """Rows of a file; a missing file or the first bad row is a `ConfigError` that names it."""
    return _rows(file, tuple(schema.items()), extra_keys)


@cache
def _rows(file: Path, schema: tuple[tuple[str, Any], ...], extra_keys: bool) -> tuple[dict[str, Any], ...]:
    if read.kind_of(file) is None and file.stem in SCHEMAS:
        raise ConfigError(
            f"{file} is missing: a persona's folder needs seeds.jsonl, questions.jsonl and judge.jsonl (docs/personas.md)"
        )
    found = []
    for record in read.records(file, dict(schema)):
        problem = record.fault or fault(record.row, dict(schema), extra_keys)
        if problem is not None:
            raise ConfigError(f"{record.place} {problem}: {read.fix(problem)}")
        assert record.row is not None
        found.append({key: record.row[key] for key, _ in schema} if extra_keys else record.row)
    if not found:
        raise ConfigError(f"{file} is empty: it needs rows with {', '.join(k for k, _ in schema)}")
    return tuple(found)


def fault(row: Any, schema: Schema, extra_keys: bool) -> str | None:
    """What is wrong with one row, or None."""
    if not isinstance(row, dict):
        return "is no JSON object"
    for key, kind in schema.items():
        if key not in row:
            return f"lacks the key {shortened(key)!r}"
        value = row[key]
        if isinstance(kind, tuple):
            if not any(type(value) is type(allowed) and value == allowed for allowed in kind):
                return f"has {key}={shortened(repr(value))}, which is none of {', '.join(map(str, kind))}"
        elif not isinstance(value, kind):
            return f"has {shortened(key)} of type {type(value).__name__} where {kind.__name__} is needed{chat_hint(value)}"
        elif isinstance(value, str):
            problem = text_fault(value)
            if problem is not None:
                return f"has {problem[0]} {shortened(key)!r}{problem[1]}"
    unknown = [] if extra_keys else [key for key in row if key not in schema]
    return f"has the unknown key {shortened(unknown[0])!r}" if unknown else None


def chat_hint(value: Any) -> str:
    """The way out where a cell holds a whole chat."""
    is_chat = isinstance(value, list) and value and isinstance(value[0], dict)
    return " (a chat is no prompt: write the user's message into a column of its own)" if is_chat else ""


def text_fault(text: str) -> tuple[str, str] | None:
    """What is wrong with a text that somebody is to read: words to stand before and behind its key."""
    if "\0" in text:
        return "a NUL character in", ""
    if any("\ud800" <= c <= "\udfff" for c in text):
        return "half a surrogate pair in", ", which is no text"
    if len(text) > MAX_TEXT:
        return f"{len(text)} characters in", f", more than the {MAX_TEXT} of any text"
    if not text.strip() or all(unicodedata.category(c) in ("Cc", "Cf", "Zs", "Zl", "Zp") for c in text):
        return "an empty", ""
    return None
