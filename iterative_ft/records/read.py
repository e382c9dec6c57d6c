"""Run folders, finished or not, read back: config, rows, answers, result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iterative_ft.errors import RunError
from iterative_ft.machine.files import read_jsonl, read_object
from iterative_ft.records.folder import ANSWERS, CODE, COMMAND, CONFIG, MANIFEST, METRICS, RESULT
from iterative_ft.records.rows import AnswerRow, MetricRow
from iterative_ft.records.shapes import SavedAnswer, SavedCode, SavedConfig, SavedManifest, SavedResult, hold, hold_rows


class NumberedAnswer(AnswerRow):
    """A row of answers.jsonl."""

    number: int
    """Which answer to its question it is."""


@dataclass(frozen=True)
class Run:
    """What one run folder holds."""

    folder: Path
    config: dict[str, Any]
    code: dict[str, Any]
    command: str
    measured: list[MetricRow]
    """A row per measured policy, base (cycle -1) first."""
    training: list[MetricRow]
    answers: list[NumberedAnswer]
    result: dict[str, Any] | None
    """result.json, or None while the run is unfinished."""
    made: dict[str, Any] | None = None
    """What it was made with (stats/replicates.py); None for a run from before that was kept."""

    @property
    def reinit(self) -> str:
        return "true" if self.config["reinit"]["init"] == "base" else "false"

    @property
    def verdict(self) -> dict[str, Any] | None:
        return None if self.result is None else self.result.get("verdict")

    @property
    def base(self) -> MetricRow | None:
        return next((row for row in self.measured if row["cycle"] < 0), None)

    @property
    def cycles(self) -> list[MetricRow]:
        """The measured rows of cycles 0, 1, ..."""
        return [row for row in self.measured if row["cycle"] >= 0]


def read_run(folder: Path) -> Run:
    """Read a run folder. Of rows that were written twice (a run repeated in its folder) the last count.

    Raises:
        RunError: the folder holds no run, or a file of it is damaged: the message names it.
    """
    try:
        return run_of(folder)
    except OSError as error:
        raise RunError(f"{folder}: {error.filename} cannot be read ({error.strerror})") from error


def run_of(folder: Path) -> Run:
    """What the folder's files hold."""
    if not (folder / CONFIG).is_file():
        raise RunError(f"{folder} is not a run folder: it has no {CONFIG}")
    config = read_object(folder / CONFIG)
    hold(SavedConfig, config, folder / CONFIG)
    rows = read_rows(folder)
    measured = {row["cycle"]: row for row in rows if "cycle" in row}
    training = {row["train/global_step"]: row for row in rows if "train/global_step" in row}
    answers = read_jsonl(folder / ANSWERS, torn=True)
    for number, answer in enumerate(answers, 1):
        hold(SavedAnswer, answer, folder / ANSWERS, number)
    result = read_result(folder)
    command = folder / COMMAND
    return Run(
        folder=folder,
        config=config,
        code=read_code(folder),
        command=command.read_text(encoding="utf-8", errors="replace").strip() if command.is_file() else "",
        measured=[measured[cycle] for cycle in sorted(measured)],
        training=[training[step] for step in sorted(training)],
        answers=numbered(answers, measured),
        result=result,
        made=read_made(folder, rows),
    )


def read_rows(folder: Path) -> list[MetricRow]:
    """The rows of metrics.jsonl, without one that a kill cut off; none where there is no file.

    Raises:
        RunError: the file is damaged.
    """
    rows = read_jsonl(folder / METRICS, torn=True)
    hold_rows(rows, folder / METRICS)
    return rows


def read_result(folder: Path) -> dict[str, Any] | None:
    """result.json; None while the run is unfinished."""
    if not (folder / RESULT).is_file():
        return None
    result = read_object(folder / RESULT)
    hold(SavedResult, result, folder / RESULT)
    hold_rows(result["rows"], folder / RESULT)
    return result


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json: the stages of a run and what it was made with."""
    if not (folder / MANIFEST).is_file():
        raise RunError(f"{folder} holds no {MANIFEST}: the run's own command makes it again")
    manifest = read_object(folder / MANIFEST)
    hold(SavedManifest, manifest, folder / MANIFEST)
    return manifest


def read_made(folder: Path, rows: list[MetricRow]) -> dict[str, Any] | None:
    """What a run was made with. Of an older one only its judges are known, from its rows; None where not even they are."""
    made = (read_manifest(folder).get("made") if (folder / MANIFEST).is_file() else None) or {}
    judges = sorted({row["judge/version"] for row in rows if "judge/version" in row})
    return {**made, "judges": judges} if made or judges else None


def read_code(folder: Path) -> dict[str, Any]:
    """code.json: the commit that a run was made at; empty where it is not known."""
    if not (folder / CODE).is_file():
        return {}
    code = read_object(folder / CODE)
    hold(SavedCode, code, folder / CODE)
    return code


def numbered(answers: list[AnswerRow], measured: dict[int, MetricRow]) -> list[NumberedAnswer]:
    """The last set of answers of every cycle, each with its number among the answers to its question."""
    kept: list[NumberedAnswer] = []
    for cycle in sorted({row["cycle"] for row in answers}):
        of_cycle = [row for row in answers if row["cycle"] == cycle]
        n = measured[cycle].get("answers/n", len(of_cycle)) if cycle in measured else len(of_cycle)
        seen: dict[str, int] = {}
        for row in of_cycle[-n:]:
            number = seen[row["question"]] = seen.get(row["question"], -1) + 1
            kept.append({**row, "number": number})
    return kept
