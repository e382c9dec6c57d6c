"""Stages: resume, sharing between runs, crash safety and provenance all follow from `Store.stage`, and from nothing else.

<store>/<kind>/<key>/          a finished stage: its files and manifest.json, never written again
<store>/.work/<kind>-<key>/    a stage being built; garbage after a crash, except for checkpoints that a stage resumes from
<store>/.locks/<kind>-<key>    held while a stage is built
<store>/.refs/<run>.json       which run folder uses which stages, for `gc`
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from filelock import FileLock, Timeout

from iterative_ft.errors import RunError
from iterative_ft.machine.files import file_digests, read_jsonl, sync_folder, write_json

MANIFEST = "manifest.json"
WORK, LOCKS, REFERENCES = ".work", ".locks", ".refs"

Build = Callable[[Path], Mapping[str, Any] | None]
"""Writes a stage's files into the folder it is given; what it returns goes into the manifest as "info". A "seconds" in it is
what the stage took, where that is not the time of the call: stages that were built together share one."""


@dataclass(frozen=True)
class Kind:
    """A kind of stage. Its version is raised when its code starts to produce something else from the same inputs."""

    name: str
    version: int


class Purpose(TypedDict, total=False):
    """What a run wants a stage for, as its manifest keeps it."""

    policy: str
    """The policy that wrote, was trained, judged or gauged."""
    role: str
    """What it is to the cycle: "chosen", "rejected", "answers", "documents", "policy", …"""


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


@dataclass(frozen=True)
class Event:
    """How a stage came to be had, and what it is wanted for."""

    stage: Stage
    how: str
    """ "built", "stored" (reused), or "pending" (dry run)."""
    label: str
    """For people."""
    purpose: Purpose
    seconds: float = 0.0
    waited_s: float = 0.0


AHEAD: dict[tuple[Path, str], Stage] = {}  # by store and name: stages that this process built before they were asked for


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
        self.on_start: Callable[[str], None] = lambda label: None
        self.used: set[str] = set()  # stage paths below the root, for the reference file
        self.verified: dict[str, Stage] = {}  # stages whose files this process has checked against their digests

    def stage(
        self,
        kind: Kind,
        inputs: dict[str, Any],
        build: Build,
        label: str,
        purpose: Purpose | None = None,
        resumable: bool = False,
    ) -> Stage:
        """Return the stage that `inputs` address, building it if no process has.

        Args:
            inputs: JSON values that determine the result; parents by their `digest`.
            label: what the screen calls it.
            resumable: keep the work folder of a killed build, for `build` to go on from what it finds there.
        """
        key = stage_key(kind, inputs)
        name = f"{kind.name}/{key}"
        if name in self.verified:
            return self.verified[name]
        self.use(name)
        stage, how, seconds, waited = None, "built", 0.0, 0.0
        if not self.dry_run:
            stage = AHEAD.pop((self.root, name), None)
        if stage is None:
            stage, how = self.find(kind.name, key), "stored"
        if stage is None and self.dry_run:
            path = self.root / kind.name / key
            stage, how = Stage(kind.name, key, path, f"pending:{key}", {"inputs": inputs, "label": label}), "pending"
        elif stage is None:
            self.on_start(label)
            started = time.monotonic()
            with self.lock(kind.name, key):
                waited = time.monotonic() - started
                stage = self.find(kind.name, key)
                if stage is None:
                    stage, how = self.build(kind.name, key, inputs, build, label, resumable), "built"
        if how == "built":
            seconds = stage.manifest["seconds"]
        self.verified[name] = stage
        self.on_event(Event(stage, how, label, purpose or {}, seconds, waited))
        return stage

    @contextmanager
    def claimed(self, wanted: Sequence[tuple[Kind, dict[str, Any]]]) -> Iterator[list[int]]:
        """Hold the locks of those stages that are still to build and that nobody builds; gives their numbers in `wanted`.

        The caller builds each of them with `put` before it leaves. It never waits, so that two processes that want many of the
        same stages cannot wait for each other.
        """
        mine = []
        with ExitStack() as locks:
            for number, (kind, inputs) in enumerate(wanted):
                try:
                    lock = FileLock(self.lock_file(kind.name, stage_key(kind, inputs)), timeout=0)
                    locks.enter_context(lock)
                except Timeout:
                    continue
                if self.find(kind.name, stage_key(kind, inputs)) is None:
                    mine.append(number)
            yield mine

    def put(self, kind: Kind, inputs: dict[str, Any], build: Build, label: str) -> None:
        """Build a stage before it is asked for; `stage` then counts it as built. The caller has claimed it."""
        key = stage_key(kind, inputs)
        name = f"{kind.name}/{key}"
        self.use(name)
        AHEAD[self.root, name] = self.build(kind.name, key, inputs, build, label, resumable=False)

    def reuse(self, stage: Stage, label: str, purpose: Purpose) -> None:
        """Count a stage that was found by its key as used."""
        self.use(f"{stage.kind}/{stage.key}")
        self.on_event(Event(stage, "stored", label, purpose))

    def use(self, name: str) -> None:
        """Record which stages the run uses, so that `gc` keeps them as long as the run's folder exists."""
        self.used.add(name)
        if self.run_folder is None or self.dry_run:
            return
        references = self.root / REFERENCES
        references.mkdir(parents=True, exist_ok=True)
        run = str(self.run_folder.resolve())
        file = references / f"{hashlib.sha256(run.encode()).hexdigest()[:16]}.json"
        write_json(file, {"run": run, "stages": sorted(self.used)})

    def build(self, kind: str, key: str, inputs: dict[str, Any], build: Build, label: str, resumable: bool) -> Stage:
        """Build in a work folder, write the manifest last, rename into place. The caller holds the key's lock."""
        work = self.root / WORK / f"{kind}-{key}"
        final = self.root / kind / key
        if not resumable:
            shutil.rmtree(work, ignore_errors=True)
        started = time.time()
        try:
            work.mkdir(parents=True, exist_ok=True)
            info = dict(build(work) or {})
            seconds = info.pop("seconds", time.time() - started)
            files = file_digests(work, without=(MANIFEST,))
            manifest: dict[str, Any] = {
                "kind": kind,
                "key": key,
                "label": label,
                "inputs": inputs,
                "info": info,
                "files": files,
                "digest": content_digest(files),
                "created": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
                "seconds": round(seconds, 3),
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
                    f"disk full while building {label} in store={self.root}: all finished stages are kept; "
                    "free space (python -m iterative_ft.store gc) and run the same command again to go on"
                ) from error
            raise
        return Stage(kind, key, final, manifest["digest"], manifest)

    def find(self, kind: str, key: str) -> Stage | None:
        """The finished and undamaged stage of this key, or None. Damage is told on stderr; a dry run does not look for it."""
        final = self.root / kind / key
        try:
            manifest = json.loads((final / MANIFEST).read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            warn_damaged(final, "its manifest is not readable")
            return None
        if not self.dry_run:
            try:
                found = file_digests(final, without=(MANIFEST,))
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
        with FileLock(self.lock_file(kind, key)):
            yield

    def lock_file(self, kind: str, key: str) -> Path:
        """Where a key's lock is."""
        locks = self.root / LOCKS
        locks.mkdir(parents=True, exist_ok=True)
        return locks / f"{kind}-{key}"

    def stages(self) -> Iterator[Stage]:
        """Every finished stage, not checked against its digests."""
        for manifest_file in sorted(self.root.glob(f"[!.]*/*/{MANIFEST}")):
            manifest = json.loads(manifest_file.read_text())
            yield Stage(manifest["kind"], manifest["key"], manifest_file.parent, manifest["digest"], manifest)


def warn_damaged(stage: Path, why: str) -> None:
    print(f"warning: stage {stage} is damaged ({why}): it is built again", file=sys.stderr)


def stage_key(kind: Kind, inputs: dict[str, Any]) -> str:
    """Address of a stage: a hash of its kind, that kind's code version, and its inputs."""
    text = json.dumps([kind.name, kind.version, inputs], sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def content_digest(files: dict[str, str]) -> str:
    """Hash of what `file_digests` found."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:32]
