"""Uncertainty of a mean over questions: answers to one question are alike, so the question is the unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int
    """Units (questions) the interval rests on."""


def over_questions(values: Sequence[float | None], questions: Sequence[str], level: float = 0.95) -> Interval | None:
    """t interval over question means; missing values are left out. None when nothing was scored.

    With a single question the interval is the whole scale.
    """
    from scipy import stats

    groups: dict[str, list[float]] = {}
    for value, question in zip(values, questions, strict=True):
        if value is not None:
            groups.setdefault(question, []).append(value)
    if not groups:
        return None
    means = np.asarray([np.mean(group) for group in groups.values()])
    mean = float(means.mean())
    if len(means) == 1:
        return Interval(mean, 0.0, 100.0, 1)
    half = float(stats.t.ppf(0.5 + level / 2, len(means) - 1) * means.std(ddof=1) / len(means) ** 0.5)
    return Interval(mean, mean - half, mean + half, len(means))
