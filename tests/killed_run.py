"""Runs the loop on fakes and kills its own process (SIGKILL) at a chosen moment; used by test_kills.py."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import SMALL, composed

from iterative_ft import loop
from iterative_ft.launch.compose import load_config
from iterative_ft.records import run_log
from iterative_ft.report import pictures
from iterative_ft.stages import blocks
from iterative_ft.store import stages


def forked(function: Callable[..., None], *arguments: Any) -> int:
    """Call a function in a forked process, where all libraries are loaded already; returns its exit code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads: the child starts none
        process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
        process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("the forked process hangs")
    return process.exitcode


class Moment:
    """Kills the process the n-th time it is reached."""

    def __init__(self, n: int) -> None:
        self.left = n

    def reached(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, moment: Moment, when: Callable[..., bool] = lambda *a, **k: True) -> None:
    """Die when `owner.name` is about to be called."""
    real = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if when(*arguments, **named):
            moment.reached()
        return real(*arguments, **named)

    setattr(owner, name, wrapped)


def after(owner: Any, name: str, moment: Moment, when: Callable[..., bool] = lambda *a, **k: True) -> None:
    """Die when `owner.name` has returned."""
    real = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        result = real(*arguments, **named)
        if when(*arguments, **named):
            moment.reached()
        return result

    setattr(owner, name, wrapped)


def half_written(owner: Any, name: str, moment: Moment) -> None:
    """Die when half of the rows of a JSONL file are on disk."""
    real = getattr(owner, name)

    def wrapped(path: Path, rows: list[dict[str, Any]]) -> None:
        if moment.left == 1:
            real(path, rows[: len(rows) // 2])
            with path.open("a") as file:
                file.write('{"cut off')
        moment.reached()
        real(path, rows)

    setattr(owner, name, wrapped)


def is_manifest(path: Path, *_: Any) -> bool:
    return path.name == stages.MANIFEST and ".work" in path.parts


def half_a_row(moment: Moment) -> None:
    """Die when half of a row of metrics.jsonl is on disk."""
    real = run_log.RunLog.row

    def wrapped(self: run_log.RunLog, row: dict[str, Any]) -> None:
        if moment.left == 1:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write('{"cycle": 0, "trait/sc')
        moment.reached()
        real(self, row)

    run_log.RunLog.row = wrapped  # type: ignore[method-assign]


MOMENTS: dict[str, Callable[[Moment], None]] = {
    "never": lambda moment: None,
    "before_build": lambda moment: before(stages.Store, "build", moment),
    "holding_the_lock": lambda moment: before(stages, "read_stage", moment, lambda *_: bool(LOCKED)),
    "half_a_stage_file": lambda moment: half_written(blocks, "write_jsonl", moment),
    "in_training": lambda moment: after(lab_fake(), "write_json", moment, lambda path, value: path.name == "level.json"),
    "before_manifest": lambda moment: before(stages, "write_json", moment, is_manifest),
    "after_manifest": lambda moment: after(stages, "write_json", moment, is_manifest),
    "before_rename": lambda moment: before(os, "rename", moment),
    "after_rename": lambda moment: after(os, "rename", moment),
    "before_folder_sync": lambda moment: before(stages, "sync_folder", moment),
    "write_reference": lambda moment: before(os, "replace", moment, lambda source, target: ".refs" in Path(target).parts),
    "before_a_row": lambda moment: before(run_log.RunLog, "row", moment),
    "half_a_row": half_a_row,
    "between_cycles": lambda moment: before(loop, "next_policy", moment),
    "before_result": lambda moment: before(run_log, "write_json", moment, lambda path, value: path.name == "result.json"),
}


def lab_fake() -> Any:
    from iterative_ft import fake

    return fake


LOCKED: list[str] = []


def note_locks() -> None:
    from contextlib import contextmanager

    real = stages.Store.lock

    @contextmanager
    def noted(self: stages.Store, kind: str, key: str, wait: bool = True) -> Any:
        with real(self, kind, key, wait):
            LOCKED.append(key)
            try:
                yield
            finally:
                LOCKED.pop()

    stages.Store.lock = noted  # type: ignore[method-assign]


def run_killed(root: Path, folder: Path, moment: str, n: int, overrides: list[str]) -> None:
    """Run the loop until the `n`-th time it comes to `moment`. Patches modules, so call it in a process of its own."""
    pictures.draw = lambda runs, file: None  # type: ignore[assignment]
    run_log.code_state = lambda folder: {}
    note_locks()
    config = load_config(composed([*SMALL, "wandb.mode=disabled", f"store={root}", *overrides]))
    plan = loop.plan
    events = plan(config)  # before the patch: a plan looks for stages too
    loop.plan = lambda config: events  # type: ignore[assignment]
    MOMENTS[moment](Moment(n))
    loop.run(config, folder, "python train.py")
