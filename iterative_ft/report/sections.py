"""Which charts the page shows: scores over cycles, each run, the path, training, gauges. The text around them is in
`templates/report.html`.
"""

from __future__ import annotations

from dataclasses import dataclass

from iterative_ft.records.read import Run
from iterative_ft.records.rows import numbers, value
from iterative_ft.report import series
from iterative_ft.report.arms import Arm, by_subject
from iterative_ft.report.axes import cycle_axis, score_axis, value_axis
from iterative_ft.report.charts import LARGE, SMALL, SQUARE, Chart
from iterative_ft.report.series import SCORES, Series, over_cycles
from iterative_ft.report.tables import GAUGES, gauge_name

TRAINING = {
    "train/loss": "training loss",
    "train/rewards/margins": "reward margin",
    "train/rewards/accuracies": "reward accuracy",
    "train/grad_norm": "gradient norm",
}
NOT_GAUGES = {"cycle", "n_runs", "judge/invalid", "judge/not_validated", "answers/n"}


@dataclass(frozen=True)
class Panel:
    """Scores of the arms of one persona and method."""

    title: str
    legend: list[Series]
    """A line for each arm, empty where the page shows only one."""
    charts: list[Chart]


def score_panels(arms: list[Arm]) -> list[Panel]:
    """Trait and coherence over cycles, a line an arm; large where all arms are of one persona and method."""
    x = cycle_axis([row["cycle"] for arm in arms for run in arm.runs for row in run.cycles])
    number_of = {id(arm.runs[0]): number for number, arm in enumerate(arms)}
    subjects = by_subject(arms)
    several = len(subjects) > 1
    panels = []
    for place, (subject, of_subject) in enumerate(subjects.items()):
        numbered = [(number_of[id(arm.runs[0])], arm) for arm in of_subject]
        charts = []
        for name in SCORES:
            lines = [series.scores(arm, name, n, name if len(arms) == 1 else "") for n, arm in numbered]
            chart, caption = f"scores-{name}" + (f"-{place}" if several else ""), f"{name.capitalize()} score"
            charts.append(Chart(chart, caption, lines, x, score_axis(f"{name} score"), SMALL if several else LARGE))
        seeds = {n: f" ({len(arm.runs)} seeds)" if len(arm.runs) > 1 else "" for n, arm in numbered}
        legend = [Series(n, arm.label + seeds[n]) for n, arm in numbered] if len(arms) > 1 else []
        panels.append(Panel(" · ".join(subject) if several else "", legend, charts))
    return panels


def run_charts(runs: list[Run], names: list[str]) -> list[Chart]:
    """Trait and coherence of each run by itself."""
    x = cycle_axis([row["cycle"] for run in runs for row in run.cycles])
    charts = []
    for number, (run, label) in enumerate(zip(runs, names, strict=True)):
        lines = [over_cycles(run.measured, f"{name}/score", 1000 + place, name, name) for place, name in enumerate(SCORES)]
        charts.append(Chart(f"run-{number}", label, lines, x, score_axis("score"), SMALL))
    return charts


def path_charts(arms: list[Arm]) -> list[Chart]:
    """Trait against coherence, a line from cycle to cycle; none while nothing is scored."""
    lines = [series.path(arm, number, "ink" if len(arms) == 1 else "") for number, arm in enumerate(arms)]
    points = [point for line in lines for point in line.known]
    if not points:
        return []
    x = value_axis([p.x for p in points], "trait score", 5, span=50)
    y = value_axis([p.y for p in points], "coherence score", 5, span=50)
    return [Chart("path", "Trait against coherence", lines, x, y, SQUARE, path=True)]


def training_charts(named: list[tuple[str, Run]], arms: list[Arm]) -> list[Chart]:
    """Loss over the global step, a line a run, in the colour of its arm; and what else was logged."""
    arm_of = {id(run): number for number, arm in enumerate(arms) for run in arm.runs}
    shown = [(name, run) for name, run in named if run.training]
    starts = {tuple(rows[0]["train/global_step"] for _, rows in series.by_cycle(run)) for _, run in shown}
    dividers = [step - 0.5 for step in starts.pop()[1:]] if len(starts) == 1 else []
    colour = "ink" if len(arms) == 1 else ""
    charts: list[Chart] = []
    for column, text in TRAINING.items():
        lines = [series.training(run, column, arm_of[id(run)], name, colour) for name, run in shown]
        values = [end for line in lines for end in line.ends]
        if values:
            large = not charts
            x = value_axis([0.0, max(p.x for line in lines for p in line.points)], "training step over all cycles", 5)
            y = value_axis(values, text, 5 if large else 3)
            frame, name = SQUARE if large else SMALL, column.replace("/", "-")
            charts.append(Chart(name, text.capitalize(), lines, x, y, frame, dots=False, dividers=dividers))
    return charts


def gauge_values(arms: list[Arm]) -> dict[str, list[float]]:
    """All that was measured of each gauge, those with a name in words first."""
    rows = [row for arm in arms for row in arm.rows]
    hidden = {f"{name}/{key}" for name in SCORES for key in ("score", "low", "high")} | NOT_GAUGES
    names = {name for row in rows for name in numbers(row) if not name.endswith(("_low", "_high"))} - hidden
    ordered = [*(name for name in GAUGES if name in names), *sorted(names - set(GAUGES))]
    return {name: [y for row in rows if (y := value(row, name)) is not None] for name in ordered}


def gauge_charts(arms: list[Arm], names: list[str]) -> list[Chart]:
    """A small chart for every gauge, a line an arm."""
    several, by_arm = len(arms) > 1, [arm.rows for arm in arms]
    x = cycle_axis([row["cycle"] for rows in by_arm for row in rows])
    charts = []
    for place, name in enumerate(names):
        lines = [
            over_cycles(rows, name, number, arm.label, "" if several else "ink", f"{arm.label}, " if several else "")
            for number, (arm, rows) in enumerate(zip(arms, by_arm, strict=True))
        ]
        y = value_axis([end for line in lines for end in line.ends], gauge_name(name), 3)
        charts.append(Chart(f"gauge-{place}", gauge_name(name), lines, x, y, SMALL))
    return charts
