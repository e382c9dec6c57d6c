"""Where things lie in a store, what makes a folder one, and making way where something else lies in their place.

<store>/iterative_ft_store.json   the mark
<store>/<kind>/<key>/             a finished stage: its files and manifest.json, never written again
<store>/.work/<kind>-<key>/       a stage being built; what a killed build may go on from stays
<store>/.locks/<kind>-<key>       held while a stage is built, taken into use or removed
<store>/.refs/<run>.json          which run folder uses which stages, for `gc`
<store>/.trash/                   stages on their way out
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from iterative_ft.machine.files import LEFTOVERS, clear_unfinished, remove_tree, write_json

MANIFEST, MARKER = "manifest.json", "iterative_ft_store.json"
WORK, LOCKS, REFERENCES, TRASH, ASIDE = ".work", ".locks", ".refs", ".trash", ".aside-"
HOLDS = "stages of iterative_ft"
KINDS = frozenset("model expected sample answer data train probe judge replies gauge labelled".split())
KEY = re.compile(r"[0-9a-f]{20}")


def is_folder(path: str | Path) -> bool:
    """Whether it is a folder itself: no link to one. What cannot be looked at is none."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def parted(name: str) -> tuple[str, str] | None:
    """Kind and key of a name such as "train-0123456789abcdef0123", None when it is no such name."""
    kind, _, key = name.partition("-")
    return (kind, key) if kind in KINDS and KEY.fullmatch(key) is not None else None


def names_in(folder: Path) -> list[str]:
    """Names of a folder's entries in order; none where there is no such folder, or only a link to one."""
    if not is_folder(folder):
        return []
    with suppress(OSError):  # gone meanwhile, or not to be read
        return sorted(os.listdir(folder))
    return []


def stage_folders(root: Path) -> list[tuple[str, str]]:
    """Kind and key of every folder that lies where a stage may, links left out."""
    return [
        (kind, key)
        for kind in sorted(KINDS)
        for key in names_in(root / kind)
        if KEY.fullmatch(key) is not None and is_folder(root / kind / key)
    ]


# -- what makes a folder a store ----------------------------------------------------------------------------------------------


def is_marked(root: Path) -> bool:
    """Whether the folder holds the mark."""
    file = root / MARKER
    try:
        return stat.S_ISREG(os.lstat(file).st_mode) and json.loads(file.read_text(encoding="utf-8"))["holds"] == HOLDS
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def mark(root: Path) -> None:
    """Mark the folder as a store. One process at a time."""
    if not is_marked(root):
        clear_unfinished(root)
        make_way(root / MARKER, root, for_folder=False)
        write_json(root / MARKER, {"holds": HOLDS, "layout": 1})


def why_no_store(root: Path) -> str | None:
    """Why the folder is not taken for a store; None where it is one.

    An unmarked one, as older versions made them, is one when it holds nothing but what a store holds.
    """
    if is_marked(root):
        return None
    kinds = 0
    for name in sorted(os.listdir(root)):
        if name in (WORK, LOCKS, REFERENCES, TRASH) or name == MARKER or name.startswith((*LEFTOVERS, ASIDE)):
            kinds += name in (WORK, REFERENCES)
            continue
        if name not in KINDS or not is_folder(root / name):
            return f"it has no {MARKER} and holds {name}, which is no part of one"
        kinds += 1
        for key in sorted(os.listdir(root / name)):
            if not key.startswith(LEFTOVERS) and (KEY.fullmatch(key) is None or not is_folder(root / name / key)):
                return f"it has no {MARKER} and holds {name}/{key}, which is no stage"
    return None if kinds else "it holds no stage"


# -- making way ---------------------------------------------------------------------------------------------------------------


def make_folder(folder: Path, root: Path) -> None:
    """Make a folder of the store; a file or a dead link in its place, or in that of a parent below `root`, is set aside."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        for path in (folder, *folder.parents):
            if path == root:
                break
            make_way(path, root, for_folder=True)
        folder.mkdir(parents=True, exist_ok=True)


def make_way(path: Path, root: Path, for_folder: bool) -> None:
    """Set aside what lies where a folder, or else a plain file, belongs; it is kept under another name, and told."""
    fits = path.is_dir() if for_folder else (path.is_file() and not path.is_symlink())
    if not fits and os.path.lexists(path):
        aside = root / f"{ASIDE}{path.name}-{secrets.token_hex(4)}"
        with suppress(FileNotFoundError):  # another process did the same
            os.rename(path, aside)
            what = "folder" if for_folder else "file"
            print(f"warning: {path} is no {what}, where the store needs one: it is now {aside}", file=sys.stderr)


def discard(path: Path, root: Path, name: str) -> Path | None:
    """Take a stage's folder (or what lies in its place) out of the way, whole: a reader has all of it or nothing.

    Returns where it is now, to be removed; None where nothing was there.
    """
    make_folder(root / TRASH, root)
    doomed = root / TRASH / f"{name}.{secrets.token_hex(4)}"
    try:
        os.rename(path, doomed)
    except FileNotFoundError:
        return None
    return doomed


def remove(path: Path) -> None:
    """Remove what `discard` took away: a folder with all below it, or a file or link alone."""
    if is_folder(path):
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def clear_work(work: Path, keep: Sequence[str]) -> None:
    """Remove what a killed build left, but for the names that the next one goes on from: nothing else may get into a stage."""
    if not is_folder(work):
        work.unlink(missing_ok=True)
        return
    for name in os.listdir(work):
        if name not in keep:
            remove(work / name)
