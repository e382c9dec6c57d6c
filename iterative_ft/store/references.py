"""Who uses which stages: a file a run in <store>/.refs, written before a stage is looked for, read by `ls` and `gc`.

A run folder that this machine does not see may be on another machine or have been moved: it counts until somebody says no.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iterative_ft.machine.files import UNFINISHED, write_json
from iterative_ft.store.layout import REFERENCES, make_folder, make_way

STALE_S = 3600.0  # a file that has been "being written" for so long is what a kill left
LIKE_A_RUN = ("config.json", "judge_card.json", "scores.json")  # one of them lies in every folder that refers to stages


@dataclass(frozen=True)
class Reference:
    """One file of .refs."""

    file: Path
    run: str
    """The run's folder as it was when the reference was written; "" for stages made without one."""
    relative: str
    """The same from the store's folder; "" in references of older versions."""
    host: str
    stages: frozenset[str]

    def seen(self, root: Path) -> bool | None:
        """Whether the run's folder is there; None where that cannot be told."""
        if not self.run:
            return False
        try:
            found = [Path(self.run), *([root.resolve() / self.relative] if self.relative else [])]
            if any(stat_folder(folder) for folder in found):
                return True
            return any(looks_like_run(folder) for folder in moved_along(root.resolve(), Path(self.run)))
        except (OSError, ValueError):  # no right to look, a network disk that is away
            return None


@dataclass
class References:
    """All files of a store's .refs, read anew when they changed."""

    root: Path
    known: dict[str, tuple[tuple[int, int, int], Reference | None]] = field(default_factory=dict)

    def read(self) -> tuple[list[Reference], list[Path]]:
        """Every reference, and the files that are none: damaged ones."""
        folder = self.root / REFERENCES
        found, damaged = [], []
        for name in fresh_names(folder):
            file = folder / name
            if not name.endswith(".json") or name.startswith("."):
                continue
            try:
                status = os.stat(file)
                stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
                if name not in self.known or self.known[name][0] != stamp:
                    self.known[name] = (stamp, parsed(file))
                reference = self.known[name][1]
            except FileNotFoundError:
                continue
            except OSError:
                reference = None
            if reference is None:
                damaged.append(file)
            else:
                found.append(reference)
        return found, damaged

    def users(self, forget_missing: bool = False) -> dict[str, list[str]]:
        """Stage name -> run folders that use it.

        Args:
            forget_missing: leave out those whose folder is not there.
        """
        found: dict[str, list[str]] = {}
        for reference in self.read()[0]:
            if not forget_missing or reference.seen(self.root) is not False:
                for name in reference.stages:
                    found.setdefault(name, []).append(reference.run or "(no run folder)")
        return found


def fresh_names(folder: Path) -> list[str]:
    """Names in a folder as they are now: on a network disk, writing into it makes this machine ask the server again."""
    with suppress(OSError), tempfile.NamedTemporaryFile(prefix=UNFINISHED, dir=folder):
        pass
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def parsed(file: Path) -> Reference | None:
    """What a reference says, or None where it is damaged: then nobody knows what it kept."""
    try:
        said: Any = json.loads(file.read_text(encoding="utf-8"))
        stages = said["stages"]
        if not isinstance(stages, list) or not all(isinstance(name, str) for name in stages):
            return None
        run, relative, host = (str(said.get(name) or "") for name in ("run", "relative", "host"))
        return Reference(file, run, relative, host, frozenset(stages))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def stat_folder(folder: Path) -> bool:
    """Whether a folder is there; raises `OSError` where that cannot be told, which `Path.is_dir` does for some errors only."""
    try:
        os.stat(folder)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return folder.is_dir()


def looks_like_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in LIKE_A_RUN)


def moved_along(root: Path, run: Path) -> list[Path]:
    """Where a run folder may be that was moved together with its store: the end of its path, below a folder above the store."""
    parts = run.parts[1:]
    ends = [Path(*parts[-n:]) for n in range(1, min(len(parts), 4) + 1)]
    return [above / end for above in list(root.parents)[:3] if above != above.parent for end in ends]


def write_reference(root: Path, run: Path | None, stages: Sequence[str]) -> None:
    """Refer to stages from a run's folder, or for good where they are made without one.

    The folder is made if it is not there: one that is missing may be taken for one that is gone.
    """
    make_folder(root / REFERENCES, root)
    if run is None:
        for name in stages:
            file = root / REFERENCES / f"kept-{name.replace('/', '-')}.json"
            if not file.is_file():
                make_way(file, root, for_folder=False)
                write_json(file, {"run": None, "host": platform.node(), "stages": [name]})
        return
    run.mkdir(parents=True, exist_ok=True)
    file = reference_file(root, run)
    make_way(file, root, for_folder=False)
    where = run.resolve()
    said = {"run": str(where), "relative": os.path.relpath(where, root.resolve()), "host": platform.node()}
    write_json(file, {**said, "stages": sorted(stages)})


def reference_file(root: Path, run: Path) -> Path:
    return root / REFERENCES / f"{hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]}.json"


def referred_before(root: Path, run: Path) -> frozenset[str]:
    """What earlier attempts of a run used: it stays referred to while the run goes on from there.

    What they were writing when they were killed is removed: nobody else writes this run's reference.
    """
    file = reference_file(root, run)
    try:
        for left in file.parent.glob(f"{UNFINISHED}{file.name}.*"):
            left.unlink(missing_ok=True)
        reference = parsed(file)
    except OSError:
        return frozenset()
    return frozenset() if reference is None else reference.stages


def forget(root: Path, reference: Reference) -> bool:
    """Remove the reference of a run whose folder is gone. One that comes back meanwhile keeps it. Returns whether it went."""
    aside = reference.file.with_name(f"{UNFINISHED}{reference.file.name}.{os.getpid()}")
    try:
        os.rename(reference.file, aside)
    except FileNotFoundError:
        return False
    if reference.seen(root) is not False and not reference.file.exists():
        os.rename(aside, reference.file)
        return False
    aside.unlink(missing_ok=True)
    return True


def clear_stale(root: Path) -> None:
    """Remove what killed processes were writing among the references."""
    for file in (root / REFERENCES).glob(f"{UNFINISHED}*"):
        with suppress(OSError):
            if time.time() - file.lstat().st_mtime > STALE_S:
                file.unlink()
