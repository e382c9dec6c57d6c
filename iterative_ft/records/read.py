"""Run folders, finished or not, read back: config, rows, answers, result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iterative_ft.errors import RunError
from iterative_ft.machine.files import read_jsonl
from iterative_ft.records.rows import AnswerRow, MetricRow
from iterative_ft.records.run_log import ANSWERS, METRICS, RESULT


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
        RunError: the folder holds no run.
    """
    if not (folder / "config.json").is_file():
        raise RunError(f"{folder} is not a run folder: it has no config.json")
    rows = read_jsonl(folder / METRICS, torn=True)
    measured = {row["cycle"]: row for row in rows if "cycle" in row}
    training = {row["train/global_step"]: row for row in rows if "train/global_step" in row}
    command = folder / "command.txt"
    return Run(
        folder=folder,
        config=json.loads((folder / "config.json").read_text()),
        code=read_object(folder / "code.json") or {},
        command=command.read_text().strip() if command.is_file() else "",
        measured=[measured[cycle] for cycle in sorted(measured)],
        training=[training[step] for step in sorted(training)],
        answers=numbered(read_jsonl(folder / ANSWERS, torn=True), measured),
        result=read_object(folder / RESULT),
    )


def read_object(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.is_file() else None


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
