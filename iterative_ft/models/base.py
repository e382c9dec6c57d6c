"""The base model on disk: an embedded one dequantised once, a folder, or a hub id resolved to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iterative_ft.config.schema import ModelConfig
from iterative_ft.errors import RunError
from iterative_ft.machine.files import file_digests, text_digest, write_json
from iterative_ft.machine.libraries import EMBEDDED, embedded_file, quiet_transformers


def identity(config: ModelConfig) -> dict[str, Any]:
    """What the checkpoint depends on, as JSON values; cheap, so that a dry run can ask."""
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


def prepare(config: ModelConfig, out: Path) -> dict[str, Any]:
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
    # The file pads with the end token, and then a model may never learn to stop.
    tokenizer.pad_token = config.document_end_token
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"source": gguf.name, "n_parameters": sum(p.numel() for p in model.parameters())}


def location(stage_path: Path, info: dict[str, Any]) -> Path:
    """Where a model stage's checkpoint lies: in the stage, or where its info points."""
    return Path(info["folder"]) if "folder" in info else stage_path
