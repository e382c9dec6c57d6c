"""What a store tells of each stage that a run asked for: what it is wanted for, and how it came to be had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from iterative_ft.store.manifest import Stage


class Purpose(TypedDict, total=False):
    """What a run wants a stage for, as its manifest keeps it."""

    policy: str
    """The policy that wrote, was trained, judged or gauged."""
    role: str
    """What it is to the cycle: "chosen", "rejected", "answers", "documents", "policy", …"""


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


def built(stage: Stage, label: str, purpose: Purpose, waited_s: float = 0.0) -> Event:
    """A stage that this process built, now or ahead."""
    return Event(stage, "built", label, purpose, stage.manifest["seconds"], waited_s)
