"""Stages: resume, sharing between runs, crash safety and provenance all follow from `Store.stage`, and from nothing else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from iterative_ft.errors import RunError
from iterative_ft.machine.disk import UNWRITABLE, disk_faults_told, fault_of
from iterative_ft.machine.files import sync_folder, write_json
from iterative_ft.store.events import Event, Purpose, built
from iterative_ft.store.layout import (
    LOCKS,
    MANIFEST,
    WORK,
    clear_work,
    discard,
    is_marked,
    make_folder,
    make_way,
    mark,
    remove,
    stage_folders,
)
from iterative_ft.store.manifest import (
    Damaged,
    Kind,
    Stage,
    as_json,
    content_digest,
    contents,
    read_stage,
    record_digest,
    stage_key,
)
from iterative_ft.store.ready import copy_into, ready_stage, with_known_digests
from iterative_ft.store.references import referred_before, write_reference

PATIENCE_S = 60.0  # who waits longer for another process is told which file is held

Build = Callable[[Path], Mapping[str, Any] | None]
"""Writes a stage's files into the folder it is given; what it returns goes into the manifest as "info". A "seconds" in it is
what the stage took, where that is not the time of the call: stages that were built together share one."""


AHEAD: dict[tuple[Path, str], Stage] = {}  # by store and name: what this process built before it was asked for (ahead.py)


class Store:
    """A folder of stages. Safe to share between processes, and between machines whose file system has POSIX locks.

    One that may only be read serves what it holds.
    """

    def __init__(
        self,
        root: Path,
        dry_run: bool = False,
        on_event: Callable[[Event], None] | None = None,
        run_folder: Path | None = None,
    ) -> None:
        self.root = root.expanduser()
        self.run_folder = run_folder  # whose stages these are: `gc` keeps them from the moment they are asked for
        self.dry_run = dry_run
        self.on_event = on_event or (lambda event: None)
        self.on_start: Callable[[str], None] = lambda label: None
        self.used: set[str] = set()  # stage paths below the root, for the reference file
        self.used_before: frozenset[str] | None = None  # by earlier attempts of the run; None: not read yet
        self.verified: dict[str, Stage] = {}  # stages whose files this process has checked against their digests

    def stage(
        self,
        kind: Kind,
        inputs: dict[str, Any],
        build: Build,
        label: str,
        purpose: Purpose | None = None,
        resumable: Sequence[str] = (),
    ) -> Stage:
        """Return the stage that `inputs` address, building it if no process has.

        Args:
            inputs: JSON values that determine the result; parents by their `digest`.
            label: what the screen calls it.
            resumable: names in the work folder of a killed build that `build` goes on from; all else in it is removed.
        """
        key = stage_key(kind, inputs)
        name = f"{kind.name}/{key}"
        if name in self.verified:
            return self.verified[name]
        if self.dry_run:
            event = self.planned(kind, key, inputs, label, purpose or {})
        else:
            with disk_faults_told(f"building {label} in store={self.root}", "all finished stages are kept", self.freeing):
                self.use(name)
                event = self.had(kind.name, key, inputs, build, label, purpose or {}, resumable)
        self.verified[name] = event.stage
        self.on_event(event)
        return event.stage

    @property
    def freeing(self) -> str:
        """The command that frees space."""
        return f"python -m iterative_ft.store gc {self.root}"

    def planned(self, kind: Kind, key: str, inputs: dict[str, Any], label: str, purpose: Purpose) -> Event:
        """How a stage would be had; its files are not looked at."""
        name = kind.name
        with suppress(Damaged):
            stage = read_stage(self.root, name, key, inputs, whole=False)
            if stage is None:
                known = with_known_digests(inputs)
                stage = ready_stage(name, stage_key(kind, known), known, whole=False)
            if stage is not None:
                return Event(stage, "stored", label, purpose)
        path = self.root / name / key
        return Event(Stage(name, key, path, f"pending:{key}", {"inputs": inputs, "label": label}), "pending", label, purpose)

    def had(
        self, kind: str, key: str, inputs: dict[str, Any], build: Build, label: str, purpose: Purpose, resumable: Sequence[str]
    ) -> Event:
        """Find a stage, or build it under its lock. Referred to by now, it is not removed any more once the lock was held."""
        ahead = AHEAD.pop((self.root, f"{kind}/{key}"), None)
        if ahead is not None:
            return built(ahead, label, purpose)
        before = self.state(kind, key)
        try:
            stage = read_stage(self.root, kind, key, inputs)
        except Damaged:
            stage = None  # or it is being removed just now: its lock will tell
        if stage is None:
            self.on_start(label)
        started = time.monotonic()
        with ExitStack() as held:
            try:
                held.enter_context(self.lock(kind, key))
            except OSError as error:
                if stage is None or error.errno not in UNWRITABLE:
                    raise
                return Event(stage, "stored", label, purpose)  # nobody removes anything from a store that is only read
            waited = time.monotonic() - started
            if stage is None or self.state(kind, key) != before:
                try:
                    stage = read_stage(self.root, kind, key, inputs)
                except Damaged as error:
                    print(f"warning: stage {self.root / kind / key} is damaged ({error}): it is built again", file=sys.stderr)
                    stage = None
            stage = stage or self.taken_from_ready(kind, key, inputs)
            if stage is None:
                stage = self.build(kind, key, inputs, build, label, resumable)
                return built(stage, label, purpose, waited)
        return Event(stage, "stored", label, purpose, 0.0, waited)

    def state(self, kind: str, key: str) -> tuple[int, int] | None:
        """What changes when a stage is removed or built again."""
        try:
            status = os.lstat(self.root / kind / key / MANIFEST)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def reuse(self, stage: Stage, label: str, purpose: Purpose) -> None:
        """Count a stage that was found by its key as used."""
        self.on_event(Event(stage, "stored", label, purpose))

    def find(self, kind: str, key: str) -> Stage | None:
        """The finished and undamaged stage of this key, used from now on, or None. Damage is told on stderr."""
        if self.dry_run:
            with suppress(Damaged):
                return read_stage(self.root, kind, key, whole=False)
            return None
        if self.state(kind, key) is None:
            return None
        self.use(f"{kind}/{key}")
        try:
            with suppress_unwritable(), self.lock(kind, key):
                pass  # who was removing it is done
            return read_stage(self.root, kind, key)
        except Damaged as error:
            print(f"warning: stage {self.root / kind / key} is damaged ({error}): it is not used", file=sys.stderr)
            return None

    def intact(self, stage: Stage) -> bool:
        """Whether a stage's files are what was built, where only its manifest was looked at (in a dry run)."""
        try:
            return not stage.pending and read_stage(self.root, stage.kind, stage.key) is not None
        except Damaged:
            return False

    def use(self, name: str) -> None:
        """Record which stages the run uses, so that `gc` keeps them; those of its earlier attempts stay until it has ended."""
        if name in self.used:
            return
        self.used.add(name)
        if self.dry_run:
            return
        first = self.used_before is None
        if first:
            self.used_before = frozenset() if self.run_folder is None else referred_before(self.root, self.run_folder)
        with suppress_unwritable(self.unreferred if first else None):
            stages = [name] if self.run_folder is None else sorted(self.used | (self.used_before or frozenset()))
            write_reference(self.root, self.run_folder, stages)

    def check_serves(self, planned: Sequence[Event]) -> None:
        """Raise `RunError`, before any work, where a store that may only be read does not hold all that a run needs."""
        missing = [event.label for event in planned if event.how == "pending"]
        if missing and self.root.is_dir() and not os.access(self.root, os.W_OK):
            raise RunError(
                f"store={self.root} cannot be written to and lacks {len(missing)} of the run's {len(planned)} stages (first: "
                f"{missing[0]}): name a store that can be written to, or run once where this one can"
            )

    def settle(self) -> None:
        """The run has ended: what only its earlier attempts used is no longer referred to."""
        if self.run_folder is not None and self.used_before and not self.used_before <= self.used:
            with suppress_unwritable():
                write_reference(self.root, self.run_folder, sorted(self.used))

    def unreferred(self) -> None:
        print(
            f"warning: store={self.root} cannot be written to: who clears it does not see that this run uses it",
            file=sys.stderr,
        )

    def build(self, kind: str, key: str, inputs: dict[str, Any], build: Build, label: str, resumable: Sequence[str]) -> Stage:
        """Build in a work folder, write the manifest last, rename into place. The caller holds the key's lock."""
        started = time.time()
        work = self.work_folder(kind, key, resumable)
        try:
            info = as_json(build(work) or {})
            seconds = info.pop("seconds", time.time() - started)
        except Exception as error:
            if isinstance(error, OSError) or fault_of(error) is not None:
                with suppress(OSError):  # of a full disk, say: what cannot be gone on from need not fill it
                    clear_work(work, keep=resumable)
            if not isinstance(error, ValueError) or "not JSON compliant" not in str(error):
                raise
            raise RunError(f"{label}: a number that is not finite came out of it ({error}): nothing of it is stored") from error
        try:
            files = contents(work)
        except Damaged as error:
            raise RunError(f"{label}: what was built cannot be stored: {error} in {work}") from error
        manifest: dict[str, Any] = {
            "kind": kind,
            "key": key,
            "label": label,
            "inputs": as_json(inputs),
            "info": info,
            "files": files,
            "digest": content_digest(files),
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
            "seconds": round(seconds, 3),
        }
        manifest["record"] = record_digest(manifest)
        write_json(work / MANIFEST, manifest)
        return Stage(kind, key, self.put_in_place(work, kind, key), manifest["digest"], manifest)

    def taken_from_ready(self, kind: str, key: str, inputs: dict[str, Any]) -> Stage | None:
        """Copy the stage of this key that ships with the software, if one does. The caller holds the key's lock."""
        ready = ready_stage(kind, key, inputs)
        if ready is None:
            return None
        work = self.work_folder(kind, key)
        copy_into(ready, work)
        return replace(ready, path=self.put_in_place(work, kind, key))

    def work_folder(self, kind: str, key: str, resumable: Sequence[str] = ()) -> Path:
        """Where a stage is made: empty but for what its build can go on from. The store is marked as one first."""
        if not is_marked(self.root):
            with self.lock("store", "mark"):
                mark(self.root)
        work = self.root / WORK / f"{kind}-{key}"
        make_folder(work.parent, self.root)
        clear_work(work, keep=resumable)
        work.mkdir(exist_ok=True)
        return work

    def put_in_place(self, work: Path, kind: str, key: str) -> Path:
        """Rename a stage that is complete into its place, which it makes free; gives that place."""
        final, name = self.root / kind / key, f"{kind}-{key}"
        make_folder(final.parent, self.root)
        doomed = None
        if os.path.lexists(final):  # a damaged stage, or a folder without a manifest that a crash left
            doomed = discard(final, self.root, name)
        os.rename(work, final)
        sync_folder(final.parent)
        if doomed is not None:
            with suppress(OSError):  # what stays, `gc` removes
                remove(doomed)
        return final

    @contextmanager
    def lock(self, kind: str, key: str, wait: bool = True) -> Iterator[None]:
        """Hold the key's lock; freed by the kernel when the process dies.

        Raises:
            Timeout: another process holds it, and `wait` is false.
        """
        make_folder(self.root / LOCKS, self.root)
        file = self.root / LOCKS / f"{kind}-{key}"
        make_way(file, self.root, for_folder=False)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=PATIENCE_S if wait else 0)
        except Timeout:
            if not wait:
                raise
            print(f"waiting for another process that builds {kind}/{key} (it holds {file})", file=sys.stderr)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def stages(self) -> Iterator[Stage]:
        """Every finished stage whose manifest is sound, not checked against its digests."""
        for kind, key in stage_folders(self.root):
            with suppress(Damaged, OSError):
                stage = read_stage(self.root, kind, key, whole=False)
                if stage is not None:
                    yield stage


@contextmanager
def suppress_unwritable(told: Callable[[], None] | None = None) -> Iterator[None]:
    """Go on where a store may only be read."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        if told is not None:
            told()
