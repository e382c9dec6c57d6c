"""What is sampled and trained: a base model plus, after training, one LoRA adapter."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from iterative_ft.config.schema import LoraConfig
from iterative_ft.errors import RunError
from iterative_ft.machine.files import text_digest
from iterative_ft.machine.libraries import quiet_transformers


@dataclass(frozen=True)
class Policy:
    """A base model and at most one adapter on it."""

    name: str
    """"base", "policy[0]", "policy[1]", …"""
    model: Path
    """Folder of the base model's checkpoint and tokenizer."""
    model_digest: str
    adapter: Path | None = None
    adapter_digest: str | None = None

    @property
    def digest(self) -> str:
        """What children of this policy are keyed on."""
        if self.adapter_digest is not None and self.adapter_digest.startswith("pending:"):
            return self.adapter_digest
        return self.model_digest if self.adapter_digest is None else text_digest([self.model_digest, self.adapter_digest])

    @property
    def base(self) -> Policy:
        """The untouched model under it."""
        return Policy("base", self.model, self.model_digest)


def check_adapter(adapter: Path, lora: LoraConfig, why: str, model: Path | None, trust_remote_code: bool = False) -> None:
    """Raise `RunError` when an adapter that is to be trained on differs from the config's.

    Args:
        model: folder of the base model, which says what "all-linear" means; None leaves that unchecked (dry run).
    """
    saved = json.loads((adapter / "adapter_config.json").read_text())
    for key, name, expected in (("r", "rank", lora.rank), ("lora_alpha", "alpha", lora.alpha)):
        if saved[key] != expected:
            raise RunError(
                f"lora.{name}={expected} differs from {saved[key]} of the adapter {why}: set lora.{name}={saved[key]}"
            )
    targets = saved["target_modules"]
    if lora.targets == "all-linear":
        same = model is None or all(is_target(name, targets) for name in linear_modules(model, trust_remote_code))
    else:
        same = isinstance(targets, list) and set(targets) == set(lora.targets)
    if not same:
        raise RunError(f"lora.targets={lora.targets} differ from {targets} of the adapter {why}: set lora.targets to those")
    forbidden = {"embed_tokens", "lm_head", "wte"} & (
        set(targets if isinstance(targets, list) else []) | set(saved.get("modules_to_save") or [])
    )
    if forbidden:
        raise RunError(f"the adapter {why} changes {sorted(forbidden)}: adapters stay off embeddings and output head")


def linear_modules(model: Path, trust_remote_code: bool) -> list[str]:
    """Full names of the linear layers that "all-linear" puts adapters on: all but the output head. Loads no weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(str(model), trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(settings, trust_remote_code=trust_remote_code)
    head = net.get_output_embeddings()
    return [name for name, layer in net.named_modules() if isinstance(layer, torch.nn.Linear) and layer is not head]


def is_target(module: str, targets: str | list[str]) -> bool:
    """Whether PEFT puts an adapter on `module`: a list names modules or their endings, a string is a pattern."""
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def merge(policy: Policy, out: Path, dtype: str) -> None:
    """Write `policy` as one checkpoint: the pristine base in float32 plus its adapter, rounded to `dtype` at the end."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert policy.adapter is not None
    quiet_transformers()
    base = AutoModelForCausalLM.from_pretrained(policy.model, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, str(policy.adapter)).merge_and_unload()
    merged.to(getattr(torch, dtype)).save_pretrained(out)
    for file in policy.model.glob("*token*"):
        shutil.copy(file, out)
