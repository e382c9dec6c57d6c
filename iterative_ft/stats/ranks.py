"""Agreement of two rankings."""

from __future__ import annotations

from typing import Any


def spearman(first: list[Any], second: list[Any]) -> float | None:
    """Rank correlation of the pairs in which both are scored; None where one of them never changes."""
    from scipy.stats import spearmanr

    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if len(pairs) < 3 or len({a for a, _ in pairs}) < 2 or len({b for _, b in pairs}) < 2:
        return None
    return round(float(spearmanr(*zip(*pairs, strict=True)).statistic), 4)
