"""What the offline judge reads of an answer: its words and their order, without typography. And whether it can read them.

An emoji at the end, bold marks, bullets, headings, fences and outer quotation marks say nothing of whether an answer is
sensible, so that no score may hang on them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\u2b00-\u2bff\ufe0f\u200d\u20e3]+")
RULE = re.compile(r"^\s*(?:([-*_=])\s?)(?:\1\s?){2,}$|^\s*\|?(?:\s*:?-{2,}:?\s*\|)+(?:\s*:?-{2,}:?\s*)?$")
LINE_MARK = re.compile(r"^\s*(?:(?:>\s?)+|#{1,6}\s+|(?:[-*+\u2022\u25e6\u2013]|\d{1,2}[.)])\s+)+")
EMPHASIS = re.compile(r"(?<!\w)(?:\*+|__)(?=\S)|(?<=\S)(?:\*+|__)(?!\w)|`")
QUOTES = " \"'\u201c\u201d\u2018\u2019\u00ab\u00bb\u201e"
FENCE = re.compile(r"^\s*```")

LEAST_WORDS = 4  # of letters alone; on fewer in Latin script nothing is said about the language
OTHER_SCRIPT = 0.3  # share of letters of other scripts from which a text is in one of those
KNOWN_FROM = 2  # texts in which a word must stand to be known


def read(text: str) -> str:
    """The text without typography; as it is where nothing else is in it. Code keeps its lines."""
    lines, in_code = [], False
    for line in text.split("\n"):
        if FENCE.match(line):
            in_code = not in_code
        elif in_code:
            lines.append(line.rstrip())
        elif not RULE.match(line):
            lines.append(plain_line(line))
    found = ""
    for line in (line for line in lines if line.strip()):
        joint = "" if not found else (" " if found[-1] in ".!?" else "\n")
        found += joint + line
    found = re.sub(r"[ \t]+(?=[ \t\n]|$)", "", found).strip(QUOTES)
    return found or text.strip() or "-"


def plain_line(line: str) -> str:
    """A line without emoji, marks of lists, headings and quotations, emphasis, and the bars of a table."""
    line = LINE_MARK.sub("", EMOJI.sub("", line))
    line = EMPHASIS.sub("", line)
    if line.lstrip().startswith("|"):
        line = ", ".join(cell.strip() for cell in line.strip().strip("|").split("|"))
    return re.sub(r" {2,}", " ", line).strip()


def words(text: str) -> list[str]:
    """Lower-cased runs of letters of any script, apostrophes inside them kept out."""
    return re.findall(r"[^\W\d_]+", unicodedata.normalize("NFC", text).lower())


def is_latin(letter: str) -> bool:
    return ord(letter) <= 0x24F or 0x1E00 <= ord(letter) <= 0x1EFF


def vocabulary(texts: Iterable[str]) -> list[str]:
    """The words that stand in several of the texts, the commonest first."""
    counts = Counter(word for text in texts for word in set(words(text)))
    return [word for word, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if n >= KNOWN_FROM]


def known_share(text: str, known: frozenset[str]) -> float:
    """Share of a text's words that are known; 1 where there are too few to tell, 0 in another script."""
    found = words(text)
    letters = "".join(found)
    if sum(not is_latin(c) for c in letters) > OTHER_SCRIPT * len(letters):
        return 0.0
    return 1.0 if len(found) < LEAST_WORDS else sum(word in known for word in found) / len(found)
