"""Sections of the page that hold charts: scores over cycles, the path, training, gauges.

Each is what a template lays out: charts, tables and what differs in words.
"""

from __future__ import annotations

from dataclasses import dataclass

from iterative_ft.records.read import Run
from iterative_ft.records.rows import numbers, value
from iterative_ft.report import series
from iterative_ft.report.arms import Arm
from iterative_ft.report.axes import cycle_axis, number_text, score_axis, value_axis
from iterative_ft.report.charts import SMALL, SQUARE, Chart
from iterative_ft.report.series import SCORES, Series, over_cycles
from iterative_ft.report.tables import GAUGES, Table, gauge_name, gauge_table, loss_table, score_table

TRAINING = {
    "train/loss": "training loss",
    "train/rewards/margins": "reward margin",
    "train/rewards/accuracies": "reward accuracy",
    "train/grad_norm": "gradient norm",
}
NOT_GAUGES = {f"{name}/{key}" for name in SCORES for key in ("score", "low", "high")} | {
    "cycle", "n_runs", "judge/invalid", "answers/n",
}  # fmt: skip


@dataclass(frozen=True)
class Scores:
    """Trait and coherence over cycles."""

    legend: list[Series]
    """Empty with one arm."""
    charts: list[Chart]
    table: Table
    panels: list[Chart]
    """Each run by itself, where there are several."""


@dataclass(frozen=True)
class Training:
    """Loss and what else was logged, a line a run."""

    charts: list[Chart]
    divided: bool
    """Whether lines part the cycles."""
    table: Table


@dataclass(frozen=True)
class Gauges:
    """Numbers that need no judge."""

    charts: list[Chart]
    still: list[str]
    """Those that never move, with their value."""
    table: Table


def scores(runs: list[Run], names: list[str], arms: list[Arm]) -> Scores | None:
    """An arm a line, then each run by itself; None while no cycle is measured."""
    cycles = [row["cycle"] for run in runs for row in run.cycles]
    if not cycles:
        return None
    x, single = cycle_axis(cycles), len(arms) == 1
    charts, panels = [], []
    for name in SCORES:
        lines = [series.scores(arm, name, number, name if single else "") for number, arm in enumerate(arms)]
        charts.append(Chart(f"scores-{name}", f"{name.capitalize()} score", lines, x, score_axis(f"{name} score")))
    for number, (run, label) in enumerate(zip(runs, names, strict=True) if len(runs) > 1 else ()):
        lines = [over_cycles(run.measured, f"{name}/score", 1000 + place, name, name) for place, name in enumerate(SCORES)]
        panels.append(Chart(f"run-{number}", label, lines, x, score_axis("score"), SMALL, radius=2.8))
    seeds = [f" ({len(arm.runs)} seeds)" if len(arm.runs) > 1 else "" for arm in arms]
    legend = [Series(number, arm.label + seeds[number]) for number, arm in enumerate(arms)]
    return Scores([] if single else legend, charts, score_table(arms), panels)


def path(arms: list[Arm]) -> Chart | None:
    """Trait against coherence, a line from cycle to cycle."""
    lines = [series.path(arm, number, "ink" if len(arms) == 1 else "") for number, arm in enumerate(arms)]
    points = [point for line in lines for point in line.known]
    if not points:
        return None
    x = value_axis([p.x for p in points], "trait score", 5, span=50)
    y = value_axis([p.y for p in points], "coherence score", 5, span=50)
    return Chart("path", "Trait against coherence", lines, x, y, SQUARE, path=True)


def training(runs: list[Run], names: list[str], arms: list[Arm]) -> Training | None:
    """Loss over the global step, a line a run, in the colour of its arm; and what else was logged."""
    arm_of = {id(run): number for number, arm in enumerate(arms) for run in arm.runs}
    shown = [(name, run) for name, run in zip(names, runs, strict=True) if id(run) in arm_of and run.training]
    starts = {tuple(rows[0]["train/global_step"] for _, rows in series.by_cycle(run)) for _, run in shown}
    dividers = [step - 0.5 for step in starts.pop()[1:]] if len(starts) == 1 else []
    colour = "ink" if len(arms) == 1 else ""
    charts = []
    for column, text in TRAINING.items():
        lines = [series.training(run, column, arm_of[id(run)], name, colour) for name, run in shown]
        values = [y for line in lines for y in line.ends]
        if values:
            large = not charts
            x = value_axis([0.0, max(p.x for line in lines for p in line.points)], "training step over all cycles", 5)
            y = value_axis(values, text, 5 if large else 3)
            name = column.replace("/", "-")
            frame = SQUARE if large else SMALL
            charts.append(Chart(name, text.capitalize(), lines, x, y, frame, radius=0, dividers=dividers))
    return Training(charts, bool(dividers), loss_table(shown)) if charts else None


def gauges(arms: list[Arm]) -> Gauges:
    """A small chart for every gauge that moves, a line for those that do not, and all of it as a table."""
    by_arm = [arm.rows() for arm in arms]
    rows = [row for of_arm in by_arm for row in of_arm]
    names = {name for row in rows for name in numbers(row) if not name.endswith(("_low", "_high"))} - NOT_GAUGES
    order = {name: place for place, name in enumerate(GAUGES)}
    ordered = sorted(names, key=lambda name: (order.get(name, len(order)), name))
    cycles = [row["cycle"] for row in rows if row["cycle"] >= 0]
    several = len(arms) > 1
    colour = "" if several else "ink"
    charts, still = [], []
    for place, name in enumerate(ordered):
        values = {y for row in rows if (y := value(row, name)) is not None}
        if len(values) == 1 or not cycles:
            still.append(f"{gauge_name(name)} {number_text(min(values))}")
            continue
        lines = [
            over_cycles(of_arm, name, number, arm.label, colour, f"{arm.label}, " if several else "")
            for number, (arm, of_arm) in enumerate(zip(arms, by_arm, strict=True))
        ]
        y = value_axis([end for line in lines for end in line.ends], gauge_name(name), 3)
        charts.append(Chart(f"gauge-{place}", gauge_name(name), lines, cycle_axis(cycles), y, SMALL, radius=2.8))
    return Gauges(charts, still, gauge_table(arms, ordered))
