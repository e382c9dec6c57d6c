"""Stages that ship with the software: what takes minutes to make and is the same for everyone, under the key it has in a store.

`iterative_ft/ready/<kind>/<key>/` is laid out as a store. A stage that is asked for and that the store lacks is copied from
there when its key is there, so that anything that differs in the key (a text, a setting, a library's version) has it built.
`digests.json` holds the digests of their parents that do not ship, the base model's: a plan needs them before there is a store.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from iterative_ft.store.manifest import Damaged, Stage, read_stage

READY = Path(__file__).resolve().parents[1] / "ready"
DIGESTS = "digests.json"  # key of a stage -> digest of what it holds


def ready_stage(kind: str, key: str, inputs: dict[str, Any], whole: bool = True) -> Stage | None:
    """The shipped stage of this key, or None; a damaged one is none.

    Args:
        whole: hold its files against their digests.
    """
    with suppress(Damaged):
        return read_stage(READY, kind, key, inputs, whole)
    return None


def ships(kind: str, key: str) -> bool:
    """Whether a stage of this key is ready-made: nobody builds it, and its seconds are of the machine that made it."""
    return (READY / kind / key).is_dir()


def with_known_digests(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a planned stage with the digests of parents that are still to be built, where those are known."""
    text = json.dumps(inputs)
    if '"pending:' not in text:
        return inputs
    with suppress(OSError):
        for key, digest in json.loads((READY / DIGESTS).read_text(encoding="utf-8")).items():
            text = text.replace(f'"pending:{key}"', json.dumps(digest))
    found: dict[str, Any] = json.loads(text)
    return found


def copy_into(stage: Stage, work: Path) -> None:
    """Copy a stage's files and its manifest into an empty folder."""
    shutil.copytree(stage.path, work, dirs_exist_ok=True, copy_function=shutil.copyfile)
