"""One self-contained HTML file about one or many runs: what was run, verdicts, curves, gauges, training, and the answers.

Everything is in the file: style, script, data; nothing is fetched. Charts and tables are drawn here (`sections.py`,
`charts.py`) and show without JavaScript; the answers are data that `report.js` lays out, as text and never as markup.
"""

from __future__ import annotations

import json
import re
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from iterative_ft.analysis import sections
from iterative_ft.analysis.runs import Run, groups, labels, read_run
from iterative_ft.errors import RunError


def write_report(folders: list[Path], out: Path) -> Path:
    """Write the report of the runs in `folders` to `out`.

    Raises:
        RunError: there is no folder, or one of them holds no run.
    """
    if not folders:
        raise RunError("a report needs at least one run folder")
    runs = [read_run(folder) for folder in folders]
    names, arms = labels(runs), groups(runs)
    parts = {
        "title": escape(sections.title(runs)),
        "style": asset("report.css"),
        "script": asset("report.js"),
        "data": script_safe(answer_data(runs, names)),
        "header": sections.header(runs, names),
        "verdicts": sections.verdicts(runs, names, arms),
        "curves": sections.curves(runs, names, arms),
        "training": sections.path_and_training(runs, names, arms),
        "gauges": sections.gauges(arms),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], asset("report.html"))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def asset(name: str) -> str:
    """A file that is shipped beside this module."""
    return files("iterative_ft.analysis").joinpath(name).read_text(encoding="utf-8")


def script_safe(value: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def answer_data(runs: list[Run], names: list[str]) -> dict[str, Any]:
    """Answers by run, question and cycle: `questions[i].rows[j][k]` is answer j of cycle `cycles[k]` to question i, or null."""
    return {"runs": [run_answers(run, name) for run, name in zip(runs, names, strict=True)]}


def run_answers(run: Run, name: str) -> dict[str, Any]:
    cycles = sorted({row["cycle"] for row in run.answers})
    cells: dict[str, dict[int, dict[int, dict[str, Any]]]] = {}
    for row in run.answers:
        cells.setdefault(row["question"], {}).setdefault(row["number"], {})[row["cycle"]] = cell(row)
    questions = [
        {"text": text, "rows": [[numbers[n].get(cycle) for cycle in cycles] for n in sorted(numbers)]}
        for text, numbers in cells.items()
    ]
    invalid = [row["cycle"] for row in run.measured if row.get("judge/invalid")]
    return {"label": name, "cycles": cycles, "invalid": invalid, "questions": questions}


def cell(row: dict[str, Any]) -> dict[str, Any]:
    """One answer in few letters: a report holds thousands."""
    short: dict[str, Any] = {"a": row["answer"]}
    for key, name in (("t", "trait"), ("c", "coherence")):
        if row[name] is not None:
            short[key] = round(row[name], 1)
    if row["flaw"] is not None:
        short["flaw"] = row["flaw"].replace("_", " ")
    if row["failure"] is not None:
        short["failure"] = row["failure"]
    if row["finish_reason"] == "length":
        short["cut"] = 1
    return short
