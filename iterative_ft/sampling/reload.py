"""What vLLM only warns about when it puts a checkpoint's weights in place."""

from __future__ import annotations

import logging

# Weights that a checkpoint may leave out: computed tables, and an output head tied to the embeddings.
DERIVED_WEIGHTS = ("rotary_emb", "inv_freq", "lm_head")
RELOAD_LOGGER = "vllm.model_executor.model_loader.reload.inplace"


class CapturedWarnings(logging.Handler):
    """Collects what vLLM's reload warns about while it is active; the rest of vLLM logs errors only."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> CapturedWarnings:
        logger = logging.getLogger(RELOAD_LOGGER)
        self.level_before, self.propagated = logger.level, logger.propagate
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        logger = logging.getLogger(RELOAD_LOGGER)
        logger.removeHandler(self)
        logger.setLevel(self.level_before)
        logger.propagate = self.propagated


def not_loaded(messages: list[str]) -> list[str]:
    """Weights that a reload left as they were, but for those that are derived from others."""
    names = [
        name
        for message in messages
        if "not loaded" in message
        for name in message.split("{", 1)[-1].rstrip("}").replace("'", "").split(", ")
    ]
    return sorted(name for name in names if not any(derived in name for derived in DERIVED_WEIGHTS))
