"""What safetensors files hold, by their headers: names, types and shapes in milliseconds, without torch and without weights.

Only `not_finite` reads values, and only to look for NaN and infinity.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAX_HEADER_BYTES = 100 * 2**20  # the format's own limit
INDEX = "model.safetensors.index.json"
# Bits that are all set in a NaN or an infinity, by type: bytes of a value, the exponent's mask.
EXPONENTS = {"F64": (8, 0x7FF0_0000_0000_0000), "F32": (4, 0x7F80_0000), "F16": (2, 0x7C00), "BF16": (2, 0x7F80)}
CHUNK_VALUES = 2**22


class HeaderError(ValueError):
    """A file is no whole safetensors file; the message says why."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file."""

    file: Path
    dtype: str
    """As safetensors names it: "F32", "BF16", …"""
    shape: tuple[int, ...]
    start: int
    end: int
    """Bytes of the file that hold its values."""


def header(file: Path) -> dict[str, Tensor]:
    """Name -> tensor of one file.

    Raises:
        HeaderError: the file is cut off, or no safetensors file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = opened.read(8)
            n = struct.unpack("<Q", length)[0] if len(length) == 8 else 0
            if not 2 <= n <= min(MAX_HEADER_BYTES, size - 8):
                raise HeaderError(f"{file.name} is no safetensors file, or cut off")
            found = json.loads(opened.read(n))
        tensors = {name: tensor(file, entry, 8 + n) for name, entry in found.items() if name != "__metadata__"}
    except OSError as error:
        raise HeaderError(f"{file.name} cannot be read ({error.strerror})") from error
    except HeaderError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise HeaderError(f"{file.name} is no safetensors file: its header is damaged") from error
    last = max((t.end for t in tensors.values()), default=8 + n)
    if last != size:
        raise HeaderError(f"{file.name} is {'cut off' if size < last else 'too long'}: {size} bytes in place of {last}")
    return tensors


def tensor(file: Path, entry: dict[str, Any], data: int) -> Tensor:
    """One entry of a header."""
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, end)) or end < start:
        raise ValueError
    return Tensor(file, str(entry["dtype"]), shape, data + start, data + end)


def checkpoint(folder: Path) -> dict[str, Tensor]:
    """Name -> tensor of a model's checkpoint, which may lie in several files.

    Raises:
        HeaderError: a file is missing or damaged.
    """
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            files = [folder / str(name) for name in names]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise HeaderError(f"{INDEX} is damaged") from error
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise HeaderError(f"{missing[0]} is missing, which {INDEX} names")
    return {name: found for file in files for name, found in header(file).items()}


def not_finite(tensors: dict[str, Tensor]) -> str | None:
    """Name of the first tensor that holds a NaN or an infinity, None where all values are finite numbers."""
    for name, found in sorted(tensors.items()):
        if found.dtype not in EXPONENTS or found.end == found.start:
            continue
        n_bytes, mask = EXPONENTS[found.dtype]
        values = np.memmap(found.file, np.dtype(f"<u{n_bytes}"), "r", found.start, ((found.end - found.start) // n_bytes,))
        for begin in range(0, len(values), CHUNK_VALUES):
            chunk = values[begin : begin + CHUNK_VALUES]
            if ((chunk & mask) == mask).any():
                return name
    return None
