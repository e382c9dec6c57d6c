"""What a disk refuses (full, read-only, not allowed, broken), told in one line: the one guard of everything a run writes."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from iterative_ft.errors import ConfigError, RunError

UNWRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})  # what a folder answers that may only be read


@dataclass(frozen=True)
class Fault:
    """What is wrong with a disk, and what mends it."""

    what: str
    fix: str
    room: bool = False
    """Whether freeing space mends it."""

    def remedy(self, free: str) -> str:
        """What to do. `free`: a command that frees space, or ""."""
        fix = f"{self.fix} ({free})" if free and self.room else self.fix
        return f"{fix} and run the same command again to go on"


FULL = Fault("disk full", "free space", room=True)
QUOTA = Fault("disk quota exceeded", "free space or raise the quota", room=True)
READ_ONLY = Fault("read-only file system", "make it writable or name another folder")
NOT_TAKEN = Fault("the disk took no more (full, most likely)", "free space", room=True)
DENIED = Fault("permission denied", "make it writable for you or name another folder")
FAULTS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: QUOTA,
    errno.EROFS: READ_ONLY,
    errno.EACCES: DENIED,
    errno.EPERM: DENIED,
    errno.EFBIG: Fault("file too large for this disk", "name a folder on another disk"),
    errno.EIO: Fault("the disk failed to read or write", "look at the disk"),
    errno.ESTALE: Fault("stale file handle of a network disk", "see that it is mounted"),
    errno.ENOLCK: Fault("no locks on this disk", "have its locks switched on or name a folder on another disk"),
    errno.ENOTCONN: Fault("the disk is not connected", "mount it"),
    errno.ENODEV: Fault("the disk is gone", "mount it"),
    errno.EMFILE: Fault("too many open files", "raise the limit (ulimit -n)"),
    errno.ENFILE: Fault("too many open files on this machine", "close some programs"),
    errno.EXDEV: Fault("a link into another disk", "put the folder itself in place of the link"),
}
# Libraries that write from C++ or Rust raise errors of their own, with the system's words in them.
PHRASES = {
    "no space left on device": FULL,
    "storagefull": FULL,
    "(os error 28)": FULL,
    "quota exceeded": QUOTA,
    "read-only file system": READ_ONLY,
    "(os error 30)": READ_ONLY,
    # torch.save, which names no reason: nearly always there is no space left
    "pytorchstreamwriter failed writing": NOT_TAKEN,
    ". unexpected pos": NOT_TAKEN,
}


def fault_of(error: BaseException) -> Fault | None:
    """What the disk refused, or None when the error is of another kind."""
    if isinstance(error, ConfigError | RunError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return FAULTS.get(error.errno)
    text = str(error).lower()
    return next((fault for phrase, fault in PHRASES.items() if phrase in text), None)


@contextmanager
def disk_faults_told(doing: str, kept: str, free: str = "") -> Iterator[None]:
    """Turn what the disk refuses inside into a `RunError` of one line; every other error goes on as it is.

    Args:
        doing: what was being done, after "while".
        kept: what is safe.
        free: a command that frees space.
    """
    try:
        yield
    except Exception as error:
        fault = fault_of(error)
        if fault is None:
            raise
        name = getattr(error, "filename", None)
        where = f" ({name})" if name is not None else ""
        raise RunError(f"{fault.what} while {doing}{where}: {kept}; {fault.remedy(free)}") from error
