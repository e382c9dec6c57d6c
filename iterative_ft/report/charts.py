"""Series laid out as charts of the page: where each line, band and point falls, in pixels.

`templates/charts.html` writes the SVG, so that the page shows and prints without JavaScript.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from iterative_ft.report.axes import BASE_X, Axis
from iterative_ft.report.series import Point, Series
from iterative_ft.stats.intervals import Interval

Pixel = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """Size of a chart, and the edges of what is drawn in it, in pixels."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int


LARGE, SQUARE, SMALL = (
    Frame(560, 330, left=44, right=546, top=10, bottom=290),
    Frame(560, 400, left=44, right=546, top=10, bottom=360),
    Frame(270, 150, left=40, right=260, top=8, bottom=126),
)


@dataclass(frozen=True)
class Marker:
    """A point on the chart."""

    x: float
    y: float
    point: Point


@dataclass(frozen=True)
class Line:
    """A series on the chart."""

    series: Series
    trace: list[list[Pixel]]
    """Stretches without a gap."""
    members: list[list[list[Pixel]]]
    bands: list[list[Pixel]]
    """Outlines."""
    whiskers: list[tuple[float, float, float]]
    """x, and y of both ends."""
    markers: list[Marker]
    base: Marker | None
    head: tuple[float, float, int] | None
    """Middle and degrees of an arrow head."""


@dataclass(frozen=True)
class Chart:
    """Series in a frame. With `path` they go from point to point of a plane, else over x."""

    name: str
    """Unique on the page."""
    caption: str
    series: list[Series]
    x: Axis
    y: Axis
    frame: Frame = LARGE
    dots: bool = True
    """Without them a value shows only under the pointer."""
    dividers: Sequence[float] = ()
    """Values of x that part the cycles."""
    path: bool = False

    def at_x(self, value: float) -> float:
        return self.x.at(value, self.frame.left, self.frame.right)

    def at_y(self, value: float) -> float:
        return self.y.at(value, self.frame.bottom, self.frame.top)

    @property
    def title(self) -> str:
        """What the chart shows, in words, for those who do not see it."""
        parts = []
        for s in self.series[:12]:
            first = 1 if s.base is None else 2
            ends = "; ".join(point.tip for point in [*s.known[:first], *s.known[first:][-1:]])
            parts.append(f"{s.label}: {ends or 'no values'}" if s.label else ends)
        return f"{self.y.label} by {self.x.label}. {'. '.join(parts)}"

    @property
    def lines(self) -> list[Line]:
        return [self.line(s, place) for place, s in enumerate(self.series)]

    def line(self, s: Series, place: int) -> Line:
        """A series on the chart; base points of several stand side by side."""
        bands, whiskers = [], []
        for stretch in stretches(s.points):
            inside = [p for p in stretch if p.has_interval]
            if len(inside) > 1:
                upper = [(self.at_x(p.x), self.at_y(p.high)) for p in inside]
                bands.append(upper + [(self.at_x(p.x), self.at_y(p.low)) for p in reversed(inside)])
            else:
                whiskers += [(self.at_x(p.x), self.at_y(p.low), self.at_y(p.high)) for p in inside]
        base = None
        if s.base is not None:
            n = len(self.series)
            aside = 0.0 if self.path else (place - (n - 1) / 2) * min(7.0, 40.0 / n)
            base = Marker(round(self.at_x(s.base.x if self.path else BASE_X) + aside, 1), self.at_y(s.base.y), s.base)
            if s.base.has_interval:
                whiskers.append((base.x, self.at_y(s.base.low), self.at_y(s.base.high)))
        markers = [Marker(self.at_x(p.x), self.at_y(p.y), p) for p in s.points if p.known]
        return Line(
            series=s,
            trace=self.trace(s.points),
            members=[self.trace(points) for points in s.members],
            bands=bands,
            whiskers=whiskers,
            markers=markers,
            base=base,
            head=arrow_head([(m.x, m.y) for m in markers]) if self.path else None,
        )

    def trace(self, points: Sequence[Point]) -> list[list[Pixel]]:
        return [[(self.at_x(p.x), self.at_y(p.y)) for p in stretch] for stretch in stretches(points)]


def stretches(points: Sequence[Point]) -> list[list[Point]]:
    """Points that follow each other without a gap."""
    found: list[list[Point]] = [[]]
    for point in points:
        if point.known:
            found[-1].append(point)
        elif found[-1]:
            found.append([])
    return [stretch for stretch in found if stretch]


def arrow_head(pixels: Sequence[Pixel]) -> tuple[float, float, int] | None:
    """Half way along the last step that is long enough to hold it."""
    for (x1, y1), (x2, y2) in reversed(list(pairwise(pixels))):
        if math.hypot(x2 - x1, y2 - y1) >= 18:
            turn = math.degrees(math.atan2(y2 - y1, x2 - x1))
            return round((x1 + x2) / 2, 1), round((y1 + y2) / 2, 1), round(turn)
    return None


@dataclass(frozen=True)
class Forest:
    """One row of a forest plot: a change with its interval beside the margin."""

    interval: Interval
    margin: float
    extent: float
    """Where the picture ends on either side, in points."""

    def at(self, points: float) -> float:
        """x of a change, 0 to 220; what lies outside is put at the edge."""
        cut = min(max(points, -self.extent), self.extent)
        return Axis("", -self.extent, self.extent, []).at(cut, 6, 214)

    @property
    def title(self) -> str:
        i = self.interval
        return f"change {i.mean:+.1f}, 95 % interval {i.low:+.1f} to {i.high:+.1f}, margin {self.margin:g}"
