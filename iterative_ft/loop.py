"""The experiment: seed a persona, then train each generation on what the last one wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iterative_ft.analysis.verdict import run_verdict
from iterative_ft.calibrate import calibrate
from iterative_ft.config import Config
from iterative_ft.lab import Lab, Trained
from iterative_ft.results import Scores, curve, metric_row, scores_of
from iterative_ft.store import Event, Store
from iterative_ft.tracking import RunLog


@dataclass(frozen=True)
class RunResult:
    """What a run leaves: its folder, a row for base and every cycle, and what became of the trait."""

    folder: Path
    rows: list[dict[str, Any]]
    verdict: dict[str, Any]


def run(config: Config, folder: Path, command: str) -> RunResult:
    """Seed a persona, then train each generation on what the last one wrote."""
    store = Store(Path(config.store), run_folder=folder)
    calibration = None
    if config.n_seed == "calibrated":
        calibration = calibrate(config, store)
        config = config.model_copy(update={"n_seed": calibration.n_seed})
        store.verified.clear()  # the run's own record names its stages anew
    with RunLog(config, folder, command, plan(config), calibration) as log:
        store.on_event, store.on_start = log.stage, log.stage_started
        lab = Lab(config, store, on_step=log.training_step)
        rows, scores = cycles(config, lab, log)
        verdict = run_verdict(curve(config, folder.name, [row["cycle"] for row in rows], scores))
        result = RunResult(folder, rows, verdict.as_dict())
        log.finish(result.rows, result.verdict, lab.engine_start_s)
    return result


def cycles(config: Config, lab: Lab, log: RunLog) -> tuple[list[dict[str, Any]], list[Scores]]:
    """Cycle 0 trains on the seed data, each later one on samples of the policy before it. Rows and scores: base first."""
    base = lab.base_policy()
    measured = lab.measure(base)
    rows = [metric_row(config, -1, measured, None)]
    policies, scores = [base], [scores_of(measured)]
    log.measured(rows[-1], scores[-1])
    for cycle in range(config.n_cycles + 1):
        log.cycle = cycle
        trained = next_policy(config, lab, policies, cycle)
        log.trained(cycle, trained)
        measured = lab.measure(trained.policy)
        rows.append(metric_row(config, cycle, measured, trained))
        scores.append(scores_of(measured))
        log.measured(rows[-1], scores[-1])
        policies.append(trained.policy)
    return rows, scores


def next_policy(config: Config, lab: Lab, policies: list[Any], cycle: int) -> Trained:
    """Train policy[cycle]: from base, or in a continual run from the policy before it."""
    if cycle == 0 and config.start_adapter is not None:
        return lab.adopt(Path(config.start_adapter))
    data = lab.seed_data() if cycle == 0 else lab.sampled_data(policies, cycle)
    return lab.train(data, init=policies[-1] if config.continual(cycle) else policies[0], cycle=cycle)


def plan(config: Config) -> list[Event]:
    """The run's stages in order, and which of them the store holds; nothing is loaded or written.

    A stage whose parents are still to be built counts as to be built.
    """
    events: list[Event] = []
    store = Store(Path(config.store), dry_run=True, on_event=events.append)
    lab = Lab(config, store)
    policies = [lab.base_policy()]
    lab.measure(policies[0])
    for cycle in range(config.n_cycles + 1):
        trained = next_policy(config, lab, policies, cycle)
        lab.measure(trained.policy)
        policies.append(trained.policy)
    return events
