"""What makes two runs replicates: everything that can change what a run finds is the same, but for the training seed.

Verdicts over seeds, reports and sweeps all ask here, and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from iterative_ft.machine.files import text_digest

# Settings in which runs of one arm may differ: they do not change what is measured. Whole sections, and parts of some.
FREE = ("seed", "store", "dry_run", "device", "wandb", "gauges")
FREE_OF = {
    "method": ("checkpoint_steps",),
    # A text that does not fit is refused, never cut.
    "sampler": ("kv_cache_gib", "gpu_memory_utilization", "canary_max_share", "max_model_len"),
    "judge": (
        *("api_key_env", "max_concurrency", "timeout_s", "n_retries", "backoff_s", "max_wait_s", "max_failures_in_a_row"),
        *("usd_per_million_prompt_tokens", "usd_per_million_completion_tokens"),
    ),
}

# What a run was made with, beside its settings (its manifest's "made"): base model, judges, code versions of stages, device.
MADE = {"model": "model", "judges": "judge", "kinds": "code of stages", "device": "device"}
# And "data", on what: examples, questions, prompts, an adapter. Runs older than this record go with any.


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that can change what a run finds, but for its seed, as JSON values."""
    settings: dict[str, Any] = json.loads(json.dumps({key: value for key, value in config.items() if key not in FREE}))
    for section, free in FREE_OF.items():
        for name in free:
            settings.get(section, {}).pop(name, None)
    judge = settings.get("judge", {})
    if judge.get("endpoint_name") is not None:  # which stands for the address, where that changes from job to job
        judge.pop("base_url", None)
    return settings


def arm_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that replicates share, as JSON values."""
    settings = deciding(config)
    if (settings.get("calibrate") or {}).get("target_trait") is not None:
        settings.pop("n_seed", None)  # found anew for each training seed: the target is the setting
    return settings


def arm_digest(config: Mapping[str, Any], made: Mapping[str, Any] | None = None) -> str:
    """Equal for replicates, and for them alone.

    Args:
        made: what the run was made with; None for runs older than that record, which go by their settings.
    """
    return text_digest([arm_settings(config), None if made is None else {name: made.get(name) for name in MADE}])


def made_differently(mades: Sequence[Mapping[str, Any] | None], but_data: bool = False) -> dict[str, list[Any]]:
    """What runs of the same settings differ in, in words, with the value of each run.

    Args:
        but_data: they are not held to the same data, as a control is not.
    """
    if any(made is None for made in mades) and not all(made is None for made in mades):
        return {"record of how they were made": ["none" if made is None else "kept" for made in mades]}
    found = {word: [(made or {}).get(name) for made in mades] for name, word in MADE.items()}
    differ = {word: values for word, values in found.items() if any(value != values[0] for value in values)}
    if but_data or len(on_same_data(mades)) == 1:
        return differ
    return differ | {"data": [(made or {}).get("data") for made in mades]}


def is_known(made: Mapping[str, Any] | None) -> bool:
    """Whether a run got far enough to record its base model and judge. Of an older one there is no such record."""
    return made is None or "kinds" not in made or (made.get("model") is not None and bool(made.get("judges")))


def on_same_data(mades: Sequence[Mapping[str, Any] | None]) -> list[list[int]]:
    """The places of runs of one digest, those on the same data together; all where no two are known to differ."""
    data = [(made or {}).get("data") for made in mades]
    if len({*data} - {None}) < 2:
        return [list(range(len(data)))]
    return [[place for place, value in enumerate(data) if value == one] for one in dict.fromkeys(data)]
