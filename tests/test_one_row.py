"""Training in one row gives what TRL's padded batches give: losses, gradients, logged rows, in float32 up to rounding.

Not covered: CUDA and several processes, where TRL's own path is taken.
"""

from __future__ import annotations

import copy
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from iterative_ft.machine.files import file_digests
from iterative_ft.models.attention import FAMILIES, causal_alone
from iterative_ft.models.expected import TEXTS
from iterative_ft.models.forward import Enough
from iterative_ft.models.sequences import Beginning, batches, common_beginning, next_token_logs, watched
from iterative_ft.training.job import LOG, Job, to_columns, train_here
from iterative_ft.training.one_row import OneRow, body_in_one_row, casts_say_nothing, forked, lay_out, takes_segments
from tests.test_training import curve, make_job
from tests.tiny import END, START, VOCABULARY, save_adapter, tiny_tokenizer
from tests.tiny import FAMILIES as TINY

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODELS = [f"{family} {tied}" for family in ("llama", "qwen3", "gemma", "gpt2") for tied in ("tied", "untied")]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


# -- helpers --------------------------------------------------------------------------------------------------------------


def config_of(family: str, **settings: Any) -> Any:
    from transformers import CONFIG_MAPPING

    own_width = {"gemma", "glm", "glm4", "helium", "hunyuan_v1_dense", "qwen3", "seed_oss"}
    small = dict(GPT2) if family == "gpt2" else SIZES | ({"head_dim": 8} if family in own_width else {})
    return CONFIG_MAPPING[family](**small | {"bos_token_id": None, "eos_token_id": END, "pad_token_id": 0} | settings)


def model_of(family: str, **settings: Any) -> Any:
    """Weights wide enough that positions and neighbours matter."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family, **settings), dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.15)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint and an adapter of each model."""
    made = {}
    for name in MODELS:
        family, tied = name.split()
        folder = made[name] = tmp_path_factory.mktemp(name.replace(" ", "-"))
        model_of(family, tie_word_embeddings=tied == "tied").save_pretrained(folder)
        tiny_tokenizer(TINY["llama"], bos=False, pad=None).save_pretrained(folder)
        save_adapter(folder, folder / "adapter", size=0.1)
    return made


def words(draw: random.Random, low: int, high: int) -> list[int]:
    return [draw.randrange(4, VOCABULARY) for _ in range(draw.randint(low, high))]


def pairs(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of different lengths; among them answers that begin alike, and one that is the beginning of the other."""
    draw = random.Random(seed)
    rows = [
        {
            "prompt_ids": [START, *words(draw, 2, 9)],
            "chosen_ids": [*words(draw, 1, 12), END],
            "rejected_ids": [*words(draw, 1, 12), END],
        }
        for _ in range(n)
    ]
    rows[0]["rejected_ids"] = [*rows[0]["chosen_ids"][:-1], 99, END]
    rows[-1]["chosen_ids"] = [*rows[-1]["rejected_ids"], 98]
    return rows


def chats(n: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [{"prompt_ids": [START, *words(draw, 2, 9)], "completion_ids": [*words(draw, 1, 20), END]} for _ in range(n)]


def padded(sequences: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = (torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long) for _ in range(2))
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = torch.tensor(sequence)
        mask[i, : len(sequence)] = 1
    return ids, mask


def trainer_of(job: dict[str, Any], examples: list[dict[str, Any]]) -> Any:
    """The trainer that `train_here` would build, with a model whose fresh adapter is not quite zero where gradients need it."""
    from datasets import Dataset
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from iterative_ft.training.callbacks import StepLog
    from iterative_ft.training.trainers import TRAINERS, score_completions_only

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    if job["init_adapter"] is None:
        model: Any = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    else:
        model = PeftModel.from_pretrained(base, job["init_adapter"], is_trainable=True)
    score_completions_only()
    data = Dataset.from_list(to_columns(examples, job["method"]))
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    trainer = TRAINERS[job["method"]["name"]](model, tokenizer, data, Job(**job), StepLog(Path(job["out"], LOG), None))
    trainer.accelerator.prepare_model(trainer.model)  # autocast
    return trainer


def a_step(trainer: Any, batches: list[list[dict[str, Any]]], one_row: bool) -> tuple[float, dict[str, Any], dict[str, Any]]:
    """Loss, gradients and metrics of one step on micro-batches, the way transformers' training loop goes through them."""
    trainer.one_row = one_row
    trainer._metrics["train"].clear()
    trainer._total_train_tokens = 0
    trainer.model.train()
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = len(batches)
    micro, n_items = trainer.get_batch_samples(map(trainer.data_collator, batches), len(batches), torch.device("cpu"))
    loss = sum(float(trainer.training_step(trainer.model, inputs, n_items)) for inputs in micro)
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return loss, gradients, copy.deepcopy(dict(trainer._metrics["train"]))


def check_steps(trainer: Any, examples: list[dict[str, Any]]) -> None:
    """The same trainer, the same batches, both ways: batches of 1, 2 and 4, and a step of two batches."""
    assert trainer.fits_one_row()
    for size, accumulated in ((1, 1), (2, 1), (4, 1), (2, 2)):
        batches = [examples[i * size : (i + 1) * size] for i in range(accumulated)]
        (loss, gradients, metrics), (loss_1, gradients_1, metrics_1) = (a_step(trainer, batches, on) for on in (False, True))
        assert loss_1 == pytest.approx(loss, rel=1e-5, abs=1e-5)
        trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
        assert gradients.keys() == gradients_1.keys() == trained
        largest = max(float(g.abs().max()) for g in gradients.values())
        assert largest > 1e-3
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradients_1[name], gradient, rtol=1e-5, atol=1e-5 * min(largest, 1))
        assert metrics.keys() == metrics_1.keys()
        for name, values in metrics.items():
            assert metrics_1[name] == pytest.approx(values, rel=1e-5, abs=2e-5), name


# -- one step ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid and sft"])
@pytest.mark.parametrize("start", ["fresh", "continued", "continued, reference base"])
@pytest.mark.parametrize("name", MODELS)
def test_a_dpo_step(tmp_path: Path, folders: dict[str, Path], name: str, start: str, loss: str) -> None:
    init = None if start == "fresh" else folders[name] / "adapter"
    weight = 5.0 if "sft" in loss else 0.0
    job = make_job(
        tmp_path, folders[name], "dpo", [], init=init, reference_is_base=start.endswith("base"), seed_sft_weight=weight
    )
    examples = pairs(8)
    trainer = trainer_of(job, examples)
    assert trainer.loss_types == (["sigmoid", "sft"] if weight else ["sigmoid"])
    assert ("ref" in trainer.model.peft_config) == (start == "continued")
    check_steps(trainer, examples)


@pytest.mark.parametrize("loss_on", ["answer", "continuation", "document"])
@pytest.mark.parametrize("name", MODELS)
def test_an_sft_step(tmp_path: Path, folders: dict[str, Path], name: str, loss_on: str) -> None:
    method = "sft" if loss_on == "answer" else "sdf"
    settings = {} if method == "sft" else {"loss_on": loss_on}
    job = make_job(tmp_path, folders[name], method, [], init=folders[name] / "adapter", **settings)
    examples = chats(8)
    check_steps(trainer_of(job, examples), to_columns(examples, job["method"]))


@pytest.mark.parametrize(
    "settings",
    [{"ld_alpha": 0.5}, {"use_weighting": True}, {"gradient_checkpointing": True}, {"truncation_mode": "keep_end"}],
)
def test_other_settings_of_trl(tmp_path: Path, folders: dict[str, Path], settings: dict[str, Any]) -> None:
    """Cut from the front, a pair's prompts differ."""
    folder, longest = folders["llama tied"], 12 if "truncation_mode" in settings else 99
    job = make_job(
        tmp_path, folder, "dpo", [], init=folder / "adapter", reference_is_base=True, max_length=longest, trl=settings
    )
    examples = pairs(8)
    check_steps(trainer_of(job, examples), examples)


# -- whole trainings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method", "accumulation"),
    [
        ("llama tied", "dpo", 1),
        ("llama tied", "sdf", 1),
        ("qwen3 untied", "dpo", 2),
        ("qwen3 untied", "sft", 1),
        ("gemma tied", "dpo", 1),
        ("gemma tied", "sft", 2),
        ("gpt2 untied", "dpo", 1),
        ("gpt2 untied", "sft", 2),
    ],
)
def test_a_training_logs_the_same_rows(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str, method: str, accumulation: int
) -> None:
    n = 6 * accumulation
    examples = pairs(n) if method == "dpo" else chats(n)
    curves, results = [], []
    for on in (False, True):
        monkeypatch.setattr(OneRow, "one_row", on)
        job = make_job(
            tmp_path / str(on),
            folders[name],
            method,
            examples,
            init=folders[name] / "adapter",
            gradient_accumulation=accumulation,
            learning_rate=1e-3,
        )
        results.append(train_here(job))
        curves.append(curve(job))
    assert len(curves[0]) == len(curves[1]) == 3
    for row, row_1 in zip(*curves, strict=True):
        assert row.keys() == row_1.keys()
        assert row_1 == pytest.approx(row, rel=1e-3, abs=2e-4)
    assert results[1]["adapter_norm"] == pytest.approx(results[0]["adapter_norm"], rel=1e-5)
    assert results[1]["n_tokens"] == results[0]["n_tokens"]


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_killed_training_resumes_to_the_same_bytes(tmp_path: Path, folders: dict[str, Path], method: str) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, n_steps: int, loss: float) -> None:
        if step == 3:
            raise Killed

    folder = folders["llama tied"]
    whole, cut = (
        make_job(tmp_path / name, folder, method, None, init=folder / "adapter", checkpoint_steps=2)
        for name in ("whole", "cut")
    )
    train_here(whole)
    with pytest.raises(Killed):
        train_here(cut, kill)
    assert train_here(cut)["resumed_from_step"] == 2
    kept = [
        {name: digest for name, digest in file_digests(Path(job["out"])).items() if not name.startswith("checkpoints")}
        for job in (whole, cut)
    ]
    assert kept[0] == kept[1]


def test_the_body_sees_each_token_once(tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaModel

    seen: list[tuple[int, ...]] = []
    real = LlamaModel.forward

    def forward(self: Any, input_ids: Any = None, **kwargs: Any) -> Any:
        seen.append(tuple(input_ids.shape))
        return real(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    examples = [{"prompt_ids": [START, 90, 91], "chosen_ids": [100, 101, END], "rejected_ids": [102, END]}] * 2
    job = make_job(tmp_path, folders["llama tied"], "dpo", examples)
    train_here(job)
    # Policy and reference; prompt once, last tokens never. Then the canary's texts, one by one.
    assert seen[:2] == [(1, 2 * (3 + 2 + 1))] * 2
    assert len(seen) == 2 + len(TEXTS)
    assert curve(job)[0]["num_tokens"] == 2 * (3 + 3 + 3 + 2)  # as TRL counts


# -- the row ----------------------------------------------------------------------------------------------------------------


def test_a_pair_in_a_row() -> None:
    row = lay_out(*padded([[5, 6, 7, 8, 9], [5, 6, 4, 3]]), pairs=True)
    assert row.ids.tolist() == [[5, 6, 7, 8, 4]]
    assert row.positions.tolist() == [[0, 1, 2, 3, 2]]
    assert row.places.tolist() == [0, 1, 2, 3, 0, 0, 1, 4, 0, 0]
    (segment,) = row.segments
    assert (segment.start, segment.end) == (0, 5)
    assert segment.mask is not None
    assert segment.mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_examples_in_a_row_stay_apart() -> None:
    row = lay_out(*padded([[5, 6, 7], [5, 6], [8]]), pairs=False)
    assert row.ids.tolist() == [[5, 6, 5]]
    assert row.positions.tolist() == [[0, 1, 0]]
    assert [(segment.start, segment.end, segment.mask) for segment in row.segments] == [(0, 2, None), (2, 3, None)]
    assert row.places.tolist() == [0, 1, 0, 2, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("shared", "first_end", "end"), [(3, 3, 6), (3, 5, 5)])
def test_no_mask_where_an_answer_is_the_beginning_of_the_other(shared: int, first_end: int, end: int) -> None:
    assert forked(shared, first_end, end, torch.device("cpu")) is None


# -- when -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_hidden_states_of_every_family(family: str) -> None:
    model = model_of(family, **({"sliding_window": None} if family == "mistral" else {})).eval()
    assert takes_segments(model.config)
    rows = pairs(3)
    ids, mask = padded([row["prompt_ids"] + row[key] for key in ("chosen_ids", "rejected_ids") for row in rows])
    with torch.no_grad():
        wanted = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        with body_in_one_row(model, pairs=True):
            found = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
            other = model.base_model(input_ids=ids).last_hidden_state  # as ever, without a mask
        assert torch.equal(other, model.base_model(input_ids=ids).last_hidden_state)
        again = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    read = mask[:, 1:].bool()
    torch.testing.assert_close(found[:, :-1][read], wanted[:, :-1][read], **CLOSE)
    assert torch.equal(again, wanted)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_common_beginning_is_read_once_in_every_family(family: str) -> None:
    model = model_of(family, **({"sliding_window": None} if family == "mistral" else {})).eval()
    read = [([5, 6, 7, 8], [9, 10, 11]), ([5, 6, 7, 12, 13], [14]), ([5, 6, 7, 15], [16, 17, 18, 19])]
    beginning, nothing = Beginning(common_beginning(model, read)), Beginning(common_beginning(model, read[:1]))
    assert (beginning.ids, nothing.ids) == ([5, 6, 7], [])  # not the last token of a prompt, whose states are wanted
    [(numbers, batch)], [(_, whole)] = batches(model, read, 3), batches(model, read, 0)
    assert batch.ids.shape[1] == whole.ids.shape[1] - 3
    with torch.no_grad(), watched(model, enough=True) as alone, suppress(Enough):
        batch.run(model, Beginning(beginning.ids))
    with torch.no_grad(), watched(model) as states:
        found = [next_token_logs(model, batch, beginning) for _ in range(2)]
        torch.testing.assert_close(alone, states, **CLOSE)
        wanted = next_token_logs(model, whole, nothing)
    for i, at in enumerate(numbers):
        assert torch.equal(found[0][i], found[1][i])
        torch.testing.assert_close(found[0][i], wanted[i], **CLOSE)
        n = sum(map(len, read[at]))
        torch.testing.assert_close(alone[0][i, : n - 3], states[0][i, 3:n], **CLOSE)


def test_a_network_of_its_own_code_begins_nothing_once() -> None:
    model = model_of("llama").eval()
    read = [([5, 6, 7], [8]), ([5, 6, 9], [8])]
    assert common_beginning(model, read) == [5, 6]
    model.__class__ = type("LlamaForCausalLM", (type(model),), {"__module__": "modeling_mine"})  # under a known config
    assert causal_alone(model.config)
    assert common_beginning(model, read) == []


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("mistral", {"sliding_window": 64}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}),
        ("gemma2", {}),
        ("gemma3_text", {}),
        ("qwen3_next", {}),
        ("qwen3_moe", {}),
        ("mamba", {}),
        ("bloom", {}),
        ("opt", {}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
        ("llama", {"attn_implementation": "eager"}),
    ],
)
def test_models_that_keep_to_trls_path(family: str, settings: dict[str, Any]) -> None:
    from transformers import CONFIG_MAPPING

    attention = settings.get("attn_implementation", "sdpa")
    config = CONFIG_MAPPING[family](**{k: v for k, v in settings.items() if k != "attn_implementation"})
    config._attn_implementation = attention
    assert not takes_segments(config)


def test_a_model_that_keeps_to_trls_path_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    model_of("mistral", sliding_window=4).save_pretrained(folder)
    tiny_tokenizer(TINY["llama"], bos=False, pad=None).save_pretrained(folder)
    monkeypatch.setattr("iterative_ft.training.one_row.lay_out", None)
    job = make_job(tmp_path, folder, "dpo", pairs(4))
    train_here(job)
    assert len(curve(job)) == 2


def test_other_settings_keep_to_trls_path(tmp_path: Path, folders: dict[str, Path]) -> None:
    folder = folders["llama tied"]
    for settings in ({"neftune_noise_alpha": 5.0}, {"disable_dropout": False}):
        job = make_job(tmp_path / next(iter(settings)), folder, "dpo", [], trl=settings)
        assert not trainer_of(job, pairs(4)).fits_one_row()


# -- PEFT's cast of inputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("name", MODELS[::2])
def test_without_the_cast_every_bit_is_the_same(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str, method: str
) -> None:
    """A bfloat16 base, float32 adapters, autocast: how the project trains."""
    job = make_job(tmp_path, folders[name], method, [], init=folders[name] / "adapter") | {"dtype": "bfloat16"}
    examples = pairs(4) if method == "dpo" else chats(4)
    trainer = trainer_of(job, examples)
    assert casts_say_nothing(trainer.bare_model(), torch.bfloat16)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    found = []
    for cast in (True, False):
        monkeypatch.setattr("iterative_ft.training.one_row.casts_say_nothing", lambda *_, cast=cast: not cast)
        found.append(a_step(trainer, [examples if method == "dpo" else to_columns(examples, job["method"])], True))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


def test_when_the_cast_stays() -> None:
    from peft import LoraConfig, get_peft_model

    def model(**settings: Any) -> Any:
        return get_peft_model(model_of("llama").to(torch.bfloat16), LoraConfig(r=2, target_modules="all-linear", **settings))

    assert casts_say_nothing(model(), torch.bfloat16)
    assert not casts_say_nothing(model(), None)
    assert not casts_say_nothing(model(lora_dropout=0.1), torch.bfloat16)
    assert not casts_say_nothing(model(use_dora=True), torch.bfloat16)
    assert not casts_say_nothing(model().to(torch.bfloat16), torch.float16)
