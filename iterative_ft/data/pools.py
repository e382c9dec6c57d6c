"""Which prompts a cycle gets: the pool is shuffled by the seed and cut into parts, one a cycle, so that no two share any."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path

from iterative_ft.data import files
from iterative_ft.errors import RunError
from iterative_ft.seeds import shuffled


def is_file(path: str) -> bool:
    """Whether a pool is read from a file: the shipped one or a local JSONL. All else is a Hugging Face dataset."""
    return path == "shipped" or Path(path).suffix == ".jsonl"


@cache
def load_pool(name: str, path: str, column: str, split: str, revision: str | None) -> tuple[str, ...]:
    """Distinct texts of the pool `name` ("prompts" or "titles"): a file's, or those in a column of a Hugging Face dataset."""
    if is_file(path):
        return files.pool(name, path, column)
    from datasets import load_dataset

    dataset = load_dataset(path, split=split, revision=revision)
    if column not in dataset.column_names:
        raise RunError(f"{name}.column={column} is no column of {path}: it has {', '.join(dataset.column_names)}")
    return tuple(dict.fromkeys(str(text).strip() for text in dataset[column] if str(text).strip()))


def cycle_part(name: str, pool: Collection[str], taken: Collection[str], seed: int, cycle: int, per_cycle: int) -> list[str]:
    """The part of cycle >= 1: `per_cycle` texts, the same whatever n_cycles and n_sampled are.

    Args:
        taken: texts that never come up, whatever their case and spaces: seeds and eval questions.
    Raises:
        RunError: the pool has too few for this cycle.
    """
    folded = {" ".join(text.lower().split()) for text in taken}
    texts = [t for t in shuffled(list(pool), seed, name) if " ".join(t.lower().split()) not in folded]
    part = texts[(cycle - 1) * per_cycle : cycle * per_cycle]
    if len(part) < per_cycle:
        raise RunError(
            f"the pool {name} has {len(texts)} rows, too few for cycle {cycle} at {name}.per_cycle={per_cycle}: "
            f"lower n_cycles or {name}.per_cycle, or bring a larger dataset ({name}.path=<dataset>)"
        )
    return part
