"""What a policy writes: the prompts that it is given, in blocks, each a stage of its own (blocks.py)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iterative_ft.data import files, pools
from iterative_ft.models.codec import Frame
from iterative_ft.models.policy import Policy
from iterative_ft.sampling.interface import Answer
from iterative_ft.seeds import derive
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.blocks import ANSWERS, SAMPLE, Order, Prompts, block_inputs, sample_with_others
from iterative_ft.store import Kind, Purpose, Stage


@dataclass(frozen=True)
class Completions:
    """What a policy wrote: stages of one block each."""

    stages: list[Stage]

    @property
    def pending(self) -> bool:
        return any(stage.pending for stage in self.stages)

    @property
    def digests(self) -> list[str]:
        return [stage.digest for stage in self.stages]

    def rows(self) -> list[Answer]:
        return [row for stage in self.stages for row in stage.rows(ANSWERS)]


def sample(bench: Bench, policy: Policy, cycle: int, role: str, n: int) -> Completions:
    """`policy` writes on the first `n` prompts of `cycle`'s part, whole blocks at a time.

    Args:
        role: "chosen" or "rejected"; two answers to one prompt differ in it.
    """
    part = cycle_prompts(bench, cycle)
    size = bench.config.sampling.block_size
    texts = part[: min(len(part), -(-n // size) * size)]
    label = f"sample {policy.name} for cycle {cycle}" + ("" if role == "chosen" else f" ({role})")
    return complete(bench, SAMPLE, policy, training_prompts(bench, bench.config.frame, texts, role), label, role)


def sample_on_seeds(bench: Bench, prompts: list[str], role: str, cycle: int) -> Completions:
    """The base model answers seed prompts."""
    label = f"sample base on seed prompts (cycle {cycle})" + (" (chosen)" if role == "chosen" else "")
    return complete(bench, SAMPLE, bench.base, training_prompts(bench, "chat", prompts, role), label, role)


def training_prompts(bench: Bench, frame: Frame, texts: list[str], role: str) -> Prompts:
    """Texts to sample training data on: seeds depend on the role and the text, never on its place."""
    config = bench.config
    seeds = [derive(config.seed, role, text) for text in texts]
    return Prompts(frame, texts, seeds, config.sampling.temperature, config.sampling.top_p, config.method.max_new_tokens)


def cycle_prompts(bench: Bench, cycle: int) -> list[str]:
    """The part of the pool that `cycle` >= 1 samples on; it shares nothing with seeds, eval questions or other cycles."""
    config, pool, folder = bench.config, bench.config.pool, bench.config.persona_folder
    taken = files.never_sampled(folder, config.method.name == "sdf")
    texts = pools.load_pool(config.pool_name, pool.path, pool.column, pool.split, pool.revision)
    return pools.cycle_part(config.pool_name, texts, taken, config.seed, cycle, pool.per_cycle)


def complete(bench: Bench, kind: Kind, policy: Policy, prompts: Prompts, label: str, role: str) -> Completions:
    """Let `policy` go on from all prompts, in fixed blocks."""
    size = bench.config.sampling.block_size
    parts = [slice(start, start + size) for start in range(0, len(prompts.texts), size)]
    blocks = [replace(prompts, texts=prompts.texts[part], seeds=prompts.seeds[part]) for part in parts]
    orders = [
        Order(kind, block_inputs(bench, policy, block), f"{label} {number}/{len(parts)}" if len(parts) > 1 else label)
        for number, block in enumerate(blocks, 1)
    ]
    purpose: Purpose = {"policy": policy.name, "role": role}
    stages = []
    for order in orders:

        def build(out: Path, order: Order = order) -> dict[str, Any]:
            return sample_with_others(out, bench, policy, order, orders)

        stages.append(bench.store.stage(kind, order.inputs, build, order.label, purpose))
    return Completions(stages)
