"""A multirun as a whole: a cell that fails does not stop the others, and at the end comes one summary of all of them."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iterative_ft.errors import RunError
from iterative_ft.launch import guard
from iterative_ft.launch.compose import job
from iterative_ft.launch.guard import reason
from iterative_ft.machine.files import read_object
from iterative_ft.records.folder import CONFIG, MANIFEST, PAGE, RESULT
from iterative_ft.records.read import read_run
from iterative_ft.records.terminal import change_text, text_table
from iterative_ft.report.arms import FIRST, arms_of, differing, in_few_letters, not_pooled, settings_of
from iterative_ft.report.page import write_page
from iterative_ft.sampling import engine

SUMMARY = "summary.csv"  # in the sweep's folder


@dataclass(frozen=True)
class Cell:
    """One job of a multirun, after it ended."""

    overrides: list[str]
    folder: Path | None
    """None when its process died before it had one."""
    error: str | None


def run_cell(task: Callable[[Any], Any], composed: Any) -> Any:
    """Run one cell; its failure is told at once, and handed on in a form that survives pickling."""
    try:
        return task(composed)
    except BaseException as error:  # libraries written in Rust raise panics that are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        if guard.PRESSED:  # Ctrl-C broke a library off, which made an error of its own of it
            raise KeyboardInterrupt from error
        engine.close_sampler()  # whatever failed may have left it in a state of its own
        folder, _ = job()
        print(f"error: the cell {folder.name} failed, the others go on: {reason(error)}", file=sys.stderr)
        raise RunError(reason(error)) from None


def finish(folder: Path, cells: Sequence[Cell]) -> None:
    """Table, summary.csv and report.html of the cells that ended well, what they shared, and a line for each that failed.

    Raises:
        RunError: a cell has failed; the others' results are written.
    """
    done = [cell.folder for cell in cells if cell.error is None and cell.folder is not None]
    done = [path for path in done if (path / RESULT).is_file()]
    failed = [cell for cell in cells if cell.error is not None]
    try:
        if done:
            summarise(folder, done, len(cells))
    except Exception as error:
        if not failed:
            raise
        print(f"error: no summary of the other cells: {reason(error)}", file=sys.stderr)
    if failed:
        lines = [f"  {' '.join(cell.overrides)}: {cell.error}" for cell in failed]
        text = f"{len(failed)} of {len(cells)} cells failed; the same command finishes what is missing:"
        raise RunError("\n".join([text, *lines]))


def summarise(folder: Path, done: list[Path], n_cells: int) -> None:
    """Write and print what the finished runs of a sweep with `n_cells` cells came to."""
    runs = [read_run(path) for path in done]
    names = differing([run.config for run in runs])
    rows = [summary_row(path, names) for path in done]
    write_csv(folder / SUMMARY, rows)
    print(f"\n{len(done)} of {n_cells} cells\n{summary_table(rows, names)}\n{sharing(done)}\nsummary {folder / SUMMARY}")
    for line in not_pooled(arms_of(runs)):
        print(line)
    write_page(done, folder / PAGE)
    print(f"report  {folder / PAGE}", flush=True)


def summary_row(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """A cell in one row: what it was, and what became of its trait.

    Args:
        names: of the settings in which the cells differ.
    """
    config, result, manifest = (read_object(folder / name) for name in (CONFIG, RESULT, MANIFEST))
    settings = settings_of(config)
    first, last = result["rows"][1], result["rows"][-1]
    change = result["verdict"].get("trait_change") or {}
    how = [stage["how"] for stage in manifest["stages"]]
    return {
        "cell": folder.name,
        "model": config["model"]["name"],
        "method": config["method"]["name"],
        "reinit": str(config["reinit"]["init"] == "base").lower(),
        "persona": config["persona"]["name"],
        "n_seed": config["n_seed"],
        "n_sampled": config["n_sampled"],
        "n_cycles": config["n_cycles"],
        "seed": config["seed"],
        **{name.removesuffix(".name"): settings.get(name) for name in names if name not in FIRST},
        "verdict": result["verdict"]["verdict"],
        "trait_base": result["rows"][0].get("trait/score"),
        "trait_first": first.get("trait/score"),
        "trait_last": last.get("trait/score"),
        "trait_change": change.get("mean"),
        "trait_change_low": change.get("low"),
        "trait_change_high": change.get("high"),
        "coherence_first": first.get("coherence/score"),
        "coherence_last": last.get("coherence/score"),
        "stages_built": how.count("built"),
        "stages_reused": how.count("stored"),
        "seconds": result["time"]["time/total_s"],
    }


def write_csv(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def summary_table(rows: list[dict[str, Any]], names: Sequence[str]) -> str:
    """The rows as text: the settings that differ between the cells, then the scores."""
    shown = [name.removesuffix(".name") for name in names]
    header = [*shown, "base", "cycle 0", "last", "change [95 %]", "coherence", "verdict", "built", "reused"]
    lines = [header]
    for row in rows:
        change = "n/a"
        if row["trait_change"] is not None:
            change = change_text(row["trait_change"], row["trait_change_low"], row["trait_change_high"])
        lines.append(
            [
                *(in_few_letters(str(row[name])) for name in shown),
                *(score(row[name]) for name in ("trait_base", "trait_first", "trait_last")),
                change,
                f"{score(row['coherence_first'])} to {score(row['coherence_last'])}",
                row["verdict"],
                str(row["stages_built"]),
                str(row["stages_reused"]),
            ]
        )
    return text_table(lines)


def score(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1f}"


def sharing(folders: Sequence[Path]) -> str:
    """What the cells had in common, and how much of it was there before."""
    uses = [
        (stage["kind"], stage["key"], stage["how"]) for folder in folders for stage in read_object(folder / MANIFEST)["stages"]
    ]
    distinct = {use[:2] for use in uses}
    built = {use[:2] for use in uses if use[2] == "built"}
    return (
        f"{len(uses)} stages in all cells, {len(distinct)} of them distinct: {len(built)} built, "
        f"{len(distinct) - len(built)} in the store before, {len(uses) - len(distinct)} shared between cells"
    )
