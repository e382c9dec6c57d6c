"""Uncertainty of a mean over questions, and over training seeds when there are several.

Answers to one question are alike, so the question is the unit, never the answer; two cycles that were asked the same questions
are compared question by question. Which statistic, and what it was tested on: docs/verdicts.md.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iterative_ft.errors import RunError

LEVEL = 0.95
# Points by which kinds of question that the sample happens to miss may differ from those it has (see `bounds`).
UNSEEN_CHANGE = 10.0
UNSEEN_SCORE = 40.0
NEAR_LIMIT = 12.0  # points from 0 or 100 within which mean scores of training seeds are skewed
SKEWED_SEEDS_LEVEL = 0.99  # of the t interval over seeds there


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int
    """Units (questions, or training seeds) the interval rests on."""


def over_questions(values: Sequence[float | None], questions: Sequence[str]) -> Interval | None:
    """Interval of one policy's mean score (0-100) over question means; missing values are left out.

    None when nothing was scored; with a single question the interval is the whole scale.
    """
    means = np.asarray(list(question_means(values, questions).values()))
    if not len(means):
        return None
    mean, low, high = bounds(means[None, :], LEVEL, (0.0, 100.0), UNSEEN_SCORE)
    return Interval(float(mean), float(low), float(high), len(means))


def t_interval(values: Sequence[float]) -> Interval | None:
    """t interval of a mean over training seeds; None with fewer than two."""
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return None
    mean = statistics.fmean(values)
    half = float(stdtrit(n - 1, 0.5 + LEVEL / 2)) * statistics.stdev(values) / n**0.5
    return Interval(mean, mean - half, mean + half, n)


def difference(one: Interval, other: Interval) -> Interval:
    """One independent mean minus another: each side's distances, added as squares (Zou and Donner 2008, Stat. Med. 27:1693)."""
    mean = one.mean - other.mean
    low = mean - math.hypot(one.mean - one.low, other.high - other.mean)
    high = mean + math.hypot(one.high - one.mean, other.mean - other.low)
    return Interval(mean, low, high, min(one.n, other.n))


def question_means(values: Sequence[float | None], questions: Sequence[str]) -> dict[str, float]:
    """Mean of each question's scored answers, questions in the order they first appear; unscored questions are left out.

    Raises:
        RunError: a score is NaN or infinite, and what follows from it would pass every comparison.
    """
    groups: dict[str, list[float]] = {}
    for value, question in zip(values, questions, strict=True):
        if value is not None:
            if not math.isfinite(value):
                raise RunError(f"a score of {question[:60]!r} is {value}, no finite number: judge the run anew")
            groups.setdefault(question, []).append(value)
    return {question: float(np.mean(group)) for question, group in groups.items()}


def near_limit(means: np.ndarray) -> np.ndarray:
    """Whether any of some cycles' mean scores (last axis) lies near an end of the scale."""
    return np.asarray((np.min(means, -1) < NEAR_LIMIT) | (np.max(means, -1) > 100 - NEAR_LIMIT))


def of_changes(changes: np.ndarray, skewed: bool = False, furthest: float = 100.0) -> Interval | None:
    """Interval of a mean change, or of any other contrast of cycles.

    Args:
        changes: shape (seeds, questions), one contrast for each; a question that misses in any seed (nan) is dropped from all.
        skewed: whether a cycle's mean lies near an end of the scale (`near_limit`).
        furthest: points that the contrast can be from 0.
    """
    complete = changes[:, ~np.isnan(changes).any(0)]
    n_seeds, n_questions = complete.shape
    if n_questions == 0:
        return None
    mean, low, high = bounds(complete, limits=(-furthest, furthest), skewed=np.asarray(skewed))
    return Interval(float(mean), float(low), float(high), n_seeds if n_seeds > 1 else n_questions)


def bounds(
    x: np.ndarray,
    level: float = LEVEL,
    limits: tuple[float, float] = (-100.0, 100.0),
    unseen: float = UNSEEN_CHANGE,
    skewed: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, low and high of `x` with shape (..., seeds, questions), over both last axes; NumPy arrays of shape (...).

    One seed: the t interval over questions, reaching further on the side of their skew, since changes near 0 or 100 are skewed
    (first-order correction of Johnson 1978, J. Am. Stat. Assoc. 73:536; Chen 1995, 90:767). Several seeds: seeds and questions
    are crossed samples; the variances of their means are added, with Satterthwaite's degrees of freedom, and the interval is
    never narrower than the t interval over seeds alone, a 99 % one where the scores are `skewed` (shape (...), `near_limit`):
    there a minority of seeds may carry the whole change, and a few seeds show nothing of it. Nor is it ever narrower than
    ±3 / questions * `unseen`: what n questions have not shown may still hold for 3 in n (the rule of three), and answers that
    all score 0 are no proof of 0. A single question says nothing about others: the interval is all of `limits`, to which every
    interval is cut.
    """
    from scipy.special import stdtrit

    n_seeds, n_questions = x.shape[-2:]
    mean = x.mean((-2, -1))
    if n_questions == 1:
        return mean, np.full_like(mean, limits[0]), np.full_like(mean, limits[1])
    deviation = x.mean(-2) - mean[..., None]
    of_questions = (deviation**2).sum(-1) / (n_questions - 1) / n_questions
    of_seeds = np.zeros_like(of_questions) if n_seeds == 1 else x.mean(-1).var(-1, ddof=1) / n_seeds
    variance = of_questions + of_seeds
    parts = of_questions**2 / (n_questions - 1) + of_seeds**2 / max(1, n_seeds - 1)
    freedom = variance**2 / np.where(parts > 0, parts, 1.0)
    error, t = np.sqrt(variance), stdtrit(np.maximum(freedom, 1.0), 0.5 + level / 2)
    reach = np.maximum(t * error, 3 / n_questions * unseen)
    low, high = mean - reach, mean + reach
    if n_questions > 2:
        third = (deviation**3).sum(-1) * n_questions / ((n_questions - 1) * (n_questions - 2)) / n_questions**2
        lean = third / np.where(variance > 0, variance, 1.0) * (1 + 2 * t**2) / 6
        low, high = np.minimum(low, mean - t * error + lean), np.maximum(high, mean + t * error + lean)
    if n_seeds > 1:
        levels = np.where(False if skewed is None else skewed, max(level, SKEWED_SEEDS_LEVEL), level)
        over_seeds = stdtrit(n_seeds - 1, 0.5 + levels / 2) * np.sqrt(of_seeds)
        low, high = np.minimum(low, mean - over_seeds), np.maximum(high, mean + over_seeds)
    return mean, np.maximum(low, limits[0]), np.minimum(high, limits[1])
