"""Whether an engine's own modules are there for all of an adapter's weights: vLLM serves those that it cannot place as nothing.

`LoraNames` is added to vLLM's workers, which hold the modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iterative_ft.errors import RunError
from iterative_ft.models.adapters import PREFIX
from iterative_ft.models.served_names import Names

EXTENSION = "iterative_ft.sampling.adapter_names.LoraNames"
# Ranks for which vLLM 0.32 has room; a smaller adapter takes the room of the next.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class LoraNames:
    """What a worker of vLLM is asked."""

    model_runner: Any

    def unplaced(self, modules: list[str]) -> list[str]:
        """Those of an adapter's modules for which this worker's model has none, by vLLM's own mapper and packing."""
        return unplaced(self.model_runner.lora_manager._adapter_manager, modules)


def unplaced(manager: Any, modules: Sequence[str]) -> list[str]:
    """The same for vLLM's LoRA manager.

    Args:
        modules: names as in an adapter's file, without PEFT's prefix and the weights' endings.
    """
    from vllm.lora.utils import parse_fine_tuned_lora_name

    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    mapper = None if mapper is None else mapper.get_rename_mapper()
    packed = {part for parts in manager.packed_modules.values() for part in parts}
    places = packed | (set(manager.modules) - set(manager.packed_modules))
    found = []
    for module in modules:
        name, _ = parse_fine_tuned_lora_name(f"{PREFIX}{module}.lora_A.weight", mapper)
        if name not in places:
            found.append(module)
    return found


def names_that_fit(ask: Any, modules: list[str], of_checkpoint: Names, model: str) -> Names:
    """Names under which the engine has a place for every module: its trained ones, or those of the checkpoint.

    Args:
        ask: gives those of some names that the engine has no place for.
    Raises:
        RunError: neither; it says which name has no place.
    """
    if not ask(modules):
        return {}
    left = ask([of_checkpoint[module] for module in modules])
    if left:
        raise RunError(
            f"the engine has no place for {len(left)} of {len(modules)} adapted layers of {model} ({left[0]}): it would serve "
            "them as base, so nothing was trained; set lora.targets to layers that it knows, or sampler=transformers"
        )
    return of_checkpoint
