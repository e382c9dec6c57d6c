"""The answers that runs kept, scored by another judge: the same records with other scores, made without weights.

What a policy answered stands in its run's answers.jsonl; that is all a judge needs. Gauges stay as they are. Documents are not
kept there, so SDF's scores of documents are left out.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from iterative_ft.config.schema import Config
from iterative_ft.config.tasks import Rejudge
from iterative_ft.errors import RunError
from iterative_ft.machine.files import read_object, write_json, write_jsonl
from iterative_ft.records.folder import ANSWERS, CONFIG, MANIFEST, METRICS, PICTURE, RESULT
from iterative_ft.records.keep import KEPT, name_of, names_of
from iterative_ft.records.provenance import made_and_judged_now
from iterative_ft.records.read import Run, read_manifest, read_rows, read_run
from iterative_ft.records.rows import AnswerRow, MetricRow, scored, scored_values
from iterative_ft.report.pictures import draw_run
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.judge import judge, judge_version, scores_of
from iterative_ft.stages.labelled import labelled_stage
from iterative_ft.stats.verdict import curve_of, run_verdict
from iterative_ft.store import Store

OF_A_JUDGE = ("trait/", "coherence/", "judge/")  # beginnings of names in a row


def rejudge(task: Rejudge, configs: dict[Path, Config], command: str) -> list[Path]:
    """Write each run with its new scores into a folder below `task.out`. Returns these folders.

    Args:
        configs: run folder -> the run's config with the task's judge and store.

    Raises:
        RunError: a run cannot be read, is not finished, is there twice, or would be written over another's records.
    """
    runs = {folder: read_run(folder) for folder in configs}  # damage is told before anything is judged
    unfinished = [folder for folder, run in runs.items() if run.result is None]
    if unfinished:
        raise RunError(f"{unfinished[0]} is not finished: its own command goes on with it")
    found: dict[Path, Path] = {}
    for (folder, run), name in zip(runs.items(), names_of(list(runs.values())), strict=True):
        out = Path(task.out) / name
        if out in found:
            raise RunError(f"{folder} is a run of the same settings and seed as {found[out]}: leave one of them out")
        check_free(out, run)
        without = [row["cycle"] for row in run.measured if not any(a["cycle"] == row["cycle"] for a in run.answers)]
        if without:
            raise RunError(f"{folder} keeps no answers of cycle {without[0]}: it cannot be judged again")
        found[out] = folder
    for out, folder in found.items():
        one(runs[folder], configs[folder], out)
        print(f"{out}")
    print(f"{command}\ncompare python evaluate.py task=compare runs={task.out}")
    return list(found)


def check_free(out: Path, run: Run) -> None:
    """Raise `RunError` where `out` holds anything but an earlier judging of this run."""
    if out.resolve() == run.folder.resolve():
        raise RunError(f"{run.folder} would be written over: name another folder as out=")
    if (out / CONFIG).is_file():
        had, own = ({k: v for k, v in config.items() if k != "judge"} for config in (read_object(out / CONFIG), run.config))
        if had != own:
            raise RunError(f"{out} holds another run than {run.folder}: remove it, or name another folder as out=")


def one(run: Run, config: Config, out: Path) -> None:
    """Judge a run's answers and write its records; result.json comes last."""
    bench = Bench(config, Store(Path(config.store), run_folder=out))
    answers = [row for measured in run.measured for row in judged_anew(bench, run, measured["cycle"])]
    rows = [with_scores(config, row, answers) for row in read_rows(run.folder)]
    measured = [with_scores(config, row, answers) for row in run.measured]
    judges = sorted({row["judge/version"] for row in measured})
    made = {**made_and_judged_now(config, run.made), "judges": judges}
    out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (run.folder / name).is_file() and name != RESULT:
            shutil.copyfile(run.folder / name, out / name)
    write_json(out / CONFIG, {**run.config, "judge": config.judge.model_dump(mode="json")})
    write_json(out / MANIFEST, {**read_manifest(run.folder), "made": made})
    write_jsonl(out / METRICS, rows)
    write_jsonl(out / ANSWERS, answers)
    draw_run(config)(measured, out / PICTURE)
    verdict = run_verdict(curve_of(answers, config.model_dump(), out.name, made))
    assert run.result is not None
    write_json(out / RESULT, {**run.result, "verdict": verdict.as_dict(), "rows": measured, "made": made})


def judged_anew(bench: Bench, run: Run, cycle: int) -> list[AnswerRow]:
    """The answers of a cycle with new scores."""
    rows = [row for row in run.answers if row["cycle"] == cycle]
    texts = [(row["question"], row["answer"]) for row in rows]
    answers = labelled_stage(bench, texts, [row["finish_reason"] for row in rows])
    policy = rows[0]["policy"]
    stage = judge(bench, answers, f"judge {policy} of {name_of(run)}", {"policy": policy, "role": "scores"})
    return [
        scored(cycle, policy, (row["question"], row["answer"], row["finish_reason"]), score, judge_version(stage))
        for row, score in zip(rows, scores_of(stage), strict=True)
    ]


def with_scores(config: Config, row: MetricRow, answers: list[AnswerRow]) -> MetricRow:
    """A row with the new scores of its cycle; rows of training and times stay as they are."""
    if "cycle" not in row:
        return row
    kept = {name: value for name, value in row.items() if not name.startswith(OF_A_JUDGE)}
    return kept | scored_values(config, [a for a in answers if a["cycle"] == row["cycle"]])  # type: ignore[return-value]
