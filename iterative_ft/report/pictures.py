"""Pictures for papers and W&B, PNG or SVG by the file's ending: scores of runs, of arms, and change by amount of data.

They draw the series of `series.py`, as the page does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iterative_ft.config.schema import Config
from iterative_ft.records.read import Run
from iterative_ft.records.rows import MetricRow
from iterative_ft.records.run_log import Draw
from iterative_ft.report import series
from iterative_ft.report.arms import Arm, arms_of, by_subject
from iterative_ft.report.axes import cycle_axis, score_axis
from iterative_ft.report.series import COLOURS, NUMBERED, SCORES, Series, over_cycles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 3  # lines whose legend finds room among them
COLUMNS = 3  # of panels, where few personas have every method
FULL = 2 / 3  # of all personas and methods were run: a row a persona, gaps and all
MARKERS = "osD^"  # of points that no line joins, where colours run out
TOO_FEW = 2  # seeds whose t interval says nothing
INK, SOFT, LINE = (COLOURS[name][0] for name in ("ink", "soft", "line"))
LOOK: Any = {  # matplotlib types its keys as literals
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.left": False,
    "text.color": INK,
    "legend.frameon": False,
    "text.parse_math": False,  # a label with two dollar signs is no formula
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "iterative_ft",  # the same rows give the same file
}


def draw_run(config: Config) -> Draw:
    """What draws a run's trait and coherence over cycles. Rows without a score leave a gap; invalid ones are hollow."""
    parts = [config.method.name, f"reinit={str(config.reinit.init == 'base').lower()}", config.persona.name, config.model.name]
    title = f"{' · '.join(parts)} · n_seed {config.n_seed}, n_sampled {config.n_sampled}, seed {config.seed}"

    def draw_rows(rows: Sequence[MetricRow], file: Path) -> None:
        draw([(title, rows)], file)

    return draw_rows


def draw(runs: Sequence[tuple[str, Sequence[MetricRow]]], file: Path) -> None:
    """Trait (left) and coherence (right) of one or more runs by their rows, with 95 % intervals."""
    import matplotlib as mpl

    colours = SCORES if len(runs) == 1 else ("", "")
    with mpl.rc_context(LOOK):
        figure, axes = panels(1, 2, 9.6, 3.9)
        for axis, name, colour in zip(axes, SCORES, colours, strict=True):
            axis.set_title(f"{name.capitalize()} score")
            draw_lines(axis, [over_cycles(rows, f"{name}/score", n, text, colour) for n, (text, rows) in enumerate(runs)])
        axes[0].set_ylabel("score, bands: 95 %")
        if len(runs) > 1:
            handles, texts = axes[0].get_legend_handles_labels()
            figure.legend(handles, texts, loc="outside lower center", ncols=min(3, len(texts)), fontsize=8)
        else:
            figure.suptitle(runs[0][0], fontsize=9, color=SOFT, x=0.01, ha="left")
        save(figure, file)


def comparison(runs: list[Run], file: Path, name: str = "trait") -> None:
    """One panel per persona and method that was run, a line per arm: means over seeds with t intervals.

    Each seed is a thin line behind the mean. Two seeds have no band, which would fill the panel; an arm with one seed has its
    run's interval over questions. `name` is "trait" or "coherence".
    """
    import matplotlib as mpl

    found = by_subject(arms_of(runs))
    numbers = alike_numbered([[arm.label for arm in arms] for arms in found.values()])
    many = any(len(arm.runs) > 1 for arms in found.values() for arm in arms)

    def line(arm: Arm, number: int) -> Series:
        n = len(arm.runs)
        seeds = f" ({n} seed{'s' * (n > 1)})" if many else ""
        return replace(series.scores(arm, name, number), label=arm.label + seeds)

    lines = {subject: list(map(line, found[subject], of_panel)) for subject, of_panel in zip(found, numbers, strict=True)}
    personas, methods = (list(dict.fromkeys(key[part] for key in lines)) for part in (0, 1))
    full = FULL * len(personas) * len(methods) <= len(lines)
    subjects = [(p, m) for p in personas for m in methods] if full else list(lines)
    n_columns = len(methods) if full else min(COLUMNS, len(lines))  # a row a persona, or one after the other
    n_rows = -(-len(subjects) // n_columns)
    with mpl.rc_context(LOOK):
        figure, axes = panels(n_rows, n_columns, max(4.4, 3.3 * n_columns), 2.5 * n_rows + 0.5)
        for place, (axis, subject) in enumerate(zip_longest(axes, subjects)):
            if subject not in lines:
                axis.set_axis_off()
                continue
            axis.set_title(" · ".join(subject))
            draw_lines(axis, lines[subject])
            if place % n_columns == 0:
                axis.set_ylabel(f"{name} score")
            if len(lines[subject]) > FEW:
                axis.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.2))  # below the panel
            else:
                axis.legend(fontsize=7.5, loc="best")
        save(figure, file)


def change_by_sampled(runs: list[Run], file: Path) -> None:
    """Change of the trait from cycle 0 to the last against n_sampled, a colour per persona, method and reinit.

    The points are not joined: each has its interval and how many seeds it rests on, and between them nothing was run.
    """
    import matplotlib as mpl

    lines = series.changes(runs)
    amounts = sorted({run.config["n_sampled"] for run in runs})
    margin = next((run.verdict["margin"] for run in runs if run.verdict is not None), None)
    with mpl.rc_context(LOOK):
        figure, (axis,) = panels(1, 1, 6.4, 4.0)
        if margin is not None:
            axis.axhspan(-margin, margin, color=SOFT, alpha=0.1, linewidth=0, label=f"margin ±{margin:g}")
        axis.axhline(0, color=SOFT, linewidth=0.8)
        for s in lines:
            aside = 1 + 0.012 * (s.number - (len(lines) - 1) / 2)  # on a log scale: intervals side by side
            axis.errorbar(
                [p.x * aside for p in s.points],
                [p.y for p in s.points],
                yerr=[[p.y - p.low for p in s.points], [p.high - p.y for p in s.points]],
                capsize=2.5,
                elinewidth=1,
                **look(s) | {"linestyle": "none", "marker": MARKERS[s.number // len(NUMBERED) % len(MARKERS)]},
            )
            for p in s.points:
                axis.annotate(
                    p.tip, (p.x * aside, p.y), (5, 0), textcoords="offset points", color=SOFT, fontsize=7, va="center"
                )
        axis.set_xscale("log", base=2)
        axis.set_xticks(amounts, [str(amount) for amount in amounts], minor=False)
        axis.minorticks_off()
        axis.set_xlabel("examples sampled a cycle, n_sampled")
        axis.set_ylabel("change of the trait score, cycle 0 to last, 95 %")
        axis.legend(fontsize=8)
        save(figure, file)


def alike_numbered(panels: Sequence[Sequence[str]]) -> list[list[int]]:
    """Numbers of the lines of each panel by their labels: a line has its number from an earlier panel where the settings that
    one label tells are among those of the other, so that "reinit=true" keeps its colour beside "reinit=true · n_sampled=32".
    """
    known: list[set[str]] = []
    numbers = []
    for labels in panels:
        of_panel: list[int] = []
        for told in (set(label.split(" · ")) for label in labels):
            free = (n for n, other in enumerate(known) if n not in of_panel and (other <= told or told <= other))
            number = next(free, len(known))
            if number == len(known):
                known.append(told)
            of_panel.append(number)
        numbers.append(of_panel)
    return numbers


def panels(n_rows: int, n_columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(n_rows, n_columns, squeeze=False).flat)


def look(s: Series) -> Any:
    """Colour, dashes and dots of a line."""
    dash = (0, tuple(length / 2 for length in s.dash)) if s.dash else "-"  # matplotlib counts in widths of the line
    colour = COLOURS[s.colour][0]
    return {"label": s.label, "color": colour, "linestyle": dash, "linewidth": 1.8, "marker": "o", "markersize": 4.5}


def draw_lines(axis: Axes, lines: Sequence[Series]) -> None:
    """Scores over cycles with their bands; base apart at the left, its level dashed across; invalid cycles hollow."""
    for place, s in enumerate(lines):
        colour, x = COLOURS[s.colour][0], [p.x for p in s.points]
        if len(s.members) != TOO_FEW:
            axis.fill_between(x, [p.low for p in s.points], [p.high for p in s.points], color=colour, alpha=0.16, linewidth=0)
        for member in s.members:
            axis.plot([p.x for p in member], [p.y for p in member], color=colour, linewidth=0.8, alpha=0.45)
        axis.plot(x, [p.y for p in s.points], **look(s))
        invalid = [p for p in s.points if p.invalid]
        hollow: Any = {"color": "white", "markeredgecolor": colour, "markeredgewidth": 1.5, "markersize": 7}
        axis.plot([p.x for p in invalid], [p.y for p in invalid], "o", **hollow)
        if s.base is not None:
            at = s.base.x + (place - (len(lines) - 1) / 2) * min(0.07, 0.5 / len(lines))  # side by side
            if len(s.members) != TOO_FEW:
                axis.plot([at, at], [s.base.low, s.base.high], color=colour, linewidth=1.2, alpha=0.6)
            face = "white" if s.base.invalid else colour
            axis.plot([at], [s.base.y], "D", color=face, markeredgecolor=colour, markersize=4.5)
            axis.axhline(s.base.y, color=colour, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.55)
    x_axis = cycle_axis([int(p.x) for s in lines for p in s.points])
    axis.set_xlim(x_axis.low, x_axis.high)
    axis.set_xticks(*zip(*x_axis.ticks, strict=True))
    axis.set_xlabel(x_axis.label)
    axis.set_ylim(-1, 101)
    axis.set_yticks([value for value, _ in score_axis("").ticks])


def save(figure: Figure, file: Path) -> None:
    """PNG or SVG, without a date, so that equal rows give equal files."""
    metadata = {"Date": None} if file.suffix == ".svg" else None
    figure.savefig(file, dpi=160, metadata=metadata)
