"""What stands around a whole command: whatever goes wrong is one line and an exit code, Ctrl-C included.

It imports nothing heavy: Ctrl-C may come while Hydra is still being imported.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from iterative_ft.errors import ConfigError, RunError, printable
from iterative_ft.machine.disk import fault_of
from iterative_ft.machine.secrets import without_secrets

ERROR = "error.txt"  # the traceback of what ended a run, in its folder
SAME_GESTURE_S = 1.0  # a second Ctrl-C within this time of the first asks for nothing new
LONGEST = 600  # letters of a message: a value may be a whole book
FREEING = "python -m iterative_ft.store gc"
KEPT = "all finished stages are kept"
PRESSED: list[float] = []  # when Ctrl-C came first


def start(command: Callable[[], int]) -> int:
    """Run a program of this project; return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a letter gets its escape, and the run goes on
            stream.reconfigure(errors="backslashreplace")
    with interruptible():
        return guarded(command)


def guarded(command: Callable[[], int]) -> int:
    """Call `command`; an error is one line on stderr and exit code 2 (a setting is wrong) or 1 (known only later)."""
    try:
        return command()
    except BaseException as error:  # libraries written in Rust raise panics that are no Exception
        if PRESSED or isinstance(error, KeyboardInterrupt):  # Ctrl-C breaks libraries off, which make errors of their own of it
            return interrupted()
        return told(error)


def told(error: BaseException) -> int:
    """Say what ended a command; return its exit code. Called where it is caught."""
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, BrokenPipeError):  # whoever read our output has closed it: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    if isinstance(error, RunError):  # of a sweep it may be a line a cell
        say("error: " + "\n".join(printable(line) for line in without_secrets(str(error)).splitlines()))
        return 1
    own = error if isinstance(error, ConfigError) else own_error(error)
    if own is not None:  # that Hydra or another library wrapped
        say(f"error: {in_line(str(own))}")
        return 2 if isinstance(own, ConfigError) else 1
    with tempfile.NamedTemporaryFile(
        "w", prefix="iterative-ft-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
    ) as file:
        file.write(without_secrets(traceback.format_exc()))
    say(f"error: {reason(error)} (traceback: {file.name})")
    return 1


def interrupted() -> int:
    say("interrupted: finished stages are kept, the same command goes on from them")
    return 130


def own_error(error: BaseException) -> ConfigError | RunError | None:
    """The error of this project that another was raised from, if any."""
    cause = error.__cause__
    while cause is not None and not isinstance(cause, ConfigError | RunError):
        cause = cause.__cause__
    return cause


def failed(error: BaseException, folder: Path) -> RunError:
    """`error` as the one line a run ends with; its traceback goes into the run's folder. Called where it is caught."""
    said = reason(error)
    with suppress(OSError):  # a full disk is told all the same
        (folder / ERROR).write_text(without_secrets(traceback.format_exc()), encoding="utf-8", errors="replace")
        if not isinstance(error, RunError | ConfigError):
            said += f" (traceback: {folder / ERROR})"
    return RunError(said)


def reason(error: object) -> str:
    """What went wrong, in one line that holds no key."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, RunError | ConfigError):
        return printable(without_secrets(text))
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError",):
        return f"out of memory ({in_line(text) or 'no more was to be had'}): {KEPT}; lower method.batch_size or free memory"
    if isinstance(error, OSError) and (fault := fault_of(error)) is not None:
        where = f" at {error.filename}" if error.filename is not None else ""
        return f"{fault.what}{where}: {KEPT}; {fault.remedy(FREEING)}"
    return f"{type(error).__name__}: {in_line(text)}".rstrip(": ")


def in_line(text: str) -> str:
    """`text` in one line of bearable length, without keys and without letters that move the cursor."""
    text = printable(without_secrets(" ".join(text.split("\n"))))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 150]} [...] {text[-140:]}"


def say(line: str) -> None:
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


@contextmanager
def interruptible() -> Iterator[None]:
    """The first Ctrl-C is a KeyboardInterrupt, a second at once the same wish, a later one ends the process."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    PRESSED.clear()

    def pressed(number: int, frame: object) -> None:
        now = time.monotonic()
        if not PRESSED:
            PRESSED.append(now)
            raise KeyboardInterrupt
        if now - PRESSED[0] > SAME_GESTURE_S:
            os.write(2, b"stopped: finished stages are kept, the same command goes on from them\n")
            os._exit(130)

    signal.signal(signal.SIGINT, pressed)
    yield
    if not PRESSED:  # else the process is on its way out, and a second Ctrl-C must not make a traceback of that
        signal.signal(signal.SIGINT, signal.default_int_handler if before is signal.SIG_DFL else before)
