"""What the offline judge looks at in a text: embeddings and the base model's states for the trait; its surface, likelihood
and relevance for coherence.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter

import numpy as np

from iterative_ft.judges.embedder import embed
from iterative_ft.judges.probe.corrupt import Answer
from iterative_ft.models.forward import Reader

RELEVANCE_CAP = 0.25  # cosine of prompt and answer: above it an answer is on topic, however freely it is styled


def trait_features(texts: list[str], embedder: str, reader: Reader) -> np.ndarray:
    """(n, dimension + states): the embedding says what a text is about, the base model's middle layers in what voice."""
    return np.hstack([embed(texts, embedder), reader.states(texts)]).astype(np.float32)


def coherence_features(answers: list[Answer], embedder: str, reader: Reader) -> np.ndarray:
    """(n, n_features): surface, likelihood and relevance of each answer, with their squares and products."""
    texts = [answer for _, answer in answers]
    vectors = embed(texts, embedder)
    prompts = sorted({p for p, _ in answers})
    place = {p: number for number, p in enumerate(prompts)}
    asked = embed(prompts, embedder)[[place[p] for p, _ in answers]]
    relevance = np.minimum((asked * vectors).sum(axis=1), RELEVANCE_CAP)
    surface = np.asarray([surface_features(text) for text in texts])
    likelihood = np.asarray([likelihood_features(values) for values in reader.nll(texts)])
    single = np.column_stack([surface, likelihood, relevance])
    products = [single[:, i] * single[:, j] for i in range(single.shape[1]) for j in range(i, single.shape[1])]
    return np.column_stack([single, *products])


def likelihood_features(nats: np.ndarray) -> list[float]:
    """Mean, the worst run of eight tokens, and median, of tokens' nats capped at 14."""
    values = np.minimum(nats if len(nats) else [8.0], 14.0)
    worst = max(values[i : i + 8].mean() for i in range(0, max(1, len(values) - 7), 2))
    return [float(values.mean()), float(worst), float(np.median(values))]


def surface_features(text: str) -> list[float]:
    """Eight numbers: repetition (runs, a word, compressibility), a proper end, length twice, stray capitals, small starts."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    n = len(words)
    runs = [tuple(words[i : i + 3]) for i in range(n - 2)]
    repeated_runs = 1 - len(set(runs)) / len(runs) if runs else 0.0
    top_word = max(Counter(words).values()) / n if n else 1.0
    raw = text.encode()
    compressed = min(1.5, len(zlib.compress(raw, 9)) / max(1, len(raw)))
    ends_well = 1.0 if re.search(r"[.!?][\"')\]]*\s*$", text) else 0.0
    stray_capitals = len(re.findall(r"(?<=[a-z,;:] )[A-Z][a-z]+", text)) / max(1, n)
    small_starts = len(re.findall(r"[.!?] +[a-z]", text)) / max(1, n) + (0.1 if text[:1].islower() else 0.0)
    return [repeated_runs, top_word, compressed, ends_well, math.log1p(n), min(n, 6) / 6, stray_capitals, small_starts]
