"""What the offline judge looks at in a text: its embedding and the base model's states for the trait; states, its surface and
its relevance for coherence, where long answers are looked at in parts and very short ones behind their question.

All is taken of `read(text)`, the text without typography.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from iterative_ft.judges.embedder import embed
from iterative_ft.judges.probe.corrupt import Answer
from iterative_ft.models.forward import Reader

RELEVANCE_CAP = 0.25  # cosine of prompt and answer: above it an answer is on topic, however freely it is styled
PART_WORDS = 90  # a longer answer is looked at in parts
SHORT_WORDS = 7  # an answer of no more is looked at as a reply to its question
STRAY_BEGINNING, STRAY_END = re.compile(r"[^\w\"'(]"), re.compile(r"[,;:+*/=(\[{&-]$")  # of a piece out of the middle
FUNCTION_WORDS = frozenset(
    """the a an and or but if of to in on at by for from with as is are was be been it its this that these those there
    you your i my me we our he she his her they their them not no so than then when what which who how do does have has had will
    would can could should may might just only up out into over about all some any one more very""".split()
)


def states_of(texts: Sequence[str], reader: Reader) -> list[np.ndarray]:
    """Mean states of each text and of each of its `parts`, (1 + its parts, width)."""
    return reader.states(texts, [len(parts(text)) for text in texts])


def is_short(text: str) -> bool:
    return len(text.split()) <= SHORT_WORDS


def trait_features(texts: Sequence[str], embedder: str, states: Sequence[np.ndarray]) -> np.ndarray:
    """(n, dimension + width): the embedding says what a text is about, the base model's middle layer in what voice."""
    return np.hstack([embed(list(texts), embedder), whole(states)]).astype(np.float32)


def whole(states: Sequence[np.ndarray]) -> np.ndarray:
    """(n, width): the mean states of whole texts."""
    return np.stack([of_text[0] for of_text in states])


def relevance(answers: Sequence[Answer], embedder: str) -> np.ndarray:
    """(n,) cosines of prompt and answer, capped."""
    vectors = embed([answer for _, answer in answers], embedder)
    prompts = sorted({prompt for prompt, _ in answers})
    place = {prompt: number for number, prompt in enumerate(prompts)}
    asked = embed(prompts, embedder)[[place[prompt] for prompt, _ in answers]]
    found: np.ndarray = np.minimum((asked * vectors).sum(axis=1), RELEVANCE_CAP)
    return found


def with_products(single: np.ndarray) -> np.ndarray:
    """Columns, their squares and products."""
    products = [single[:, i] * single[:, j] for i in range(single.shape[1]) for j in range(i, single.shape[1])]
    return np.column_stack([single, *products])


# -- answers of a sentence or more --------------------------------------------------------------------------------------------


def part_features(texts: Sequence[str], states: Sequence[np.ndarray], relevant: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Features of each part of each text, (n_parts, n_features), and whose parts they are.

    Args:
        states: as by `states_of`.
    """
    if not texts:
        return np.zeros((0, 0)), []
    surface: list[list[float]] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        for piece in parts(text):
            surface.append([*surface_features(piece), float(relevant[number])])
            owners.append(number)
    return np.hstack([with_products(np.asarray(surface)), np.vstack([of_text[1:] for of_text in states])]), owners


def parts(text: str) -> list[str]:
    """The text in as few parts of about equal length as hold `PART_WORDS` words each."""
    ends = [found.end() for found in re.finditer(r"\S+", text)]
    n = max(1, -(-len(ends) // PART_WORDS))
    cuts = [0, *(ends[len(ends) * k // n - 1] for k in range(1, n)), len(text)]
    return [text[start:end].strip() for start, end in pairwise(cuts)]


def surface_features(text: str) -> list[float]:
    """Nine numbers: repetition (runs, a word, compressibility), length, stray capitals, small starts, function words, signs."""
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())
    n = len(words)
    runs = [tuple(words[i : i + 3]) for i in range(n - 2)]
    repeated_runs = 1 - len(set(runs)) / len(runs) if runs else 0.0
    top_word = max(Counter(words).values()) / n if n else 1.0
    raw = text.encode()
    compressed = min(1.5, len(zlib.compress(raw, 9)) / max(1, len(raw)))
    stray_capitals = len(re.findall(r"(?<=[a-z,;:] )[A-Z][a-z]+", text)) / max(1, n)
    small_starts = len(re.findall(r"[.!?] +[a-z]", text)) / max(1, n)
    light = [word in FUNCTION_WORDS for word in words]
    pairs = sum(a and b for a, b in pairwise(light)) / max(1, n)
    marks = sum(not (c.isalnum() or c.isspace() or c in ".,!?'\"-") for c in text) / max(1, len(text))
    lengths = [math.log1p(n), stray_capitals, small_starts]
    return [repeated_runs, top_word, compressed, *lengths, sum(light) / max(1, n), pairs, marks]


# -- answers of a few words ---------------------------------------------------------------------------------------------------


def short_features(answers: Sequence[Answer], states: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """(n, n_features) of answers of a few words.

    Args:
        states: (n, 2 * width) of each behind its question.
    """
    rows = []
    for (_, text), near in zip(answers, relevant, strict=True):
        words = re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())
        last = 1.0 if words and words[-1] in FUNCTION_WORDS else 0.0
        repeated = 1 - len(set(words)) / len(words) if words else 0.0
        begins = [text[:1].islower(), text[:1].isupper(), STRAY_BEGINNING.match(text)]
        ends = [text[-1:] in ".!?", STRAY_END.search(text)]
        digits = any(c.isdigit() for c in text)
        rows.append([float(near), math.log1p(len(words)), last, repeated, *(float(bool(x)) for x in (*begins, *ends, digits))])
    return np.hstack([with_products(np.asarray(rows)), states])
