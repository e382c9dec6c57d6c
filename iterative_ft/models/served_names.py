"""Names of an adapter's weights for an engine whose class of a model differs from the one that was trained.

Multimodal checkpoints (Qwen3.5) are trained as their language model alone: its layers are then `model.layers…`, while the
checkpoint, and what an engine makes of it, has `model.language_model.layers…`. An engine maps the checkpoint's names to its own
modules, so those are the names that an adapter is served under. The trained adapter stays as it is: a renamed copy is served.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from iterative_ft.models.adapters import CONFIG, PREFIX, WEIGHTS, Shapes, is_target
from iterative_ft.models.headers import header

Names = Mapping[str, str]
"""Module as it is trained -> module as it is served."""


def adapted(shapes: Shapes, targets: str | list[str]) -> list[str]:
    """Modules of a base on which an adapter for `targets` has weights."""
    return sorted(name for name in shapes if is_target(name, targets))


def checkpoint_names(model: Path, modules: Iterable[str]) -> Names:
    """Each module under the name that the checkpoint in a folder has for it; one that it lacks keeps its own.

    A checkpoint's names have the same ends as the trained ones, after a beginning of their own. One beginning is taken for all:
    beside the layers that are trained a checkpoint may hold others that are called alike (`mtp.layers.0`, which predict ahead).
    """
    weights = {name.removesuffix(".weight") for file in sorted(model.glob("*.safetensors")) for name in header(file)}
    by_end: dict[str, list[str]] = {}
    for name in weights:
        parts = name.split(".")
        for start in range(len(parts)):
            by_end.setdefault(".".join(parts[start:]), []).append(name)
    modules = list(modules)
    votes: Counter[tuple[str, str]] = Counter()  # (beginning as trained, beginning in the checkpoint)
    for module in modules:
        parts = module.split(".")
        end = next((end for start in range(len(parts)) if (end := ".".join(parts[start:])) in by_end), None)
        if end is not None:
            votes.update((module.removesuffix(end), name.removesuffix(end)) for name in by_end[end])
    most = max(votes.values(), default=0)
    best = [pair for pair, n in votes.items() if n == most]
    if len(best) != 1 or votes[("", "")] == most:  # undecided, or called as they are trained
        return {module: module for module in modules}
    [(trained, saved)] = best
    named = {module: saved + module.removeprefix(trained) for module in modules if module.startswith(trained)}
    return {module: name if (name := named.get(module, module)) in weights else module for module in modules}


def renamed_copy(adapter: Path, out: Path, names: Names) -> Path:
    """Write the adapter under other names into `out`; its values stay as they are."""
    from safetensors.torch import load_file, save_file

    weights = {}
    for name, value in load_file(adapter / WEIGHTS).items():
        module, part = name.removeprefix(PREFIX).split(".lora_")
        weights[f"{PREFIX}{names.get(module, module)}.lora_{part}"] = value
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(adapter / CONFIG, out)
    save_file(weights, out / WEIGHTS, metadata={"format": "pt"})
    return out
