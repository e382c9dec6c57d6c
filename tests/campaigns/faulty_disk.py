"""A disk that dies or fills at a chosen call: counts what a process asks of the file system, and strikes at the n-th.

Patches `os` and `open`, so use it in a process of its own. Not covered: writes of libraries from C++ or Rust, loss of power.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

GROWING = ("open", "write", "mkdir", "fsync")  # what a full disk refuses; the rest works


class Disk:
    """Everything below `root` that is opened for writing, written, synced, made, renamed or removed is a call.

    how: "count" lets all pass; "kill" dies before call `at`, "torn" when half of it is written; "full" refuses what needs
    room from call `at` on, a write when half of it is written, and "once" refuses call `at` alone.
    """

    def __init__(self, root: Path, at: int = 0, how: str = "count") -> None:
        self.root, self.at, self.how = str(root), at, how
        self.calls: list[str] = []

    def strikes(self, call: str) -> bool:
        """Count a call; die, or say whether it is to fail."""
        self.calls.append(call)
        n = len(self.calls)
        if n == self.at and (self.how == "kill" or (self.how == "torn" and call != "write")):
            os.kill(os.getpid(), signal.SIGKILL)
        return (self.how == "full" and n >= self.at and call in GROWING) or (self.how == "once" and n == self.at)

    def below(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(os.fspath(path)).startswith(self.root)

    def install(self) -> None:
        """Take the place of the real disk in this process."""
        for name in ("mkdir", "rename", "replace", "unlink", "remove", "rmdir"):
            self.patch(name, name)
        real_open, flags = os.open, os.O_WRONLY | os.O_RDWR | os.O_CREAT

        def opened(path: Any, how: int, *arguments: Any, **named: Any) -> int:
            if how & flags and self.below(path) and self.strikes("open"):
                raise no_space(path)
            return real_open(path, how, *arguments, **named)

        def synced(descriptor: int) -> None:  # a kill keeps what was written: nothing needs to be waited for
            if self.strikes("fsync"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        os.open, os.fsync = opened, synced  # type: ignore[assignment]
        io.open = builtins.open = self.file  # type: ignore[assignment]

    def patch(self, name: str, call: str) -> None:
        real = getattr(os, name)

        def asked(path: Any, *arguments: Any, **named: Any) -> Any:
            if (self.below(path) or "dir_fd" in named) and self.strikes(call):
                raise no_space(path)
            return real(path, *arguments, **named)

        setattr(os, name, asked)

    def file(
        self, path: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, *rest: Any, **named: Any
    ) -> Any:
        """`open`."""
        if not set("wax+") & set(mode) or not self.below(path):
            return REAL_OPEN(path, mode, buffering, encoding, *rest, **named)
        if self.strikes("open"):
            raise no_space(path)
        file = io.BufferedWriter(File(self, os.fspath(path), mode.replace("b", "").replace("t", "")))
        return file if "b" in mode else io.TextIOWrapper(file, encoding or "utf-8")


class File(io.FileIO):
    """A file whose writes may be torn."""

    def __init__(self, disk: Disk, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self.disk = disk

    def write(self, data: Any) -> int:
        if self.disk.strikes("write"):
            super().write(bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.disk.how == "torn" and len(self.disk.calls) == self.disk.at:
            super().write(bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(data)


REAL_OPEN: Callable[..., Any] = io.open


def no_space(path: Any) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
