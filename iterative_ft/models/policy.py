"""What is sampled and trained: a base model plus, after training, one LoRA adapter."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from iterative_ft.machine.files import text_digest
from iterative_ft.models.adapters import put_on
from iterative_ft.models.base import load


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
    expected: Path | None = None
    """What it gives to the canary's texts (models/expected.py); None where no stage wrote it yet."""

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


def merge(policy: Policy, out: Path, dtype: str, trust_remote_code: bool = False) -> None:
    """Write `policy` as one checkpoint: the pristine base in float32 plus its adapter, rounded to `dtype` at the end."""
    import torch

    assert policy.adapter is not None
    base = load(policy.model, torch.float32, trust_remote_code)
    merged = put_on(base, policy.adapter, f"of {policy.name}").merge_and_unload()
    merged.to(getattr(torch, dtype)).save_pretrained(out)
    for file in policy.model.glob("*token*"):
        shutil.copy(file, out)
