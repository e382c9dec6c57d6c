"""The one engine of this process: it outlives a run, so that the cells of an in-process sweep start it once.

A cell that needs another one (another model, chat template, precision or adapter rank) closes it first: two engines rarely
fit one device.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from typing import Any

from iterative_ft.config import Config
from iterative_ft.sampling import Sampler, make_sampler
from iterative_ft.store import text_digest

HELD: dict[str, Sampler] = {}  # at most one: what it was started for -> the sampler


def sampler_key(config: Config, device: str, model_digest: str) -> str:
    """Everything an engine is started with, and what its canary's prompts look like."""
    return text_digest([model_digest, config.model.model_dump(), config.sampler.model_dump(), device, config.lora.rank])


def shared_sampler(config: Config, device: str, model_digest: str, codec: Callable[[], Any]) -> Sampler:
    """The sampler of this model and these settings: the one that runs, or a new one in its place."""
    key = sampler_key(config, device, model_digest)
    if key not in HELD:
        close_sampler()
        HELD[key] = make_sampler(config, device, codec())
    return HELD[key]


@atexit.register
def close_sampler() -> None:
    """Stop the engine that runs, if one does."""
    while HELD:
        HELD.popitem()[1].close()
