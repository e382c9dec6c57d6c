"""Which prompts a cycle gets: the pool is shuffled by the seed and cut into parts, one a cycle, so that no two share any."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache, lru_cache
from pathlib import Path

from iterative_ft.data import files, hub, read
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.seeds import shuffled

DEFAULT_SPLIT = "train"  # as in conf/config.yaml: what nobody set


@cache
def load_pool(name: str, path: str, column: str, split: str, revision: str | None) -> tuple[str, ...]:
    """Distinct texts of the pool `name` ("prompts" or "titles").

    Args:
        path: "shipped", a file, a folder (written by `save_to_disk`, or with a file of each split), or a dataset's hub id.
        split: of several splits in a folder or on the hub, the one to read.
        revision: of a dataset on the hub.
    Raises:
        ConfigError: there is no such source, it has no splits or revisions and one is named, or a row of it is no text.
    """
    where = read.local(path)
    kind = "file" if path == "shipped" else read.kind_of(where)
    if revision is not None and kind is not None:
        raise ConfigError(f"{name}.revision={read.shortened(revision)} is for a dataset of the hub alone: set it to null")
    if kind == "file" and split != DEFAULT_SPLIT:
        raise ConfigError(f"{name}.split={read.shortened(split)} is for a folder or a dataset of the hub: a file is read whole")
    if kind == "file":
        return files.pool(name, path, column)
    if kind == "folder" and not hub.is_saved(where):
        return files.distinct([text for file in split_files(where, split) for text in files.pool(name, str(file), column)])
    if kind is None and (where.suffix.lower() in read.READERS or path.startswith(("/", "./", "../", "~")) or not path):
        shown = read.shortened(path, 120) or "without a name"
        raise ConfigError(f"there is no file or folder {shown}: name one, or a dataset of the Hugging Face hub")
    source = hub.saved_column(where, column, split) if kind == "folder" else hub.hub_column(path, column, split, revision)
    texts = []
    for place, cell in source:
        problem = files.fault({column: cell}, {column: str}, extra_keys=False)
        if isinstance(cell, str) and not cell.strip():
            continue  # nobody can mend a row of somebody else's dataset
        if problem is not None:
            raise ConfigError(f"{place} {problem}: choose another column, or write the texts into a file of your own")
        texts.append(cell.strip())
    if not texts:
        raise ConfigError(f"{path} is empty: it needs texts in the column {column}")
    return files.distinct(texts)


def split_files(folder: Path, split: str) -> list[Path]:
    """A folder's files of one split, as the hub names them: train.csv, or data/train-00000-of-00002.parquet and so on."""
    found = sorted(f for place in (folder, folder / "data") if place.is_dir() for f in place.iterdir() if read.readable(f))
    of_split = [f for f in found if re.fullmatch(rf"{re.escape(split)}(-\d+-of-\d+)?", f.stem) is not None]
    if len({(f.parent, f.suffix) for f in of_split}) > 1:
        raise ConfigError(f"{folder} holds {' and '.join(f.name for f in of_split[:4])}: name the file that is meant")
    if not of_split:
        names = ", ".join(f.name for f in found[:8]) or "none that can be read"
        raise ConfigError(f"{folder} has no file of the split {read.shortened(split)}: name a file; it has {names}")
    return of_split


@lru_cache(maxsize=8)  # each cycle of each plan asks, and a pool may have a million rows
def in_order(name: str, pool: tuple[str, ...], taken: frozenset[str], seed: int) -> tuple[str, ...]:
    """The texts of a pool in the order in which a run with this seed takes them, without those that are `taken`, whatever their
    case and spaces.
    """
    folded = {files.fold(text) for text in taken}
    return tuple(text for text in shuffled(list(pool), seed, name) if files.fold(text) not in folded)


def cycle_part(name: str, pool: tuple[str, ...], taken: Collection[str], seed: int, cycle: int, per_cycle: int) -> list[str]:
    """The part of cycle >= 1: `per_cycle` texts, the same whatever n_cycles and n_sampled are.

    Args:
        taken: texts that never come up: seeds and eval questions.
    Raises:
        RunError: the pool has too few for this cycle.
    """
    texts = in_order(name, pool, frozenset(taken), seed)
    part = list(texts[(cycle - 1) * per_cycle : cycle * per_cycle])
    if len(part) < per_cycle:
        raise RunError(
            f"the pool {name} has {len(texts)} rows, too few for cycle {cycle} at {name}.per_cycle={per_cycle}: "
            f"lower n_cycles or {name}.per_cycle, or bring a larger dataset ({name}.path=<dataset>)"
        )
    return part
