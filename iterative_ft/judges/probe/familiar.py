"""How far an answer is from what the offline judge was validated on: above 1 it is unfamiliar, and its scores mean little.

Three things are looked at, each by how the judge's own texts differ in it: which share of its words the judge knows, and how
much more it is like the judge's own texts than like word lists and bare code, and than like texts in many voices of no persona
(outlier exposure: Hendrycks et al. 2019, arXiv 1812.04606).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iterative_ft.judges.probe import voices
from iterative_ft.judges.probe.classifier import Classifier, fit, parts
from iterative_ft.judges.probe.features import is_short
from iterative_ft.judges.probe.reading import known_share, vocabulary
from iterative_ft.judges.probe.voices import Voices

LEAST_KNOWN = 0.4  # share of words; with fewer an answer is in another language, or in none
LANGUAGE = "language"  # the mark of such an answer
# Shares of the judge's own texts, each unseen, beyond a limit. Together at most one in twenty is called unfamiliar.
UNKNOWN, LISTED, STRANGE = 0.0025, 0.0075, 0.035
LISTS_REGULARISATION = 1.0  # inverse L2 strength, shared out over the width
OWN, LIST = "own", "list"


@dataclass(frozen=True)
class Familiar:
    """The words that the judge knows, and of each measure the median and the limit."""

    known: frozenset[str]
    lists: Classifier
    """The judge's own texts against word lists and bare code."""
    voices: Voices
    """The same against voices of no persona."""
    scales: np.ndarray
    """(3, 2): rows as in `measures`, median and limit; the limit lies below."""

    def measures(self, texts: Sequence[str], states: np.ndarray) -> np.ndarray:
        """(n, 3), less is stranger: share of known words, log-odds against lists, likeness against voices.

        Of an answer of a few words the last two say nothing, and are at their medians.
        """
        known = [known_share(text, self.known) for text in texts]
        long = np.asarray([not is_short(text) for text in texts])
        found = np.column_stack([known, unlike(self.lists, states), self.voices.owned(states)])
        found[~long, 1:] = self.scales[1:, 0]
        return found

    def distances(self, texts: Sequence[str], states: np.ndarray) -> np.ndarray:
        """(n,): 0 at the median or better, 1 at the limit of the measure that is farthest off.

        Args:
            states: (n, width) of whole texts.
        """
        median, limit = self.scales[:, 0], self.scales[:, 1]
        found = (median - self.measures(texts, states)) / np.maximum(median - limit, 1e-3)
        return np.maximum(found, 0).max(axis=1)

    def readable(self, text: str) -> bool:
        return known_share(text, self.known) >= LEAST_KNOWN

    def to_json(self) -> dict[str, object]:
        return {
            "known": sorted(self.known),
            "lists": self.lists.to_json(),
            "voices": self.voices.to_json(),
            "scales": self.scales.round(6).tolist(),
        }

    @staticmethod
    def from_json(saved: dict[str, object], folder: Path) -> Familiar:
        lists, voices = Classifier.from_json(saved["lists"]), Voices.from_json(saved["voices"], folder)  # type: ignore[arg-type]
        return Familiar(frozenset(saved["known"]), lists, voices, np.asarray(saved["scales"], dtype=float))  # type: ignore[call-overload]


def learn(
    texts: Sequence[str], prompts: Sequence[str], states: np.ndarray, of_lists: np.ndarray, of_voices: np.ndarray
) -> Familiar:
    """Limits by cross-validation on the judge's own texts, those of a few words apart.

    Args:
        prompts: of each text; texts on one prompt are left out together.
        states: (n, width) of the texts.
        of_lists: (m, width), states of word lists and bare code.
        of_voices: (k, width), states of texts in voices of no persona.
    """
    long = [number for number, text in enumerate(texts) if not is_short(text)]
    states = states[long]
    shares, odds, likeness = np.ones(len(long)), np.zeros(len(long)), np.zeros(len(long))
    for left_out, rest in parts([prompts[number] for number in long]):
        known = frozenset(vocabulary(texts[long[i]] for i in rest))
        shares[left_out] = [known_share(texts[long[i]], known) for i in left_out]
        odds[left_out] = unlike(against(states[rest], of_lists), states[left_out])
        likeness[left_out] = voices.learn(states[rest], of_voices).owned(states[left_out])
    found = [(shares, UNKNOWN), (odds, LISTED), (likeness, STRANGE)]
    scales = np.asarray([[np.median(values), np.quantile(values, share)] for values, share in found])
    return Familiar(frozenset(vocabulary(texts)), against(states, of_lists), voices.learn(states, of_voices), scales)


def against(own: np.ndarray, others: np.ndarray) -> Classifier:
    """Tells the judge's own texts from others, by states (n, width) of either."""
    targets = np.repeat(np.eye(2), [len(own), len(others)], axis=0)
    return fit(np.vstack([own, others]), targets, [OWN, LIST], LISTS_REGULARISATION / own.shape[1])


def unlike(classifier: Classifier, states: np.ndarray) -> np.ndarray:
    """(n,) log-odds of being one of the judge's own texts."""
    logits = classifier.logits(states)
    found: np.ndarray = logits[:, 0] - logits[:, 1]
    return found
