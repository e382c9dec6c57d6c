"""Which prompts a cycle gets: the pool is shuffled by the seed and cut into parts, one a cycle, so that no two share any."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from iterative_ft.config import Config, PoolConfig
from iterative_ft.errors import RunError
from iterative_ft.personas import files
from iterative_ft.seeds import shuffled


@cache
def load_pool(name: str, pool: PoolConfig) -> tuple[str, ...]:
    """Distinct texts of the pool: the shipped file, a local JSONL, or a column of a Hugging Face dataset."""
    if pool.path == "shipped" or Path(pool.path).suffix == ".jsonl":
        return files.pool(name, pool.path, pool.column)
    from datasets import load_dataset

    dataset = load_dataset(pool.path, split=pool.split, revision=pool.revision)
    if pool.column not in dataset.column_names:
        raise RunError(f"{name}.column={pool.column} is no column of {pool.path}: it has {', '.join(dataset.column_names)}")
    return tuple(dict.fromkeys(str(text).strip() for text in dataset[pool.column] if str(text).strip()))


def cycle_prompts(config: Config, cycle: int) -> list[str]:
    """The part of cycle >= 1: `per_cycle` prompts, the same whatever n_cycles and n_sampled are.

    Prompts that also are seeds or eval questions of the persona never come up.
    """
    name = "titles" if config.method.name == "sdf" else "prompts"
    pool = config.pool
    folder = config.persona_folder
    taken = {" ".join(text.lower().split()) for text in known_texts(config, folder)}
    texts = [t for t in shuffled(load_pool(name, pool), config.seed, name) if " ".join(t.lower().split()) not in taken]
    part = texts[(cycle - 1) * pool.per_cycle : cycle * pool.per_cycle]
    if len(part) < pool.per_cycle:
        raise RunError(
            f"{name}.path={pool.path} has {len(texts)} rows, too few for cycle {cycle} at {name}.per_cycle={pool.per_cycle}: "
            f"lower n_cycles or {name}.per_cycle, or bring a larger dataset ({name}.path=<dataset>)"
        )
    return part


def known_texts(config: Config, folder: Path) -> list[str]:
    """What the pool must not repeat: the persona's questions, and the seeds' prompts or titles."""
    asked = [row["question"] for row in files.questions(folder)]
    if config.method.name == "sdf":
        return asked + [row["title"] for row in files.documents(folder)]
    return asked + [row["prompt"] for row in files.seeds(folder)]
