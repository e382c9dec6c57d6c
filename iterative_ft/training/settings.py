"""What a training process is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """Everything a training process needs; each field is a JSON value."""

    method: dict[str, Any]
    """The method's settings (a `method` section of the config)."""
    lora: dict[str, Any]
    model: str
    dtype: str
    trust_remote_code: bool
    init_adapter: str | None
    """Adapter to go on training, None for a fresh one."""
    reference_is_base: bool
    """DPO: the reference is the base model; with a fresh adapter it is so anyway."""
    examples: str
    """JSONL of the data stage."""
    seed: int
    out: str
    device: str
    n_processes: int
