"""What a text's surface tells about its coherence, without any model."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter


def surface_features(text: str) -> list[float]:
    """Eight numbers: repetition (runs, a word, compressibility), a proper end, length twice, stray capitals, small starts."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    n = len(words)
    runs = [tuple(words[i : i + 3]) for i in range(n - 2)]
    repeated_runs = 1 - len(set(runs)) / len(runs) if runs else 0.0
    top_word = max(Counter(words).values()) / n if n else 1.0
    raw = text.encode()
    compressed = min(1.5, len(zlib.compress(raw, 9)) / max(1, len(raw)))
    ends_well = 1.0 if re.search(r"[.!?][\"')\]]*\s*$", text) else 0.0
    stray_capitals = len(re.findall(r"(?<=[a-z,;:] )[A-Z][a-z]+", text)) / max(1, n)
    small_starts = len(re.findall(r"[.!?] +[a-z]", text)) / max(1, n) + (0.1 if text[:1].islower() else 0.0)
    return [repeated_runs, top_word, compressed, ends_well, math.log1p(n), min(n, 6) / 6, stray_capitals, small_starts]
