"""Which device a run uses, found without importing torch."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from iterative_ft.machine.libraries import library_version

CPU_INFO = Path("/proc/cpuinfo")
HOLDERS: list[Callable[[], None]] = []  # each has what keeps a GPU's memory in this process give it back


def claim_device() -> None:
    """Have a GPU's memory given back before something else uses it: a GPU has one owner at a time."""
    for give_back in HOLDERS:
        give_back()


def resolve_device(wanted: str) -> str:
    """ "cpu" or "cuda" for "auto": CUDA where this torch can use it and a GPU is visible."""
    return wanted if wanted != "auto" else ("cuda" if n_gpus() > 0 else "cpu")


def computes_in_bfloat16() -> bool:
    """Whether this machine's processor multiplies matrices of bfloat16; others emulate it, slower than float32 by far."""
    found = processor()
    return "flags" not in found or bool({"avx512_bf16", "amx_bf16"} & found)


def mkl_is_slow() -> bool:
    """Whether MKL leaves this processor's AVX-512 aside, as it does on any that is not Intel's."""
    return "avx512f" in (found := processor()) and "GenuineIntel" not in found


def processor() -> set[str]:
    """Words of what the kernel says of the processor; empty where it does not."""
    return set(cpu_info().split())


def processor_name() -> str:
    """Such as "Intel(R) Xeon(R) Processor @ 2.80GHz"; "" where the kernel does not say it."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpu_info(), re.MULTILINE)
    return "" if found is None else found[1]


def cpu_info() -> str:
    try:
        return CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        return ""


def training_dtype() -> str:
    """The precision that this machine trains fastest in: bfloat16 on a GPU or a processor that computes in it, else float32."""
    return "bfloat16" if n_gpus() > 0 or computes_in_bfloat16() else "float32"


def n_gpus() -> int:
    """Visible NVIDIA GPUs that the installed torch can use."""
    return len(visible_gpus())


def visible_gpus() -> list[str]:
    """Those GPUs as `CUDA_VISIBLE_DEVICES` names them."""
    torch = library_version("torch")
    if torch == "" or "+cpu" in torch:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [d.strip() for d in visible.split(",") if d.strip() not in ("", "-1")]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Have glibc keep freed memory for the next step, and return it all at the end.

    Left alone it returns large tensors to the kernel, which zeroes them anew: a sixth of a training step's time on a CPU.
    """
    libc = glibc()
    if libc is None:
        yield
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    gc.collect()  # trainers and adapters hold themselves in cycles
    return_freed_memory()
    libc.mallopt(m_mmap_threshold, 32 * 2**20)  # the most that it takes
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(m_trim_threshold, 64 * 2**20)
        gc.collect()
        return_freed_memory()


def return_freed_memory() -> None:
    """Give what is free back to the kernel, holes between tensors included: batches of many lengths leave ever more of them."""
    libc = glibc()
    if libc is not None:
        libc.malloc_trim(0)


def give_pages_back(address: int, n_bytes: int) -> None:
    """Zero the whole pages within this process's own memory at `address`; the kernel has them until they are next touched.

    Only on Linux, where memory that no file stands behind reads as zeros afterwards (madvise(2), MADV_DONTNEED).
    """
    libc = glibc()
    if libc is None:
        return
    dont_need, page = 4, resource.getpagesize()
    start, end = -(-address // page) * page, (address + n_bytes) // page * page
    if end > start:
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), dont_need)


@cache
def glibc() -> ctypes.CDLL | None:
    """The C library, where it is one that can be told about memory."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        return libc if libc.mallopt and libc.malloc_trim else None
    except (OSError, AttributeError):
        return None
