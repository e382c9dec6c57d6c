"""Where base models come from, and how a policy becomes one checkpoint."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import FAMILIES, ROOT, embedded_config, load_policy, policy_of, read_json, save_adapter, tiny_config

from iterative_ft.errors import RunError
from iterative_ft.machine import process
from iterative_ft.machine.device import resolve_device
from iterative_ft.machine.files import file_digests, file_sha256
from iterative_ft.machine.libraries import EMBEDDED, embedded_file
from iterative_ft.machine.process import run_isolated
from iterative_ft.models.base import header_read_once, identity, location, prepare
from iterative_ft.models.policy import Policy, merge
from iterative_ft.sampling.canary import half_square
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.train import adopt
from iterative_ft.store import Store

# -- where a base model comes from -----------------------------------------------------------------------------------


def test_a_folder_is_recorded_with_its_hashes(tiny_model: Path, tmp_path: Path) -> None:
    info = prepare(tiny_config(tiny_model, tmp_path / "store", "method=sft").model, tmp_path)
    assert info["folder"] == str(tiny_model)
    assert location(str(tiny_model), tmp_path, info) == tiny_model
    digests = read_json(tmp_path / "location.json")["files"]
    assert digests == file_digests(tiny_model)
    assert digests["model.safetensors"] == file_sha256(tiny_model / "model.safetensors")


def test_a_changed_folder_is_another_model(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    settings = tiny_config(folder, tmp_path / "store", "method=sft")

    def base() -> Policy:
        return Bench(settings, Store(tmp_path / "store")).base

    first = base()
    assert first.model == folder
    assert base().digest == first.digest
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert base().digest != first.digest


def test_pickled_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    folder = shutil.copytree(tiny_model, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(RunError, match="pickled weights are never loaded"):
        prepare(tiny_config(folder, tmp_path / "store", "method=sft").model, tmp_path / "out")


def test_a_pickled_start_adapter_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter", size=0.1)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    bench = Bench(tiny_config(tiny_model, tmp_path / "store", "method=sft"), Store(tmp_path / "store"))
    with pytest.raises(RunError, match="pickled weights are never loaded"):
        adopt(bench, adapter)


def test_a_hub_model_is_fetched_without_pickles_or_code(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = shutil.copytree(tiny_model, tmp_path / "snapshots" / commit)
    calls: list[dict[str, Any]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        calls.append({"name": name, **options})
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    settings = tiny_config(tiny_model, tmp_path / "store", "method=sft", "model.path=someone/some-model", "model.revision=main")
    (tmp_path / "out").mkdir()
    info = prepare(settings.model, tmp_path / "out")
    assert info == {"folder": str(snapshot), "end_ids": [2], "repo": "someone/some-model", "revision": commit}
    assert read_json(tmp_path / "out" / "location.json")["files"] == file_digests(snapshot)
    assert (calls[0]["name"], calls[0]["revision"]) == ("someone/some-model", "main")
    patterns = calls[0]["allow_patterns"]
    assert "*.safetensors" in patterns
    assert not any(p.endswith((".bin", ".pt", ".pth", ".py", ".pkl")) or p == "*" for p in patterns)

    trusted = tiny_config(tiny_model, tmp_path / "store", "method=sft", "model.path=a/b", "model.trust_remote_code=true")
    prepare(trusted.model, tmp_path / "out")
    assert "*.py" in calls[1]["allow_patterns"]


def test_an_embedded_file_with_another_sha256_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    package, file, _ = EMBEDDED["minilm"]
    assert embedded_file("minilm").name == file
    monkeypatch.setitem(EMBEDDED, "minilm", (package, file, "0" * 64))
    with pytest.raises(RunError, match="sha256"):
        embedded_file("minilm")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EMBEDDED, "minilm", ("no_such_package", "model.safetensors", "0" * 64))
    with pytest.raises(RunError, match="no-such-package"):
        embedded_file("minilm")


def test_a_pinned_sha256_is_part_of_the_models_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = embedded_config(tmp_path / "store").model
    pinned = identity(model)
    monkeypatch.setitem(EMBEDDED, "smollm2_135m", (*EMBEDDED["smollm2_135m"][:2], "0" * 64))
    assert identity(model) != pinned


@pytest.mark.slow
def test_the_embedded_model_is_a_checkpoint_that_pads_with_another_token_than_it_ends_with(embedded_model: Path) -> None:
    settings = read_json(embedded_model / "config.json")
    assert (embedded_model / "model.safetensors").is_file()
    assert not list(embedded_model.glob("*.bin"))
    assert settings["pad_token_id"] != settings["eos_token_id"]
    assert settings["dtype"] == "bfloat16"


# -- one checkpoint ------------------------------------------------------------------------------------------------------


def logits(folder: Path, adapter: Path | None) -> Any:
    import torch

    with torch.no_grad():
        return load_policy(folder, adapter)(input_ids=torch.tensor([[1, 90, 91, 120, 121, 122, 2]])).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_checkpoint_is_the_policy(tiny_models: dict[str, Path], tmp_path: Path, family: str) -> None:
    import torch

    model = tiny_models[family]
    adapter = save_adapter(model, tmp_path / "adapter", size=0.3)
    merge(policy_of(model, adapter), tmp_path / "merged", "float32")
    wanted = logits(model, adapter)
    assert float((wanted - logits(model, None)).abs().max()) > 0.1
    torch.testing.assert_close(logits(tmp_path / "merged", None), wanted, rtol=1e-4, atol=1e-4)
    assert {"tokenizer.json", "tokenizer_config.json"} <= {p.name for p in (tmp_path / "merged").iterdir()}


def test_merging_starts_from_the_pristine_base_each_time(tiny_model: Path, tmp_path: Path) -> None:
    before = file_digests(tiny_model)
    adapter = save_adapter(tiny_model, tmp_path / "adapter", size=0.3)
    other = save_adapter(tiny_model, tmp_path / "other", size=0.3, seed=1)
    for name, used in (("one", adapter), ("between", other), ("two", adapter)):
        merge(policy_of(tiny_model, used), tmp_path / name, "bfloat16")
    assert file_digests(tmp_path / "one") == file_digests(tmp_path / "two") != file_digests(tmp_path / "between")
    assert file_digests(tiny_model) == before


def test_merging_adds_in_float32_and_rounds_once(tiny_model: Path, tmp_path: Path) -> None:
    """Adding to a base already rounded to bfloat16 would give other weights than rounding the sum."""
    import torch
    from safetensors.torch import load_file

    adapter = save_adapter(tiny_model, tmp_path / "adapter", size=0.02)
    merge(policy_of(tiny_model, adapter), tmp_path / "merged", "bfloat16")
    base = load_file(tiny_model / "model.safetensors")
    lora = load_file(adapter / "adapter_model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    n_differ = 0
    for name in (n for n in base if "_proj" in n):
        a, b = (lora[f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight"] for x in "AB")
        update = 8 / 4 * (b @ a)
        assert torch.equal(merged[name], (base[name] + update).to(torch.bfloat16))
        n_differ += int((merged[name] != base[name].to(torch.bfloat16) + update.to(torch.bfloat16)).sum())
    assert n_differ > 100


# -- processes and devices ----------------------------------------------------------------------------------------------


def test_what_runs_in_a_process_of_its_own_returns_its_value() -> None:
    """device="cuda" only means another process here: the function never asks for a GPU."""
    assert run_isolated(half_square, "cuda", a=[-1.0, -2.0], b=[-1.5, -3.0]) == half_square([-1.0, -2.0], [-1.5, -3.0])


def test_a_failure_in_the_other_process_is_one_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match="half_square failed in its process"):
        run_isolated(half_square, "cuda", a=[-1.0], b="not numbers")
    assert "Error" in capfd.readouterr().err  # its own output is not swallowed


def test_a_child_ends_with_the_process_that_it_works_for(tmp_path: Path) -> None:
    """Killed, that process cannot end it; and the next run of the same command would work in the same folder."""
    parent = subprocess.Popen(["sleep", "60"])
    waiting = {"function": "multiprocessing.connection:wait", "arguments": {"object_list": [], "timeout": 60}}
    process.write(tmp_path / "job", {**waiting, "parent": parent.pid})
    child = subprocess.Popen([sys.executable, "-m", "iterative_ft.machine.process", str(tmp_path)], cwd=ROOT)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(4)
    parent.kill()
    parent.wait()
    assert child.wait(30) == 1


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cuda") == "cuda"
    monkeypatch.setattr("iterative_ft.machine.device.library_version", lambda name: "2.13.0+cpu")
    assert resolve_device("auto") == "cpu"
    monkeypatch.setattr("iterative_ft.machine.device.library_version", lambda name: "2.13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert resolve_device("auto") == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve_device("auto") == "cpu"
    assert resolve_device("cpu") == "cpu"


def test_a_gguf_header_is_read_once_and_gguf_is_left_as_it_was(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with header_read_once():
        assert gguf.GGUFReader(str(tmp_path / "tiny.gguf")) is gguf.GGUFReader(str(tmp_path / "tiny.gguf"))
        maps = [gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, n) for n in (2, 2, 3)]
        assert maps[0] is maps[1]
        assert maps[0] is not maps[2]
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before
