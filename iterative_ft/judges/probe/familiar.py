"""How far an answer is from what the offline judge was validated on: above 1 it is unfamiliar, and its scores mean little.

Three things are looked at, each by how the judge's own texts differ in it: how surely any class claims the text, which share of
its words the judge knows, and which share are function words (word lists and bare code have few).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iterative_ft.judges.probe.features import FUNCTION_WORDS, SHORT_WORDS
from iterative_ft.judges.probe.reading import known_share, vocabulary, words

FOLDS = 4
LEAST_KNOWN = 0.4  # share of words; with fewer an answer is in another language, or in none
LANGUAGE = "language"  # the mark of such an answer
# Shares of the judge's own texts, each unseen, beyond a limit. Together at most one in twenty is called unfamiliar.
UNCLAIMED, UNKNOWN, LISTED = 0.02, 0.005, 0.02


@dataclass(frozen=True)
class Familiar:
    """The words that the judge knows, and of each measure the median and the limit."""

    known: frozenset[str]
    scales: np.ndarray
    """(3, 2): rows as in `measures`, median and limit; the limit lies below."""

    def measures(self, texts: Sequence[str], logits: np.ndarray) -> np.ndarray:
        """(n, 3), less is stranger: log of the classes' summed claims, known words, function words."""
        return np.column_stack([claims(logits), [known_share(text, self.known) for text in texts], listed(texts)])

    def distances(self, texts: Sequence[str], logits: np.ndarray) -> np.ndarray:
        """(n,): 0 at the median or better, 1 at the limit of the measure that is farthest off."""
        median, limit = self.scales[:, 0], self.scales[:, 1]
        found = (median - self.measures(texts, logits)) / np.maximum(median - limit, 1e-6)
        return np.maximum(found, 0).max(axis=1)

    def readable(self, text: str) -> bool:
        return known_share(text, self.known) >= LEAST_KNOWN

    def to_json(self) -> dict[str, object]:
        return {"known": sorted(self.known), "scales": self.scales.round(6).tolist()}

    @staticmethod
    def from_json(saved: dict[str, object]) -> Familiar:
        return Familiar(frozenset(saved["known"]), np.asarray(saved["scales"], dtype=float))  # type: ignore[call-overload]


def learn(texts: Sequence[str], prompts: Sequence[str], unseen: np.ndarray) -> Familiar:
    """Limits by cross-validation on the judge's own texts.

    Args:
        prompts: of each text; texts on one prompt are left out together.
        unseen: (n, n_classes) logits of classifiers that had not seen the text's prompt.
    """
    deal = {prompt: number % FOLDS for number, prompt in enumerate(sorted(set(prompts)))}
    shares = np.ones(len(texts))
    for fold in range(FOLDS):
        known = frozenset(vocabulary(t for t, p in zip(texts, prompts, strict=True) if deal[p] != fold))
        for number, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
            if deal[prompt] == fold:
                shares[number] = known_share(text, known)
    found = [(claims(unseen), UNCLAIMED), (shares, UNKNOWN), (listed(texts), LISTED)]
    scales = np.asarray([[np.median(values), np.quantile(values, share)] for values, share in found])
    return Familiar(frozenset(vocabulary(texts)), scales)


def claims(logits: np.ndarray) -> np.ndarray:
    """(n,) log of the sum over classes of exp(logit): low where no class knows the text."""
    found: np.ndarray = np.logaddexp.reduce(logits, axis=1)
    return found


def listed(texts: Sequence[str]) -> np.ndarray:
    """(n,) share of function words; 1 of answers that are too short to tell."""
    found = []
    for text in texts:
        of = words(text)
        found.append(1.0 if len(text.split()) <= SHORT_WORDS else sum(w in FUNCTION_WORDS for w in of) / max(1, len(of)))
    return np.asarray(found)
