"""Adapters meet a base strictly or not at all, and nothing that is not finite is trained on, served, judged or written.

Not covered: adapters that vLLM serves itself (CUDA); the check before it is the one tested here.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import python
from test_look import SMALL, chat_config, command_line, eager_to_end
from test_training import make_job
from tiny import families, family_of, policy_of, read_json, save_adapter, tiny_config

from iterative_ft.config.schema import Config
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.loop import run
from iterative_ft.machine.files import append_jsonl, write_json, write_jsonl
from iterative_ft.models import forward
from iterative_ft.models.adapters import check_adapter, put_on
from iterative_ft.models.codec import TokenizerCodec
from iterative_ft.models.expected import Expected
from iterative_ft.models.headers import header, not_finite
from iterative_ft.models.policy import merge
from iterative_ft.models.sequences import sequence_states, token_values
from iterative_ft.sampling.canary import Watch
from iterative_ft.sampling.transformers import TransformersSampler
from iterative_ft.stages import judge as judging
from iterative_ft.stages import look as looking
from iterative_ft.stats.intervals import over_questions
from iterative_ft.training.diverged import Diverged
from iterative_ft.training.job import ADAPTER, CHECKPOINTS, LOG, Job, train

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


# -- faults ---------------------------------------------------------------------------------------------------------------


def setting(**changed: Any) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        saved = read_json(adapter / CONFIG)
        saved.update(changed)
        (adapter / CONFIG).write_text(json.dumps({k: v for k, v in saved.items() if v != "gone"}))

    return change


def tensors(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Change an adapter's weights by name."""

    def apply(adapter: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(adapter / WEIGHTS)
        change(weights)
        save_file({k: v.contiguous() for k, v in weights.items()}, adapter / WEIGHTS)

    return apply


def first(weights: dict[str, Any]) -> str:
    return min(weights)


def holding(value: float) -> Callable[[dict[str, Any]], None]:
    def change(weights: dict[str, Any]) -> None:
        weights[max(weights)].view(-1)[-1] = value

    return change


def renamed(weights: dict[str, Any]) -> None:
    weights["base_model.model.nowhere.lora_A.weight"] = weights.pop(first(weights))


def wider(weights: dict[str, Any]) -> None:
    import torch

    name = first(weights)
    weights[name] = torch.zeros(weights[name].shape[0], weights[name].shape[1] + 1)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "ia3": (setting(peft_type="IA3", r="gone"), "of the kind 'IA3'"),
    "no_kind": (setting(peft_type="gone"), "of the kind None"),
    "dora": (setting(use_dora=True), "sets use_dora=True"),
    "rslora": (setting(use_rslora=True), "sets use_rslora=True"),
    "rank_pattern": (setting(rank_pattern={"q_proj": 8}), "sets rank_pattern"),
    "newer": (setting(use_something_new=True), "sets use_something_new=True"),
    "bias": (setting(bias="all"), "trains biases"),
    "pissa": (setting(init_lora_weights="pissa"), "changes the base too"),
    "whole_modules": (setting(modules_to_save=["norm"]), "saves whole modules"),
    "embeddings": (setting(target_modules=["embed_tokens"]), "stay off embeddings"),
    "no_rank": (setting(r="gone"), "has r=None"),
    "rank_text": (setting(r="4"), "has r='4'"),
    "rank_zero": (setting(r=0), "has r=0"),
    "rank_true": (setting(r=True), "has r=True"),
    "alpha_nan": (setting(lora_alpha=math.nan), "has lora_alpha=nan"),
    "no_targets": (setting(target_modules=None), "target_modules=None"),
    "odd_targets": (setting(target_modules=[1, 2]), r"target_modules=\[1, 2\]"),
    "other_rank": (setting(r=8), r"lora\.rank=4 differs from 8 .*set lora\.rank=8"),
    "other_alpha": (setting(lora_alpha=9), r"lora\.alpha=8 differs from 9"),
    "other_targets": (setting(target_modules=["nowhere"]), r"lora\.targets=all-linear differ"),
    "list_config": (lambda a: (a / CONFIG).write_text("[]"), "of the kind None"),
    "damaged_config": (lambda a: (a / CONFIG).write_text("{"), "damaged adapter_config"),
    "deep_config": (lambda a: (a / CONFIG).write_text("[" * 100_000), "damaged adapter_config"),
    "binary_config": (lambda a: (a / CONFIG).write_bytes(b"\xff\xfe{"), "damaged adapter_config"),
    "no_weights": (lambda a: (a / WEIGHTS).unlink(), r"no \.safetensors weights"),
    "pickled": (lambda a: (a / WEIGHTS).rename(a / "adapter_model.bin"), "pickled weights are never loaded"),
    "cut": (lambda a: (a / WEIGHTS).write_bytes((a / WEIGHTS).read_bytes()[:-64]), "cut off"),
    "empty": (lambda a: (a / WEIGHTS).write_bytes(b""), "cut off"),
    "no_tensors": (tensors(dict.clear), "does not fit the base model: it lacks"),
    "missing": (tensors(lambda w: w.pop(first(w))), "does not fit the base model: it lacks"),
    "left_over": (tensors(lambda w: w.update(more=w[first(w)].clone())), "does not fit the base model: it has more"),
    "renamed": (tensors(renamed), "does not fit the base model: it lacks"),
    "wider": (tensors(wider), "where .* is needed"),
    "nan": (tensors(holding(math.nan)), "not finite"),
    "inf": (tensors(holding(math.inf)), "not finite"),
    "minus_inf": (tensors(holding(-math.inf)), "not finite"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a2_each_fault_of_an_adapter_is_one_line_before_anything_is_sampled(
    tiny_model: Path, tmp_path: Path, name: str
) -> None:
    change, wanted = FAULTS[name]
    adapter = save_adapter(tiny_model, tmp_path / "adapter", size=0.1)
    change(adapter)
    config = chat_config(tiny_model, tmp_path, "method.max_new_tokens=48", f"start_adapter={adapter}")
    with pytest.raises(ConfigError, match=wanted) as caught:
        looking.examine(config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_a2_an_adapter_of_another_width_or_family_is_one_line(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    of_gpt2 = save_adapter(tiny_models["gpt2"], tmp_path / "gpt2", size=0.1)
    config = chat_config(tiny_models["llama"], tmp_path, "method.max_new_tokens=48", f"start_adapter={of_gpt2}")
    with pytest.raises(ConfigError, match=r"lora\.targets|does not fit the base model"):
        looking.examine(config)


@pytest.mark.parametrize("family", families())
def test_a2_a_sound_adapter_passes_on_every_family(tiny_models: dict[str, Path], tmp_path: Path, family: str) -> None:
    model = tiny_models[family]
    adapter = save_adapter(model, tmp_path / "adapter", size=0.1)
    check_adapter(
        adapter, tiny_config(model, tmp_path / "s", f"method={'sdf' if family == 'gpt2' else 'sft'}").lora, "given", model
    )


# -- the five places --------------------------------------------------------------------------------------------------------


def serve(model: Path, adapter: Path, tmp_path: Path) -> None:
    config = tiny_config(model, tmp_path / "store", "method=sft")
    TransformersSampler(config, "cpu", TokenizerCodec(model, config.model)).load(policy_of(model, adapter))


def train_on(model: Path, adapter: Path, tmp_path: Path) -> None:
    train(Job(**make_job(tmp_path / "job", model, "sft", init=adapter)))


def gauge(model: Path, adapter: Path, tmp_path: Path) -> None:
    token_values(forward.Reader(str(model), "cpu"), adapter, [([1, 90], [91, 92])])


PLACES: dict[str, Callable[[Path, Path, Path], Any]] = {
    "training": train_on,
    "merging": lambda model, adapter, tmp_path: merge(policy_of(model, adapter), tmp_path / "merged", "float32"),
    "serving": serve,
    "canary": lambda model, adapter, tmp_path: Watch(0.25, 512, "cpu", "float32").expected(policy_of(model, adapter)),
    "gauges": gauge,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["ia3", "missing", "wider", "nan"])
def test_a2_every_place_where_an_adapter_meets_a_base_is_strict(
    tiny_model: Path, tmp_path: Path, place: str, name: str
) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter", size=0.1)
    FAULTS[name][0](adapter)
    with pytest.raises(RunError, match=FAULTS[name][1]):
        PLACES[place](tiny_model, adapter, tmp_path)


def test_a2_what_peft_loads_otherwise_than_it_was_saved_is_an_error(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = save_adapter(tiny_model, tmp_path / "adapter", size=0.1)
    original = PeftModel.from_pretrained

    def rounded(*arguments: Any, **options: Any) -> Any:
        return original(*arguments, **options).to(torch.bfloat16)

    monkeypatch.setattr(PeftModel, "from_pretrained", rounded)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with pytest.raises(RunError, match="not loaded as it was saved"):
        put_on(base, adapter, "of policy[0]")


# -- headers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.5])
def test_a1_values_that_are_not_finite_are_found_in_every_type(tmp_path: Path, dtype: str, value: float) -> None:
    import torch
    from safetensors.torch import save_file

    kind = getattr(torch, dtype)
    odd = torch.tensor([1, 2, 3], dtype=torch.uint8)  # so that the next tensor starts at an odd byte
    weights = {"a": odd, "b": torch.full((5, 7), torch.finfo(kind).max, dtype=kind), "c": torch.zeros(0, dtype=kind)}
    weights["b"][3, 3] = value
    save_file(weights, tmp_path / "w.safetensors")
    found = header(tmp_path / "w.safetensors")
    assert found["b"].shape == (5, 7)
    assert not_finite(found) == (None if math.isfinite(value) else "b")


# -- divergence -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake_judge")
@pytest.mark.parametrize(
    ("method", "override"),
    [("sft", "method.learning_rate=1e30"), ("sft", "method.learning_rate=1e20"), ("dpo", "method.seed_learning_rate=1e30")],
)
def test_a1_a_training_that_diverges_stores_nothing(tiny_model: Path, tmp_path: Path, method: str, override: str) -> None:
    model = eager_to_end(Path(shutil.copytree(tiny_model, tmp_path / "model")), "llama")
    overrides = [
        f"method={method}",
        "model.chat=true",
        *SMALL,
        "method.max_new_tokens=48",
        "method.warmup=0",
        "method.batch_size=1",
        override,
    ]
    config = tiny_config(model, tmp_path / "store", *overrides)
    for _ in range(2):  # nor does the second attempt go on from what the first left
        with pytest.raises(RunError, match=r"training diverged at step \d+ .*lower method\.learning_rate"):
            run(config, tmp_path / "run", "python train.py")
        assert not (tmp_path / "store" / "train").exists()
        assert not [p for p in (tmp_path / "store" / ".work").rglob("*") if p.is_file()]
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert [json.loads(line)["cycle"] for line in text.splitlines()] == [-1]


@pytest.fixture
def fake_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(judging.JUDGES, "probe", judging.by_fake)


def test_a1_a_single_step_that_leaves_weights_beyond_all_numbers_is_found_too(tiny_model: Path, tmp_path: Path) -> None:
    job = make_job(tmp_path, tiny_model, "sft", batch_size=8, warmup=0.0, learning_rate=1e30)
    with pytest.raises(RunError, match=r"diverged at step 1 \(the adapter's norm"):
        train(Job(**job))
    assert not any(Path(job["out"], name).exists() for name in (ADAPTER, CHECKPOINTS, LOG))


def test_a1_a_child_process_says_the_same_line(tiny_model: Path, tmp_path: Path) -> None:
    """As on CUDA, where training has a process of its own; here it finds no GPU and trains on the CPU."""
    from iterative_ft.machine.process import run_isolated
    from iterative_ft.training.job import train_here

    job = make_job(tmp_path, tiny_model, "sft", batch_size=8, warmup=0.0, learning_rate=1e30)
    with pytest.raises(Diverged, match="diverged at step 1"):
        run_isolated(train_here, "cuda", job=job)


# -- gates ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a1_the_canary_fails_on_what_is_not_finite(tiny_model: Path, tmp_path: Path, value: float) -> None:
    base, policy = policy_of(tiny_model), policy_of(tiny_model, save_adapter(tiny_model, tmp_path / "adapter", size=0.1))
    for device in ("cpu", "cuda"):
        watch = Watch(0.25, 512, device, "float32")
        plain, mine = (Expected([[1, 2, 3], [4, 5]], [[-1.0, -2.0], [-v]]) for v in (3.0, 3.5))
        watch.check(base, plain, plain.logs)
        watch.check(policy, mine, mine.logs)
        broken = [[-1.0, -2.0], [value]]
        for whose, wanted, served in (
            (base, plain, broken),
            (policy, mine, broken),
            (policy, Expected(mine.ids, broken), mine.logs),
            (policy, Expected(mine.ids, broken), broken),
        ):
            with pytest.raises(RunError, match="not finite"):
                watch.check(whose, wanted, served)
        with pytest.raises(RunError, match=r"to a text of 2 tokens .*VLLM_TUNED" if device == "cuda" else "float32"):
            watch.check(policy, mine, broken)
        with pytest.raises(RunError, match="did not score"):
            watch.check(policy, mine, mine.logs[:1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a1_no_json_holds_what_is_not_finite(tmp_path: Path, value: float) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    for write in (
        lambda: write_json(tmp_path / "one.json", {"a": [value]}),
        lambda: write_jsonl(tmp_path / "many.jsonl", [{"a": 1.0}, {"a": value}]),
        lambda: append_jsonl(tmp_path / "rows.jsonl", [{"a": 1.0}, {"a": value}]),
    ):
        with pytest.raises(RunError, match=r"\.jsonl? would hold a number that is not finite"):
            write()
    assert (tmp_path / "rows.jsonl").read_text() == '{"a": 1}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a1_no_mean_is_taken_over_what_is_not_finite(value: float) -> None:
    with pytest.raises(RunError, match="no finite number"):
        over_questions([1.0, value, None], ["a", "b", "c"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a1_what_the_base_model_reads_as_not_finite_is_measured_by_nobody(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    import numpy as np

    reader, bad = forward.Reader("no model", "cpu"), np.asarray([value])

    def values_with(**parts: Any) -> dict[str, Any]:
        return {"nll": [], "entropy": [], "kl": [], "prompt": np.zeros(0), "answer": np.zeros(0)} | parts

    asked: list[tuple[Any, Callable[[], Any]]] = [
        ([np.zeros((2, 1)), np.asarray([[1.0], [value]])], lambda: reader.states(["a", "b"], [1, 1])),
        (np.asarray([[1.0, value]]), lambda: reader.reply_states([("a", "b")])),
        (values_with(nll=[bad]), lambda: token_values(reader, None, [])),
        (values_with(entropy=[bad]), lambda: token_values(reader, None, [])),
        (values_with(kl=[bad]), lambda: token_values(reader, None, [])),
        (values_with(prompt=bad), lambda: token_values(reader, None, [])),
        ({"prompt": np.zeros(1), "answer": bad}, lambda: sequence_states(reader, None, [])),
    ]
    for result, ask in asked:
        monkeypatch.setattr(forward.Reader, "run", lambda self, *_, result=result, **__: result)
        forward.states_once.cache_clear()
        forward.replies_once.cache_clear()
        with pytest.raises(RunError, match="not finite"):
            ask()


# -- numbers of the config --------------------------------------------------------------------------------------------------


def numbers_of(values: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of every number below a config's values."""
    if isinstance(values, dict):
        return [found for key, value in values.items() for found in numbers_of(value, (*path, str(key)))]
    return [path] if isinstance(values, int | float) and not isinstance(values, bool) else []


SMALLEST_HUGE = {  # settings that may be large, since nothing hangs: rates and prices, checked to be finite alone
    "learning_rate", "seed_learning_rate", "weight_decay", "epsilon", "max_grad_norm", "beta", "seed_sft_weight",
    "canary_max_share", "usd_per_million_prompt_tokens", "usd_per_million_completion_tokens",
}  # fmt: skip


@pytest.mark.parametrize("group", [["method=sft"], ["method=sdf"], ["method=dpo", "judge=api", "sampler=transformers"]])
def test_a1_c3_every_number_is_finite_and_has_an_upper_end(compose: Callable[[list[str]], Config], group: list[str]) -> None:
    from iterative_ft.config.messages import judged

    values = compose([*group, "judge.base_url=http://127.0.0.1:1/v1"] if "judge=api" in group else group).model_dump()
    paths = [path for path in numbers_of(values) if path[0] != "persona"]
    assert len(paths) > 35
    for path in paths:
        bad: list[Any] = [math.nan, math.inf, -math.inf, -1]
        if path[-1] not in SMALLEST_HUGE and path[0] != "judge":
            bad += [10**11, 1e300]
        for value in bad:
            changed = json.loads(json.dumps(values))
            changed["persona"]["rubric"] = values["persona"]["rubric"]
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
            if path[0] in ("seed", "n_seed") and value == 10**11:
                continue  # any whole number of 63 bits; what the persona has bounds the other
            with pytest.raises(ConfigError) as caught:
                judged(Config, changed)
            assert path[-1] in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["0.001", "1e-300", "11"])
def test_a1_temperatures_that_samplers_take_for_others_are_refused(compose: Callable[[list[str]], Config], value: str) -> None:
    for key in ("sampling", "measure"):
        with pytest.raises(ConfigError, match="temperature"):
            compose([f"{key}.temperature={value}"])


def test_a2_a_start_adapter_that_does_not_fit_ends_with_one_line_and_exit_code_2(tiny_model: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    adapter = save_adapter(tiny_model, tmp_path / "adapter", size=0.1)
    FAULTS["nan"][0](adapter)
    end = family_of(tiny_model).end
    more = [f"model.end_token='{end}'", "lora.rank=4", "lora.alpha=8", f"start_adapter={adapter}"]
    done = python(command_line(tiny_model, work, *more), work)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the adapter in start_adapter=")
    assert len(done.stderr.splitlines()) == 1
    assert not list(work.iterdir())
