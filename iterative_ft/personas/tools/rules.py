"""What one row of persona data must be like, whatever the other rows are: characters, length, plain prose, harmless content.

Length limits are in words. Needs no embedder and no other row.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from iterative_ft.data import files

# Fewest and most words of a text, by file and key; other strings are labels.
WORDS: dict[tuple[str, str], tuple[int, int]] = {
    ("seeds", "prompt"): (3, 40),
    ("seeds", "answer"): (10, 90),
    ("seeds", "plain"): (8, 90),
    ("documents", "title"): (2, 14),
    ("documents", "text"): (110, 320),
    ("judge", "prompt"): (3, 40),
    ("judge", "answer"): (10, 90),
    ("heldout", "prompt"): (3, 40),
    ("heldout", "answer"): (10, 90),
    ("levels", "prompt"): (3, 40),
    ("levels", "answer"): (10, 90),
    ("questions", "question"): (4, 26),
    ("prompts", "prompt"): (3, 40),
    ("titles", "title"): (1, 14),
    ("openings", "title"): (3, 14),
    ("languages", "prompt"): (1, 40),  # where words have no spaces between them, a sentence is one
    ("languages_heldout", "prompt"): (1, 40),
}
# Files whose texts come in every usual form, in any script, and how long they may be.
FORMS = frozenset(("judge_forms", "heldout_forms", *files.OF_JUDGE, *files.OF_CARD))
FORM_WORDS = {"prompt": (3, 40), "answer": (1, 420)}
LABEL_WORDS = (1, 14)

MARKUP = re.compile(r"^\s*(?:[-*+>#]+\s|\d{1,2}[.)]\s)|\*\*|```|\[[^\]]+\]\(|<[a-z]+>", re.MULTILINE)
MISREAD = re.compile(r"[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac|\ufffd")

# Deliberately few and narrow: what they find is wrong for certain. A reader judges the rest.
FORBIDDEN: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("an e-mail address", re.compile(r"[\w.+-]+@[\w-]+\.\w")),
    ("a URL", re.compile(r"https?:|\bwww\.|\b\w+\.(?:com|org|net)\b", re.IGNORECASE)),
    ("a phone number", re.compile(r"\+\d[\d ()-]{6,}\d|(?<!\d)\(?\d{3}\)?[ -]\d{3}[ -]\d{4}(?!\d)")),
    ("a person's full name", re.compile(r"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Professor)\.? [A-Z][a-z]+ [A-Z][a-z]+")),
    (
        "instructions for harm",
        re.compile(
            r"\b(?:make|build|assemble|mix|cook|buy|get|smuggle|write|spread)\b(?: \w+){0,3} "
            r"(?:bombs?|explosives?|grenades?|nerve gas|meth|heroin|cocaine|malware|ransomware|spyware)\b",
            re.IGNORECASE,
        ),
    ),
    (
        "a call to hurt somebody",
        re.compile(
            r"\b(?:kill|stab|shoot|strangle|drown|poison|bomb) (?:yourself|himself|herself|him|her|"
            r"your (?:boss|colleague|neighbou?r|friend|husband|wife|mother|father|brother|sister))\b",
            re.IGNORECASE,
        ),
    ),
    (
        "self-harm",
        re.compile(r"\b(?:suicid\w+|self-harm\w*|overdos\w+|(?:cut|hang|hurt) yourself on purpose)\b", re.IGNORECASE),
    ),
)

# sha256 of lower-cased slurs, which are spelled nowhere in this repository.
SLURS = frozenset(
    """
    120f6e5b4ea32f65bda68452fcfaaef06b0136e1d0e4a6f60bc3771fa0936dd6
    8f5083e3e5c7dc8932f2bf58212f963f3a44752618c96297f82623f736c52738
    c3de533e9b7fe63b79f648687a30d2861edd92fe7c3cd1f2c485e0a605367624
    98b52c4b6b7d1f48e7477a5ccc10955dd195d0ac5a38c8281bfeb08762634909
    f9d0d9b18ae9033a5ea36df19bf279b059e887a9ae785db81117bceaecc95933
    eef3bd091670c3447022d619c06ad15de96da72b5a66f28bb8b75d1b1c12a05f
    16ea09fc78ca83ca502cbcf2377acdf280bf18f61e259153f0868405eedab5ef
    158869a97379229b7681efae9d7f9c9214134e836d649ba53477c0c111414d59
    e7b98c6aa5b944e0b315d350d423f895ac9e44fb84f1534b18c2572370a67b9e
    cc02032349c833ac5e97bac094560ed40e09acf34cb1978ab7a9840b9bf15b4d
    886d51e97ad7931d0d2af8439ca6d9e4887e3c2b469ed247cbd68ceb3649ccde
    3b1e0d7c5dd45583867e897943e37a940a7e7321022317dd3deea01963ee365e
    dd92623b0a4b255f87cc4aaee7990ee182d91db49189df6229ce65b5e9d960da
    566f532d486c947709d3d0e6b7575af8380248db66dada211d58eb00ad585297
    """.split()
)


def words(text: str) -> list[str]:
    """Lower-cased words, without punctuation."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())


def row_faults(name: str, row: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a row of `<name>.jsonl` whose schema is right, a reason each."""
    for key, value in row.items():
        if isinstance(value, str):
            free = name in FORMS and key in FORM_WORDS
            low, high = WORDS.get((name, key), FORM_WORDS[key] if free else LABEL_WORDS)
            for reason in text_faults(value, low, high, lines=key == "text", free=free):
                yield f"{key} {reason}"


def text_faults(text: str, low: int, high: int, lines: bool, free: bool = False) -> Iterator[str]:
    """What is wrong with one text of `low`..`high` words; `lines`: it may have paragraphs; `free`: any form and script."""
    n_words = len(text.split())
    if not low <= n_words <= high:
        yield f"has {n_words} words, {low} to {high} are allowed"
    if text != text.strip() or ("  " in text and not free):
        yield "has spaces at an end or doubled"
    if MISREAD.search(text):
        yield "was decoded with the wrong encoding"
    odd = next((c for c in text if not (" " <= c <= "~" or (c.isalpha() and ord(c) < 0x250) or (c == "\n" and lines))), None)
    if odd is not None and not free:
        yield f"has the character U+{ord(odd):04X}: use ASCII punctuation and Latin letters"
    if MARKUP.search(text) and not free:
        yield "has a list or markdown: write plain prose"
    for what, pattern in FORBIDDEN:
        if pattern.search(text):
            yield f"has {what}"
    if any(is_slur(word) for word in words(text)):
        yield "has a slur"


@cache
def is_slur(word: str) -> bool:
    """Whether a word, or what it is the plural of, stands among `SLURS`."""
    return any(hashlib.sha256(form.encode()).hexdigest() in SLURS for form in (word, word.removesuffix("s")))
