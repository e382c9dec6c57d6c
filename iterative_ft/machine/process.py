"""Runs a function where its device's memory is given back: here on a CPU, in a process of its own on CUDA.

The parent of a CUDA run never touches CUDA, so trainer and scorers each free the GPU by ending. Whatever uses a GPU beside the
engine goes through here, and the engine gives it back first.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from iterative_ft.errors import RunError
from iterative_ft.machine.device import claim_device, return_freed_memory, visible_gpus
from iterative_ft.machine.disk import disk_faults_told
from iterative_ft.machine.libraries import prepare_libraries

FSDP = Path(__file__).parent.parent / "training" / "fsdp.yaml"
ERROR = "error.json"  # of a child that failed as it should
ARRAY = "\0npy"  # key of a JSON object that stands for an array in a file of its own


def run_isolated(function: Callable[..., Any], device: str, n_processes: int = 1, **arguments: Any) -> Any:
    """Call `function(**arguments)`; arguments and result must be JSON values or NumPy arrays.

    Args:
        device: "cpu" calls it here, and returns the memory that it freed; "cuda" in a child process, on the first GPU.
        n_processes: above 1, under `accelerate launch`; the main process's result is returned.

    Raises:
        RunError: what the function raised, of the same class; or the child ended in another way.
    """
    if device == "cpu" and n_processes == 1:
        found = function(**arguments)
        return_freed_memory()
        return found
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder / "job", {"function": name_of(function), "arguments": arguments, "parent": os.getpid()})
        launch = [sys.executable]
        if n_processes > 1:
            launch += ["-m", "accelerate.commands.launch", "--num_processes", str(n_processes)]
            # accelerate's --cpu starts one process whatever is asked; --multi_gpu starts all, on the CPU where the job says so
            launch += ["--multi_gpu"] if device == "cpu" else ["--config_file", str(FSDP)]
        environment = dict(os.environ)
        if device == "cuda":
            claim_device()
            gpus = visible_gpus()
            if n_processes == 1 and gpus:  # several would be taken for DataParallel, which TRL refuses
                environment["CUDA_VISIBLE_DEVICES"] = gpus[0]
        status = start([*launch, "-m", "iterative_ft.machine.process", str(folder)], environment)
        if status != 0:
            if (folder / ERROR).is_file():
                error = json.loads((folder / ERROR).read_text(encoding="utf-8"))
                raise imported(error["class"])(error["message"])
            raise RunError(
                f"{function.__name__} failed in its process (exit code {status}, its output is above): finished stages and a "
                "training's checkpoints are kept, the same command goes on from them"
            )
        return read(folder / "result")


def name_of(thing: Any) -> str:
    """Where a function or class of a module stands, for another process."""
    return f"{thing.__module__}:{thing.__qualname__}"


def imported(name: str) -> Any:
    """The function or class that `name_of` named."""
    module, inner = name.split(":")
    return getattr(importlib.import_module(module), inner)


def start(command: list[str], environment: dict[str, str]) -> int:
    """Run a child to its end; its exit code."""
    return subprocess.run(command, env=environment, check=False).returncode


def write(folder: Path, value: Any) -> None:
    """Write a JSON value whose arrays go into .npy files beside it."""
    folder.mkdir()
    arrays: list[np.ndarray] = []

    def packed(part: Any) -> Any:
        if isinstance(part, np.ndarray):
            arrays.append(part)
            return {ARRAY: len(arrays) - 1}
        if isinstance(part, dict):
            return {key: packed(inner) for key, inner in part.items()}
        return [packed(inner) for inner in part] if isinstance(part, list | tuple) else part

    (folder / "value.json").write_text(json.dumps(packed(value)))
    for number, array in enumerate(arrays):
        np.save(folder / f"{number}.npy", array, allow_pickle=False)


def read(folder: Path) -> Any:
    """What `write` wrote."""

    def unpacked(part: dict[str, Any]) -> Any:
        return np.load(folder / f"{part[ARRAY]}.npy", allow_pickle=False) if ARRAY in part else part

    return json.loads((folder / "value.json").read_text(), object_hook=unpacked)


def end_with(parent: int) -> None:
    """Have this process end when another does: it would go on writing where the next run of the same command works."""
    try:
        handle = os.pidfd_open(parent)
    except ProcessLookupError:
        os._exit(1)  # it is gone already
    except OSError:  # a kernel that does not tell of processes
        return

    def wait() -> None:
        select.select([handle], [], [])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    folder = Path(sys.argv[1])
    job = read(folder / "job")
    end_with(job["parent"])
    prepare_libraries()
    try:
        with disk_faults_told(f"{job['function'].split(':')[1]} worked in its process", "finished stages are kept"):
            value = imported(job["function"])(**job["arguments"])
    except RunError as error:  # the parent says it
        found = {"class": name_of(type(error)), "message": str(error)}
        (folder / ERROR).write_text(json.dumps(found), encoding="utf-8")
        sys.exit(1)
    if os.environ.get("RANK", "0") == "0":
        write(folder / "result", value)


if __name__ == "__main__":
    main()
