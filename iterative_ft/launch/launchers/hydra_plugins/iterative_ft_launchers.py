"""Launchers of a multirun. Hydra looks for them in this namespace alone; what they share is iterative_ft/launch/sweep.py.

Each runs every cell of the sweep whatever becomes of the others, and ends with the sweep's summary. A failed cell makes the
whole command fail, with its reason, when all the others are done.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins import basic_launcher
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from omegaconf import DictConfig, OmegaConf

from iterative_ft.errors import RunError
from iterative_ft.launch import guard, sweep
from iterative_ft.launch.compose import distinct, with_folders
from iterative_ft.launch.folders import cell_suffixes
from iterative_ft.machine.device import visible_gpus
from iterative_ft.machine.process import end_with

POLL_S = 0.2

# What submitit's executors take under a name of their own: "slurm_partition" and the like.
GENERIC = {"timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "name", "stderr_to_stdout"}


class InProcess(basic_launcher.BasicLauncher):
    """One cell after the other in this process: the engine stays up from cell to cell."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        task = partial(sweep.run_cell, task_function)
        super().setup(hydra_context=hydra_context, task_function=task, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        cells = distinct(job_overrides)
        returns = super().launch(with_folders(cells, cell_suffixes(cells), self.config), initial_job_idx)
        return finish(self.config, returns)


class Submitted:
    """What the two submitit launchers share: a process a cell, and a killed process is a failed cell like any other."""

    _EXECUTOR: str
    config: Any
    params: dict[str, Any]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        task = partial(sweep.run_cell, task_function)
        super().setup(hydra_context=hydra_context, task_function=task, config=config)  # type: ignore[misc]

    def executor(self) -> Any:
        """submitit's executor with this launcher's settings."""
        import submitit

        settings = {name: value for name, value in self.params.items() if name not in ("submitit_folder", "max_num_timeout")}
        executor = submitit.AutoExecutor(
            folder=self.params["submitit_folder"],
            cluster=self._EXECUTOR,
            **{f"{self._EXECUTOR}_max_num_timeout": self.params["max_num_timeout"]},
        )
        executor.update_parameters(**{n if n in GENERIC else f"{self._EXECUTOR}_{n}": v for n, v in settings.items()})
        return executor

    def arguments(self, number: int, overrides: Sequence[str]) -> tuple[Any, ...]:
        """What `__call__` gets in the cell's process."""
        return list(overrides), "hydra.sweep.dir", number, f"cell_{number}", Singleton.get_state()


class Local(Submitted, submitit_launcher.LocalLauncher):
    """A process a cell on this machine, each with GPUs of its own, as many at once as there are GPUs for."""

    def __init__(self, n_at_once: int | None, gpus_per_cell: int, **params: Any) -> None:
        super().__init__(**params)
        self.gpus = visible_gpus()
        self.gpus_per_cell = gpus_per_cell if self.gpus else 0
        if self.gpus_per_cell > len(self.gpus):
            raise RunError(
                f"hydra.launcher.gpus_per_cell={gpus_per_cell} is more than the {len(self.gpus)} GPUs here: lower it"
            )
        fitting = len(self.gpus) // self.gpus_per_cell if self.gpus_per_cell else 1
        self.n_at_once = fitting if n_at_once is None else n_at_once
        self.devices: str = ""  # of the cell that is pickled next
        self.parent = os.getpid()

    def __call__(self, *arguments: Any) -> JobReturn:
        end_with(self.parent)  # whose next run of the same command would work beside it
        os.environ["CUDA_VISIBLE_DEVICES"] = self.devices  # before anything in the cell's process looks for a GPU
        return super().__call__(*arguments)

    def slots(self) -> list[str]:
        """`CUDA_VISIBLE_DEVICES` of each cell that may run at a time; more cells than GPUs share them in turn."""
        n = self.gpus_per_cell
        groups = [",".join(self.gpus[i : i + n]) for i in range(0, len(self.gpus) - n + 1, n)] if n else [""]
        return [groups[i % len(groups)] for i in range(self.n_at_once)]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        cells = distinct(job_overrides)
        waiting = list(enumerate(with_folders(cells, cell_suffixes(cells), self.config), initial_job_idx))
        free = self.slots()
        running: dict[int, tuple[Any, str]] = {}
        done: dict[int, JobReturn] = {}
        executor = self.executor()
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        try:
            while waiting or running:
                while waiting and free:
                    number, overrides = waiting.pop(0)
                    self.devices = free.pop(0)
                    job = executor.submit(self, *self.arguments(number, overrides))
                    running[number] = (job, self.devices)
                    cell = cells[number - initial_job_idx]
                    print(f"cell {number} started: {' '.join(cell)} (its output: {job.paths.stdout})", flush=True)
                for number, (job, devices) in list(running.items()):
                    if job.done():
                        done[number] = outcome(job, cells[number - initial_job_idx])
                        free.append(devices)
                        del running[number]
                        how = "ended" if done[number].status is JobStatus.COMPLETED else "failed"
                        print(f"cell {number} {how}", flush=True)
                time.sleep(POLL_S)
        finally:
            for job, _ in running.values():
                job.cancel()
        return finish(self.config, [done[number] for number in sorted(done)])


class Slurm(Submitted, submitit_launcher.SlurmLauncher):
    """A Slurm job a cell, as one array; a job that meets its time limit is submitted again and goes on from the store."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        cells = distinct(job_overrides)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        named = with_folders(cells, cell_suffixes(cells), self.config)
        calls = [self.arguments(number, overrides) for number, overrides in enumerate(named, initial_job_idx)]
        jobs = self.executor().map_array(self, *zip(*calls, strict=True))
        array = jobs[0].job_id.split("_")[0]
        print(f"{len(jobs)} cells submitted as Slurm job {array}", flush=True)
        try:
            ended = [outcome(job, overrides) for job, overrides in zip(jobs, cells, strict=True)]
        except KeyboardInterrupt:  # Slurm knows nothing of it
            print(f"Slurm job {array} goes on; to end it: scancel {array}", file=sys.stderr, flush=True)
            raise
        return finish(self.config, ended)


def outcome(job: Any, overrides: Sequence[str]) -> JobReturn:
    """Wait for a cell's process; one that ended without a result (killed, out of memory) is a failed cell."""
    try:
        found: JobReturn = job.results()[0]
    except Exception as error:  # submitit raises whatever the process died of
        found = JobReturn(overrides=list(overrides), status=JobStatus.FAILED)
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        found.return_value = RunError(f"its process ended without a result (killed?): {said} (its output: {job.paths.stdout})")
    return found


def finish(config: Any, returns: Sequence[JobReturn]) -> Sequence[JobReturn]:
    """Hand the cells to the summary, which raises when one has failed."""
    cells = [
        sweep.Cell(
            overrides=[str(o) for o in found.overrides or []],
            folder=None if found.hydra_cfg is None else Path(OmegaConf.select(found.hydra_cfg, "hydra.runtime.output_dir")),
            error=None if found.status is JobStatus.COMPLETED else guard.reason(found._return_value),
        )
        for found in returns
    ]
    sweep.finish(Path(config.hydra.sweep.dir), cells)
    return returns
