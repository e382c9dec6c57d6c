"""Stages that ship with the software: what takes minutes to make and is the same for everyone, under the key it has in a store.

`iterative_ft/ready/<kind>/<key>/` is laid out as a store. A stage that is asked for and that the store lacks is copied from
there when its key is there, so that anything that differs in the key (a text, a setting, a library's version) has it built.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from iterative_ft.store.manifest import Damaged, Stage, read_stage

READY = Path(__file__).resolve().parents[1] / "ready"


def ready_stage(kind: str, key: str, inputs: dict[str, Any], whole: bool = True) -> Stage | None:
    """The shipped stage of this key, or None; a damaged one is none.

    Args:
        whole: hold its files against their digests.
    """
    with suppress(Damaged):
        return read_stage(READY, kind, key, inputs, whole)
    return None


def copy_into(stage: Stage, work: Path) -> None:
    """Copy a stage's files and its manifest into an empty folder."""
    shutil.copytree(stage.path, work, dirs_exist_ok=True, copy_function=shutil.copyfile)
