"""What makes two runs replicates: everything that can change what a run finds is the same, but for the training seed.

Verdicts over seeds, reports and sweeps all ask here, and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from iterative_ft.machine.files import text_digest

# Settings in which runs of one arm may differ: they do not change what is measured.
FREE = ("seed", "store", "dry_run", "device", "wandb", "gauges")


def arm_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that replicates share, as JSON values."""
    settings: dict[str, Any] = json.loads(json.dumps({key: value for key, value in config.items() if key not in FREE}))
    if (settings.get("calibrate") or {}).get("target_trait") is not None:
        settings.pop("n_seed", None)  # found anew for each training seed: the target is the setting
    return settings


def arm_digest(config: Mapping[str, Any]) -> str:
    """Equal for replicates, and for them alone."""
    return text_digest(arm_settings(config))
