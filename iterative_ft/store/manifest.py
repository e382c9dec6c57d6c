"""A finished stage as its folder says it is: reading its manifest, whatever lies there, and holding its files against it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iterative_ft.machine.files import LEFTOVERS, file_sha256, read_jsonl
from iterative_ft.store.layout import KINDS, MANIFEST

# What the system answers where something is damaged. Other errors (no more file handles, a network disk that went away)
# say nothing about a stage: for them none is built again.
DAMAGE = {
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ELOOP,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.ENXIO,
    errno.EINVAL,
}
SHAPE: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "key": str,
    "label": str,
    "inputs": dict,
    "info": dict,
    "files": dict,
    "digest": str,
    "seconds": (int, float),
}


class Damaged(Exception):
    """A stage's folder does not hold what its build wrote; the text says what is wrong with it."""


@dataclass(frozen=True)
class Kind:
    """A kind of stage. Its version is raised when its code starts to produce something else from the same inputs."""

    name: str
    version: int

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise ValueError(f"{self.name} is not in KINDS of store/layout.py, by which `gc` knows a store's folders")


@dataclass(frozen=True)
class Stage:
    """One finished unit of work (or, in a dry run, one that is still to do)."""

    kind: str
    key: str
    path: Path
    digest: str
    """Hash of the files' contents: what children are keyed on. In a dry run "pending:<key>" where it is not known yet."""
    manifest: dict[str, Any] = field(repr=False)

    @property
    def pending(self) -> bool:
        return self.digest.startswith("pending:")

    @property
    def inputs(self) -> dict[str, Any]:
        """What the key was made of."""
        return dict(self.manifest["inputs"])

    @property
    def info(self) -> dict[str, Any]:
        """What the build said of itself; empty while it is pending."""
        return dict(self.manifest.get("info", {}))

    def rows(self, name: str) -> list[Any]:
        """Read a JSONL file of the stage."""
        return read_jsonl(self.path / name)


def stage_key(kind: Kind, inputs: dict[str, Any]) -> str:
    """Address of a stage: a hash of its kind, that kind's code version, and its inputs."""
    text = json.dumps([kind.name, kind.version, inputs], sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def content_digest(files: dict[str, str]) -> str:
    """Hash of what `contents` found."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:32]


def record_digest(manifest: dict[str, Any]) -> str:
    """Hash of all that a manifest says, so that `info` and `inputs` are believed as written or not at all."""
    said = {name: value for name, value in manifest.items() if name != "record"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:32]


def as_json(value: Any) -> Any:
    """A value as it will be read back: lists for tuples, strings for the keys of objects."""
    return json.loads(json.dumps(value, allow_nan=False))


def contents(folder: Path) -> dict[str, str]:
    """Path below `folder` -> sha256 of every finished file but the manifest.

    Raises:
        Damaged: there is something else than files and folders, a link say.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name, mode = path.relative_to(folder).as_posix(), os.lstat(path).st_mode
        if stat.S_ISDIR(mode) or name == MANIFEST or path.name.startswith(LEFTOVERS):
            continue
        if not stat.S_ISREG(mode):
            raise Damaged(f"{name} is {'a link' if stat.S_ISLNK(mode) else 'no file'}")
        found[name] = file_sha256(path)
    return found


def read_stage(root: Path, kind: str, key: str, inputs: dict[str, Any] | None = None, whole: bool = True) -> Stage | None:
    """The finished stage of this key, or None where there is none (a folder without a manifest is what a crash left).

    Args:
        inputs: what its key was made of, where that is known.
        whole: hold the files against their digests.
    Raises:
        Damaged: something else lies there than what a build wrote.
    """
    folder = root / kind / key
    try:
        manifest = read_manifest(folder)
        if manifest is None:
            return None
        check_manifest(manifest, kind, key, inputs)
        if whole:
            check_files(folder, manifest)
    except OSError as error:
        if error.errno not in DAMAGE:
            raise
        raise Damaged(error.strerror or str(error)) from error
    return Stage(kind, key, folder, manifest["digest"], manifest)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a stage's manifest says, whatever that is; None where there is no stage."""
    try:
        mode = os.lstat(folder).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISDIR(mode):
        raise Damaged("a link lies in its place" if stat.S_ISLNK(mode) else "a file lies in its place")
    try:
        mode = os.lstat(folder / MANIFEST).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
        raise Damaged("its manifest is no file")
    try:
        manifest: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged("its manifest is not readable") from error
    if not isinstance(manifest, dict):
        raise Damaged("its manifest is no JSON object")
    return manifest


def check_manifest(manifest: dict[str, Any], kind: str, key: str, inputs: dict[str, Any] | None) -> None:
    """A manifest has the fields that are read, is that of this stage, and says what it said when it was written."""
    wrong = [name for name, type_ in SHAPE.items() if not isinstance(manifest.get(name), type_)]
    if wrong:
        raise Damaged(f"its manifest has no sound {', '.join(wrong)}")
    if isinstance(manifest["seconds"], bool) or not -1e12 < manifest["seconds"] < 1e12:  # NaN is not
        raise Damaged("its manifest has no sound seconds")
    if not all(isinstance(sha, str) for sha in manifest["files"].values()):
        raise Damaged("its manifest has no sound files")
    if (manifest["kind"], manifest["key"]) != (kind, key):
        raise Damaged("its manifest is another stage's")
    if inputs is not None and as_json(inputs) != manifest["inputs"]:
        raise Damaged("its manifest has other inputs than its key is made of")
    if "record" in manifest and manifest["record"] != record_digest(manifest):  # older versions wrote none
        raise Damaged("its manifest differs from the recorded digest")
    if content_digest(manifest["files"]) != manifest["digest"]:
        raise Damaged("its manifest's digest is not that of its files")


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """The files are those that the manifest lists."""
    found, told = contents(folder), manifest["files"]
    changed = sorted(name for name in found.keys() | told.keys() if found.get(name) != told.get(name))
    if changed:
        raise Damaged(f"{', '.join(changed[:3])} differ(s) from the recorded digest")
