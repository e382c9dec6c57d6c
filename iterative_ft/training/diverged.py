"""The end of a training that diverged: one line, wherever it is noticed."""

from __future__ import annotations

from iterative_ft.errors import RunError


class Diverged(RunError):
    """A training's loss, gradient or weights are no longer finite numbers."""


def diverged(step: int, what: str, value: float) -> Diverged:
    """The error of a training that diverged at `step`."""
    return Diverged(
        f"training diverged at step {step} ({what} is {value}): nothing of it is stored; lower method.learning_rate "
        "(DPO's cycle 0: method.seed_learning_rate) or method.max_grad_norm and run the same command again"
    )
