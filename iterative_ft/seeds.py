"""Everything random in a run comes from `derive`, so that no two uses share a stream and none depends on call order."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def derive(*parts: str | int) -> int:
    """A seed in 0..2^31-1 that depends on all of `parts` (the run's seed, what it is for, indices)."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def shuffled(items: Sequence[T], *parts: str | int) -> list[T]:
    """`items` in an order that depends on `parts` alone."""
    order = list(items)
    random.Random(derive(*parts)).shuffle(order)
    return order
