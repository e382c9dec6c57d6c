"""Charts of the report as inline SVG: drawn here, so that the page shows and prints without JavaScript; coloured by its CSS.

A drawn point carries what it says in `data-tip` and what it belongs to in `data-s`: the page's script reads both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from iterative_ft.measure.intervals import Interval

BASE_X = -1.0  # where the base model stands on an axis of cycles
DASHES = ("", "7 4", "2 3", "9 3 2 3")
N_COLOURS = 8  # of the palette in report.css; later series repeat it, dashed


@dataclass(frozen=True)
class Point:
    """One value and, where it has one, its interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    invalid: bool = False
    tip: str = ""


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    number: int
    """Its place in the legend; what a click there shows or hides."""
    label: str
    points: list[Point]
    base: Point | None = None
    colour: str = ""
    """A CSS class, unless the palette's colour of its number."""
    members: list[list[Point]] = field(default_factory=list)
    """The runs behind a mean, drawn as thin lines."""

    @property
    def classes(self) -> str:
        return self.colour or f"c{self.number % N_COLOURS}"

    @property
    def dash(self) -> str:
        return DASHES[self.number // N_COLOURS % len(DASHES)]


@dataclass(frozen=True)
class Axis:
    """Range and ticks of one direction."""

    label: str
    low: float
    high: float
    ticks: list[tuple[float, str]]

    def at(self, value: float, start: float, end: float) -> float:
        """Where `value` falls between `start` and `end`, in pixels."""
        return start + (value - self.low) / (self.high - self.low) * (end - start)


@dataclass(frozen=True)
class Frame:
    """Size of a chart and what its edges are left for, in pixels."""

    width: float
    height: float
    left: float = 44
    right: float = 14
    top: float = 10
    bottom: float = 40


LARGE, SQUARE, SMALL = (
    Frame(560, 330),
    Frame(560, 400),
    Frame(270, 150, left=40, right=10, top=8, bottom=24),
)


def element(name: str, content: str = "", **attributes: object) -> str:
    """An SVG element; `content` is markup, attributes are escaped. `class_` stands for class, and _ for - in names."""
    pairs = (
        f' {key.rstrip("_").replace("_", "-")}="{escape(short(value) if isinstance(value, float) else str(value))}"'
        for key, value in attributes.items()
        if value != ""
    )
    return f"<{name}{''.join(pairs)}>{content}</{name}>"


def short(value: float) -> str:
    """A coordinate to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def number_text(value: float) -> str:
    """A number as a reader wants it: about three significant digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.0001:
        return f"{value:.1e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(digits, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def cycle_axis(cycles: Sequence[int], label: str = "cycle") -> Axis:
    """Base, a gap, then the cycles, at most a dozen of them labelled."""
    last = max([0, *cycles])
    step = math.ceil((last + 1) / 12)
    ticks = [(BASE_X, "base"), *((float(c), str(c)) for c in range(0, last + 1, step))]
    return Axis(label, BASE_X - 0.35, last + 0.3, ticks)


def score_axis(label: str) -> Axis:
    return Axis(label, 0.0, 100.0, [(float(t), str(t)) for t in (0, 25, 50, 75, 100)])


def value_axis(values: Sequence[float], label: str = "", n_ticks: int = 4, span: float = 0.0) -> Axis:
    """Round ticks around the values; at least `span` wide, kept inside 0 to 100 then."""
    low, high = min(values), max(values)
    if span and high - low < span:
        middle = (low + high) / 2
        low, high = middle - span / 2, middle + span / 2
        shift = max(0.0, -low) - max(0.0, high - 100)
        low, high = low + shift, high + shift
    if low == high:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    raw = (high - low) / n_ticks
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [(n * step, number_text(round(n * step, 12))) for n in range(first, last + 1)]
    return Axis(label, first * step, last * step, ticks)


def line_chart(
    name: str,
    series: list[Series],
    x: Axis,
    y: Axis,
    frame: Frame = LARGE,
    dividers: Sequence[float] = (),
    dots: bool = True,
) -> str:
    """Lines with bands; the base model apart at the left, its level dashed across. `name` must be unique on the page.

    Without `dots` a value shows only under the pointer.
    """
    draw = Plot(name, series, x, y, frame)
    body = [draw.grid(), draw.dividers(dividers)]
    radius = (4.0 if frame is not SMALL else 2.8) if dots else 0.0
    layers = (draw.band, draw.base_level, draw.members, draw.line, lambda s: draw.markers(s, radius))
    for layer in layers:
        body += [element("g", layer(s), class_=s.classes, data_s=s.number) for s in series]
    return draw.svg("".join(body))


def path_chart(name: str, series: list[Series], x: Axis, y: Axis) -> str:
    """Trait against coherence: from base (a diamond), then cycle 0 on, an arrow at the end."""
    draw = Plot(name, series, x, y, SQUARE)
    body = [draw.grid(vertical=True)]
    for s in series:
        parts = [draw.line(s, arrow=True)]
        if s.base is not None:
            cx, cy = draw.px(s.base.x), draw.py(s.base.y)
            if s.points:
                to = s.points[0]
                parts.append(
                    element(
                        "line",
                        class_="seedling",
                        x1=cx,
                        y1=cy,
                        x2=draw.px(to.x),
                        y2=draw.py(to.y),
                        vector_effect="non-scaling-stroke",
                    )
                )
            diamond = f"M{short(cx)} {short(cy - 6)}l6 6l-6 6l-6 -6Z"
            parts.append(element("path", class_="pt base", d=diamond, data_tip=s.base.tip, data_x=cx, data_y=cy))
        parts.append(draw.markers(s, 4.0, with_base=False))
        parts += [draw.numbered(p, n) for n, p in enumerate(s.points) if n in (0, len(s.points) - 1) or len(series) == 1]
        body.append(element("g", "".join(parts), class_=s.classes, data_s=s.number))
    return draw.svg("".join(body))


def forest(interval: Interval | None, margin: float, extent: float) -> str:
    """One row of a forest plot: a change with its interval, the margin shaded; arrows where it leaves the picture."""
    if interval is None:
        return ""
    width, height, middle = 220.0, 22.0, 11.0
    axis = Axis("", -extent, extent, [])

    def at(value: float) -> float:
        return axis.at(min(max(value, -extent), extent), 6.0, width - 6)

    parts = [
        element("rect", class_="margin", x=at(-margin), y=1.0, width=at(margin) - at(-margin), height=height - 2),
        element("line", class_="zero", x1=at(0), y1=0.0, x2=at(0), y2=height),
        element("line", class_="whisker", x1=at(interval.low), y1=middle, x2=at(interval.high), y2=middle),
    ]
    for value, tip, back in ((interval.low, 1.0, 7.0), (interval.high, width - 1, width - 7)):
        if abs(value) > extent:
            parts.append(element("path", class_="arrow", d=f"M{back} {middle - 4}L{tip} {middle}L{back} {middle + 4}Z"))
        else:
            parts.append(element("line", class_="whisker", x1=at(value), y1=middle - 4, x2=at(value), y2=middle + 4))
    parts.append(element("circle", class_="estimate", cx=at(interval.mean), cy=middle, r=4.0))
    text = f"change {interval.mean:+.1f}, 95 % interval {interval.low:+.1f} to {interval.high:+.1f}, margin {margin:g}"
    return element("svg", "".join(parts), class_="forest", viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=text)


@dataclass(frozen=True)
class Plot:
    """The parts that charts are put together from."""

    name: str
    series: list[Series]
    x: Axis
    y: Axis
    frame: Frame

    def px(self, value: float) -> float:
        return self.x.at(value, self.frame.left, self.frame.width - self.frame.right)

    def py(self, value: float) -> float:
        return self.y.at(value, self.frame.height - self.frame.bottom, self.frame.top)

    def svg(self, body: str) -> str:
        f = self.frame
        inside = element(
            "rect", x=f.left - 6, y=f.top - 1, width=f.width - f.left - f.right + 12, height=f.height - f.top - f.bottom + 2
        )
        clip = element("defs", element("clipPath", inside, id=f"clip-{self.name}"))
        title = element("title", escape(self.describe()))
        return element(
            "svg",
            title + clip + body,
            class_="chart small" if f is SMALL else "chart",
            id=self.name,
            viewBox=f"0 0 {f.width:g} {f.height:g}",
            role="img",
            tabindex="" if f is SMALL else "0",
        )

    def describe(self) -> str:
        """What the chart shows, in words, for those who do not see it."""
        parts = []
        for s in self.series:
            known = [p for p in s.points if math.isfinite(p.y)]
            shown = [*([s.base] if s.base is not None else []), *known[:1], *known[1:][-1:]]
            ends = [p.tip or number_text(p.y) for p in shown]
            parts.append(f"{s.label}: {'; '.join(ends) or 'no values'}" if s.label else "; ".join(ends))
        return f"{self.y.label} by {self.x.label}. " + ". ".join(parts[:12])

    def grid(self, vertical: bool = False) -> str:
        f = self.frame
        left, right, bottom, top = f.left, f.width - f.right, f.height - f.bottom, f.top
        parts = []
        for value, text in self.y.ticks:
            at = self.py(value)
            parts += [
                element("line", x1=left, x2=right, y1=at, y2=at),
                element("text", text, x=left - 8, y=at + 4, text_anchor="end"),
            ]
        for value, text in self.x.ticks:
            at = self.px(value)
            if vertical:
                parts.append(element("line", x1=at, x2=at, y1=top, y2=bottom))
            parts.append(element("text", text, x=at, y=bottom + (18 if f is not SMALL else 15), text_anchor="middle"))
        if f is not SMALL:
            parts.append(
                element("text", escape(self.x.label), class_="axis", x=(left + right) / 2, y=f.height - 4, text_anchor="middle")
            )
        if vertical:
            middle = (top + bottom) / 2
            turn = f"rotate(-90 11 {middle:g})"
            parts.append(
                element("text", escape(self.y.label), class_="axis", x=11.0, y=middle, text_anchor="middle", transform=turn)
            )
        return element("g", "".join(parts), class_="grid", aria_hidden="true")

    def dividers(self, values: Sequence[float]) -> str:
        f = self.frame
        lines = (element("line", x1=self.px(v), x2=self.px(v), y1=f.top, y2=f.height - f.bottom) for v in values)
        return element("g", "".join(lines), class_="dividers")

    def runs_of(self, points: Sequence[Point]) -> Iterator[list[Point]]:
        """Stretches without a gap: a cycle without a score breaks the line, a NaN does too."""
        stretch: list[Point] = []
        for point in points:
            if not math.isfinite(point.y):
                yield stretch
                stretch = []
            else:
                stretch.append(point)
        yield stretch

    def trace(self, points: Sequence[Point]) -> str:
        return "".join(
            "M" + "L".join(f"{short(self.px(p.x))} {short(self.py(p.y))}" for p in s) for s in self.runs_of(points) if s
        )

    def line(self, s: Series, arrow: bool = False) -> str:
        head = self.arrow_head(s.points) if arrow else ""
        path = element(
            "path", class_="line", d=self.trace(s.points), stroke_dasharray=s.dash, clip_path=f"url(#clip-{self.name})"
        )
        return path + head

    def arrow_head(self, points: Sequence[Point]) -> str:
        """Half way along the last step that is long enough to hold it."""
        pixels = [(self.px(p.x), self.py(p.y)) for p in points]
        for (x1, y1), (x2, y2) in reversed(list(pairwise(pixels))):
            length = math.hypot(x2 - x1, y2 - y1)
            if length >= 18:
                turn = math.degrees(math.atan2(y2 - y1, x2 - x1))
                place = f"translate({short((x1 + x2) / 2)} {short((y1 + y2) / 2)}) rotate({turn:.0f})"
                return element("path", class_="head", d="M-5 -4.5L5 0L-5 4.5Z", transform=place)
        return ""

    def members(self, s: Series) -> str:
        return "".join(
            element("path", class_="member", d=self.trace(points), clip_path=f"url(#clip-{self.name})") for points in s.members
        )

    def band(self, s: Series) -> str:
        parts = []
        for stretch in self.runs_of(s.points):
            inside = [p for p in stretch if p.low is not None and p.high is not None]
            if len(inside) > 1:
                upper = [f"{short(self.px(p.x))} {short(self.py(p.high or 0))}" for p in inside]
                lower = [f"{short(self.px(p.x))} {short(self.py(p.low or 0))}" for p in reversed(inside)]
                parts.append(
                    element("path", class_="band", d=f"M{'L'.join(upper + lower)}Z", clip_path=f"url(#clip-{self.name})")
                )
            elif inside:
                parts.append(self.whisker(inside[0], self.px(inside[0].x)))
        return "".join(parts)

    def whisker(self, p: Point, x: float) -> str:
        if p.low is None or p.high is None:
            return ""
        return element(
            "line", class_="whisker", x1=x, x2=x, y1=self.py(p.low), y2=self.py(p.high), clip_path=f"url(#clip-{self.name})"
        )

    def base_x(self, s: Series) -> float:
        """The base points of several series stand side by side."""
        place = next(n for n, other in enumerate(self.series) if other is s)
        return self.px(BASE_X) + (place - (len(self.series) - 1) / 2) * min(7.0, 40.0 / len(self.series))

    def base_level(self, s: Series) -> str:
        if s.base is None:
            return ""
        at = self.py(s.base.y)
        x = self.base_x(s)
        level = element("line", class_="level", x1=x, x2=self.frame.width - self.frame.right, y1=at, y2=at)
        return level + self.whisker(s.base, x)

    def markers(self, s: Series, radius: float, with_base: bool = True) -> str:
        parts = [self.marker(p, self.px(p.x), radius) for p in s.points if math.isfinite(p.y)]
        if with_base and s.base is not None:
            parts.append(self.marker(s.base, self.base_x(s), radius))
        return "".join(parts)

    def marker(self, p: Point, x: float, radius: float) -> str:
        y = self.py(p.y)
        classes = "pt" + (" invalid" if p.invalid else "")
        tip = p.tip + (" (invalid: too many judge failures)" if p.invalid else "")
        return element(
            "circle", class_=classes, cx=x, cy=y, r=radius + (1 if p.invalid else 0), data_tip=tip, data_x=x, data_y=y
        )

    def numbered(self, p: Point, number: int) -> str:
        return element("text", str(number), class_="number", x=self.px(p.x) + 8, y=self.py(p.y) - 7)
