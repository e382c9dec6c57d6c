"""Numbers about a policy's outputs that need no judge: how diverse, repetitive and surprising they are."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

REPEATED_WORDS = 4  # length of a repeated run of words
NLL_CAP = 4.0  # nats; one surprising token is not a wide choice (paper)
MIN_SAMPLES = 3  # answers that must reach an output position for it to count (paper)
BLEU_ORDER = 4  # longest run of words that BLEU compares
WORD = re.compile(r"\w+(?:['’]\w+)*")
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


def self_bleu(texts: Sequence[str], questions: Sequence[str]) -> float | None:
    """Mean BLEU of each answer against the other answers to its question, 0 to 1: 1 where a policy says one thing only.

    None where no question has two answers with a word in them (Zhu et al. 2018, within a question).
    """
    by_question: dict[str, list[list[str]]] = {}
    for text, question in zip(texts, questions, strict=True):
        words = text.lower().split()
        if words:
            by_question.setdefault(question, []).append(words)
    found = [
        bleu(words, [*answers[:number], *answers[number + 1 :]])
        for answers in by_question.values()
        if len(answers) > 1
        for number, words in enumerate(answers)
    ]
    return float(np.mean(found)) if found else None


def bleu(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Sentence BLEU, 0 to 1: the geometric mean of clipped n-gram precisions, with the brevity penalty (Papineni et al. 2002).

    Of more than one word they are smoothed by adding one match (Lin and Och 2004); runs longer than the text are left out.
    """
    logs = []
    for n in range(1, min(BLEU_ORDER, len(words)) + 1):
        mine = Counter(ngrams(words, n))
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= Counter(ngrams(reference, n))
        matches, total = (mine & most).total(), mine.total()
        if n > 1:
            matches, total = matches + 1, total + 1
        if matches == 0:
            return 0.0
        logs.append(math.log(matches / total))
    nearest = min((abs(len(r) - len(words)), len(r)) for r in references)[1]
    return math.exp(float(np.mean(logs)) + min(0.0, 1 - nearest / len(words)))


def lost_words(base_texts: Sequence[str], texts: Sequence[str]) -> float | None:
    """Share of the different words of `base_texts` that none of `texts` has; None where base wrote none.

    It grows where answers get shorter: see mean_words.
    """
    before, now = ({word for text in some for word in WORD.findall(text.lower())} for some in (base_texts, texts))
    return len(before - now) / len(before) if before else None


# -- gauges of hidden states --------------------------------------------------------------------------------------------------


def projection(states: np.ndarray, plain: np.ndarray, strong: np.ndarray) -> float:
    """Where states lie between plain and strong texts, along the line from one's mean to the other's: plain 0, strong 1.

    Args:
        states: (n, width); the mean of their projections is what is returned.
        plain, strong: (width,), mean states of such texts.
    """
    line = strong - plain
    return float(((states - plain) @ line).mean() / (line @ line))


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
