"""The ways that only a GPU takes, on a CPU as far as the libraries go there.

vLLM serves adapters itself, one prompt a call (its CPU kernels fail on mixed batches); sleeping and waking are stand-ins around
it; training has a child process, and two of them under accelerate. Not covered: CUDA's kernels, graphs and memory.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_sampling import params, requests, sampler_of
from test_training import make_job
from tiny import policy_of, save_adapter, tiny_config

from iterative_ft.config.model import JudgeModelConfig
from iterative_ft.errors import RunError
from iterative_ft.machine import process
from iterative_ft.models.codec import TokenizerCodec
from iterative_ft.models.expected import EXPECTED, expected_here, read_expected
from iterative_ft.models.policy import Policy
from iterative_ft.sampling.canary import Watch
from iterative_ft.sampling.vllm import VLLMSampler
from iterative_ft.training.diverged import Diverged, diverged
from iterative_ft.training.job import ADAPTER, CHECKPOINTS, Job, train


class Serving(VLLMSampler):
    """An engine that puts adapters on itself, as on a GPU, and can be told to sleep."""

    serves_adapters = True  # type: ignore[assignment]

    def token_logs(self, ids: list[list[int]]) -> list[list[float]]:
        return [super(Serving, self).token_logs([text])[0] for text in ids]

    def fall_asleep(self) -> None:
        self.asleep, self.llm.wake_up = True, lambda: None


@pytest.fixture(scope="module")
def serving(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    model = tiny_models["qwen3"]
    config = tiny_config(
        model, tmp_path_factory.mktemp("s"), "method=sft", "sampler=vllm", "sampler.dtype=float32", "lora.rank=4"
    )
    sampler = Serving(config, "cpu", TokenizerCodec(model, config.model))
    sampler.load(policy_of(model))
    yield sampler
    sampler.close()


@pytest.mark.slow
def test_vllm_serves_each_adapter_and_base_comes_back(serving: Serving, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    model = tiny_models["qwen3"]
    base = policy_of(model)
    one, two = (policy_of(model, save_adapter(model, tmp_path / str(seed), 0.3, seed), f"policy[{seed}]") for seed in range(2))
    plain, answers = sampler_of(model, tmp_path), []
    for policy in (base, one, two, one, base):
        found = serving.load(policy)
        assert found.error < 1e-8
        plain.load(policy)
        mine = [serving.sample([request], params(temperature=0.0))[0] for request in requests()]
        assert mine == plain.sample(requests(), params(temperature=0.0)), "both samplers agree"
        answers.append(mine)
    assert answers[0] == answers[4] != answers[1] == answers[3] != answers[2]


@pytest.mark.slow
def test_the_engine_refuses_layers_that_it_has_no_place_for(serving: Serving, tiny_models: dict[str, Path]) -> None:
    base = policy_of(tiny_models["qwen3"])
    assert serving.names_for(base) == {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iterative_ft.sampling.vllm.adapted", lambda shapes, targets: ["model.layers.0.mlp.sideways_proj"])
        with pytest.raises(RunError, match=r"no place for 1 of 1 adapted layers .*sideways_proj.*nothing was trained"):
            serving.names_for(base)


@pytest.mark.parametrize("judges", [False, True])
def test_a_second_model_that_judges_is_served_without_adapters(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judges: bool
) -> None:
    """Some classes of vLLM take none, and no adapter of the run fits another model."""
    config = tiny_config(tiny_model, tmp_path / "s", "method=sft", "sampler=vllm", "device=cuda")
    if judges:
        judge = JudgeModelConfig(**{**config.model.model_dump(), "name": "judge"})
        config = config.model_copy(update={"model": judge})
    asked: list[Any] = []
    monkeypatch.setattr("vllm.LLM", lambda **options: asked.append(options.get("enable_lora", False)))
    sampler = VLLMSampler(config, "cuda", TokenizerCodec(tiny_model, config.model))
    monkeypatch.setattr(sampler, "names_for", lambda base: asked.append("names"))
    monkeypatch.setattr(sampler, "check", lambda policy: None)
    sampler.start(policy_of(tiny_model))
    assert asked == ([False] if judges else [True, "names"])


@pytest.mark.slow
def test_what_wakes_is_checked_again(
    serving: Serving, tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a waking the adapter is loaded anew under another id; one that came back broken stops the run."""
    model = tiny_models["qwen3"]
    mine = policy_of(model, save_adapter(model, tmp_path / "mine", 0.3, 5), "policy[5]")
    serving.load(policy_of(model))
    serving.load(mine)
    number, checks = serving.adapter_request.lora_int_id, []
    real = serving.check
    monkeypatch.setattr(serving, "check", lambda policy: (checks.append(policy.name), real(policy)))
    serving.load(mine)
    assert checks == []
    serving.fall_asleep()
    serving.load(mine)
    assert checks == ["policy[5]"]
    assert serving.adapter_request.lora_int_id > number
    serving.renamed = tmp_path / "renamed"
    serving.renamed.mkdir()
    serving.fall_asleep()
    monkeypatch.setattr(serving, "use_adapter", lambda policy: setattr(serving, "adapter_request", None))  # as if it were lost
    with pytest.raises(RunError, match=r"does not serve policy\[5\].* 0% of that shift"):
        serving.load(mine)
    assert serving.loaded is None
    assert not (tmp_path / "renamed").exists(), "copies for ids that are gone"
    monkeypatch.undo()
    serving.load(mine)


@pytest.mark.slow
def test_an_adapter_under_names_that_the_engine_does_not_know_is_caught(
    serving: Serving, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """vLLM serves it as base and says so at DEBUG alone: the canary stops it. A renamed copy is what is served otherwise."""
    model = tiny_models["qwen3"]
    mine = policy_of(model, save_adapter(model, tmp_path / "mine", 0.3, 6), "policy[6]")
    with pytest.MonkeyPatch.context() as patch:
        wrong = {f"model.layers.{i}.{part}": f"model.language_model.layers.{i}.{part}" for i in range(2) for part in PARTS}
        patch.setattr(serving, "names", wrong)
        with pytest.raises(RunError, match=r"does not serve policy\[6\]"):
            serving.load(mine)
    assert serving.load(replace(mine)).error < 1e-8


PARTS = (
    *(f"self_attn.{letter}_proj" for letter in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


# -- training -------------------------------------------------------------------------------------------------------------


def trained(tmp_path: Path, model: Path, **how: Any) -> Policy:
    """A policy whose training ran as told, on the CPU in any case."""
    job = {**make_job(tmp_path, model, "sft", learning_rate=1e-2, trl={"use_cpu": True}), **how}
    train(Job(**job))
    out = Path(job["out"])
    return replace(policy_of(model, out / ADAPTER), expected=out / EXPECTED)


@pytest.mark.slow
def test_a_training_in_a_child_process_writes_what_to_expect_of_its_policy(tiny_model: Path, tmp_path: Path) -> None:
    """As on CUDA: the child finds no GPU and trains on the CPU, in the precision that it was told."""
    policy = trained(tmp_path, tiny_model, device="cuda")
    sampler = sampler_of(tiny_model, tmp_path / "serving")
    sampler.load(policy_of(tiny_model))
    found = sampler.load(policy)
    assert found.error < 1e-8 < found.shift


@pytest.mark.parametrize("error", [None, RunError("the base model cannot be loaded"), diverged(3, "loss", math.nan)])
def test_a_child_that_fails_keeps_its_checkpoints_and_one_that_diverges_does_not(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RunError | None
) -> None:
    def start(command: list[str], environment: dict[str, str]) -> int:
        if error is not None:
            said = {"class": process.name_of(type(error)), "message": str(error)}
            Path(command[-1], process.ERROR).write_text(json.dumps(said))
        return 1

    monkeypatch.setattr(process, "start", start)
    kept = tmp_path / "out" / CHECKPOINTS / "checkpoint-3"
    kept.mkdir(parents=True)
    with pytest.raises(RunError, match="a training's checkpoints are kept" if error is None else str(error)[:20]):
        trained(tmp_path, tiny_model, device="cuda")
    assert kept.is_dir() is not isinstance(error, Diverged)


@pytest.mark.parametrize(("n_processes", "seen"), [(1, "2"), (2, "2,3")])
def test_one_process_sees_one_gpu(monkeypatch: pytest.MonkeyPatch, n_processes: int, seen: str) -> None:
    """transformers would spread a batch over all that it sees (DataParallel), and TRL refuses that."""
    found: list[str | None] = []

    def start(command: list[str], environment: dict[str, str]) -> int:
        found.append(environment.get("CUDA_VISIBLE_DEVICES"))
        return 1

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setattr(process, "visible_gpus", lambda: ["2", "3"])
    monkeypatch.setattr(process, "start", start)
    with pytest.raises(RunError):
        process.run_isolated(expected_here, "cuda", n_processes)
    assert found == [seen]


@pytest.mark.long
def test_two_processes_write_it_once_and_alike(tiny_model: Path, tmp_path: Path) -> None:
    policy = trained(tmp_path, tiny_model, n_processes=2)
    sampler = sampler_of(tiny_model, tmp_path / "serving")
    sampler.load(policy_of(tiny_model))
    found = sampler.load(policy)
    assert found.error < 1e-8 < found.shift


def test_in_bfloat16_a_cpu_expects_float32_and_a_gpu_what_it_trains_in(tiny_model: Path, tmp_path: Path) -> None:
    """A GPU may have no room for the model in float32; a CPU serves float32, so what is expected there is as exact."""
    here = trained(tmp_path / "cpu", tiny_model, dtype="bfloat16")
    assert here.expected is not None
    exact = expected_here(str(tiny_model), str(here.adapter), "cpu", "float32", False)
    assert read_expected(here.expected).logs == exact["logs"], "the checkpoint is float32, whatever it is trained in"
    sampler = sampler_of(tiny_model, tmp_path / "serving")
    sampler.load(policy_of(tiny_model))
    assert sampler.load(here).error < 1e-8
    there = trained(tmp_path / "gpu", tiny_model, dtype="bfloat16", device="cuda")
    assert there.expected is not None
    watch = Watch(0.05, 512, "cuda", "bfloat16")
    base = expected_here(str(tiny_model), None, "cpu", "bfloat16", False)
    watch.check(policy_of(tiny_model), watch_of(base), base["logs"])
    served = expected_here(str(tiny_model), str(there.adapter), "cpu", "bfloat16", False)
    watch.check(there, read_expected(there.expected), served["logs"])
    shutil.rmtree(tmp_path / "gpu")


def watch_of(found: dict[str, Any]) -> Any:
    from iterative_ft.models.expected import Expected

    return Expected(**found)
