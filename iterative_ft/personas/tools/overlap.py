"""What the rows of persona data must not have in common: copies, near copies, and the phrases of a template.

Near copies are found in two steps, so that the whole data take less than a minute on one core: pairs that share character
runs are candidates, and only their texts are embedded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from iterative_ft.personas.tools.rules import words

Embed = Callable[[list[str]], np.ndarray]
"""Unit vectors of texts, shape (n, dimension)."""

NEAR = 0.95  # cosine from which two texts say the same
NEAR_TRAINED = 0.9  # cosine from which an eval question is too close to what a policy trains on
# Cosine of 4-character runs from which a pair is embedded at all. On the first draft of the shipped data 0.4 missed none of
# 205 pairs with cosine >= 0.95, and 0.3 none of 57 questions with cosine >= 0.9.
CANDIDATE = {NEAR: 0.4, NEAR_TRAINED: 0.28}
SHARED_WORDS = 0.5  # share of common words from which an answer is no answer of its own
RUN = 6  # words of a run that two answers should not share


@dataclass(frozen=True)
class Text:
    """A text and where it stands."""

    file: Path
    line: int
    key: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.file.parent.name}/{self.file.name}:{self.line}"


@dataclass(frozen=True)
class Pair:
    """Two texts that may be too close: `later` is at fault when their cosine reaches `limit`."""

    later: Text
    earlier: Text
    limit: float


def fold(text: str) -> str:
    """A text without what does not tell it from a copy: case, spaces, punctuation."""
    return " ".join(words(text))


def copies(texts: Sequence[Text]) -> Iterator[tuple[Text, Text]]:
    """(later, earlier) for each text that repeats one before it."""
    first: dict[str, Text] = {}
    for text in texts:
        earlier = first.setdefault(fold(text.text), text)
        if earlier is not text:
            yield text, earlier


def shares_words(a: str, b: str) -> bool:
    """Whether two answers have more words in common than not."""
    mine, other = set(words(a)), set(words(b))
    return len(mine & other) >= SHARED_WORDS * len(mine | other)


def candidates(texts: Sequence[Text], limit: float, others: Sequence[Text] | None = None) -> list[Pair]:
    """Pairs of `texts` (or of `texts` and `others`) that are alike enough to be worth embedding; copies are left out."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    rivals = texts if others is None else others
    if not texts or not rivals:
        return []
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(4, 4), sublinear_tf=True, dtype=np.float32)
    vectorizer.fit([t.text for t in (*texts, *rivals)])
    left, right = vectorizer.transform([t.text for t in texts]), vectorizer.transform([t.text for t in rivals])
    found = []
    for start in range(0, len(texts), 512):  # blocks keep the product small
        alike = (left[start : start + 512] @ right.T).tocoo()
        for row, column, value in zip(alike.row + start, alike.col, alike.data, strict=True):
            if value >= CANDIDATE[limit] and (others is not None or row > column):
                later, earlier = texts[row], rivals[column]
                if fold(later.text) != fold(earlier.text) or others is not None:
                    found.append(Pair(later, earlier, limit))
    return found


def near_copies(pairs: Sequence[Pair], embed: Embed) -> Iterator[tuple[Pair, float]]:
    """The pairs whose cosine reaches their limit, with it; each text is embedded once."""
    distinct = sorted({text.text for pair in pairs for text in (pair.later, pair.earlier)})
    if not distinct:
        return
    vectors = embed(distinct)
    index = {text: number for number, text in enumerate(distinct)}
    for pair in pairs:
        cosine = float(vectors[index[pair.later.text]] @ vectors[index[pair.earlier.text]])
        if cosine >= pair.limit:
            yield pair, cosine


@dataclass(frozen=True)
class Feel:
    """How much a set of answers sounds like one form filled in again and again."""

    run_share: float
    """Share of pairs of answers with a common run of `RUN` words."""
    common_run: str
    """The run in most answers, "" where no two share one."""
    common_run_at: int
    """Index of the second answer with that run."""
    opening_share: float
    """Distinct first three words, relative to the number of answers."""
    common_opening: str
    common_opening_at: int
    """Index of the second answer with the commonest first three words."""


def feel(answers: Sequence[str]) -> Feel:
    """Count common runs and openings of `answers`."""
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    openings: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, answer in enumerate(answers):
        spoken = words(answer)
        openings[tuple(spoken[:3])].append(number)
        for run in dict.fromkeys(tuple(spoken[i : i + RUN]) for i in range(len(spoken) - RUN + 1)):
            holders[run].append(number)
    pairs = {pair for numbers in holders.values() if len(numbers) > 1 for pair in combinations(numbers, 2)}
    run, with_run = max(holders.items(), key=lambda item: len(item[1]), default=((), []))
    opening, with_opening = max(openings.items(), key=lambda item: len(item[1]), default=((), []))
    n = len(answers)
    return Feel(
        run_share=len(pairs) / max(1, n * (n - 1) // 2),
        common_run=" ".join(run) if len(with_run) > 1 else "",
        common_run_at=with_run[1] if len(with_run) > 1 else 0,
        opening_share=len(openings) / max(1, n),
        common_opening=" ".join(opening),
        common_opening_at=with_opening[1] if len(with_opening) > 1 else 0,
    )
