"""What happens at each step of a training: the curve is written, and memory is given back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from iterative_ft.machine.device import return_freed_memory
from iterative_ft.machine.files import read_jsonl, write_jsonl
from iterative_ft.training.diverged import diverged


class StepLog(TrainerCallback):  # type: ignore[misc]
    """Writes a row a step: step, epoch, and what TRL logs. Without timings, so that equal trainings write equal files."""

    SKIP = frozenset({"train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos"})

    def __init__(self, path: Path, on_step: Callable[[int, int, float], None] | None) -> None:
        self.path = path
        self.on_step = on_step

    def start_from(self, step: int) -> None:
        """Drop rows that a killed process wrote after its last checkpoint."""
        if self.path.exists():
            write_jsonl(self.path, [row for row in read_jsonl(self.path, torn=True) if row["step"] <= step])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        for name in ("loss", "grad_norm"):  # in all processes alike: one that went on would wait for the others
            if not math.isfinite(float(logs.get(name, 0.0))):
                raise diverged(state.global_step, name, float(logs[name]))
        if not state.is_world_process_zero:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(self.row(state.global_step, logs), allow_nan=False) + "\n")
        if self.on_step is not None:
            self.on_step(state.global_step, state.max_steps, float(logs["loss"]))

    def row(self, step: int, logs: dict[str, Any]) -> dict[str, Any]:
        """Keys in a fixed order: a checkpoint's history comes back sorted. A mean over nothing (NaN) was not measured."""
        values = {k: float(logs[k]) for k in sorted(logs) if k not in self.SKIP and k != "step"}
        return {"step": step, **{k: value for k, value in values.items() if math.isfinite(value)}}

    def finish(self, history: list[dict[str, Any]]) -> None:
        """Write the whole curve anew from the trainer's own history, which survives in checkpoints."""
        write_jsonl(self.path, [self.row(int(row["step"]), row) for row in history if "loss" in row])


class ReturnMemory(TrainerCallback):  # type: ignore[misc]
    """Keeps a training on a CPU from growing with every batch of another length."""

    EVERY = 8  # steps; the step after it is slower, since its pages have to come back

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step % self.EVERY == 0:
            return_freed_memory()
