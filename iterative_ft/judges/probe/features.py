"""What the offline judge looks at in a text: embeddings and the base model's states for the trait; its surface, likelihood
and relevance for coherence, where long answers are looked at in parts and very short ones behind their question.

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
from iterative_ft.judges.probe.corrupt import Answer, laid_out, spaced
from iterative_ft.seeds import shuffled

RELEVANCE_CAP = 0.25  # cosine of prompt and answer: above it an answer is on topic, however freely it is styled
NATS_CAP = 14.0
RUN_TOKENS = 8  # of the worst run
ORDER_WORDS = 20  # of an answer's beginning, whose order is held against a random one
PART_WORDS = 90  # a longer answer is looked at in parts
SHORT_WORDS = 7  # an answer of no more is looked at as a reply to its question
FUNCTION_WORDS = frozenset(
    """the a an and or but if of to in on at by for from with as is are was be been it its this that these those there
    you your i my me we our he she his her they their them not no so than then when what which who how do does have has had will
    would can could should may might just only up out into over about all some any one more very""".split()
)


def trait_features(texts: Sequence[str], embedder: str, states: np.ndarray) -> np.ndarray:
    """(n, dimension + states): the embedding says what a text is about, the base model's middle layers in what voice."""
    return np.hstack([embed(list(texts), embedder), states]).astype(np.float32)


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


def part_features(
    texts: Sequence[str], nats: Sequence[np.ndarray], mixed: Sequence[np.ndarray], relevant: np.ndarray
) -> tuple[np.ndarray, list[int]]:
    """Features of each part of each text, (n_parts, n_features), and whose parts they are.

    Args:
        nats: of each text's tokens.
        mixed: of the tokens of its beginning `in_disorder`.
    """
    if not texts:
        return np.zeros((0, 0)), []
    rows: list[list[float]] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        pieces = parts(text)
        order = order_features(text, nats[number], mixed[number])
        for piece, values in zip(pieces, np.array_split(nats[number], len(pieces)), strict=True):
            rows.append([*surface_features(piece), *likelihood_features(values), float(relevant[number]), *order])
            owners.append(number)
    return with_products(np.asarray(rows)), owners


def parts(text: str) -> list[str]:
    """The text in as few parts of about equal length as hold `PART_WORDS` words each."""
    ends = [found.end() for found in re.finditer(r"\S+", text)]
    n = max(1, -(-len(ends) // PART_WORDS))
    cuts = [0, *(ends[len(ends) * k // n - 1] for k in range(1, n)), len(text)]
    return [text[start:end].strip() for start, end in pairwise(cuts)]


def in_disorder(text: str) -> str:
    """The first `ORDER_WORDS` words in an order that the text alone decides."""
    words, spaces = spaced(text)
    mixed = shuffled(words[:ORDER_WORDS], "order", text)
    return laid_out(list(mixed), spaces[:ORDER_WORDS])


def order_features(text: str, nats: np.ndarray, mixed: np.ndarray) -> list[float]:
    """How many nats a word the order of the first words saves, near 0 where there is none; and mean nats in disorder."""
    n_words = len(text.split())
    first = min(n_words, ORDER_WORDS)
    n_tokens = max(1, round(len(nats) * first / max(1, n_words))) if n_words > first else len(nats)
    saved = float(np.minimum(mixed, NATS_CAP).sum() - np.minimum(nats[:n_tokens], NATS_CAP).sum())
    return [saved / max(1, first), float(np.minimum(mixed, NATS_CAP).mean()) if len(mixed) else 8.0]


def likelihood_features(nats: np.ndarray) -> list[float]:
    """Mean, the worst run of `RUN_TOKENS` tokens, median, and the share of tokens that nothing led to; nats are capped."""
    values = np.minimum(nats if len(nats) else [8.0], NATS_CAP)
    worst = max(values[i : i + RUN_TOKENS].mean() for i in range(0, max(1, len(values) - RUN_TOKENS + 1), 2))
    return [float(values.mean()), float(worst), float(np.median(values)), float((values > 7).mean())]


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


def short_features(
    answers: Sequence[Answer], nats: Sequence[np.ndarray], behind: Sequence[np.ndarray], relevant: np.ndarray
) -> np.ndarray:
    """(n, n_features) of answers of a few words.

    Args:
        nats: of each answer's tokens by itself.
        behind: of its tokens behind the question, and last of the end of the line.
    """
    if not answers:
        return np.zeros((0, 0))
    rows = []
    for (_, text), alone, values, near in zip(answers, nats, behind, relevant, strict=True):
        words = re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())
        own, end = np.minimum(values[:-1], NATS_CAP), min(float(values[-1]), NATS_CAP)
        own = own if len(own) else np.asarray([8.0])
        by_itself = float(np.minimum(alone, NATS_CAP).mean()) if len(alone) else 8.0
        last = 1.0 if words and words[-1] in FUNCTION_WORDS else 0.0
        repeated = 1 - len(set(words)) / len(words) if words else 0.0
        rows.append(
            [
                *(float(own.mean()), float(own.max()), float(own[0]), float(own[-1]), end, by_itself),
                *(by_itself - float(own.mean()), float(near), math.log1p(len(words)), last, repeated),
                *(float(text[:1].islower()), float(any(c.isdigit() for c in text))),
            ]
        )
    return with_products(np.asarray(rows))
