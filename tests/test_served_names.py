"""Adapters are served under names that the engine knows, or nothing is trained: held against vLLM's own mapper and modules.

vLLM's models and its LoRA manager are built on the CPU, without weights being run. Not covered: kernels (`make gpu-check`).
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import python
from tiny import FAMILIES, save_adapter, save_tiny_model, tiny_tokenizer

from iterative_ft.errors import RunError
from iterative_ft.models.adapters import base_shapes
from iterative_ft.models.base import load
from iterative_ft.models.headers import header
from iterative_ft.models.served_names import adapted, checkpoint_names, renamed_copy
from iterative_ft.sampling.adapter_names import RANKS, names_that_fit, unplaced

SERVED = ("llama", "qwen3", "gemma", "qwen3_5")
# Qwen3.5's class in vLLM reads pictures too and imports torchvision, which the CPU stack does without: here it is empty.
STAND_IN = """def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
"""


def save_qwen3_5(folder: Path) -> Path:
    """A tiny Qwen3.5 as it is published: language model and vision tower, three linear-attention layers and a full one."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    torch.manual_seed(0)
    text = {
        "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "max_position_embeddings": 512,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"], "initializer_range": 0.15,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    config = Qwen3_5Config(text_config=text, vision_config=vision | {"num_position_embeddings": 16})
    Qwen3_5ForConditionalGeneration(config).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")  # published ones also have a layer that predicts ahead
    ahead = {n: w for n, w in weights.items() if n.startswith("model.language_model.layers.3.")}
    weights |= {n.replace("model.language_model.layers.3.", "mtp.layers.0."): w.clone() for n, w in ahead.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tiny_tokenizer(FAMILIES["qwen3"], False, None).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen3_5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen3_5(tmp_path_factory.mktemp("qwen3_5"))


def managers(folder: str, families: list[str]) -> None:
    """In a process of its own: vLLM's model and LoRA manager of each family, and which names they have a place for."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.model_manager import LoRAModelManager, create_lora_manager
    from vllm.model_executor.model_loader.utils import initialize_model

    found: dict[str, Any] = {}
    for family in families:
        model = Path(folder, family)
        save_qwen3_5(model) if family == "qwen3_5" else save_tiny_model(model, family)
        options = {"max_lora_rank": 8, "max_model_len": 256, "max_num_seqs": 4, "max_num_batched_tokens": 256}
        config = EngineArgs(
            model=str(model), enable_lora=True, enforce_eager=True, dtype="float32", **options
        ).create_engine_config()
        with set_current_vllm_config(config):
            if not torch.distributed.is_initialized():
                init_distributed_environment(1, 0, f"file://{tempfile.mktemp()}", 0, "gloo")
                ensure_model_parallel_initialized(1, 1)
            net = initialize_model(vllm_config=config)
            size, device = config.model_config.get_vocab_size(), torch.device("cpu")
            manager = create_lora_manager(net, 4, 256, size, config.lora_config, config, device, LoRAModelManager)
        modules = adapted(base_shapes(model, False), "all-linear")
        names = checkpoint_names(model, modules)
        served = names_that_fit(lambda wanted, manager=manager: unplaced(manager, wanted), modules, names, family)
        found[family] = {
            "served_by": type(net).__name__,
            "modules": len(modules),
            "as_trained": len(unplaced(manager, modules)),
            "as_served": len(unplaced(manager, [served.get(module, module) for module in modules])),
            "renamed": sum(served.get(module, module) != module for module in modules),
            "nonsense": len(unplaced(manager, ["model.layers.0.mlp.sideways_proj"])),
        }
    Path(folder, "found.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    "families", [pytest.param(["qwen3_5"], marks=pytest.mark.slow), pytest.param([*SERVED], marks=pytest.mark.long)]
)
def test_vllm_has_a_place_for_every_adapted_layer_of_every_family(tmp_path: Path, families: list[str]) -> None:
    for name in ("__init__", "io", "transforms/__init__", "transforms/functional", "transforms/v2/__init__"):
        file = tmp_path / "stand_in" / "torchvision" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('__version__ = "0.28.0"\n' * (name == "__init__") + STAND_IN)
    (tmp_path / "stand_in/torchvision/transforms/v2/functional.py").write_text(STAND_IN)
    (tmp_path / "stand_in/torchvision/transforms/__init__.py").write_text(
        "import enum\n\nInterpolationMode = enum.Enum('InterpolationMode', "
        "{name: name.lower() for name in 'NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS'.split()})\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "."), str(tmp_path / "stand_in")])
    code = f"from test_served_names import managers; managers({str(tmp_path)!r}, {families})"
    variables = {"PYTHONPATH": paths, "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    ended = python(["-c", code], Path(__file__).parent.parent, variables)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    print("\n", *found.items(), sep="\n")
    assert found["qwen3_5"]["served_by"] == "Qwen3_5ForConditionalGeneration"
    assert found["qwen3_5"]["as_trained"] == found["qwen3_5"]["modules"] == found["qwen3_5"]["renamed"] == 31
    for family in families:
        assert found[family]["as_served"] == 0
        assert found[family]["nonsense"] == 1
        assert found[family]["modules"] >= 14
        if family != "qwen3_5":
            assert found[family]["as_trained"] == found[family]["renamed"] == 0


def test_a_renamed_copy_holds_the_same_values_under_the_checkpoints_names(qwen3_5: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    assert type(load(qwen3_5, torch.float32, False)).__name__ == "Qwen3_5ForCausalLM", "trained as its language model alone"
    adapter = save_adapter(qwen3_5, tmp_path / "adapter", size=0.1)
    modules = adapted(base_shapes(qwen3_5, False), "all-linear")
    names = checkpoint_names(qwen3_5, modules)
    assert len(set(names.values())) == len(modules) == 31
    weights = header(qwen3_5 / "model.safetensors")
    assert all(f"{name}.weight" in weights for name in names.values())
    copy = renamed_copy(adapter, tmp_path / "copy", names)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, copy))
    assert len(after) == len(before) == 2 * 31
    for name, value in before.items():
        renamed = name.replace("base_model.model.model.", "base_model.model.model.language_model.")
        assert torch.equal(after[renamed], value)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_stay_where_the_checkpoint_has_them(tiny_models: dict[str, Path], family: str) -> None:
    modules = adapted(base_shapes(tiny_models[family], False), "all-linear")
    names = checkpoint_names(tiny_models[family], modules)
    assert names == {module: module for module in modules} or family == "gpt2"


def test_a_layer_without_a_place_stops_the_run_before_it_is_trained() -> None:
    modules = ["model.layers.0.a", "model.layers.0.b"]
    other = {module: module.replace("model.", "inner.", 1) for module in modules}
    assert names_that_fit(lambda wanted: [], modules, other, "m") == {}
    known = lambda wanted: [name for name in wanted if not name.startswith("inner.")]  # noqa: E731
    assert names_that_fit(known, modules, other, "m") == other
    with pytest.raises(RunError, match=r"no place for 2 of 2 adapted layers of m \(inner\.layers\.0\.a\)"):
        names_that_fit(lambda wanted: list(wanted), modules, other, "m")


def test_ranks_are_those_that_vllm_takes() -> None:
    from typing import get_args

    from vllm.config import lora

    assert get_args(lora.MaxLoRARanks) == RANKS
