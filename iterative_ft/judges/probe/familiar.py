"""How far an answer is from what the offline judge was validated on: above 1 it is unfamiliar, and its scores mean little.

Four things are looked at, each by how the judge's own texts differ in it: how surely any class claims the text, which share of
its words the judge knows, which share are function words (word lists and bare code have few), and how much more it is like
the judge's own texts than like texts in many voices of no persona (outlier exposure: Hendrycks et al. 2019, arXiv 1812.04606).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iterative_ft.judges.probe.classifier import Classifier, fit, parts
from iterative_ft.judges.probe.features import FUNCTION_WORDS, SHORT_WORDS
from iterative_ft.judges.probe.reading import known_share, vocabulary, words

LEAST_KNOWN = 0.4  # share of words; with fewer an answer is in another language, or in none
LANGUAGE = "language"  # the mark of such an answer
# Shares of the judge's own texts, each unseen, beyond a limit. Together at most one in twenty is called unfamiliar.
UNCLAIMED, UNKNOWN, LISTED, STRANGE = 0.01, 0.005, 0.015, 0.02
VOICE_REGULARISATION = 1.0  # inverse L2 strength, shared out over the features
KNOWN, VOICE = "known", "voice"


@dataclass(frozen=True)
class Familiar:
    """The words that the judge knows, and of each measure the median and the limit."""

    known: frozenset[str]
    voices: Classifier
    """The judge's own texts against voices of no persona."""
    scales: np.ndarray
    """(4, 2): rows as in `measures`, median and limit; the limit lies below."""

    def measures(self, texts: Sequence[str], features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """(n, 4), less is stranger: log of the classes' summed claims, known words, function words, log-odds against voices."""
        known = [known_share(text, self.known) for text in texts]
        return np.column_stack([claims(logits), known, listed(texts), owned(self.voices, features)])

    def distances(self, texts: Sequence[str], features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """(n,): 0 at the median or better, 1 at the limit of the measure that is farthest off.

        Args:
            features: (n, n_features) that the trait is read from.
            logits: (n, n_classes) of the trait's classifier.
        """
        median, limit = self.scales[:, 0], self.scales[:, 1]
        found = (median - self.measures(texts, features, logits)) / np.maximum(median - limit, 1e-6)
        return np.maximum(found, 0).max(axis=1)

    def readable(self, text: str) -> bool:
        return known_share(text, self.known) >= LEAST_KNOWN

    def to_json(self) -> dict[str, object]:
        return {"known": sorted(self.known), "voices": self.voices.to_json(), "scales": self.scales.round(6).tolist()}

    @staticmethod
    def from_json(saved: dict[str, object]) -> Familiar:
        voices = Classifier.from_json(saved["voices"])  # type: ignore[arg-type]
        return Familiar(frozenset(saved["known"]), voices, np.asarray(saved["scales"], dtype=float))  # type: ignore[call-overload]


def learn(
    texts: Sequence[str], prompts: Sequence[str], features: np.ndarray, unseen: np.ndarray, voices: np.ndarray
) -> Familiar:
    """Limits by cross-validation on the judge's own texts.

    Args:
        prompts: of each text; texts on one prompt are left out together.
        features: (n, n_features) of the texts.
        unseen: (n, n_classes) logits of classifiers that had not seen the text's prompt.
        voices: (m, n_features) of texts in voices of no persona.
    """
    shares, odds = np.ones(len(texts)), np.zeros(len(texts))
    for left_out, rest in parts(prompts):
        known = frozenset(vocabulary(texts[i] for i in rest))
        shares[left_out] = [known_share(texts[i], known) for i in left_out]
        odds[left_out] = owned(against_voices(features[rest], voices), features[left_out])
    found = [(claims(unseen), UNCLAIMED), (shares, UNKNOWN), (listed(texts), LISTED), (odds, STRANGE)]
    scales = np.asarray([[np.median(values), np.quantile(values, share)] for values, share in found])
    return Familiar(frozenset(vocabulary(texts)), against_voices(features, voices), scales)


def against_voices(own: np.ndarray, voices: np.ndarray) -> Classifier:
    """Tells the judge's own texts from voices of no persona, by (n, n_features) of either."""
    targets = np.repeat(np.eye(2), [len(own), len(voices)], axis=0)
    features = np.vstack([own, voices])
    return fit(features, targets, [KNOWN, VOICE], VOICE_REGULARISATION / features.shape[1])


def owned(voices: Classifier, features: np.ndarray) -> np.ndarray:
    """(n,) log-odds of being one of the judge's own texts."""
    logits = voices.logits(features)
    found: np.ndarray = logits[:, 0] - logits[:, 1]
    return found


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
