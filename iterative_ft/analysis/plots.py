"""Pictures of a run: trait and coherence against cycle, with intervals and the base model's level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"trait": "#b5382e", "coherence": "#2f5d8a"}


def curves(rows: list[dict[str, Any]], file: Path, title: str) -> None:
    """Draw `curves.png`. Rows without a score leave a gap; invalid ones are hollow."""
    draw([(title, rows)], file)


def draw(runs: list[tuple[str, list[dict[str, Any]]]], file: Path) -> None:
    """Trait (left) and coherence (right) of one or more runs, means with 95 % intervals over questions."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, constrained_layout=True)
    styles = ["-", "--", ":", "-."]
    for axis, name in zip(axes, ("trait", "coherence"), strict=True):
        for number, (label, rows) in enumerate(runs):
            colour = COLOURS[name] if len(runs) == 1 else f"C{number}"
            after = [r for r in rows if r["cycle"] >= 0 and f"{name}/score" in r]
            x = [r["cycle"] for r in after]
            y = [r[f"{name}/score"] for r in after]
            axis.fill_between(
                x, [r[f"{name}/low"] for r in after], [r[f"{name}/high"] for r in after], color=colour, alpha=0.18, linewidth=0
            )
            axis.plot(x, y, styles[number % 4], color=colour, marker="o", markersize=4, label=label if len(runs) > 1 else name)
            invalid = [r for r in after if r.get("judge/invalid")]
            axis.plot(
                [r["cycle"] for r in invalid],
                [r[f"{name}/score"] for r in invalid],
                "o",
                color="white",
                markeredgecolor=colour,
                markersize=8,
            )
            base = next((r for r in rows if r["cycle"] < 0 and f"{name}/score" in r), None)
            if base is not None and number == 0:
                axis.axhline(base[f"{name}/score"], color="#666666", linewidth=1, linestyle=(0, (4, 3)), label="base model")
                axis.axhspan(base[f"{name}/low"], base[f"{name}/high"], color="#999999", alpha=0.12, linewidth=0)
        axis.set_title(f"{name} score", fontsize=11)
        axis.set_xlabel("cycle")
        axis.set_ylim(0, 100)
        axis.set_xticks(sorted({r["cycle"] for _, rows in runs for r in rows if r["cycle"] >= 0}))
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9)
    axes[0].set_ylabel("score, 0 to 100 (bands: 95 % over questions)")
    figure.suptitle(runs[0][0] if len(runs) == 1 else file.stem.replace("_", " "), fontsize=10)
    figure.savefig(file, dpi=150)
    plt.close(figure)
