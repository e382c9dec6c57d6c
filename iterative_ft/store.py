"""Finished work, addressed by what went into it. Resume, sharing and provenance all follow from `Store.stage`.

<store>/<kind>/<key>/          a finished stage: its files and manifest.json, never written again
<store>/.work/<kind>-<key>/    a stage being built; garbage after a crash, except for checkpoints that a stage resumes from
<store>/.locks/<kind>-<key>    held while a stage is built
<store>/.refs/<run>.json       which run folder uses which stages, for `gc`

python -m iterative_ft.store ls [STORE]
python -m iterative_ft.store gc [STORE] [--yes]
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from iterative_ft.errors import RunError

MANIFEST = "manifest.json"

# Bumped when a kind's code starts to produce something else from the same inputs.
CODE_VERSION = {
    "model": 1,
    "probe": 4,
    "sample": 1,
    "data": 1,
    "train": 1,
    "answer": 1,
    "judge": 1,
    "gauge": 2,
    "replies": 1,
    "labelled": 1,
}


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

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Read a JSONL file of the stage."""
        return read_jsonl(self.path / name)


@dataclass(frozen=True)
class Event:
    """How a stage came to be had: "built", "stored" (reused), or "pending" (dry run)."""

    stage: Stage
    how: str
    seconds: float
    waited_s: float


class Store:
    """A folder of stages. Safe to share between processes, and between machines whose file system has POSIX locks."""

    def __init__(
        self,
        root: Path,
        dry_run: bool = False,
        on_event: Callable[[Event], None] | None = None,
        run_folder: Path | None = None,
    ) -> None:
        self.root = root
        self.run_folder = run_folder  # whose stages these are: `gc` keeps them from the moment they are asked for
        self.dry_run = dry_run
        self.on_event = on_event or (lambda event: None)
        self.on_start: Callable[[str, str], None] = lambda kind, label: None
        self.used: dict[str, str] = {}  # stage path below the root -> label, for `.refs`
        self.verified: dict[str, Stage] = {}  # stages whose files this process has checked against their digests

    def stage(
        self,
        kind: str,
        inputs: dict[str, Any],
        build: Callable[[Path], dict[str, Any] | None],
        label: str = "",
        resumable: bool = False,
    ) -> Stage:
        """Return the stage that `inputs` address, building it if no process has.

        Args:
            kind: a key of `CODE_VERSION`.
            inputs: JSON values that determine the result; parents by their `digest`.
            build: writes the stage's files into the folder it is given; what it returns goes into the manifest as "info".
            resumable: keep the work folder of a killed build, for `build` to go on from what it finds there.
        """
        key = stage_key(kind, inputs)
        final = self.root / kind / key
        name = f"{kind}/{key}"
        if name in self.verified:
            return self.verified[name]
        self.used[name] = label
        if self.run_folder is not None:
            self.write_reference(self.run_folder)
        stage, waited = self.find(kind, key, verify=not self.dry_run), 0.0
        how = "stored"
        started = time.monotonic()
        if stage is None and self.dry_run:
            stage, how = Stage(kind, key, final, f"pending:{key}", {"inputs": inputs, "label": label}), "pending"
        elif stage is None:
            self.on_start(kind, label)
            with self.lock(kind, key):
                waited = time.monotonic() - started
                stage = self.find(kind, key)
                if stage is None:
                    started = time.monotonic()
                    stage, how = self.build(kind, key, inputs, build, label, resumable), "built"
        self.verified[name] = stage
        self.on_event(Event(stage, how, time.monotonic() - started if how == "built" else 0.0, waited))
        return stage

    def build(
        self,
        kind: str,
        key: str,
        inputs: dict[str, Any],
        build: Callable[[Path], dict[str, Any] | None],
        label: str,
        resumable: bool,
    ) -> Stage:
        """Build in a work folder, write the manifest last, rename into place. The caller holds the key's lock."""
        work = self.root / ".work" / f"{kind}-{key}"
        final = self.root / kind / key
        if not resumable:
            shutil.rmtree(work, ignore_errors=True)
        started = time.time()
        try:
            work.mkdir(parents=True, exist_ok=True)
            info = build(work) or {}
            files = file_digests(work)
            manifest: dict[str, Any] = {
                "kind": kind,
                "key": key,
                "label": label,
                "inputs": inputs,
                "info": info,
                "files": files,
                "digest": content_digest(files),
                "created": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
                "seconds": round(time.time() - started, 3),
            }
            write_json(work / MANIFEST, manifest)
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():  # a damaged stage, or a folder without a manifest that a crash left
                shutil.rmtree(final)
            os.rename(work, final)
            sync_folder(final.parent)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RunError(
                    f"disk full while building {label or kind} in store={self.root}: all finished stages are kept; "
                    "free space (python -m iterative_ft.store gc) and run the same command again to go on"
                ) from error
            raise
        return Stage(kind, key, final, manifest["digest"], manifest)

    def find(self, kind: str, key: str, verify: bool = True) -> Stage | None:
        """The finished and undamaged stage of this key, or None. Damage is told on stderr; a dry run does not look for it."""
        final = self.root / kind / key
        try:
            manifest = json.loads((final / MANIFEST).read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            warn_damaged(final, "its manifest is not readable")
            return None
        if not verify:
            return Stage(kind, key, final, manifest["digest"], manifest)
        try:
            found = file_digests(final)
        except OSError as error:
            warn_damaged(final, str(error))
            return None
        if found != manifest["files"] or content_digest(found) != manifest["digest"]:
            changed = sorted(n for n in found.keys() | manifest["files"].keys() if found.get(n) != manifest["files"].get(n))
            warn_damaged(final, f"{', '.join(changed[:3])} differ(s) from the recorded digest")
            return None
        return Stage(kind, key, final, manifest["digest"], manifest)

    @contextmanager
    def lock(self, kind: str, key: str) -> Iterator[None]:
        """Hold the key's lock; freed by the kernel when the process dies."""
        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{kind}-{key}"):
            yield

    def write_reference(self, run_folder: Path) -> None:
        """Record which stages a run uses, so that `gc` keeps them as long as the run's folder exists."""
        refs = self.root / ".refs"
        refs.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(str(run_folder.resolve()).encode()).hexdigest()[:16]
        write_json(refs / f"{name}.json", {"run": str(run_folder.resolve()), "stages": sorted(self.used)})

    def stages(self) -> Iterator[Stage]:
        """Every finished stage, not checked against its digests."""
        for manifest_file in sorted(self.root.glob(f"[!.]*/*/{MANIFEST}")):
            manifest = json.loads(manifest_file.read_text())
            yield Stage(manifest["kind"], manifest["key"], manifest_file.parent, manifest["digest"], manifest)

    def referenced(self) -> dict[str, list[str]]:
        """Stage name -> run folders that use it. Runs whose folder is gone do not count."""
        found: dict[str, list[str]] = {}
        for file in (self.root / ".refs").glob("*.json"):
            ref = json.loads(file.read_text())
            if Path(ref["run"]).is_dir():
                for name in ref["stages"]:
                    found.setdefault(name, []).append(ref["run"])
        return found

    def garbage(self) -> list[tuple[Path, str]]:
        """Folders that `gc` would remove, with the reason. A folder whose lock is held is being built and left alone."""
        keep = self.referenced()
        found = []
        for kind in (p for p in self.root.glob("[!.]*") if p.is_dir()):
            for folder in (p for p in kind.iterdir() if p.is_dir()):
                if not (folder / MANIFEST).exists():
                    found.append((folder, "no manifest"))
                elif f"{kind.name}/{folder.name}" not in keep:
                    found.append((folder, "no run uses it"))
        found += [(work, "left by a crash") for work in (self.root / ".work").glob("*")]
        return [(p, why) for p, why in found if not self.is_locked(p)]

    def is_locked(self, folder: Path) -> bool:
        name = folder.name if folder.parent.name == ".work" else f"{folder.parent.name}-{folder.name}"
        file = self.root / ".locks" / name
        if not file.exists():
            return False
        try:
            with FileLock(file, timeout=0):
                return False
        except Timeout:
            return True


def warn_damaged(stage: Path, why: str) -> None:
    print(f"warning: stage {stage} is damaged ({why}): it is built again", file=sys.stderr)


def stage_key(kind: str, inputs: dict[str, Any]) -> str:
    """Address of a stage: a hash of its kind, that kind's code version, and its inputs."""
    text = json.dumps([kind, CODE_VERSION[kind], inputs], sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def text_digest(value: Any) -> str:
    """Hash of a JSON value, for inputs too long to record."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:32]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file but the manifest."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    return {p.relative_to(folder).as_posix(): file_sha256(p) for p in files}


def content_digest(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:32]


def library_versions(*names: str) -> dict[str, str]:
    """Installed versions of distributions, "" where one is missing; read from metadata, nothing is imported."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


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
        users = store.referenced()
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
        return 0
    freed = 0
    for folder, why in store.garbage():
        size = folder_bytes(folder)
        freed += size
        print(f"{'removed' if arguments.yes else 'would remove'} {folder} ({size / 1e6:.1f} MB, {why})")
        if arguments.yes:
            shutil.rmtree(folder)
    print(f"{freed / 1e6:.1f} MB {'freed' if arguments.yes else 'to free: add --yes to remove'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
