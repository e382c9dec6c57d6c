"""Pictures for papers and W&B, PNG or SVG by the file's ending: a run's curves, grids of runs, change by amount of data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from iterative_ft.analysis.runs import Group, Run

Row = dict[str, Any]

COLOURS = {"trait": "#b8471b", "coherence": "#1f639c"}
PALETTE = ("#127a5c", "#9a4a8f", "#3b93c4", "#a87400", "#63656e", "#7c2f36", "#1f639c", "#b8471b")  # the report's
STYLES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
INK, SOFT, LINE = "#1c1d21", "#5d6069", "#dedbd5"
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
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "iterative_ft",  # the same rows give the same file
}


def curves(rows: list[Row], file: Path, title: str) -> None:
    """Trait and coherence of one run. Rows without a score leave a gap; invalid ones are hollow."""
    draw([(title, rows)], file)


def draw(runs: list[tuple[str, list[Row]]], file: Path) -> None:
    """Trait (left) and coherence (right) of one or more runs by their rows, with 95 % intervals."""
    import matplotlib as mpl

    with mpl.rc_context(LOOK):
        figure, axes = grid(1, 2, 9.6, 3.9)
        for axis, name in zip(axes, ("trait", "coherence"), strict=True):
            for number, (label, rows) in enumerate(runs):
                single = len(runs) == 1
                line(axis, rows, name, name if single else label, COLOURS[name] if single else None, number)
            score_axis(axis, [rows for _, rows in runs])
            axis.set_title(f"{name.capitalize()} score")
        axes[0].set_ylabel("score, bands: 95 %")
        if len(runs) > 1:
            legend(figure, axes[0])
        else:
            figure.suptitle(runs[0][0], fontsize=9, color=SOFT, x=0.01, ha="left")
        save(figure, file)


def comparison(runs: list[Run], file: Path, name: str = "trait") -> None:
    """One panel per persona and method, a line per arm (reinit, and what else differs): means over seeds with t intervals.

    An arm with one seed has its run's interval over questions. `name` is "trait" or "coherence".
    """
    import matplotlib as mpl

    from iterative_ft.analysis.runs import differing, groups, label

    arms = groups(runs)
    personas = list(dict.fromkeys(arm.runs[0].config["persona"]["name"] for arm in arms))
    methods = list(dict.fromkeys(arm.runs[0].config["method"]["name"] for arm in arms))
    settings = [name for name in differing(runs) if name not in ("persona.name", "method.name", "seed")]
    labels = [label(arm.runs[0], settings) if settings else f"reinit={arm.runs[0].reinit}" for arm in arms]
    order = list(dict.fromkeys(sorted(labels)))
    with mpl.rc_context(LOOK):
        figure, axes = grid(len(personas), len(methods), max(4.4, 3.3 * len(methods)), 2.5 * len(personas) + 0.5)
        for place, axis in enumerate(axes):
            persona, method = personas[place // len(methods)], methods[place % len(methods)]
            here = [
                (text, arm)
                for text, arm in zip(labels, arms, strict=True)
                if (arm.runs[0].config["persona"]["name"], arm.runs[0].config["method"]["name"]) == (persona, method)
            ]
            axis.set_title(f"{persona} · {method}")
            if not here:
                axis.set_axis_off()
                continue
            for text, arm in here:
                seeds = f" ({len(arm.runs)} seeds)" if len(arm.runs) > 1 else ""
                line(axis, arm.rows(), name, text + seeds, None, order.index(text))
            score_axis(axis, [arm.rows() for _, arm in here])
            if place % len(methods) == 0:
                axis.set_ylabel(f"{name} score")
            axis.legend(fontsize=7.5, loc="best")
        save(figure, file)


def change_by_sampled(runs: list[Run], file: Path) -> None:
    """Change of the trait from cycle 0 to the last against n_sampled, a line per persona, method and reinit."""
    import matplotlib as mpl

    from iterative_ft.analysis.runs import change, groups

    lines: dict[str, list[tuple[int, Group]]] = {}
    for arm in groups(runs):
        config = arm.runs[0].config
        key = f"{config['persona']['name']} · {config['method']['name']} · reinit={arm.runs[0].reinit}"
        lines.setdefault(key, []).append((config["n_sampled"], arm))
    amounts = sorted({amount for points in lines.values() for amount, _ in points})
    with mpl.rc_context(LOOK):
        figure, (axis,) = grid(1, 1, 6.4, 4.0)
        verdicts = [run.verdict for run in runs if run.verdict is not None]
        if verdicts:
            margin = verdicts[0]["margin"]
            axis.axhspan(-margin, margin, color=SOFT, alpha=0.1, linewidth=0, label=f"margin ±{margin:g}")
        axis.axhline(0, color=SOFT, linewidth=0.8)
        for number, (key, points) in enumerate(lines.items()):
            known = [(n, c) for n, arm in sorted(points, key=lambda p: p[0]) if (c := change(arm.verdict)) is not None]
            offset = 1 + 0.012 * (number - (len(lines) - 1) / 2)  # on a log scale: intervals side by side
            axis.errorbar(
                [n * offset for n, _ in known],
                [c.mean for _, c in known],
                yerr=[[c.mean - c.low for _, c in known], [c.high - c.mean for _, c in known]],
                label=key,
                color=PALETTE[number % len(PALETTE)],
                linestyle=STYLES[number // len(PALETTE) % len(STYLES)],
                marker="o",
                markersize=4.5,
                capsize=2.5,
                linewidth=1.6,
                elinewidth=1,
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks(amounts, [str(amount) for amount in amounts], minor=False)
        axis.minorticks_off()
        axis.set_xlabel("examples sampled a cycle, n_sampled")
        axis.set_ylabel("change of the trait score, cycle 0 to last, 95 %")
        axis.legend(fontsize=8)
        save(figure, file)


def grid(n_rows: int, n_columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    return figure, list(panels.flat)


def line(axis: Axes, rows: Sequence[Row], name: str, label: str, colour: str | None, number: int) -> None:
    """One curve with its band; base apart at the left, its level dashed across; invalid cycles hollow."""
    colour = colour or PALETTE[number % len(PALETTE)]
    scored = [row for row in rows if f"{name}/score" in row]
    after = [row for row in scored if row["cycle"] >= 0]
    cycles = range(max((row["cycle"] for row in after), default=-1) + 1)
    by_cycle = {row["cycle"]: row for row in after}

    def values(key: str) -> list[float]:
        return [by_cycle.get(cycle, {}).get(f"{name}/{key}", float("nan")) for cycle in cycles]

    axis.fill_between(cycles, values("low"), values("high"), color=colour, alpha=0.16, linewidth=0)
    style = STYLES[number // len(PALETTE) % len(STYLES)]
    axis.plot(cycles, values("score"), linestyle=style, color=colour, marker="o", markersize=4.5, linewidth=1.8, label=label)
    invalid = [row for row in after if row.get("judge/invalid")]
    x, y = [row["cycle"] for row in invalid], [row[f"{name}/score"] for row in invalid]
    axis.plot(x, y, "o", color="white", markeredgecolor=colour, markeredgewidth=1.5, markersize=7)
    base = next((row for row in scored if row["cycle"] < 0), None)
    if base is not None:
        score = base[f"{name}/score"]
        at = -1 + 0.07 * number
        if f"{name}/low" in base:
            axis.plot([at, at], [base[f"{name}/low"], base[f"{name}/high"]], color=colour, linewidth=1.2, alpha=0.6)
        axis.plot([at], [score], "D", color=colour, markersize=4.5)
        axis.axhline(score, color=colour, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.55)


def score_axis(axis: Axes, of_runs: Sequence[Sequence[Row]]) -> None:
    """0 to 100, with base and the cycles below."""
    last = max((row["cycle"] for rows in of_runs for row in rows), default=0)
    step = max(1, -(-(last + 1) // 10))
    cycles = list(range(0, max(last, 0) + 1, step))
    axis.set_ylim(-1, 101)
    axis.set_yticks([0, 25, 50, 75, 100])
    axis.set_xlim(-1.4, max(last, 0) + 0.35)
    axis.set_xticks([-1, *cycles], ["base", *map(str, cycles)])
    axis.set_xlabel("cycle")


def legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), fontsize=8)


def save(figure: Figure, file: Path) -> None:
    """PNG or SVG, without a date, so that equal rows give equal files."""
    metadata = {"Date": None} if file.suffix == ".svg" else None
    figure.savefig(file, dpi=160, metadata=metadata)
