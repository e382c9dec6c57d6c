"""Runs a function where its device's memory is given back: here on a CPU, in a process of its own on CUDA.

The parent of a CUDA run never touches CUDA, so engine, trainer and scorers each free the GPU by ending.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iterative_ft.errors import RunError

FSDP = Path(__file__).parent / "training" / "fsdp.yaml"


def run_isolated(function: Callable[..., Any], device: str, n_processes: int = 1, **arguments: Any) -> Any:
    """Call `function(**arguments)`; arguments and result must be JSON values.

    Args:
        device: "cpu" calls it here; "cuda" in a child process.
        n_processes: above 1, under `accelerate launch`; the main process's result is returned.
    """
    if device == "cpu" and n_processes == 1:
        return function(**arguments)
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder, "job.json"), Path(folder, "result.json")
        job.write_text(json.dumps({"function": f"{function.__module__}:{function.__qualname__}", "arguments": arguments}))
        launch = [sys.executable]
        if n_processes > 1:
            launch += ["-m", "accelerate.commands.launch", "--num_processes", str(n_processes)]
            # accelerate's --cpu starts one process whatever is asked; --multi_gpu starts all, on the CPU where the job says so
            launch += ["--multi_gpu"] if device == "cpu" else ["--config_file", str(FSDP)]
        status = subprocess.run([*launch, "-m", "iterative_ft.child", str(job), str(result)], check=False).returncode
        if status != 0:
            raise RunError(
                f"{function.__name__} failed in its process (exit code {status}, its output is above): finished stages are kept"
            )
        return json.loads(result.read_text())


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    module, name = job["function"].split(":")
    value = getattr(importlib.import_module(module), name)(**job["arguments"])
    import os

    if os.environ.get("RANK", "0") == "0":
        Path(sys.argv[2]).write_text(json.dumps(value))


if __name__ == "__main__":
    main()
