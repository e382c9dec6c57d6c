"""One self-contained HTML file about one or many runs: what was run, verdicts, scores, training, gauges, and the answers.

Everything is in the file and nothing is fetched. Charts and tables show without JavaScript; the answers are data that
`templates/report.js` lays out, as text and never as markup.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from iterative_ft.errors import RunError
from iterative_ft.records.read import NumberedAnswer, Run, read_run
from iterative_ft.report import sections, series, summary, tables
from iterative_ft.report.arms import arms_of, labels
from iterative_ft.report.axes import constant, number_text
from iterative_ft.report.control import control_table

TEMPLATES = Environment(
    loader=PackageLoader("iterative_ft.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}


def write_page(folders: list[Path], out: Path) -> Path:
    """Write the report of the runs in `folders` to `out`.

    Raises:
        RunError: there is no folder, or one of them holds no run.
    """
    if not folders:
        raise RunError("a report needs at least one run folder")
    return write_page_of([read_run(folder) for folder in folders], out)


def write_page_of(runs: list[Run], out: Path) -> Path:
    """Write the report of runs that were read."""
    page = TEMPLATES.get_template("report.html").render(context(runs))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def context(runs: list[Run]) -> dict[str, Any]:
    """All that the templates lay out."""
    names, arms = labels(runs), arms_of(runs)
    in_arms = {id(run) for arm in arms for run in arm.runs}
    named = [(name, run) for name, run in zip(names, runs, strict=True) if id(run) in in_arms]
    gauges = sections.gauge_values(arms)
    still = [name for name, values in gauges.items() if constant(values) or not any(run.cycles for run in runs)]
    return {
        "runs": runs,
        "single": len(runs) == 1,
        "over_seeds": any(len(arm.runs) > 1 for arm in arms),
        "title": summary.title(runs),
        "facts": summary.facts(runs),
        "unfinished": [(name, run) for name, run in zip(names, runs, strict=True) if run.result is None],
        "counts": summary.counts(runs, arms),
        "verdict": next((run.verdict for run in runs if run.verdict is not None), None),
        "verdict_rows": summary.verdict_rows(runs, names, arms),
        "charts": {
            "scores": sections.score_panels(arms),
            "runs": sections.run_charts(runs, names),
            "path": sections.path_charts(arms),
            "training": sections.training_charts(named, arms),
            "gauges": sections.gauge_charts(arms, [name for name in gauges if name not in still]),
        },
        "tables": {
            "runs": tables.run_table(runs),
            "settings": tables.settings_table(runs),
            "scores": tables.score_table(arms),
            "loss": tables.loss_table(named),
            "gauges": tables.gauge_table(arms, list(gauges)),
            "controls": control_table(arms),
        },
        "still": [f"{tables.gauge_name(name)} {number_text(gauges[name][0])}" for name in still],
        "answers": {"runs": [run_answers(run, name) for run, name in zip(runs, names, strict=True)]},
        "colours": series.COLOURS,
        "series_colours": (*series.NUMBERED, *series.SCORES, "ink"),
    }


def run_answers(run: Run, label: str) -> dict[str, Any]:
    """A run's answers: `questions[i].rows[j][k]` is answer j of cycle `cycles[k]` to question i, or null."""
    cycles = sorted({row["cycle"] for row in run.answers})
    answers: dict[str, dict[int, dict[int, dict[str, Any]]]] = {}
    for row in run.answers:
        answers.setdefault(row["question"], {}).setdefault(row["number"], {})[row["cycle"]] = short(row)
    questions = [
        {"text": text, "rows": [[numbers[n].get(cycle) for cycle in cycles] for n in sorted(numbers)]}
        for text, numbers in answers.items()
    ]
    invalid = [row["cycle"] for row in run.measured if row.get("judge/invalid")]
    return {"label": label, "cycles": cycles, "invalid": invalid, "questions": questions}


def short(row: NumberedAnswer) -> dict[str, Any]:
    """One answer in few letters, without what it lacks: a page holds thousands."""
    trait, coherence, flaw = row["trait"], row["coherence"], row["flaw"]
    found = {
        "a": row["answer"],
        "t": None if trait is None else round(trait, 1),
        "c": None if coherence is None else round(coherence, 1),
        "flaw": None if flaw is None else flaw.replace("_", " "),
        "failure": row["failure"],
        "mark": row.get("mark"),
        "cut": 1 if row["finish_reason"] == "length" else None,
    }
    return {name: value for name, value in found.items() if value is not None}
