"""What a store holds and who uses it (`ls`), and freeing what no run refers to (`gc`), beside runs and other `gc`s.

Only folders that are stores are touched, and in them only what lies where a stage may: a known kind, a key, no link. Each is
looked at again under its lock, taken away whole, and then removed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from iterative_ft.errors import printable
from iterative_ft.machine.files import folder_bytes
from iterative_ft.store.layout import (
    KINDS,
    LOCKS,
    MANIFEST,
    REFERENCES,
    TRASH,
    WORK,
    discard,
    is_folder,
    names_in,
    parted,
    remove,
    stage_folders,
    why_no_store,
)
from iterative_ft.store.manifest import Damaged, read_stage
from iterative_ft.store.references import References, clear_stale, forget
from iterative_ft.store.stages import Store

TOLD = 5  # run folders that are named when they are not seen


@dataclass(frozen=True)
class Waste:
    """A folder that may go, and why."""

    path: Path
    kind: str
    key: str
    why: str


def garbage(store: Store, references: References, forget_missing: bool = False) -> list[Waste]:
    """Folders that `gc` would remove. A folder whose lock is held is being built and left alone."""
    return [waste for waste in candidates(store, references, forget_missing) if not is_locked(store, waste)]


def candidates(store: Store, references: References, forget_missing: bool) -> Iterator[Waste]:
    keep = kept_by(references, forget_missing)
    places = [(store.root / kind / key, kind, key) for kind, key in stage_folders(store.root)]
    for name in names_in(store.root / WORK):
        parts, path = parted(name), store.root / WORK / name
        if parts is not None and is_folder(path):
            places.append((path, *parts))
    for path, kind, key in places:
        why = reason(store, path, kind, key, keep)
        if why is not None:
            yield Waste(path, kind, key, why)


def kept_by(references: References, forget_missing: bool) -> set[str] | None:
    """Names of the stages that count as used; None: all, since a reference that nobody can read may be about any of them."""
    users = references.users(forget_missing)
    if not forget_missing and references.read()[1]:
        return None
    return set(users)


def reason(store: Store, path: Path, kind: str, key: str, keep: set[str] | None) -> str | None:
    """Why a folder is of no use; None where it is."""
    used = keep is None or f"{kind}/{key}" in keep
    if path.parent.name == WORK:  # of a stage that a run wants: checkpoints, replies that were paid for
        return None if used and not (store.root / kind / key / MANIFEST).is_file() else "left by a crash"
    if not os.path.lexists(path / MANIFEST):
        return "no manifest"
    return None if used else "no run uses it"


def is_locked(store: Store, waste: Waste) -> bool:
    if not (store.root / LOCKS / f"{waste.kind}-{waste.key}").is_file():
        return False
    try:
        with store.lock(waste.kind, waste.key, wait=False):
            return False
    except (Timeout, OSError):
        return True


def take(store: Store, references: References, waste: Waste, forget_missing: bool) -> Path | None:
    """Take a folder out of its place under its lock, when it is still of no use. Returns where it is now."""
    try:
        with store.lock(waste.kind, waste.key, wait=False):
            keep = kept_by(references, forget_missing)
            if not is_folder(waste.path) or reason(store, waste.path, waste.kind, waste.key, keep) is None:
                return None
            return discard(waste.path, store.root, f"{waste.kind}-{waste.key}")
    except Timeout:
        return None


def list_stages(store: Store) -> None:
    """Print every stage with its size, its time and the number of runs that use it; then what lies there and is none."""
    references = References(store.root)
    users, total, bad = references.users(), 0, []
    for kind, key in stage_folders(store.root):
        path = store.root / kind / key
        try:
            stage = read_stage(store.root, kind, key, whole=False)
        except (Damaged, OSError) as error:
            bad.append(printable(f"damaged   {path}: {error}"))
            continue
        if stage is None:
            continue
        size = folder_bytes(path)
        total += size
        n_runs = len(users.get(f"{kind}/{key}", []))
        label = printable(stage.manifest["label"])
        print(f"{kind:8} {key} {size / 1e6:9.1f} MB {stage.manifest['seconds']:8.1f} s  runs {n_runs}  {label}")
    for line in bad + others(store) + told(references):
        print(line)
    print(f"{total / 1e6:.1f} MB in all")


def others(store: Store) -> list[str]:
    """What lies where kinds and stages belong and is never touched."""
    found = []
    for kind in sorted(KINDS):
        place = store.root / kind
        if os.path.lexists(place) and (not is_folder(place) or not os.access(place, os.R_OK | os.X_OK)):
            found.append(place)
        found += [
            place / name for name in names_in(place) if not is_folder(place / name) or (kind, name) != parted(f"{kind}-{name}")
        ]
    return [printable(f"no stage  {path}: left alone{' (a link)' if path.is_symlink() else ''}") for path in found]


def told(references: References) -> list[str]:
    """What is to be said of references: runs that are not seen, and files that nobody can read."""
    found, damaged = references.read()
    missing = sorted({f"{r.run} (host {r.host or 'not known'})" for r in found if r.run and not r.seen(references.root)})
    lines = [
        f"not seen  {printable(run)}: its stages count as used (gc --forget-missing: they do not)" for run in missing[:TOLD]
    ]
    if len(missing) > TOLD:
        lines.append(f"not seen  {len(missing) - TOLD} more run folders")
    return lines + [
        printable(
            f"damaged   {file}: nobody knows what it refers to, so every stage counts as used; remove it if its run is gone"
        )
        for file in damaged
    ]


def clear(store: Store, remove_it: bool, forget_missing: bool = False) -> int:
    """Print what no run refers to, and remove it when asked to. Returns 1 when something could not be removed."""
    references, freed, failed = References(store.root), 0, False
    for waste in garbage(store, references, forget_missing):
        size = folder_bytes(waste.path)
        line = printable(f"{waste.path} ({size / 1e6:.1f} MB, {waste.why})")
        try:
            doomed = take(store, references, waste, forget_missing) if remove_it else waste.path
            if doomed is None:  # wanted by now, or another gc was first
                continue
            if remove_it:
                remove(doomed)
        except OSError as error:
            print(printable(f"cannot remove {waste.path}: {error.strerror or error}"), file=sys.stderr)
            failed = True
            continue
        freed += size
        print(f"{'removed' if remove_it else 'would remove'} {line}")
    if remove_it:
        failed |= not tidy(store, references, forget_missing)
    for text in others(store) + told(references):
        print(text)
    print(f"{freed / 1e6:.1f} MB {'freed' if remove_it else 'to free: add --yes to remove'}")
    return int(failed)


def tidy(store: Store, references: References, forget_missing: bool) -> bool:
    """Remove what a killed `gc` had taken away, what killed writes left, and forgotten references. Returns whether it could."""
    done = True
    for name in names_in(store.root / TRASH):
        if parted(name.partition(".")[0]) is not None:
            try:
                remove(store.root / TRASH / name)
            except OSError as error:
                print(f"cannot remove {store.root / TRASH / name}: {error.strerror or error}", file=sys.stderr)
                done = False
    if not is_folder(store.root / REFERENCES):
        return done
    clear_stale(store.root)
    for reference in references.read()[0] if forget_missing else []:
        if reference.seen(store.root) is False:
            with suppress(OSError):
                forget(store.root, reference)
    return done


def main(argv: list[str] | None = None) -> int:
    """`ls` lists stages, sizes and users; `gc` shows what no run refers to, and with --yes removes it."""
    parser = argparse.ArgumentParser(prog="python -m iterative_ft.store", description=main.__doc__)
    parser.add_argument("command", choices=["ls", "gc"])
    parser.add_argument("store", nargs="?", default="outputs/store", type=Path)
    parser.add_argument("--yes", action="store_true", help="gc: remove what it lists")
    parser.add_argument(
        "--forget-missing",
        action="store_true",
        help="gc: runs whose folders this machine does not see, and what was made without a run, no longer count as users",
    )
    arguments = parser.parse_args(argv)
    try:
        store = Store(arguments.store)
        why = why_no_store(store.root) if store.root.is_dir() else "it is no folder"
        if why is not None:
            print(
                f"store={printable(str(arguments.store))} is no store ({printable(why)}): name the store of a run",
                file=sys.stderr,
            )
            return 2
        if arguments.command == "ls":
            list_stages(store)
            return 0
        return clear(store, arguments.yes, arguments.forget_missing)
    except BrokenPipeError:  # whoever read the list has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, RuntimeError, ValueError) as error:
        print(f"store={printable(str(arguments.store))}: {printable(str(error))}", file=sys.stderr)
        return 1
