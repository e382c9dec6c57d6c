"""The base model on disk: an embedded one dequantised once, a folder, or a hub id resolved to a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from iterative_ft.config.model import ModelConfig
from iterative_ft.errors import ConfigError, RunError, first_line
from iterative_ft.machine.files import file_digests, file_sha256, text_digest, write_json
from iterative_ft.machine.libraries import EMBEDDED, embedded_file, quiet_transformers
from iterative_ft.models.codec import generation_ends

LOCATION = "location.json"
EMBEDDED_DTYPE = "bfloat16"  # of the checkpoint, whatever precision it is trained and served in: one model, one digest
EMBEDDED_PAD = "<|endoftext|>"
SMALL = ["*.json", "*.jinja", "*.txt", "*.model"]  # what a look at a model reads
LARGE = ["*.safetensors"]
NO_WEIGHTS = "has no .safetensors weights: pickled weights are never loaded, convert them first"
READ_BYTES = 20 * 2**20  # a larger file is not read again at each start


def identity(config: ModelConfig) -> dict[str, Any]:
    """What the checkpoint depends on, as JSON values; cheap, so that a dry run can ask."""
    embedded = config.path.startswith("embedded:")
    dtype = EMBEDDED_DTYPE if embedded else config.dtype
    inputs: dict[str, Any] = {"path": config.path, "revision": config.revision, "dtype": dtype}
    if embedded:
        return inputs | {"sha256": EMBEDDED[config.path.removeprefix("embedded:")][2]}
    folder = local_folder(config.path)
    if folder is not None:  # sizes and times notice a change; the stage itself records the contents' hashes
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
        return dequantise(embedded_file(config.path.removeprefix("embedded:")), out)
    folder = local_folder(config.path)
    found: dict[str, str | None] = {"repo": None, "revision": None}
    if folder is None:
        folder = snapshot(config.path, config.revision, SMALL + LARGE, config.trust_remote_code, setting=config.setting)
        found = {"repo": config.path, "revision": folder.name}
    digests = {name: sha for name, sha in file_digests(folder).items() if not name.startswith(".")}
    if not any(name.endswith(".safetensors") for name in digests):
        raise RunError(f"{config.named} {NO_WEIGHTS}")
    write_json(out / LOCATION, {"files": digests})
    # End tokens are in the keys of what is sampled; a machine without the files can then ask what the store holds.
    return {"folder": str(folder.resolve()), "end_ids": generation_ends(folder), **found}


def local_folder(path: str) -> Path | None:
    """The checkpoint's folder, where `model.path` names one."""
    folder = Path(path).expanduser()
    return folder if folder.is_dir() else None


def snapshot(
    path: str,
    revision: str | None,
    patterns: list[str],
    trust_remote_code: bool = False,
    local_only: bool = False,
    setting: str = ModelConfig.setting,
) -> Path:
    """A hub model's files of one commit in the cache of this machine, downloaded where they are missing.

    Args:
        setting: what names the model, for messages.
    Raises:
        ConfigError: there is no such model, it is not to be had without a login, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    code = ["*.py"] if trust_remote_code else []
    found = f"{setting}={path}"
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=patterns + code, local_files_only=local_only))
    except GatedRepoError as error:
        raise ConfigError(f"{found} asks for a licence to be accepted on the hub: accept it, then hf auth login") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ConfigError(f"{found} is no folder, and the hub has no such model (or it is private): mend the name") from error
    except RevisionNotFoundError as error:
        section = setting.split(".", maxsplit=1)[0]
        raise ConfigError(f"{section}.revision={revision} is no revision of {path} on the hub: name a commit") from error
    except (OSError, RuntimeError) as error:  # the cache lacks it and the hub is out of reach, or the download broke off
        why = (str(error).splitlines() or [""])[0].removeprefix("Got: ")
        raise ConfigError(
            f"{found} is no folder here and not in the Hugging Face cache, and the hub could not be reached ({why[:120]}): "
            "mend the path, or download it once with a network"
        ) from error


def dequantise(gguf: Path, out: Path) -> dict[str, Any]:
    """Turn a GGUF file into a checkpoint and tokenizer that transformers and vLLM both read."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quiet_transformers()
    with header_read_once():
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=getattr(torch, EMBEDDED_DTYPE),
        )
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    # The file pads with the end token, and then a model may never learn to stop.
    tokenizer.pad_token = EMBEDDED_PAD
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"source": gguf.name, "n_parameters": sum(p.numel() for p in model.parameters())}


@contextmanager
def header_read_once() -> Iterator[None]:
    """Within it a GGUF file's header, every token of it one by one, is read once, and gguf's map of tensor names made once.

    transformers reads the one three times and makes the other for each module, which together is most of its time.
    """
    import gguf

    parts = ("GGUFReader", "get_tensor_name_map")
    kept = {name: getattr(gguf, name) for name in parts}
    try:
        for name in parts:
            setattr(gguf, name, cache(kept[name]))
        yield
    finally:
        for name in parts:
            setattr(gguf, name, kept[name])


def location(
    path: str, stage_path: Path, info: dict[str, Any], trust_remote_code: bool = False, setting: str = ModelConfig.setting
) -> Path:
    """Where a model stage's checkpoint lies: in the stage, in the folder that `model.path` names, or in this machine's cache.

    The stage may have been made on another machine, or long ago: the files have to be those that it recorded.

    Raises:
        RunError: they are not.
    """
    if "folder" not in info:
        return stage_path
    folder = local_folder(path)
    if folder is None:
        folder = snapshot(path, info["revision"], SMALL + LARGE, trust_remote_code, setting=setting)
    differs = changed(folder, json.loads((stage_path / LOCATION).read_text(encoding="utf-8"))["files"])
    if differs is not None:
        raise RunError(
            f"{differs} in {folder} is not the file that this run's base model was prepared from: put it back, or name another "
            f"folder or revision ({setting})"
        )
    return folder.resolve()


def changed(folder: Path, recorded: dict[str, str]) -> str | None:
    """Name of a file that is not as recorded. Large files of the hub's cache go by their blob's name, others by being there."""
    for name, sha in recorded.items():
        file = folder / name
        if not file.is_file():
            return name
        blob = file.resolve().name
        if file.is_symlink() and len(blob) == len(sha):
            same = blob == sha
        else:
            same = file.stat().st_size > READ_BYTES or file_sha256(file) == sha
        if not same:
            return name
    return None


def load(folder: Path | str, dtype: Any, trust_remote_code: bool) -> Any:
    """The network of a checkpoint. Weights that it lacks are an error here: transformers fills them at random and warns.

    Args:
        dtype: torch's.
    """
    from transformers import AutoModelForCausalLM

    from iterative_ft.models.linear import through_onednn

    quiet_transformers()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except Exception as error:  # whatever the libraries raise on files that do not belong together
        raise RunError(f"the base model in {folder} cannot be loaded: {first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise RunError(
            f"the base model in {folder} lacks {len(missing)} weight(s) that its config asks for ({missing[0]}): they would be "
            "filled at random; download or save it again"
        )
    return through_onednn(model)
