"""One self-contained HTML file about texts made elsewhere and their scores. It needs no JavaScript."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iterative_ft.report import series
from iterative_ft.report.page import TEMPLATES

MOST_SHOWN = 2000  # texts on a page; all of them are in answers.jsonl
BINS = tuple(range(0, 100, 10))


def write_judged(found: dict[str, Any], table: Sequence[Sequence[str]], rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Write the page.

    Args:
        found: what scores.json holds.
        table: its lines for readers.
        rows: those of answers.jsonl.
    """
    page = TEMPLATES.get_template("judged.html").render(
        found=found,
        table=table,
        histograms={name: histogram([row[name] for row in rows]) for name in series.SCORES},
        rows=rows[:MOST_SHOWN],
        n_left=max(0, len(rows) - MOST_SHOWN),
        colours=series.COLOURS,
        series_colours=(*series.NUMBERED, *series.SCORES, "ink"),
    )
    out.write_text(page, encoding="utf-8")


def histogram(scores: Sequence[float | None]) -> list[tuple[str, int, float]]:
    """Name, count and share of the largest count of each tenth of the scale; 100 counts into the last."""
    known = [score for score in scores if score is not None]
    counts = [sum(low <= min(score, 99.999) < low + 10 for score in known) for low in BINS]
    return [(f"{low}-{low + 10}", n, n / max(1, *counts)) for low, n in zip(BINS, counts, strict=True)]
