"""The experiment: seed a persona, then train each generation on what the last one wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iterative_ft.calibrate import calibrate, with_likely_seeds
from iterative_ft.config.schema import Config
from iterative_ft.evaluate.plan import work_left
from iterative_ft.machine.disk import disk_faults_told
from iterative_ft.models.policy import Policy
from iterative_ft.records.folder import PAGE, held
from iterative_ft.records.rows import MetricRow
from iterative_ft.records.run_log import Log, RunLog
from iterative_ft.report.page import write_page
from iterative_ft.report.pictures import draw_run
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.data import sampled_data, seed_data
from iterative_ft.stages.endings import check_endings
from iterative_ft.stages.look import FirstLook
from iterative_ft.stages.measure import ask, measure
from iterative_ft.stages.train import Trained, adopt, train
from iterative_ft.stats.verdict import curve_of, run_verdict
from iterative_ft.store import Event, Store


def cycles(bench: Bench, log: Log) -> None:
    """Cycle 0 trains on the seed data, each later one on samples of the policy before it."""
    policies = [bench.base]
    asked = ask(bench, bench.base)
    check_endings(bench, asked)
    log.measured(measure(bench, bench.base, asked), None)
    for cycle in range(bench.config.n_cycles + 1):
        log.begin(cycle)
        trained = next_policy(bench, policies, cycle)
        log.trained(trained)
        log.measured(measure(bench, trained.policy, of_base=asked), trained)
        policies.append(trained.policy)


def next_policy(bench: Bench, policies: list[Policy], cycle: int) -> Trained:
    """Train policy[cycle]: from base, or in a continual run from the policy before it."""
    config = bench.config
    if cycle == 0 and config.start_adapter is not None:
        return adopt(bench, Path(config.start_adapter))
    data = seed_data(bench) if cycle == 0 else sampled_data(bench, policies, cycle)
    return train(bench, data, init=policies[-1] if config.continual(cycle) else policies[0], cycle=cycle)


@dataclass(frozen=True)
class RunResult:
    """What a run leaves: its folder, a row for base and every cycle, and what became of the trait."""

    folder: Path
    rows: list[MetricRow]
    verdict: dict[str, Any]


def run(config: Config, folder: Path, command: str, other_cells: Callable[[Policy], list[Event]] | None = None) -> RunResult:
    """Run the experiment in `folder`, calibrated first where the config says so; its model is looked at before any work.

    Args:
        other_cells: the plans of those cells of a sweep that may want something of a policy.
    Raises:
        ConfigError: the model does not fit the run, or another process works in the folder.
    """
    store = Store(Path(config.store), run_folder=folder)
    kept = "finished stages and the rows so far are kept"
    with disk_faults_told(f"running in {folder}", kept, store.freeing), held(folder):
        return run_held(config, store, folder, command, other_cells)


def run_held(
    config: Config, store: Store, folder: Path, command: str, other_cells: Callable[[Policy], list[Event]] | None
) -> RunResult:
    """The experiment, in a folder that this process has for itself."""
    planned = plan(with_likely_seeds(config))
    store.check_serves(planned)
    look = FirstLook(config, planned)
    calibration = None
    if config.n_seed == "calibrated":
        look.once_stored(Bench(config, store))
        calibration = calibrate(config, store)
        config = config.model_copy(update={"n_seed": calibration.n_seed})
        store.verified.clear()  # the run's own record names its stages anew
        planned = plan(config)
    record = None if calibration is None else calibration.as_dict()
    with RunLog(config, folder, command, work_left(config, planned), draw_run(config), record) as log:
        store.on_event, store.on_start = log.stage, log.stage_started
        bench = Bench(config, store, on_step=log.training_step, plan=lambda: plan(config), other_cells=other_cells)
        look.once_stored(bench)
        cycles(bench, log)
        verdict = run_verdict(curve_of(log.answers, config.model_dump(), folder.name, log.made)).as_dict()
        log.finish(verdict, bench.engine_start_s)
        store.settle()
    print(f"page    {write_page([folder], folder / PAGE)}")
    return RunResult(folder, log.rows, verdict)


def plan(config: Config) -> list[Event]:
    """The run's stages in order, and which of them the store holds; nothing is loaded or written.

    A stage whose parents are still to be built counts as to be built.
    """
    events: list[Event] = []
    cycles(Bench(config, Store(Path(config.store), dry_run=True, on_event=events.append)), Log())
    return events
