"""Ranges and ticks of axes, and numbers as a reader wants them. The page's charts and the pictures share them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BASE_X = -1.0  # where the base model stands on an axis of cycles


@dataclass(frozen=True)
class Axis:
    """Range and ticks of one direction."""

    label: str
    low: float
    high: float
    ticks: list[tuple[float, str]]

    def at(self, value: float, start: float, end: float) -> float:
        """Where `value` falls between `start` and `end`, to a tenth of a pixel."""
        return round(start + (value - self.low) / (self.high - self.low) * (end - start), 1)


def number_text(number: float) -> str:
    """About three significant digits."""
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    if abs(number) < 0.0001:
        return f"{number:.1e}"
    digits = max(0, 2 - math.floor(math.log10(abs(number))))
    text = f"{number:.{min(digits, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def cycle_axis(cycles: Sequence[int]) -> Axis:
    """Base, a gap, then the cycles, at most a dozen of them labelled."""
    last = max([0, *cycles])
    step = math.ceil((last + 1) / 12)
    ticks = [(BASE_X, "base"), *((float(c), str(c)) for c in range(0, last + 1, step))]
    return Axis("cycle", BASE_X - 0.35, last + 0.3, ticks)


def score_axis(label: str) -> Axis:
    return Axis(label, 0.0, 100.0, [(float(t), str(t)) for t in (0, 25, 50, 75, 100)])


def constant(values: Sequence[float]) -> bool:
    """Whether values are equal up to rounding: means over seeds of the same total differ in the last digit."""
    return math.isclose(min(values), max(values), rel_tol=1e-9, abs_tol=1e-12)


def value_axis(values: Sequence[float], label: str = "", n_ticks: int = 4, span: float = 0.0) -> Axis:
    """Round ticks around the values; at least `span` wide, kept inside 0 to 100 then."""
    low, high = min(values), max(values)
    if span and high - low < span:
        middle = (low + high) / 2
        low, high = middle - span / 2, middle + span / 2
        shift = max(0.0, -low) - max(0.0, high - 100)
        low, high = low + shift, high + shift
    if constant(values):
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    raw = (high - low) / n_ticks
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [(n * step, number_text(round(n * step, 12))) for n in range(first, last + 1)]
    return Axis(label, first * step, last * step, ticks)
