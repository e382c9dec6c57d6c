"""What is done with finished runs: measured again by another judge, compared, and written to W&B anew.

A run's own files are never touched. Its policies and answers are found in the store by the stage keys that its manifest holds.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from iterative_ft.analysis import plots
from iterative_ft.analysis import runs as run_folders
from iterative_ft.analysis.report import write_report
from iterative_ft.analysis.verdict import run_verdict
from iterative_ft.config import Config, judged, plain_values
from iterative_ft.costs import distinct_stages, seconds_of
from iterative_ft.display import interval_text, minutes, text_table
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.lab import Answers, Lab, Trained
from iterative_ft.policy import Policy
from iterative_ft.results import Scores, curve, metric_row, scores_of
from iterative_ft.store import Event, Stage, Store, text_digest
from iterative_ft.tasks import Compare, Remeasure, Wandb
from iterative_ft.tracking import RunLog, WandbLog, rows_of
from iterative_ft.training.job import ADAPTER

# -- a run, measured again ----------------------------------------------------------------------------------------------------


def run_config(run: Path) -> Config:
    """The config that a run recorded; settings that are newer than the run take today's defaults."""
    try:
        saved = json.loads((run / "config.json").read_text(encoding="utf-8"))
        saved["persona"]["rubric"] = {int(at): text for at, text in saved["persona"]["rubric"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"run={run}: its config.json is damaged ({error})") from error
    try:
        return judged(Config, saved)
    except ConfigError:
        saved = with_defaults(saved)
    try:
        return judged(Config, saved)
    except ConfigError as error:
        raise ConfigError(f"run={run} was made by another version of this code: {error}") from error


def with_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """`saved` with today's defaults where it has no value. A persona and a model have none: their settings are their own."""
    from iterative_ft.cli import compose_jobs

    groups = [f"{group}={saved[group]['name']}" for group in ("method", "sampler", "judge") if group in saved]
    defaults = plain_values(next(iter(compose_jobs(groups, False, [])))[1])

    def filled(default: Any, value: Any) -> Any:
        if not isinstance(default, dict) or not isinstance(value, dict):
            return value
        return {**default, **{key: filled(default.get(key), inner) for key, inner in value.items()}}

    own = {name: saved[name] for name in ("persona", "model", "reinit") if name in saved}
    return filled(defaults, saved) | own


def changed(task: Remeasure) -> Config:
    """The run's config with what the task changes."""
    config = run_config(Path(task.run))
    asked = {"n_questions": task.n_questions, "n_answers": task.n_answers}
    measure = config.measure.model_copy(update={name: value for name, value in asked.items() if value is not None})
    parts = {"judge": task.judge, "persona": task.persona, "store": task.store}
    new = {name: value for name, value in parts.items() if value is not None}
    wandb = config.wandb.model_copy(update={"mode": "disabled"})
    return config.model_copy(update={"measure": measure, "wandb": wandb, "dry_run": False, **new})


def remeasure(task: Remeasure, command: str) -> Path | None:
    """Write a second set of scores and a report into <run>/evaluations/<judge>-<hash>/. Returns that folder."""
    run, config = Path(task.run), changed(task)
    stages = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["stages"]
    planned: list[Event] = []
    list(measured_again(config, task, Lab(config, Store(Path(config.store), dry_run=True, on_event=planned.append)), stages))
    if task.dry_run:
        print(planned_text(config, planned))
        return None
    what = {"judge": config.judge.model_dump(), "measure": config.measure.model_dump(), "persona": config.persona.model_dump()}
    what["persona"]["rubric"] = {str(at): text for at, text in config.persona.rubric.items()}
    folder = run / "evaluations" / f"{config.judge.name}-{text_digest(what)[:8]}"
    print(f"{folder}\n{command}")
    with RunLog(config, folder, command, planned) as log:
        store = Store(Path(config.store), on_event=log.stage, run_folder=folder)
        store.on_start = log.stage_started
        lab = Lab(config, store)
        cycles: list[int] = []
        rows: list[dict[str, Any]] = []
        scores: list[Scores] = []
        for cycle, measured, trained in measured_again(config, task, lab, stages):
            log.cycle = cycle
            cycles.append(cycle)
            rows.append(metric_row(config, cycle, measured, trained))
            scores.append(scores_of(measured))
            log.measured(rows[-1], scores[-1])
        log.finish(rows, run_verdict(curve(config, folder.name, cycles, scores)).as_dict(), lab.engine_start_s)
    print(f"report  {write_report([run, folder], folder / 'report.html')}")
    return folder


def planned_text(config: Config, planned: list[Event]) -> str:
    """A dry run's answer: the stages, which of them the store holds, and what the rest takes."""
    stages = distinct_stages([config], [planned])
    seconds = seconds_of(stages)
    pending = [stage for stage in stages if stage.event.how == "pending"]
    lines = [
        f"{'to build' if s.event.how == 'pending' else 'in store':9} {s.event.stage.kind:7} {s.event.stage.manifest['label']}"
        for s in stages
    ]
    n_calls = sum(stage.n for stage in pending if stage.event.stage.kind == "replies")
    calls = f", {n_calls} or more calls of the judge" if n_calls else ""
    about = minutes(sum(seconds[stage.name] for stage in pending))
    lines.append(f"{len(pending)} stages to build, {len(stages) - len(pending)} in the store; about {about}{calls}")
    return "\n".join(lines)


def measured_again(config: Config, task: Remeasure, lab: Lab, stages: list[dict[str, Any]]) -> Any:
    """Yield (cycle, measured, trained) of base and every cycle whose policy the run finished."""
    as_before = task.n_questions is None and task.n_answers is None and task.persona is None
    base = lab.base_policy()
    yield -1, lab.measure(base, stored_answers(lab.store, stages, -1, base) if as_before else None), None
    for cycle in range(config.n_cycles + 1):
        if cycle == 0 and config.start_adapter is not None:
            trained = lab.adopt(Path(config.start_adapter))
        else:
            keys = [s["key"] for s in stages if s["kind"] == "train" and s["label"].startswith(f"train policy[{cycle}] ")]
            if not keys:
                return  # the run ended before
            trained = stored_policy(lab, base, keys[-1], cycle)
        written = stored_answers(lab.store, stages, cycle, trained.policy) if as_before else None
        yield cycle, lab.measure(trained.policy, written), trained


def stored_policy(lab: Lab, base: Policy, key: str, cycle: int) -> Trained:
    """policy[cycle] from the store."""
    stage = lab.store.find("train", key, verify=not lab.store.dry_run)
    if stage is None:
        raise RunError(
            f"the adapter of policy[{cycle}] (train/{key}) is not in store={lab.store.root}: run the run's own command again, "
            "which trains it anew, or name the store with store=<folder>"
        )
    policy = Policy(f"policy[{cycle}]", base.model, base.model_digest, stage.path / ADAPTER, stage.digest)
    return Trained(policy, stage, None, {})


def stored_answers(
    store: Store, stages: list[dict[str, Any]], cycle: int, policy: Policy
) -> tuple[Answers, Answers | None] | None:
    """What a policy answered in its run, whatever the questions' file holds by now. None where the store lost any of it."""
    found: dict[str, list[Stage]] = {"answers": [], "documents": []}
    for entry in stages:
        for what, blocks in found.items():
            label = f"{what} of {policy.name}"
            if entry["kind"] == "answer" and entry["cycle"] == cycle and f"{entry['label']} ".startswith(f"{label} "):
                stage = store.find("answer", entry["key"], verify=not store.dry_run)
                if stage is None:
                    return None
                store.used[f"answer/{entry['key']}"] = entry["label"]
                store.on_event(Event(stage, "stored", 0.0, 0.0))
                blocks.append(stage)
    if not found["answers"]:
        return None
    return Answers(found["answers"]), Answers(found["documents"]) if found["documents"] else None


# -- many runs ----------------------------------------------------------------------------------------------------------------

COLUMNS = ("run", "judge", "cycles", "base", "cycle 0", "last", "change", "verdict", "coherence 0", "coherence last", "invalid")


def compare(task: Compare, command: str) -> Path:
    """One table (printed, compare.csv, compare.md) and one report of many runs. Returns the folder written."""
    folders = task.folders()
    runs = [run_folders.read_run(folder) for folder in folders]
    rows = [compared(run, label) for run, label in zip(runs, run_folders.labels(runs), strict=True)]
    arms = [group for group in run_folders.groups(runs) if len(group.runs) > 1]
    rows += [over_seeds(group) for group in arms]
    print(text_table([list(COLUMNS), *[[row[name] for name in COLUMNS] for row in rows]]))
    out = Path(task.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "compare.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    lines = [[name.replace("|", "\\|") for name in row] for row in (COLUMNS, ["---"] * len(COLUMNS))]
    lines += [[row[name].replace("|", "\\|") for name in COLUMNS] for row in rows]
    (out / "compare.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")
    write_report(folders, out / "report.html")
    plots.draw([(label, run.measured) for run, label in zip(runs, run_folders.labels(runs), strict=True)], out / "curves.png")
    print(f"{command}\ntable   {out / 'compare.csv'}, {out / 'compare.md'}")
    print(f"picture {out / 'curves.png'}\nreport  {out / 'report.html'}")
    return out


def compared(run: run_folders.Run, label: str) -> dict[str, str]:
    """A run's line of the table."""
    cycles = run.cycles
    first, last = (cycles[0], cycles[-1]) if cycles else ({}, {})
    n_planned = run.config["n_cycles"] + 1
    return {
        "run": label,
        "judge": str((run.base or {}).get("judge/version", run.config["judge"]["name"])),
        "cycles": f"{len(cycles)}" if len(cycles) == n_planned else f"{len(cycles)} of {n_planned}",
        "base": interval_text(run.base or {}, "trait"),
        "cycle 0": interval_text(first, "trait"),
        "last": interval_text(last, "trait"),
        "change": change_text(run.verdict),
        "verdict": "unfinished" if run.verdict is None else run.verdict["verdict"],
        "coherence 0": interval_text(first, "coherence"),
        "coherence last": interval_text(last, "coherence"),
        "invalid": str(sum(bool(row.get("judge/invalid")) for row in run.measured)),
    }


def over_seeds(group: run_folders.Group) -> dict[str, str]:
    """A line for runs that differ in nothing but the seed: means over seeds, and their common verdict."""
    rows, verdict = group.rows(), group.verdict
    base, trained = next((r for r in rows if r["cycle"] < 0), {}), [r for r in rows if r["cycle"] >= 0]
    first, last = (trained[0], trained[-1]) if trained else ({}, {})
    return {
        "run": f"all seeds of {group.label} ({', '.join(map(str, sorted(group.seeds)))})",
        "judge": "",
        "cycles": str(len(trained)),
        "base": interval_text(base, "trait"),
        "cycle 0": interval_text(first, "trait"),
        "last": interval_text(last, "trait"),
        "change": change_text(verdict),
        "verdict": "unfinished" if verdict is None else f"{verdict['verdict']} ({verdict['n_seeds']} seeds)",
        "coherence 0": interval_text(first, "coherence"),
        "coherence last": interval_text(last, "coherence"),
        "invalid": str(sum(bool(row.get("judge/invalid")) for row in rows)),
    }


def change_text(verdict: dict[str, Any] | None) -> str:
    interval = run_folders.change(verdict)
    return "n/a" if interval is None else f"{interval.mean:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"


# -- W&B ----------------------------------------------------------------------------------------------------------------------


def rebuild_wandb(task: Wandb, command: str) -> str:
    """Write a run's rows to a fresh W&B run. Returns where it is."""
    run = Path(task.run)
    config = run_config(run)
    log = WandbLog(config.model_copy(update={"wandb": config.wandb.model_copy(update={"mode": task.mode})}), run)
    for row in rows_of(run):
        log.row(row)
    if (run / "curves.png").is_file():
        log.image("curves", run / "curves.png")
    log.finish()
    print(f"{command}\nW&B     {log.where()}")
    return log.where()
