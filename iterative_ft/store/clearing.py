"""What a store holds and who uses it (`ls`), and freeing what no run refers to (`gc`)."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from iterative_ft.machine.files import folder_bytes
from iterative_ft.store.stages import LOCKS, MANIFEST, REFERENCES, WORK, Store


def referenced(store: Store) -> dict[str, list[str]]:
    """Stage name -> run folders that use it. Runs whose folder is gone do not count."""
    found: dict[str, list[str]] = {}
    for file in (store.root / REFERENCES).glob("*.json"):
        reference = json.loads(file.read_text())
        if Path(reference["run"]).is_dir():
            for name in reference["stages"]:
                found.setdefault(name, []).append(reference["run"])
    return found


def garbage(store: Store) -> list[tuple[Path, str]]:
    """Folders that `gc` would remove, with the reason. A folder whose lock is held is being built and left alone."""
    keep = referenced(store)
    found = []
    for kind in (p for p in store.root.glob("[!.]*") if p.is_dir()):
        for folder in (p for p in kind.iterdir() if p.is_dir()):
            if not (folder / MANIFEST).exists():
                found.append((folder, "no manifest"))
            elif f"{kind.name}/{folder.name}" not in keep:
                found.append((folder, "no run uses it"))
    found += [(work, "left by a crash") for work in (store.root / WORK).glob("*")]
    return [(p, why) for p, why in found if not is_locked(store, p)]


def is_locked(store: Store, folder: Path) -> bool:
    name = folder.name if folder.parent.name == WORK else f"{folder.parent.name}-{folder.name}"
    file = store.root / LOCKS / name
    if not file.exists():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True


def list_stages(store: Store) -> None:
    """Print every stage with its size, its time and the number of runs that use it."""
    users = referenced(store)
    total = 0
    for stage in store.stages():
        size = folder_bytes(stage.path)
        total += size
        n_runs = len(users.get(f"{stage.kind}/{stage.key}", []))
        print(
            f"{stage.kind:8} {stage.key} {size / 1e6:9.1f} MB {stage.manifest['seconds']:8.1f} s  "
            f"runs {n_runs}  {stage.manifest['label']}"
        )
    print(f"{total / 1e6:.1f} MB in all")


def clear(store: Store, remove: bool) -> None:
    """Print what no run refers to, and remove it when asked to."""
    freed = 0
    for folder, why in garbage(store):
        size = folder_bytes(folder)
        freed += size
        print(f"{'removed' if remove else 'would remove'} {folder} ({size / 1e6:.1f} MB, {why})")
        if remove:
            shutil.rmtree(folder)
    print(f"{freed / 1e6:.1f} MB {'freed' if remove else 'to free: add --yes to remove'}")


def main(argv: list[str] | None = None) -> int:
    """`ls` lists stages, sizes and users; `gc` shows what no run refers to, and with --yes removes it."""
    parser = argparse.ArgumentParser(prog="python -m iterative_ft.store", description=main.__doc__)
    parser.add_argument("command", choices=["ls", "gc"])
    parser.add_argument("store", nargs="?", default="outputs/store", type=Path)
    parser.add_argument("--yes", action="store_true", help="gc: remove what it lists")
    arguments = parser.parse_args(argv)
    if not arguments.store.is_dir():
        print(f"store={arguments.store} is no folder: name the store of a run", file=sys.stderr)
        return 2
    store = Store(arguments.store)
    if arguments.command == "ls":
        list_stages(store)
    else:
        clear(store, arguments.yes)
    return 0
