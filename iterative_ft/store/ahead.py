"""Stages that are built before they are asked for, because they come cheaper together with another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import Timeout

from iterative_ft.store.manifest import Damaged, Kind, read_stage, stage_key
from iterative_ft.store.stages import AHEAD, Build, Store

MOST_CLAIMED = 256  # each holds a file open
CLAIMED: dict[tuple[Path, str], ExitStack] = {}  # (root of the store, kind/key) -> its lock, held by this process


@contextmanager
def claimed(store: Store, wanted: Sequence[tuple[Kind, dict[str, Any]]]) -> Iterator[list[int]]:
    """Hold the locks of those stages that are still to build and that nobody builds; gives their numbers in `wanted`.

    The caller builds each of them with `put`, which frees its lock, before it leaves. It never waits, so that two processes
    that want many of the same stages cannot wait for each other. At most `MOST_CLAIMED` at once: the others when the next of
    them is asked for.
    """
    mine: list[int] = []
    taken: list[tuple[Path, str]] = []
    try:
        for number, (kind, inputs) in enumerate(wanted):
            key = stage_key(kind, inputs)
            if len(mine) == MOST_CLAIMED:
                break
            with ExitStack() as held:
                try:
                    held.enter_context(store.lock(kind.name, key, wait=False))
                except Timeout:
                    continue
                try:
                    there = read_stage(store.root, kind.name, key, inputs) is not None
                except Damaged:
                    there = False  # who asks for it tells of the damage
                if not there:
                    mine.append(number)
                    taken.append((store.root, f"{kind.name}/{key}"))
                    CLAIMED[taken[-1]] = held.pop_all()
        yield mine
    finally:
        for one in taken:
            free(one)


def free(stage: tuple[Path, str]) -> None:
    """Let others have a stage that was claimed."""
    if stage in CLAIMED:
        CLAIMED.pop(stage).close()


def put(store: Store, kind: Kind, inputs: dict[str, Any], build: Build, label: str) -> None:
    """Build a stage that was claimed; `Store.stage` then counts it as built."""
    key = stage_key(kind, inputs)
    name = f"{kind.name}/{key}"
    store.use(name)
    AHEAD[store.root, name] = store.build(kind.name, key, inputs, build, label, resumable=())
    free((store.root, name))
