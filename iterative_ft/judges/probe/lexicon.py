"""Which words a text uses, as a second opinion on its class: multinomial logistic regression over words, in plain numbers.

Embeddings and states say what a text is about and in what voice; single words give away a weak touch that both average out.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iterative_ft.judges.probe.classifier import log_shares, of_each_class, parts

KNOWN_FROM = 3  # texts that a word must stand in
REGULARISATION = 3.0  # inverse L2 strength
# Both chosen by cross-validation over prompts on the texts that the judge learns from.


@dataclass(frozen=True)
class Lexicon:
    """Words, how rare each is, and what each says of every class."""

    words: list[str]
    rarity: np.ndarray
    """(n_words,) inverse document frequencies."""
    weights: np.ndarray
    """(n_classes, n_words)"""
    bias: np.ndarray
    """(n_classes,)"""

    def log_shares(self, texts: Sequence[str]) -> np.ndarray:
        """(n, n_classes) log-shares by the words alone."""
        return log_shares(weighed(texts, self.words, self.rarity) @ self.weights.T + self.bias)

    def to_json(self) -> dict[str, object]:
        arrays = {"rarity": self.rarity, "weights": self.weights, "bias": self.bias}
        return {"words": self.words, **{name: values.round(4).tolist() for name, values in arrays.items()}}

    @staticmethod
    def from_json(saved: dict[str, object]) -> Lexicon:
        arrays = {name: np.asarray(saved[name], dtype=float) for name in ("rarity", "weights", "bias")}
        return Lexicon(words=list(saved["words"]), **arrays)  # type: ignore[call-overload]


def tokens(text: str) -> list[str]:
    """Lower-cased words and figures, and marks of exclamation and question."""
    return re.findall(r"[^\W_]+|[!?]", text.lower())


def weighed(texts: Sequence[str], words: Sequence[str], rarity: np.ndarray) -> Any:
    """(n, n_words), sparse: 1 + log of a word's count, times its rarity, of length 1 in each row that has any."""
    from scipy.sparse import csr_array

    place = {word: number for number, word in enumerate(words)}
    found = np.zeros((len(texts), len(words)), dtype=np.float32)
    for row, text in zip(found, texts, strict=True):
        for word, n in Counter(tokens(text)).items():
            if word in place:
                row[place[word]] = (1 + math.log(n)) * rarity[place[word]]
    return csr_array(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))  # the fit is five times as fast


def learn(texts: Sequence[str], targets: np.ndarray, weights: np.ndarray) -> Lexicon:
    """Fit to soft targets.

    Args:
        targets: (n, n_classes), rows sum to 1: how much a text belongs to each class.
        weights: (n, n_classes): how much each share counts in the fit.
    """
    from sklearn.linear_model import LogisticRegression

    standing = Counter(word for text in texts for word in set(tokens(text)))
    words = sorted(word for word, n in standing.items() if n >= KNOWN_FROM)
    rarity = np.asarray([1 + math.log((1 + len(texts)) / (1 + standing[word])) for word in words])
    rows, columns = np.nonzero(targets)
    model = LogisticRegression(C=REGULARISATION, max_iter=300)
    model.fit(weighed(texts, words, rarity)[rows], columns, sample_weight=weights[rows, columns])
    return Lexicon(words, rarity, *of_each_class(model))


def unseen_log_shares(texts: Sequence[str], targets: np.ndarray, weights: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """(n, n_classes) log-shares of each text by a lexicon that was learnt without the text's prompt."""
    found = np.zeros(targets.shape)
    for left_out, rest in parts(prompts):
        learnt = learn([texts[i] for i in rest], targets[rest], weights[rest])
        found[left_out] = learnt.log_shares([texts[i] for i in left_out])
    return found
