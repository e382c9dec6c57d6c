"""A finished run, measured again: by another judge, with other questions or more answers.

The run's own files are never touched. Its policies and answers are found in the store by the keys that its manifest holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from iterative_ft.config.schema import Config
from iterative_ft.config.tasks import Remeasure
from iterative_ft.errors import RunError
from iterative_ft.evaluate.plan import remeasuring_text, work_left
from iterative_ft.machine.files import text_digest
from iterative_ft.models.policy import Policy
from iterative_ft.records.folder import PAGE, held
from iterative_ft.records.provenance import made_and_judged_now
from iterative_ft.records.read import Run, read_manifest, read_run
from iterative_ft.records.run_log import RunLog
from iterative_ft.report.page import write_page_of
from iterative_ft.report.pictures import draw_run
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.blocks import ANSWER
from iterative_ft.stages.completions import Completions
from iterative_ft.stages.judge import JUDGE
from iterative_ft.stages.measure import Asked, Measured, ask, measure
from iterative_ft.stages.train import TRAIN, Trained, adopt, policy_of
from iterative_ft.stats.replicates import arm_settings
from iterative_ft.stats.verdict import curve_of, run_verdict
from iterative_ft.store import Event, Stage, Store


def remeasure(task: Remeasure, config: Config, command: str) -> Path | None:
    """Write a second set of scores and a report into <run>/evaluations/<judge>-<hash>/. Returns that folder.

    Args:
        config: the run's config with what the task changes.
    """
    run = Path(task.run)
    made = read_run(run).made  # what the report at the end is made of: damage is told before anything is judged
    found = Found(task, read_manifest(run)["stages"])
    planned: list[Event] = []
    list(found.measured(Bench(config, Store(Path(config.store), dry_run=True, on_event=planned.append))))
    if task.dry_run:
        print(remeasuring_text(config, planned))
        return None
    what = {"judge": config.judge.model_dump(), "measure": config.measure.model_dump(), "persona": config.persona.model_dump()}
    what["persona"]["rubric"] = {str(at): text for at, text in config.persona.rubric.items()}
    folder = run / "evaluations" / f"{config.judge.name}-{text_digest(what)[:8]}"
    print(f"{folder}\n{command}")
    made = made_and_judged_now(config, made, asked_anew=not found.as_before)
    with held(folder), RunLog(config, folder, command, work_left(config, planned), draw_run(config), made=made) as log:
        store = Store(Path(config.store), on_event=log.stage, run_folder=folder)
        store.on_start = log.stage_started
        bench = Bench(config, store)
        for _, measured, trained in found.measured(bench, log):
            log.measured(measured, trained)
        verdict = run_verdict(curve_of(log.answers, config.model_dump(), folder.name, log.made))
        log.finish(verdict.as_dict(), bench.engine_start_s)
    print(f"report  {write_page_of(shown(read_run(run), read_run(folder)), folder / PAGE)}")
    return folder


def shown(run: Run, again: Run) -> list[Run]:
    """What the page shows: the run and its second set of scores, or one run where both are the same measurement.

    Where judge, questions and answers are those that the run had, the new rows stand in place of the old ones: they may have
    gauges that the run did not take.
    """
    same = arm_settings(run.config) == arm_settings(again.config)
    if not same or (run.made or {}).get("judges") != (again.made or {}).get("judges"):
        return [run, again]
    finished = run.result is not None
    return [
        replace(again, training=run.training, code=run.code, command=run.command, result=again.result if finished else None)
    ]


class Found:
    """A run's policies and answers, by what its manifest says of its stages."""

    def __init__(self, task: Remeasure, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.as_before = task.n_questions is None and task.n_answers is None and task.persona is None

    def measured(self, bench: Bench, log: RunLog | None = None) -> Iterator[tuple[int, Measured, Trained | None]]:
        """Measure base and every cycle whose policy the run finished."""
        config = bench.config
        of_base = self.asked(bench, -1, bench.base) or ask(bench, bench.base)
        yield -1, measure(bench, bench.base, of_base), None
        for cycle in range(config.n_cycles + 1):
            if log is not None:
                log.begin(cycle)
            if cycle == 0 and config.start_adapter is not None:
                trained = adopt(bench, Path(config.start_adapter))
            else:
                keys = [row["key"] for row in self.rows if (row["kind"], row["cycle"]) == (TRAIN.name, cycle)]
                if not keys:
                    return  # the run ended before
                stage = self.adapter(bench.store, keys[-1], cycle)
                trained = Trained(policy_of(bench, stage, f"policy[{cycle}]"), stage, None, {})
            asked = self.asked(bench, cycle, trained.policy)
            yield cycle, measure(bench, trained.policy, asked, of_base), trained

    def adapter(self, store: Store, key: str, cycle: int) -> Stage:
        """The stage of policy[cycle]."""
        stage = store.find(TRAIN.name, key)
        if stage is None:
            raise RunError(
                f"the adapter of policy[{cycle}] (train/{key}) is not in store={store.root}: run the run's own command again, "
                "which trains it anew, or name the store with store=<folder>"
            )
        return stage

    def asked(self, bench: Bench, cycle: int, policy: Policy) -> Asked | None:
        """What a policy answered in its run, whatever the questions' file holds by now.

        The run's judge stages say which answers they scored. None where other answers are asked for, or the store lost any.
        """
        if not self.as_before:
            return None
        of_cycle = [row for row in self.rows if row["cycle"] == cycle]
        answers = {stage.digest: stage for stage in self.stages(bench.store, of_cycle, ANSWER.name)}
        scored = [stage.inputs["answers"] for stage in self.stages(bench.store, of_cycle, JUDGE.name)]
        blocks: dict[bool, list[Stage]] = {}  # documents or not
        for digests in scored:
            if digests and all(digest in answers for digest in digests):
                stages = [answers[digest] for digest in digests]
                blocks[stages[0].inputs["template"]["frame"] == "opening"] = stages
        if False not in blocks:
            return None
        for documents, stages in blocks.items():
            role = "documents" if documents else "answers"
            for stage in stages:
                bench.store.reuse(stage, f"{role} of {policy.name}", {"policy": policy.name, "role": role})
        return Asked(Completions(blocks[False]), Completions(blocks[True]) if True in blocks else None)

    @staticmethod
    def stages(store: Store, rows: list[dict[str, Any]], kind: str) -> list[Stage]:
        """The stages of one kind among a manifest's rows, those that the store still holds."""
        found = (store.find(kind, row["key"]) for row in rows if row["kind"] == kind)
        return [stage for stage in found if stage is not None]
