"""The one engine of this process: it outlives a run, so that the cells of an in-process sweep start it once.

A cell that needs another one (another model, chat template, precision, or rank or layers of adapters) closes it first: two
engines rarely fit one device.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable

from iterative_ft.config.schema import Config
from iterative_ft.machine.device import HOLDERS
from iterative_ft.machine.files import text_digest
from iterative_ft.sampling.interface import Sampler

HELD: dict[str, Sampler] = {}  # at most one: what it was started for -> the sampler


def sampler_key(config: Config, device: str, model_digest: str) -> str:
    """Everything an engine is started with, and what its canary's prompts look like."""
    sections = [config.model.model_dump(), config.sampler.model_dump(), config.sampling.block_size]
    return text_digest([model_digest, *sections, device, config.lora.rank, config.lora.targets])


def shared_sampler(config: Config, device: str, model_digest: str, make: Callable[[], Sampler]) -> Sampler:
    """The sampler of this model and these settings: the one that runs, or a new one in its place."""
    key = sampler_key(config, device, model_digest)
    if key not in HELD:
        close_sampler()
        HELD[key] = make()
    return HELD[key]


@atexit.register
def close_sampler() -> None:
    """Stop the engine that runs, if one does."""
    while HELD:
        HELD.popitem()[1].close()


def sleep() -> None:
    """Have the engine that runs, if one does, give its device back until it is next asked for something."""
    for sampler in HELD.values():
        sampler.sleep()


HOLDERS.append(sleep)
