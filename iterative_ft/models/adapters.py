"""The one way in which an adapter meets a base model: strictly, or not at all.

PEFT judges an adapter by its config, leaves out what does not fit and warns. Here its kind, names, shapes and values are held
against the base before it is loaded, and what was loaded against its file after. Training, merging, canary, gauges and
both samplers come through here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from iterative_ft.config.messages import did_you_mean
from iterative_ft.config.model import LoraConfig
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.models.headers import HeaderError, Tensor, header, not_finite

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
Shapes = Mapping[str, tuple[int, int]]
"""Full name of a linear layer -> outputs and inputs."""

# Keys of an adapter's config that say nothing about what it computes, and those that are judged one by one.
FREE = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout",
    "fan_in_fan_out", "megatron_core", "qalora_group_size",
}  # fmt: skip
JUDGED = {"peft_type", "r", "lora_alpha", "target_modules", "modules_to_save", "init_lora_weights", "bias"}
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal")  # others change the base's weights too


def read_config(adapter: Path, why: str) -> dict[str, Any]:
    """What a LoRA adapter says of itself; anything but plain LoRA with weights in safetensors is a `RunError`.

    Args:
        why: whose adapter it is, for messages: "of policy[0]", "in start_adapter=…".
    """
    try:
        saved = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(
            f"the adapter {why} has no {CONFIG} that can be read ({error.strerror}): name a folder saved by PEFT"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"the adapter {why} has a damaged {CONFIG}: save it again with PEFT") from error
    if not isinstance(saved, dict) or saved.get("peft_type") != "LORA":
        kind = saved.get("peft_type") if isinstance(saved, dict) else None
        raise RunError(f"the adapter {why} is of the kind {short(repr(kind))}: only LORA can be trained and served here")
    wrong = config_fault(saved)
    if wrong is not None:
        raise RunError(f"the adapter {why} {wrong}")
    if not (adapter / WEIGHTS).is_file():
        raise RunError(f"the adapter {why} has no .safetensors weights: pickled weights are never loaded, convert them first")
    return saved


def config_fault(saved: dict[str, Any]) -> str | None:
    """What keeps a LoRA config from being plain LoRA, or None."""
    for key in ("r", "lora_alpha"):
        value = saved.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            return f"has {key}={short(repr(value))} where a whole number of 1 or more is needed"
    targets = saved.get("target_modules")
    listed = isinstance(targets, list) and targets and all(isinstance(t, str) for t in targets)
    if not listed and not isinstance(targets, str):
        return f"has target_modules={short(repr(targets))} where names of modules are needed"
    changed = sorted({"embed_tokens", "lm_head", "wte"} & {*names(targets), *names(saved.get("modules_to_save"))})
    if changed:
        return f"changes {changed}: adapters stay off embeddings and output head"
    start = saved.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        return f"was started by init_lora_weights={short(repr(start))}, which changes the base too: convert it"
    if saved.get("bias", "none") != "none":
        return f"trains biases (bias={short(repr(saved['bias']))}): only plain LoRA can be trained and served here"
    for key, value in saved.items():
        if key not in FREE | JUDGED and value:
            return f"sets {short(key)}={short(repr(value))}: only plain LoRA can be trained and served here"
    return f"saves whole modules ({short(saved['modules_to_save'])})" if saved.get("modules_to_save") else None


def short(value: Any) -> str:
    """A value or name from somebody's file, for a message: one line, and not a long one."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= 80 else f"{text[:77]}…"


def names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def check_files(adapter: Path, shapes: Shapes | None, why: str) -> dict[str, Any]:
    """Hold an adapter's files against its base's linear layers; return its config.

    Args:
        shapes: of the base's linear layers; None leaves names and sizes unchecked (its base is not here yet).
    Raises:
        RunError: of another kind, with missing or left over weights, of another size, or with values that are not finite.
    """
    saved = read_config(adapter, why)
    try:
        tensors = header(adapter / WEIGHTS)
        wrong = None if shapes is None else shape_fault(tensors, saved, shapes)
        broken = not_finite(tensors) if wrong is None else None
    except (HeaderError, OSError) as error:
        raise RunError(f"the adapter {why} cannot be read: {error}") from error
    if wrong is not None:
        raise RunError(f"the adapter {why} does not fit the base model: {wrong}")
    if broken is not None:
        raise RunError(f"the adapter {why} holds values that are not finite ({short(broken)}): its training diverged")
    return saved


def shape_fault(tensors: Mapping[str, Tensor], saved: dict[str, Any], shapes: Shapes) -> str | None:
    """How an adapter's weights differ from what its config puts on a base with these layers, or None."""
    targets, rank = saved["target_modules"], saved["r"]
    wanted: dict[str, tuple[int, ...]] = {}
    for module, (n_out, n_in) in shapes.items():
        if is_target(module, targets):
            wanted |= {f"{PREFIX}{module}.lora_A.weight": (rank, n_in), f"{PREFIX}{module}.lora_B.weight": (n_out, rank)}
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if not wanted:
        return f"the base has no linear layer named {short(targets)}"
    for found, what in ((missing, "lacks"), (extra, "has")):
        if found:
            others = f" and {len(found) - 1} more" if len(found) > 1 else ""
            others += "" if what == "lacks" else ", which has no place there"
            return f"it {what} {short(found[0].removeprefix(PREFIX))}{others}"
    for name, shape in sorted(wanted.items()):
        if tensors[name].shape != shape:
            return f"{name.removeprefix(PREFIX)} has the shape {list(tensors[name].shape)} where {list(shape)} is needed"
    return None


def check_adapter(adapter: Path, lora: LoraConfig, why: str, model: Path | None, trust_remote_code: bool = False) -> None:
    """Raise `RunError` when an adapter cannot be trained on, or differs from the config's.

    Args:
        model: folder of the base model; None (not here yet) leaves unchecked what only it can tell.
    """
    shapes = None if model is None else base_shapes(model, trust_remote_code)
    saved = read_config(adapter, why)
    for key, name, expected in (("r", "rank", lora.rank), ("lora_alpha", "alpha", lora.alpha)):
        if saved[key] != expected:
            raise RunError(
                f"lora.{name}={expected} differs from {saved[key]} of the adapter {why}: set lora.{name}={saved[key]}"
            )
    targets = saved["target_modules"]
    if lora.targets == "all-linear":
        same = shapes is None or all(is_target(name, targets) for name in shapes)
    else:
        same = isinstance(targets, list) and set(targets) == set(lora.targets)
    if not same:
        raise RunError(
            f"lora.targets={lora.targets} differ from {short(targets)} of the adapter {why}: set lora.targets to those"
        )
    check_files(adapter, shapes, why)


def check_targets(lora: LoraConfig, model: Path, trust_remote_code: bool) -> None:
    """Raise `ConfigError` when a name in `lora.targets` is no linear layer of the model in a folder: PEFT passes over it."""
    if lora.targets == "all-linear":
        return
    shapes = base_shapes(model, trust_remote_code)
    for target in lora.targets:
        if not any(is_target(name, [target]) for name in shapes):
            known = {name.rpartition(".")[2] for name in shapes}
            raise ConfigError(
                f"lora.targets names {target!r}, which is no linear layer of this model (the output head gets no adapter)"
                f"{did_you_mean(target, known)}"
            )


def put_on(base: Any, adapter: Path | str, why: str, train_dropout: float | None = None) -> Any:
    """The policy: `base` with the adapter on it, every weight of which is known to be the file's.

    Args:
        base: a transformers model without adapters.
        train_dropout: makes it trainable, with this dropout in place of the one that the file was trained with.
    """
    import torch
    from peft import PeftConfig, PeftModel
    from safetensors.torch import load_file

    folder = Path(adapter)
    check_files(folder, linear_shapes(base), why)
    config = PeftConfig.from_pretrained(str(folder))
    if train_dropout is not None:
        config.lora_dropout = train_dropout
    policy = PeftModel.from_pretrained(base, str(folder), is_trainable=train_dropout is not None, config=config)
    held = {name.replace(".default.", "."): p.detach() for name, p in policy.named_parameters() if ".default." in name}
    saved = load_file(folder / WEIGHTS)
    wrong = sorted(held.keys() ^ saved.keys()) or [
        name for name, value in saved.items() if not torch.equal(held[name].cpu().float(), value.float())
    ]
    if wrong:
        raise RunError(
            f"the adapter {why} was not loaded as it was saved: {wrong[0].removeprefix(PREFIX)} differs, nothing was done"
        )
    return policy


@cache
def base_shapes(model: Path, trust_remote_code: bool) -> Shapes:
    """The linear layers of the model in a folder. Loads no weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(str(model), trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return linear_shapes(AutoModelForCausalLM.from_config(settings, trust_remote_code=trust_remote_code))


def linear_shapes(net: Any) -> Shapes:
    """The layers that "all-linear" puts adapters on: all but the output head."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = net.get_output_embeddings()
    found = {
        name: layer for name, layer in net.named_modules() if isinstance(layer, torch.nn.Linear | Conv1D) and layer is not head
    }
    return {
        name: (int(n), int(m))
        if isinstance(layer, torch.nn.Linear)
        else (int(m), int(n))  # GPT-2 keeps them the other way round
        for name, layer in found.items()
        for n, m in [layer.weight.shape]
    }


def is_target(module: str, targets: str | list[str]) -> bool:
    """Whether PEFT puts an adapter on `module`: a list names modules or their endings, a string is a pattern."""
    if isinstance(targets, str):
        try:
            return targets == "all-linear" or re.fullmatch(targets, module) is not None
        except re.error:
            return False
    return any(module == target or module.endswith(f".{target}") for target in targets)
