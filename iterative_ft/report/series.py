"""What is drawn of runs, on the page and in pictures alike: one palette, and series of points made of rows.

`charts.py` lays them out as SVG, `pictures.py` draws them with matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from iterative_ft.records.read import Run
from iterative_ft.records.rows import MetricRow, value
from iterative_ft.records.terminal import score_text
from iterative_ft.report.arms import Arm, arms_of, change, differing, of_arm
from iterative_ft.report.arms import label as label_of
from iterative_ft.report.axes import BASE_X, number_text

# fmt: off
COLOURS = {  # on light paper, on dark
    "paper": ("#fcfbf9", "#15171b"), "card": ("#ffffff", "#1c1f24"), "ink": ("#1c1d21", "#e9e8e5"),
    "soft": ("#5d6069", "#a9acb5"), "faint": ("#8b8e97", "#7d818b"), "line": ("#e4e2dd", "#2b2f36"),
    "rule": ("#cfccc5", "#3c414a"), "focus": ("#1f639c", "#8cc4f2"), "mark": ("#ffe08a", "#6b5710"),
    "warn": ("#8a5a00", "#f0c869"), "warn-paper": ("#fff6e0", "#2c2617"),
    "trait": ("#b8471b", "#f08f62"), "coherence": ("#1f639c", "#71b3ea"),
    "c0": ("#127a5c", "#52c9a4"), "c1": ("#9a4a8f", "#d99bd0"), "c2": ("#3b93c4", "#a5dcf7"), "c3": ("#a87400", "#e3b950"),
    "c4": ("#63656e", "#b7bac3"), "c5": ("#7c2f36", "#dd8a8f"), "c6": ("#1f639c", "#71b3ea"), "c7": ("#b8471b", "#f08f62"),
}
# fmt: on
NUMBERED = tuple(f"c{number}" for number in range(8))  # for series without a colour of their own; later ones are dashed
DASHES: tuple[tuple[float, ...], ...] = ((), (7, 4), (2, 3), (9, 3, 2, 3))  # lengths on a line 2 wide
SCORES = ("trait", "coherence")
N_STEPS = 240  # points of a training series: more are thinned to means


@dataclass(frozen=True)
class Point:
    """One value with its interval; NaN where there is none."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    invalid: bool = False
    tip: str = ""
    """What it says when it is pointed at."""
    cycle: int | None = None
    """Where x does not tell it."""

    @property
    def known(self) -> bool:
        return math.isfinite(self.y)

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True)
class Series:
    """A line; a point without a value breaks it."""

    number: int
    """Its place in the legend."""
    label: str
    points: list[Point] = field(default_factory=list)
    base: Point | None = None
    own_colour: str = ""
    """A name in COLOURS, where its number shall not choose."""
    members: list[list[Point]] = field(default_factory=list)
    """The runs behind a mean."""

    @property
    def colour(self) -> str:
        return self.own_colour or NUMBERED[self.number % len(NUMBERED)]

    @property
    def dash(self) -> tuple[float, ...]:
        return () if self.own_colour else DASHES[self.number // len(NUMBERED) % len(DASHES)]

    @property
    def known(self) -> list[Point]:
        """Base first, then every point that has a value."""
        return [*([] if self.base is None else [self.base]), *(point for point in self.points if point.known)]

    @property
    def ends(self) -> list[float]:
        """Values and ends of intervals: what an axis must hold."""
        return [end for p in self.known for end in (p.y, p.low, p.high) if math.isfinite(end)]


def cycle_name(cycle: int) -> str:
    return "base" if cycle < 0 else f"cycle {cycle}"


def bounds(row: MetricRow, column: str) -> tuple[float, float]:
    """Low and high of a column whose name ends in "score", NaN where the row has none."""
    stem = column.removesuffix("score")
    low, high = (value(row, f"{stem}{end}") if stem != column else None for end in ("low", "high"))
    return (math.nan, math.nan) if low is None or high is None else (low, high)


def doubtful(row: MetricRow) -> bool:
    """Whether a row's scores are drawn hollow."""
    return bool(row.get("judge/invalid") or row.get("judge/not_validated"))


def doubts(row: MetricRow) -> str:
    """Why, in brackets."""
    found = ["invalid: too many judge failures"] if row.get("judge/invalid") else []
    found += ["judge not validated on such texts"] if row.get("judge/not_validated") else []
    return f" ({'; '.join(found)})" if found else ""


def over_cycles(
    rows: Sequence[MetricRow], column: str, number: int, label: str, colour: str = "", who: str = "", n_seeds: int = 1
) -> Series:
    """A column of rows over cycles; a cycle without a value is a gap. `who` begins what the points say."""
    name = column.removesuffix("/score")

    def point(row: MetricRow) -> Point:
        y = value(row, column)
        if y is None:
            return Point(row["cycle"], math.nan)
        text = f"{name} {score_text(row, name)}" if name in SCORES else number_text(y)
        mean = f" (mean of {row['n_runs']} of {n_seeds} seeds)" if n_seeds > 1 else ""
        tip = f"{who}{cycle_name(row['cycle'])}: {text}{mean}"
        return Point(max(row["cycle"], BASE_X), y, *bounds(row, column), doubtful(row), tip + doubts(row))

    of_cycle = {row["cycle"]: point(row) for row in rows}
    base = next((p for cycle, p in of_cycle.items() if cycle < 0 and p.known), None)
    points = [of_cycle.get(cycle, Point(cycle, math.nan)) for cycle in range(max(of_cycle, default=-1) + 1)]
    return Series(number, label, points, base, colour)


def scores(arm: Arm, name: str, number: int, colour: str = "") -> Series:
    """Trait or coherence of an arm: the mean over its runs and, where there are several, each run behind it."""
    column, n = f"{name}/score", len(arm.runs)
    mean = over_cycles(arm.rows, column, number, arm.label, colour, f"{arm.label}, ", n)
    members = [over_cycles(run.cycles, column, number, "").points for run in arm.runs] if n > 1 else []
    return replace(mean, members=members)


def path(arm: Arm, number: int, colour: str = "") -> Series:
    """Trait against coherence, from cycle to cycle."""
    points: dict[int, Point] = {}
    for row in arm.rows:
        cycle, x, y = row["cycle"], value(row, "trait/score"), value(row, "coherence/score")
        if x is not None and y is not None:
            tip = f"{arm.label}, {cycle_name(cycle)}: trait {x:.1f}, coherence {y:.1f}"
            points[cycle] = Point(x, y, invalid=doubtful(row), tip=tip + doubts(row), cycle=cycle)
    base = points.pop(-1, None)
    return Series(number, arm.label, list(points.values()), base, colour)


def by_cycle(run: Run) -> Iterator[tuple[int, list[MetricRow]]]:
    """The training rows of each cycle."""
    for cycle, rows in groupby(run.training, key=lambda row: row["train/cycle"]):
        yield cycle, list(rows)


def training(run: Run, column: str, number: int, label: str, colour: str = "") -> Series:
    """A column of training rows over the global step, thinned to means; cycles are apart."""
    size = max(1, math.ceil(len(run.training) / N_STEPS))
    points: list[Point] = []
    for cycle, rows in by_cycle(run):
        known = [(row["train/global_step"], y) for row in rows if (y := value(row, column)) is not None]
        for start in range(0, len(known), size):
            bucket = known[start : start + size]
            step, y = bucket[-1][0], sum(y for _, y in bucket) / len(bucket)
            points.append(Point(step, y, tip=f"{label}, {cycle_name(cycle)}, step {step}: {number_text(y)}"))
        points += [Point(step, math.nan) for step, _ in known[-1:]]
    return Series(number, label, points, None, colour)


def changes(runs: list[Run]) -> list[Series]:
    """Change of the trait from cycle 0 to the last against n_sampled: a series for each persona, method, reinit and what else
    tells arms apart; where some were run with several amounts, those alone. A point's tip says how many seeds it rests on.
    """
    lines: dict[str, list[Point]] = {}
    first = ["persona.name", "method.name", "reinit"]
    names = [
        *first,
        *(name for name in differing([of_arm(run).config for run in runs]) if name not in (*first, "n_sampled", "seed")),
    ]
    for arm in arms_of(runs):
        run, moved = of_arm(arm.runs[0]), change(arm.verdict)
        points = lines.setdefault(label_of(run, names), [])
        if arm.verdict is not None and moved is not None:
            seeds = "1 seed" if arm.verdict["n_seeds"] == 1 else f"{arm.verdict['n_seeds']} seeds"
            points.append(Point(run.config["n_sampled"], moved.mean, moved.low, moved.high, tip=seeds))
    several = {label: points for label, points in lines.items() if len({point.x for point in points}) > 1}
    return [Series(n, label, sorted(points, key=lambda p: p.x)) for n, (label, points) in enumerate((several or lines).items())]
