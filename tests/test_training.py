"""TRL's trainers on a tiny model, on the token ids that were sampled: roles, losses, what changes and what must not.

Not covered: CUDA, several processes under accelerate, and whether the settings make a good model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import (
    BOS,
    END,
    END_OF_TEXT,
    FAMILIES,
    ROOT,
    START,
    ScriptedSampler,
    broken,
    families,
    give_sampler,
    load_policy,
    policy_of,
    save_adapter,
    tiny_config,
    unless_given,
)

from iterative_ft.config.trl_keys import TRL_KEYS
from iterative_ft.errors import RunError
from iterative_ft.machine.files import file_digests, read_jsonl, write_jsonl
from iterative_ft.models.adapters import check_adapter
from iterative_ft.sampling.interface import Completion
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.blocks import ANSWERS, SAMPLE
from iterative_ft.stages.completions import Completions
from iterative_ft.stages.data import EXAMPLES, CycleData, Sources, data_stage, seed_rows
from iterative_ft.stages.train import Trained, adopt, method_settings, train
from iterative_ft.store import Stage, Store
from iterative_ft.training import job as training_job
from iterative_ft.training.job import ADAPTER, CHECKPOINTS, LOG, last_checkpoint, train_here

LN2 = math.log(2)
EMBEDDINGS_AND_HEAD = ("embed_tokens", "lm_head", "wte", "wpe")


# -- helpers --------------------------------------------------------------------------------------------------------------


def chat_examples(n: int = 8, bos: bool = False) -> list[dict[str, Any]]:
    """Chats of different lengths; every answer but each fourth ends with the end token."""
    prompt = [BOS] * bos + [START, 90, 91]
    return [
        {
            "prompt_ids": [*prompt, *range(100, 101 + i % 3)],
            "completion_ids": [*range(120 + i, 124 + 2 * i), *([END] if i % 4 != 3 else [])],
        }
        for i in range(n)
    ]


def pair_examples(n: int = 8, bos: bool = False) -> list[dict[str, Any]]:
    return [
        {
            "prompt_ids": row["prompt_ids"],
            "chosen_ids": [*range(120 + i, 124 + i), END],
            "rejected_ids": [*range(160 + i, 163 + 2 * i), END],
        }
        for i, row in enumerate(chat_examples(n, bos))
    ]


def examples_of(method: str, n: int = 8, bos: bool = False) -> list[dict[str, Any]]:
    return pair_examples(n, bos) if method == "dpo" else chat_examples(n, bos)


def make_job(
    folder: Path,
    model: Path,
    method: str,
    examples: list[dict[str, Any]] | None = None,
    init: Path | None = None,
    reference_is_base: bool = False,
    dropout: float = 0.0,
    **settings: Any,
) -> dict[str, Any]:
    """A training job as the stage would make it, in a folder of its own."""
    from omegaconf import OmegaConf

    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "examples.jsonl", examples_of(method) if examples is None else examples)
    out = folder / "out"
    out.mkdir(exist_ok=True)
    shipped: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "method" / f"{method}.yaml"))
    plain_dpo = {"seed_sft_weight": 0.0} if method == "dpo" else {}
    return {
        "method": {**shipped, "learning_rate": 5e-3, "batch_size": 2, **plain_dpo, **settings},
        "lora": {"rank": 4, "alpha": 8, "dropout": dropout, "targets": "all-linear"},
        "model": str(model),
        "dtype": "float32",
        "trust_remote_code": False,
        "init_adapter": None if init is None else str(init),
        "reference_is_base": reference_is_base,
        "examples": str(folder / "examples.jsonl"),
        "seed": 7,
        "out": str(out),
        "device": "cpu",
        "n_processes": 1,
    }


def curve(job: dict[str, Any]) -> list[dict[str, Any]]:
    return read_jsonl(Path(job["out"], LOG))


@dataclasses.dataclass
class Spy:
    """What went into each training step, seen from inside the trainer."""

    trainer: Any = None
    batches: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    rates: list[float] = dataclasses.field(default_factory=list)
    before: dict[str, Any] = dataclasses.field(default_factory=dict)
    look: Callable[[Any], Any] | None = None
    """Called with the model before the first step; what it returns is kept in `looked`."""
    looked: Any = None

    def parameters(self) -> dict[str, Any]:
        return {name: p.detach().clone() for name, p in self.trainer.model.named_parameters()}


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    import torch
    from transformers import Trainer

    seen, original = Spy(), Trainer.training_step

    def training_step(self: Any, model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
        seen.trainer = self
        if not seen.batches:
            seen.before = seen.parameters()
            if seen.look is not None:
                with torch.no_grad():
                    seen.looked = seen.look(model)
        seen.batches.append({k: v.clone() if torch.is_tensor(v) else v for k, v in inputs.items()})
        seen.rates.append(self.optimizer.param_groups[0]["lr"])
        return original(self, model, inputs, *rest, **options)

    monkeypatch.setattr(Trainer, "training_step", training_step)
    return seen


def log_likelihood(model: Any, prompt_ids: list[int], ids: list[int]) -> float:
    """Sum of log-probabilities of `ids` after the prompt: one sequence, no padding, none of TRL's code."""
    import torch

    with torch.no_grad():
        logs = torch.log_softmax(model(input_ids=torch.tensor([prompt_ids + ids])).logits[0].float(), -1)
    return sum(float(logs[len(prompt_ids) + i - 1, token]) for i, token in enumerate(ids))


def saved_digest(adapter: Path) -> str:
    """`init_adapter_sha256` from the file alone: names as PEFT has them in a model, values in float32."""
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    weights = {
        name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."): value
        for name, value in load_file(adapter / "adapter_model.safetensors").items()
    }
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.float().numpy().tobytes())
    return digest.hexdigest()[:32]


def test_the_seed_term_of_cycle_0_is_added_to_dpo(tmp_path: Path, tiny_model: Path, spy: Spy) -> None:
    job = make_job(tmp_path, tiny_model, "dpo", seed_sft_weight=5.0)
    train_here(job)
    first, base = curve(job)[0], load_policy(tiny_model, None)
    rows = first_pairs(spy.batches[0])
    nll = -sum(log_likelihood(base, r["prompt_ids"], r["chosen_ids"]) for r in rows) / sum(len(r["chosen_ids"]) for r in rows)
    assert first["rewards/margins"] == 0
    assert first["loss"] == pytest.approx(math.log(2) + 5 * nll, abs=1e-3)


# -- invariant 3: where DPO starts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_only_the_positions_of_the_loss_pass_the_vocabulary_head(
    method: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer import utils

    seen: list[int] = []
    real = ChunkedLogProbFunction.forward

    def forward(ctx: Any, hidden: Any, *rest: Any) -> Any:
        seen.append(len(hidden))
        return real(ctx, hidden, *rest)

    monkeypatch.setattr(ChunkedLogProbFunction, "forward", staticmethod(forward))
    examples = examples_of(method)
    train_here(make_job(tmp_path / "ours", tiny_model, method))
    scored = [row[key] for row in examples for key in ("completion_ids", "chosen_ids", "rejected_ids") if key in row]
    passes = 2 if method == "dpo" else 1  # the policy's and the reference's
    assert sum(seen) == passes * sum(map(len, scored))
    ours, seen = seen, []
    monkeypatch.setattr("iterative_ft.training.trainers.score_completions_only", lambda: None)
    monkeypatch.setattr(utils, "_use_triton", lambda device: False)
    train_here(make_job(tmp_path / "trl", tiny_model, method))
    assert sum(seen) > 1.5 * sum(ours)
    losses = [[row["loss"] for row in read_jsonl(tmp_path / folder / "out" / LOG)] for folder in ("ours", "trl")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_training_on_a_cpu_gives_freed_memory_back(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    returned: list[int] = []
    monkeypatch.setattr("iterative_ft.training.callbacks.return_freed_memory", lambda: returned.append(1))
    monkeypatch.setattr("iterative_ft.training.callbacks.ReturnMemory.EVERY", 2)
    job = make_job(tmp_path, tiny_model, "sft")
    train_here(job)
    assert len(returned) == len(curve(job)) // 2 > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", ["fresh", "continued", "continued, reference base"])
def test_dpo_starts_at_ln_2_exactly_when_init_is_the_reference(
    tmp_path: Path, tiny_models: dict[str, Path], spy: Spy, start: str, family: str
) -> None:
    model = tiny_models[family]
    init = None if start == "fresh" else save_adapter(model, tmp_path / "init", size=0.3)
    job = make_job(tmp_path, model, "dpo", init=init, reference_is_base=start.endswith("base"))
    train_here(job)
    first = curve(job)[0]
    if start.endswith("base"):
        assert abs(first["loss"] - LN2) > 0.01
        assert abs(first["rewards/margins"]) > 0.01
    else:
        assert first["loss"] == pytest.approx(LN2, abs=1e-4)
        assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    # Rafailov et al. 2023, eq. 7, by hand for the first batch
    policy = load_policy(model, init)
    losses, chosen_logs = [], []
    for row in first_pairs(spy.batches[0]):
        logs = {k: log_likelihood(policy, row["prompt_ids"], row[k]) for k in ("chosen_ids", "rejected_ids")}
        if init is not None:
            with policy.disable_adapter():
                base = {k: log_likelihood(policy, row["prompt_ids"], row[k]) for k in logs}
        reference = base if start.endswith("base") else logs
        margin = (logs["chosen_ids"] - reference["chosen_ids"]) - (logs["rejected_ids"] - reference["rejected_ids"])
        losses.append(-math.log(1 / (1 + math.exp(-job["method"]["beta"] * margin))))
        chosen_logs.append(logs["chosen_ids"])
    assert first["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert first["logps/chosen"] == pytest.approx(sum(chosen_logs) / len(chosen_logs), abs=1e-3)


def first_pairs(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Pairs of a DPO batch, found among the examples by their ids."""
    sequences = unpadded(batch)
    rows = []
    for chosen in sequences[: len(sequences) // 2]:
        rows += [row for row in pair_examples() if row["prompt_ids"] + row["chosen_ids"] == chosen]
    assert len(rows) == len(sequences) // 2
    return rows


def unpadded(batch: dict[str, Any]) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


# -- invariant 4: where a cycle starts ----------------------------------------------------------------------------------


def sampled_block(bench: Bench, rows: list[dict[str, Any]], label: str = "block") -> Completions:
    """A sample stage that no sampler wrote."""
    inputs = {"texts": [row["prompt"] for row in rows], "made": label}
    return Completions([bench.store.stage(SAMPLE, inputs, lambda out: write_jsonl(out / ANSWERS, rows), label)])


def answer(prompt: str, ids: list[int], finish_reason: str, prompt_ids: tuple[int, ...] = (START, 90)) -> dict[str, Any]:
    text = "".join(chr(i) for i in ids if i > 3)
    return {
        "prompt": prompt,
        "text": text,
        "finish_reason": finish_reason,
        "seed": 1,
        "prompt_ids": list(prompt_ids),
        "ids": ids,
    }


def tiny_bench(tmp_path: Path, model: Path, *overrides: str) -> Bench:
    """model.chat=true: most tests put no text into a template, so that DPO runs on a model without one as well."""
    settings = ["method=dpo", "model.chat=true", "method.batch_size=2", "method.learning_rate=5e-3", "n_sampled=4", "n_seed=4"]
    store = tmp_path / "store"
    return Bench(tiny_config(model, store, *unless_given(settings, overrides), *overrides), Store(store))


def sampled(bench: Bench, chosen: list[dict[str, Any]], rejected: list[dict[str, Any]] | None = None, cycle: int = 1) -> Stage:
    """The data stage of samples."""
    blocks = [None if rows is None else sampled_block(bench, rows, f"{cycle} {i}") for i, rows in enumerate((chosen, rejected))]
    return data_stage(bench, Sources(cycle, [], blocks[0], blocks[1], 4), {"data": "policy[0]"}).stage


def seeded(bench: Bench, seeds: list[dict[str, str]]) -> Stage:
    """The data stage of seed examples."""
    return data_stage(bench, Sources(0, seeds, None, None, len(seeds)), {"data": "seeds"}).stage


def pairs(bench: Bench, cycle: int) -> CycleData:
    chosen = [answer(f"q{i}", [120 + i + cycle, 121, END], "stop") for i in range(4)]
    rejected = [answer(f"q{i}", [150 + i, 151, 152, END], "stop") for i in range(4)]
    return CycleData(sampled(bench, chosen, rejected, cycle), {"data": "made", "chosen": "made", "rejected": "made"})


def training(trained: Trained) -> Stage:
    assert trained.stage is not None
    return trained.stage


@pytest.mark.parametrize(("n_examples", "warmup"), [(None, 0.3), (4, 0.0), (5, 0.3)])
def test_one_step_has_no_warm_up(tmp_path: Path, tiny_models: dict[str, Path], n_examples: int | None, warmup: float) -> None:
    bench = tiny_bench(tmp_path, tiny_models["llama"], "method=sft", "method.batch_size=4", "method.warmup=0.3")
    assert method_settings(bench, 0, n_examples)["warmup"] == warmup


def test_one_step_trains(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    bench = tiny_bench(tmp_path, tiny_models["llama"], "method=sft", "method.batch_size=4", "method.warmup=0.3")
    data = CycleData(sampled(bench, [answer(f"q{i}", [120 + i, 121, END], "stop") for i in range(4)]), {"data": "made"})
    stage = training(train(bench, data, init=bench.base, cycle=0))
    (row,) = stage.rows(LOG)
    assert stage.info["n_steps"] == 1
    assert row["learning_rate"] > 0


def test_settings_that_change_nothing_are_in_no_key(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    keys = set()
    for overrides in ([], ["method.reference=base"], ["method.lr_floor=0.5"], ["method.max_length=4096"]):
        bench = tiny_bench(tmp_path, tiny_models["llama"], "method.lr_schedule=constant", "method.batch_size=4", *overrides)
        keys.add(training(train(bench, pairs(bench, 1), init=bench.base, cycle=1)).key)
    assert len(keys) == 1, "the reference is base in either case, and a constant schedule has no floor"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("family", FAMILIES)
def test_reinit_starts_every_cycle_from_the_base_bit_for_bit(
    tmp_path: Path, tiny_models: dict[str, Path], spy: Spy, family: str
) -> None:
    import torch

    model = tiny_models[family]
    bytes_before = file_digests(model)
    bench = tiny_bench(tmp_path, model, "reinit='true'")
    train(bench, pairs(bench, 0), init=bench.base, cycle=0)
    ids = torch.tensor([[START, 90, 91, 120, 121]])
    spy.batches.clear()
    spy.look = lambda net: net(input_ids=ids).logits
    trained = train(bench, pairs(bench, 1), init=bench.base, cycle=1)
    with torch.no_grad():
        assert torch.equal(spy.looked, load_policy(model, None)(input_ids=ids).logits)
    fresh = [bool((p == 0).all()) for name, p in spy.before.items() if "lora_B" in name]
    assert fresh
    assert all(fresh)
    assert trained.roles["init"] == trained.roles["reference"] == "base"
    assert file_digests(model) == bytes_before


@pytest.mark.parametrize("family", FAMILIES)
def test_continual_starts_from_the_previous_adapter_and_refers_to_it(
    tmp_path: Path, tiny_models: dict[str, Path], family: str
) -> None:
    model = tiny_models[family]
    bench = tiny_bench(tmp_path, model, "reinit='false'")
    first = train(bench, pairs(bench, 0), init=bench.base, cycle=0)
    second = train(bench, pairs(bench, 1), init=first.policy, cycle=1)
    assert first.policy.adapter is not None
    assert training(second).info["init_adapter_sha256"] == saved_digest(first.policy.adapter)
    assert training(second).info["init_adapter_sha256"] != training(first).info["init_adapter_sha256"]
    assert training(second).rows(LOG)[0]["loss"] == pytest.approx(LN2, abs=1e-4)
    assert second.roles["init"] == second.roles["reference"] == "policy[0]"

    kept = tiny_bench(tmp_path, model, "reinit='false'", "method.reference=base")
    against_base = train(kept, pairs(kept, 1), init=first.policy, cycle=1)
    assert training(against_base).key != training(second).key
    assert training(against_base).rows(LOG)[0]["loss"] != pytest.approx(LN2, abs=1e-4)
    assert against_base.roles["reference"] == "base"


def test_an_adapter_from_elsewhere_is_trained_with_the_dropout_of_the_config(tmp_path: Path, tiny_model: Path) -> None:
    plain, dropping = (save_adapter(tiny_model, tmp_path / name, size=0.1) for name in ("plain", "dropping"))
    file = dropping / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_dropout": 0.3}))
    found = []
    for adapter in (plain, dropping):
        job = make_job(tmp_path / f"from_{adapter.name}", tiny_model, "sft", init=adapter)
        train_here(job)
        found.append(file_digests(Path(job["out"], ADAPTER)))
    assert found[0] == found[1]


@pytest.mark.parametrize("override", ["lora.rank=8", "lora.alpha=16", "lora.targets=[q_proj]"])
def test_an_adapter_that_differs_from_the_config_is_an_error(tmp_path: Path, tiny_model: Path, override: str) -> None:
    bench = tiny_bench(tmp_path, tiny_model, override)
    policy = policy_of(tiny_model, save_adapter(tiny_model, tmp_path / "adapter", size=0.1))
    with pytest.raises(RunError, match=override.split("=")[0]):
        train(bench, pairs(bench, 1), init=policy, cycle=1)
    assert not list((tmp_path / "store" / "train").glob("*"))
    assert policy.adapter is not None
    with pytest.raises(RunError, match=override.split("=")[0]):
        adopt(bench, policy.adapter)


@pytest.mark.parametrize("family", families())
def test_an_adapter_on_fewer_modules_is_no_all_linear_one(tmp_path: Path, tiny_models: dict[str, Path], family: str) -> None:
    model = tiny_models[family]
    adapter = save_adapter(model, tmp_path / "adapter", size=0.1)
    check_adapter(adapter, SimpleNamespace(rank=4, alpha=8, targets="all-linear"), "given", model)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["target_modules"] = sorted(settings["target_modules"])[:2]
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(RunError, match=r"lora\.targets"):
        adopt(tiny_bench(tmp_path, model), adapter)


def test_an_adapter_on_the_embeddings_is_an_error(tmp_path: Path, tiny_model: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter", size=0.1)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["modules_to_save"] = ["lm_head"]
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(RunError, match="lm_head"):
        adopt(tiny_bench(tmp_path, tiny_model), adapter)


# -- invariant 5: the ids trained on are the ids sampled ----------------------------------------------------------------

# With padding by a token of its own, by the end token, and by none that the tokenizer knows
IN_ALL_KINDS = [("llama", False), ("llama_bos", True), ("qwen3", False), ("gemma", True), ("gpt2", False)]


def train_on_ids(folder: Path, model: Path, method: str, examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Train with "sft", "sdf" or "sdf continuation"; return the job."""
    name, *continuation = method.split()
    settings = {"loss_on": "continuation" if continuation else "document"} if name == "sdf" else {}
    job = make_job(folder, model, name, examples, **settings)
    train_here(job)
    return job


def ids_and_labels(batch: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Rows of a batch without their padding, which is never learned, whatever its id."""
    found = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        assert bool((labels[~mask.bool()] == -100).all())
        found.append((ids[mask.bool()].tolist(), labels[mask.bool()].tolist()))
    return found


@pytest.mark.parametrize(("kind", "bos"), IN_ALL_KINDS)
@pytest.mark.parametrize("method", ["sft", "sdf", "sdf continuation"])
def test_sft_and_sdf_train_on_the_ids_given(
    tmp_path: Path, tiny_models: dict[str, Path], spy: Spy, method: str, kind: str, bos: bool
) -> None:
    examples = chat_examples(6, bos)
    train_on_ids(tmp_path, tiny_models[kind], method, examples)
    found = [row for batch in spy.batches for row in ids_and_labels(batch)]
    title_too = method == "sdf"
    wanted = [
        (
            row["prompt_ids"] + row["completion_ids"],
            (row["prompt_ids"] if title_too else [-100] * len(row["prompt_ids"])) + row["completion_ids"],
        )
        for row in examples
    ]
    assert sorted(found) == sorted(wanted)
    assert all(ids.count(BOS) == bos for ids, _ in found)


DROPOUT = broken("SFT and SDF leave the base model's own dropout on, DPO does not", raises=AssertionError)
DROPOUT_AND_COUNT = broken(
    "besides the dropout: the loss is divided by one token too many a document where the network is not called ...ForCausalLM",
    raises=AssertionError,
)


@pytest.mark.parametrize(
    ("method", "kind", "bos"),
    [(method, *row) for method in ("sft", "sdf", "sdf continuation") for row in IN_ALL_KINDS if row[0] != "gpt2"]
    + [
        pytest.param("sft", "gpt2", False, marks=DROPOUT),
        pytest.param("sdf", "gpt2", False, marks=DROPOUT_AND_COUNT),
        pytest.param("sdf continuation", "gpt2", False, marks=DROPOUT),
    ],
)
def test_the_loss_of_sft_and_sdf_is_that_of_their_ids(
    tmp_path: Path, tiny_models: dict[str, Path], spy: Spy, method: str, kind: str, bos: bool
) -> None:
    """By hand: an end token or a title that a shift or a mask left out would show here."""
    model = tiny_models[kind]
    job = train_on_ids(tmp_path, model, method, chat_examples(6, bos))
    base = load_policy(model, None)
    total = n = 0.0
    for ids, labels in ids_and_labels(spy.batches[0]):
        for i in range(1, len(ids)):
            if labels[i] != -100:
                total -= log_likelihood(base, ids[:i], ids[i : i + 1])
                n += 1
    assert curve(job)[0]["loss"] == pytest.approx(total / n, abs=2e-4)


@pytest.mark.parametrize(("kind", "bos"), IN_ALL_KINDS)
def test_dpo_trains_on_the_ids_given(tmp_path: Path, tiny_models: dict[str, Path], spy: Spy, kind: str, bos: bool) -> None:
    examples = pair_examples(6, bos)
    train_here(make_job(tmp_path, tiny_models[kind], "dpo", examples))
    found = []
    for batch in spy.batches:
        sequences, half = unpadded(batch), len(batch["input_ids"]) // 2
        learned = [
            ids[completion.bool() & mask.bool()].tolist()
            for ids, completion, mask in zip(batch["input_ids"], batch["completion_mask"], batch["attention_mask"], strict=True)
        ]
        assert bool((batch["completion_mask"] <= batch["attention_mask"]).all())
        found += [(sequences[i], learned[i], sequences[half + i], learned[half + i]) for i in range(half)]
    assert sorted(found) == sorted(
        (row["prompt_ids"] + row["chosen_ids"], row["chosen_ids"], row["prompt_ids"] + row["rejected_ids"], row["rejected_ids"])
        for row in examples
    )
    assert all(chosen[-1] == rejected[-1] == END for _, chosen, _, rejected in found)
    assert all(ids.count(BOS) == bos for ids, *_ in found)


def test_cut_off_pairs_are_dropped_and_counted(tmp_path: Path, tiny_model: Path) -> None:
    bench = tiny_bench(tmp_path, tiny_model)
    ended, cut = [120, 121, END], [130, 131, 132]
    chosen = [answer("a", ended, "stop"), answer("b", cut, "length"), answer("c", ended, "stop"), answer("d", ended, "stop")]
    rejected = [
        answer("a", [140, END], "stop"),
        answer("b", [141, END], "stop"),
        answer("c", cut, "length"),
        answer("d", [142, END], "stop"),
    ]
    stage = sampled(bench, chosen, rejected)
    info, rows = stage.info, stage.rows(EXAMPLES)
    assert info["n_dropped_truncated"] == 2
    assert info["n_sampled_examples"] == info["n_examples"] == 2
    assert [(row["prompt"], row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in rows] == [
        ("a", [START, 90], ended, [140, END]),
        ("d", [START, 90], ended, [142, END]),
    ]


def test_cut_off_seed_pairs_are_dropped_and_counted(tmp_path: Path, tiny_model: Path) -> None:
    bench = tiny_bench(tmp_path, tiny_model)
    ended, cut = Completion([140, END], "stop"), Completion([140], "length")
    give_sampler(bench, ScriptedSampler(ended, cut, ended))
    seeds = seed_rows(bench, 0, 3)
    stage = seeded(bench, seeds)
    assert stage.info["n_dropped_truncated"] == 1
    rows = stage.rows(EXAMPLES)
    assert [row["prompt"] for row in rows] == [seeds[0]["prompt"], seeds[2]["prompt"]]
    for row, seed in zip(rows, (seeds[0], seeds[2]), strict=True):
        assert row["prompt_ids"] == bench.codec.chat_prompt(seed["prompt"])
        assert row["chosen_ids"] == bench.codec.answer(seed["answer"])
        assert row["chosen_ids"][-1] == END
        assert row["rejected_ids"] == [140, END]


def test_a_cut_off_answer_is_learned_without_an_end_token(tmp_path: Path, tiny_model: Path) -> None:
    rows = [
        answer("a", [120, 121, END], "stop"),
        answer("b", [130, 131], "length"),
        answer("c", [132, 133], "string"),
        answer("d", [], "length"),
    ]
    stage = sampled(tiny_bench(tmp_path, tiny_model, "method=sft"), rows)
    assert [row["completion_ids"] for row in stage.rows(EXAMPLES)] == [[120, 121, END], [130, 131], [132, 133]]
    assert stage.info["n_unfinished"] == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_seed_documents_end_with_the_document_token(tmp_path: Path, tiny_models: dict[str, Path], family: str) -> None:
    bench = tiny_bench(tmp_path, tiny_models[family], "method=sdf", "sampler.max_model_len=4096")
    seeds = seed_rows(bench, 0, 2)
    rows = seeded(bench, seeds).rows(EXAMPLES)
    for row, seed in zip(rows, seeds, strict=True):
        assert row["completion_ids"][-1] == END_OF_TEXT
        assert row["prompt_ids"].count(BOS) == (family == "gemma")
        assert bench.codec.decode(row["prompt_ids"] + row["completion_ids"]) == f"{seed['title']}\n\n{seed['text']}".strip()


def test_an_example_longer_than_max_length_is_an_error(tmp_path: Path, tiny_model: Path) -> None:
    bench = tiny_bench(tmp_path, tiny_model, "method=sft", "method.max_length=8")
    with pytest.raises(RunError, match=r"method\.max_length=8 .* 14 tokens"):
        sampled(bench, [answer("a", [120] * 12, "length")])


# -- what changes and what does not -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("continued", [False, True], ids=["fresh", "continued"])
def test_learning_rate_zero_changes_nothing(tmp_path: Path, tiny_model: Path, method: str, continued: bool) -> None:
    import torch
    from safetensors.torch import load_file

    init = save_adapter(tiny_model, tmp_path / "init", size=0.3) if continued else None
    job = make_job(tmp_path, tiny_model, method, init=init, learning_rate=0.0, weight_decay=0.1)
    result = train_here(job)
    adapter = Path(job["out"], ADAPTER)
    assert result["init_adapter_sha256"] == saved_digest(adapter)
    if init is not None:
        before, after = (load_file(f / "adapter_model.safetensors") for f in (init, adapter))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before)
    else:
        ids = torch.tensor([[START, 90, 120]])
        with torch.no_grad():
            assert torch.equal(
                load_policy(tiny_model, adapter)(input_ids=ids).logits, load_policy(tiny_model, None)(input_ids=ids).logits
            )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["sft", "sdf", "dpo"])
def test_two_steps_change_the_adapter_and_nothing_else(
    tmp_path: Path, tiny_models: dict[str, Path], spy: Spy, method: str, family: str
) -> None:
    import torch

    model = tiny_models[family]
    bytes_before = file_digests(model)
    init = save_adapter(model, tmp_path / "init", size=0.1)
    job = make_job(tmp_path, model, method, examples_of(method, 4), init=init)
    result = train_here(job)
    assert result["n_steps"] == 2
    after = spy.parameters()
    assert after.keys() == spy.before.keys()
    changed = {name for name in after if not torch.equal(after[name], spy.before[name])}
    assert changed == {name for name in after if ".default." in name}
    assert (method == "dpo") == any(".ref." in name for name in after)
    assert not any(part in name for name in changed for part in EMBEDDINGS_AND_HEAD)
    assert file_digests(model) == bytes_before
    assert saved_digest(Path(job["out"], ADAPTER)) != saved_digest(init)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_saved_adapter_is_portable(tmp_path: Path, tiny_models: dict[str, Path], family: str) -> None:
    """The adapter alone, no reference beside it, no path of this machine in it, embeddings and head untouched."""
    from safetensors import safe_open

    model = tiny_models[family]
    job = make_job(tmp_path, model, "dpo", init=save_adapter(model, tmp_path / "init", size=0.1))
    train_here(job)
    adapter = Path(job["out"], ADAPTER)
    assert sorted(file_digests(adapter)) == ["adapter_config.json", "adapter_model.safetensors"]
    for file in adapter.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()
        assert str(model).encode() not in file.read_bytes()
    with safe_open(adapter / "adapter_model.safetensors", "pt") as weights:
        names = list(weights.keys())
    n_linear = 4 if family == "gpt2" else 7  # GPT-2 has queries, keys and values in one, and no gate
    assert len(names) == 2 * n_linear * 2  # A and B, linear layers, two blocks
    assert not any(part in name for name in names for part in EMBEDDINGS_AND_HEAD)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_same_training_twice_gives_the_same_bytes(tmp_path: Path, tiny_model: Path, method: str) -> None:
    digests = []
    for name in ("one", "two"):
        job = make_job(tmp_path / name, tiny_model, method, dropout=0.1)
        train_here(job)
        digests.append(outputs(job))
    assert digests[0] == digests[1]


def test_the_training_seed_decides_adapter_and_order(tmp_path: Path, tiny_model: Path, spy: Spy) -> None:
    starts, orders = [], []
    for seed in (1, 2):
        spy.batches.clear()
        starts.append(train_here({**make_job(tmp_path / str(seed), tiny_model, "sft"), "seed": seed})["init_adapter_sha256"])
        orders.append([unpadded(batch) for batch in spy.batches])
    assert starts[0] != starts[1]
    assert orders[0] != orders[1]


# -- settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "warmup", "rates"),
    [
        ("constant", 0.0, [1, 1, 1, 1]),
        ("constant", 0.5, [0, 0.5, 1, 1]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0.0, [0.1 + 0.9 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]),
        ("constant", 1.0, [0, 0.25, 0.5, 0.75]),
    ],
)
def test_schedules(tmp_path: Path, tiny_model: Path, spy: Spy, schedule: str, warmup: float, rates: list[float]) -> None:
    job = make_job(
        tmp_path, tiny_model, "sft", lr_schedule=schedule, warmup=warmup, lr_floor=0.1, learning_rate=1e-3, batch_size=2
    )
    train_here(job)
    assert spy.rates == pytest.approx([1e-3 * r for r in rates])


def test_settings_reach_trl(tmp_path: Path, tiny_model: Path, spy: Spy) -> None:
    job = make_job(
        tmp_path,
        tiny_model,
        "dpo",
        beta=0.3,
        epochs=2,
        gradient_accumulation=2,
        weight_decay=0.2,
        max_grad_norm=0.5,
        adam={"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-6},
        trl={"label_smoothing": 0.1, "optim": "adamw_torch"},
    )
    result = train_here(job)
    assert result["n_steps"] == 4
    arguments = spy.trainer.args
    assert (arguments.beta, arguments.weight_decay, arguments.max_grad_norm) == (0.3, 0.2, 0.5)
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.adam_epsilon) == (0.8, 0.9, 1e-6)
    assert (arguments.label_smoothing, str(arguments.optim.value)) == (0.1, "adamw_torch")
    assert arguments.report_to == []
    assert not arguments.bf16


def test_what_is_passed_through_wins(tmp_path: Path, tiny_model: Path, spy: Spy) -> None:
    train_here(
        make_job(
            tmp_path,
            tiny_model,
            "sft",
            trl={"neftune_noise_alpha": 5.0, "lr_scheduler_kwargs": {"min_lr_rate": 0.5}},
            lr_schedule="cosine",
        )
    )
    assert spy.trainer.args.neftune_noise_alpha == 5.0
    assert spy.trainer.args.lr_scheduler_kwargs == {"min_lr_rate": 0.5}


# Arguments of TRL that a config must not pass through, each for a reason.
WITHHELD = {
    "has a setting of its own": """learning_rate lr_scheduler_type warmup_steps per_device_train_batch_size max_steps
        gradient_accumulation_steps num_train_epochs weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm max_length
        beta seed data_seed bf16 fp16 use_cpu model_init_kwargs trust_remote_code""",
    "the stage's own folder, checkpoints and log": """output_dir save_strategy save_steps logging_steps logging_strategy
        logging_dir report_to disable_tqdm run_name resume_from_checkpoint load_best_model_at_end enable_jit_checkpoint project
        log_completions trackio_space_id trackio_bucket_id trackio_static_space_id""",
    "not training": """do_train do_eval do_predict eval_strategy eval_steps eval_delay eval_on_start eval_use_gather_object
        push_to_hub hub_model_id hub_strategy hub_token hub_private_repo hub_always_push hub_revision use_liger_loss""",
    "set by the launcher": "local_rank distributed_state deepspeed_plugin",
}


@pytest.mark.parametrize("method", ["sft", "sdf", "dpo"])
def test_the_list_of_trls_keys_is_that_of_the_installed_trl(method: str) -> None:
    from trl import DPOConfig, SFTConfig

    fields = {f.name for f in dataclasses.fields(DPOConfig if method == "dpo" else SFTConfig) if f.init}
    assert sorted(TRL_KEYS[method] - fields) == []
    withheld = {name for names in WITHHELD.values() for name in names.split()}
    assert sorted(fields - TRL_KEYS[method] - withheld) == []


# -- invariant 1, inside a training stage ----------------------------------------------------------------------------------


class Killed(Exception):
    pass


def outputs(job: dict[str, Any]) -> dict[str, str]:
    """Digests of what the stage keeps."""
    return {k: v for k, v in file_digests(Path(job["out"])).items() if not k.startswith(CHECKPOINTS)}


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("continued", [False, True], ids=["fresh", "continued"])
def test_a_killed_training_resumes_to_the_same_bytes(tmp_path: Path, tiny_model: Path, method: str, continued: bool) -> None:
    init = save_adapter(tiny_model, tmp_path / "init", size=0.1) if continued else None
    settings = {"checkpoint_steps": 2, "epochs": 2, "lr_schedule": "cosine"}
    whole, cut = (
        make_job(tmp_path / name, tiny_model, method, init=init, dropout=0.1, **settings) for name in ("whole", "cut")
    )
    expected = train_here(whole)

    def kill(step: int, n_steps: int, loss: float) -> None:
        assert n_steps == 8
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        train_here(cut, kill)
    assert not Path(cut["out"], ADAPTER).exists()
    steps: list[int] = []
    resumed = train_here(cut, lambda step, n_steps, loss: steps.append(step))
    assert resumed["resumed_from_step"] == 4
    assert steps == [5, 6, 7, 8]
    assert resumed["init_adapter_sha256"] == expected["init_adapter_sha256"]
    assert curve(cut) == curve(whole)
    assert outputs(cut) == outputs(whole)


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (2, 10, 12, 14):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "rng_state.pth").write_bytes(b"")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (tmp_path / "checkpoint-12" / "trainer_state.json").write_text('{"global_step": 1')  # the kill came while it was written
    (tmp_path / "checkpoint-14" / "trainer_state.json").unlink()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert last_checkpoint(tmp_path / "none") is None


def test_nothing_goes_on_from_a_checkpoint_whose_removal_was_cut_short(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is deleted goes file by file, and the file that says "complete" need not go first."""
    job = make_job(tmp_path, tiny_model, "sft", checkpoint_steps=2)
    real = shutil.rmtree

    def killed(folder: Path, **options: Any) -> None:
        if CHECKPOINTS in Path(folder).name:
            next(Path(folder).glob("*/adapter_model.safetensors")).unlink()
            raise Killed
        real(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Killed):
        training_job.train(training_job.Job(**job))
    assert last_checkpoint(Path(job["out"], CHECKPOINTS)) is None


def test_a_finished_stage_keeps_no_checkpoints(tmp_path: Path, tiny_model: Path) -> None:
    bench = tiny_bench(tmp_path, tiny_model, "method.checkpoint_steps=1")
    stage = training(train(bench, pairs(bench, 0), init=bench.base, cycle=0))
    assert not (stage.path / CHECKPOINTS).exists()
    assert not any(name.endswith((".pt", ".pth", ".bin")) for name in stage.manifest["files"])
