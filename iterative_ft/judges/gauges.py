"""Numbers about a policy's outputs that need no judge: how diverse, repetitive and surprising they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

REPEATED_WORDS = 4  # length of a repeated run of words
NLL_CAP = 4.0  # nats; one surprising token is not a wide choice (paper)
MIN_SAMPLES = 3  # answers that must reach an output position for it to count (paper)
SMOOTHING = 0.1  # weight of a position in the moving average over positions (paper)


def text_gauges(texts: Sequence[str], finish_reasons: Sequence[str]) -> dict[str, float]:
    """Truncation, distinct-1/2/3 and repetition of a policy's answers. Distinct-n falls with length: see mean_words."""
    words = [text.lower().split() for text in texts]
    values = {"answers/truncated_share": sum(reason == "length" for reason in finish_reasons) / len(texts)}
    for n in (1, 2, 3):
        share = distinct(words, n)
        values |= {} if share is None else {f"answers/distinct_{n}": share}
    values["answers/repetition"] = float(np.mean([repetition(answer) for answer in words]))
    return values


def distinct(texts: Iterable[Sequence[str]], n: int) -> float | None:
    """Different n-grams of words as a share of all n-grams in all texts; None where no text is that long."""
    grams = [gram for words in texts for gram in ngrams(words, n)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(words: Sequence[str]) -> float:
    """Share of an answer's runs of four words that it has used before; 0 for shorter answers, near 1 for a loop."""
    grams = ngrams(words, REPEATED_WORDS)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def self_similarity(vectors: np.ndarray, questions: Sequence[str]) -> float | None:
    """Mean cosine between answers to different questions: high where a policy says the same whatever it is asked.

    Args:
        vectors: unit vectors, shape (answers, dimension).
    """
    asked = np.asarray(questions)
    different = asked[:, None] != asked[None, :]
    return float((vectors @ vectors.T)[different].mean()) if different.any() else None


# -- gauges of likelihoods ----------------------------------------------------------------------------------------------


def perplexity(nll: Sequence[np.ndarray]) -> float:
    """exp of the mean negative log-likelihood over all tokens of all texts."""
    return math.exp(float(np.mean(np.concatenate([np.asarray(tokens) for tokens in nll]))))


def branching(nll: Sequence[np.ndarray]) -> list[float]:
    """Branching factor at each output position that enough answers reach: about how many tokens the policy chooses between.

    exp of the mean over answers of the negative log-likelihood (at temperature 1, each token's capped at `NLL_CAP`), smoothed
    along the positions by a moving average of weight `SMOOTHING` that starts at the first value (arXiv 2605.01130).
    """
    means: list[float] = []
    for position in range(max(map(len, nll), default=0)):
        here = [min(tokens[position], NLL_CAP) for tokens in nll if len(tokens) > position]
        if len(here) < MIN_SAMPLES:
            break
        mean = float(np.mean(here))
        means.append(mean if not means else (1 - SMOOTHING) * means[-1] + SMOOTHING * mean)
    return [math.exp(mean) for mean in means]
