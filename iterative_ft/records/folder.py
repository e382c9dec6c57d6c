"""A run's folder: held by one process at a time, and what an earlier attempt left there is replaced, never deleted.

<folder>/.lock           held while a process works here
<folder>/attempts/now/   records of an attempt in a folder that has some already; they take their place when they say as much
<folder>/attempts/<n>/   records that were replaced
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from iterative_ft.errors import ConfigError
from iterative_ft.machine.files import DamagedFile, read_jsonl, read_object, text_digest

LOCK, ATTEMPTS, NOW = ".lock", "attempts", "now"
METRICS, ANSWERS, RESULT, PICTURE = "metrics.jsonl", "answers.jsonl", "result.json", "curves.png"
PAGE = "report.html"
CONFIG, MANIFEST, ERROR = "config.json", "manifest.json", "error.txt"
ENVIRONMENT, COMMAND, CODE, DIFF = "environment.json", "command.txt", "code.json", "code.diff"
# Of one attempt, in the order in which they are replaced: result.json says that a run is finished, so it comes last.
RECORDS = (CONFIG, ENVIRONMENT, COMMAND, CODE, DIFF, ERROR, MANIFEST, METRICS, ANSWERS, PICTURE, RESULT)
MOST_NAMES = 1000  # runs that may ask for the same name

held_here: dict[tuple[int, Path], tuple[IO[str], int]] = {}
"""(process, folder) -> its lock file and how often this process holds it."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Have the folder for this process alone; the kernel lets go of it when the process dies.

    A POSIX lock: a child that outlives a killed run does not go on holding it.

    Raises:
        ConfigError: a live process works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = os.getpid(), folder.resolve()
    file, n = held_here.get(name) or (locked(folder), 0)
    held_here[name] = file, n + 1
    try:
        yield
    finally:
        if n == 0:
            del held_here[name]
            file.close()
        else:
            held_here[name] = file, n


def locked(folder: Path) -> IO[str]:
    """The folder's lock file, locked; it names its holder."""
    file = (folder / LOCK).open("a+", encoding="utf-8", errors="replace")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = (file.readline(200).strip()) or "another process"
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ConfigError(f"{folder} is in use by {holder}: wait for its end, or name another folder") from None
        raise
    file.truncate(0)
    file.write("\n".join(filter(None, [f"process {os.getpid()} on {socket.gethostname()}", slurm_job(), ""])))
    file.flush()
    return file


def free(folder: Path) -> None:
    """Raise `ConfigError` where a live process works in the folder; makes nothing."""
    if (folder / LOCK).is_file():
        with held(folder):
            pass


def resumed(folder: Path) -> Path | None:
    """The run below `folder` that this Slurm job began before it was started again, if it is one; else None."""
    job = slurm_job()
    if job is None or int(os.environ.get("SLURM_RESTART_COUNT") or 0) < 1:
        return None
    for lock in sorted(folder.glob(f"*/{LOCK}"), reverse=True):
        if job in lock.read_text(encoding="utf-8", errors="replace").splitlines():
            return lock.parent
    return None


def slurm_job() -> str | None:
    """The Slurm job and the command that this process runs; a job that is requeued keeps its number."""
    number = os.environ.get("SLURM_JOB_ID")
    said = [argument for argument in sys.argv[1:] if not argument.startswith("hydra.run.dir=")]
    task = os.environ.get("SLURM_PROCID", "0")
    return None if not number else f"slurm job {number}, task {task}, command {text_digest(said)}"


def new_folder(wanted: Path) -> Path:
    """Make a folder of this name, or of this name with a number where it is taken: no two processes get the same."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, MOST_NAMES + 1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise ConfigError(f"{wanted} and {MOST_NAMES - 1} more of that name are taken: name another folder")


def give_back(folder: Path) -> None:
    """Remove a folder that was taken for work that never began."""
    with suppress(OSError):
        if {path.name for path in folder.iterdir()} <= {LOCK, "multirun.yaml"}:
            shutil.rmtree(folder)


class Attempt:
    """Where an attempt writes: into the run's folder, or beside what is there until it has as much to say.

    A killed run that is told again catches up from the store in seconds, and goes on in its folder. A finished one, or one of
    other settings, is replaced when the new attempt has finished.
    """

    def __init__(self, folder: Path, config: dict[str, object]) -> None:
        """`config` is what config.json will hold, as JSON values."""
        self.folder, self.out = folder, folder
        self.n_rows = 0
        self.until: int | None = None
        """Rows of metrics.jsonl from which this attempt takes the folder; None: when it has finished."""
        if (folder / METRICS).exists() or (folder / RESULT).exists():
            self.out = folder / ATTEMPTS / NOW
            shutil.rmtree(self.out, ignore_errors=True)  # of an attempt that never caught up: all that it told is in the store
            self.out.mkdir(parents=True)
            with suppress(DamagedFile, OSError):
                if not (folder / RESULT).exists() and read_object(folder / CONFIG) == config:
                    self.until = len(read_jsonl(folder / METRICS, torn=True))
        elif (folder / ERROR).exists():
            os.replace(folder / ERROR, self.next() / ERROR)

    @property
    def aside(self) -> bool:
        return self.out != self.folder

    def told(self) -> None:
        """A row was written."""
        self.n_rows += 1
        if self.aside and self.until is not None and self.n_rows >= self.until:
            self.take_over()

    def take_over(self) -> None:
        """Put the new records in the place of the old ones, which are kept in a folder of their own."""
        if not self.aside:
            return
        keep = self.next()
        for name in RECORDS:
            if (self.folder / name).exists():
                shutil.copy2(self.folder / name, keep / name)
        for name in RECORDS:
            if (self.out / name).exists():
                os.replace(self.out / name, self.folder / name)
            else:
                (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.out, ignore_errors=True)
        self.out = self.folder

    def next(self) -> Path:
        """A new folder for records that are replaced."""
        number = 1
        while (self.folder / ATTEMPTS / str(number)).exists():
            number += 1
        return new_folder(self.folder / ATTEMPTS / str(number))
