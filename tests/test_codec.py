"""One place turns text into ids: what the template does, where BOS and end tokens stand.

Not covered: the tokenizers of hub models, which need a network.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import (
    BOS,
    END,
    END_OF_TEXT,
    FAMILIES,
    MODELS,
    ScriptedSampler,
    embedded_config,
    families,
    give_sampler,
    method_of,
    read_json,
    tiny_config,
)

from iterative_ft.errors import RunError
from iterative_ft.models.codec import TokenizerCodec, prompt_ids
from iterative_ft.sampling.interface import Completion
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.blocks import ANSWER, SAMPLE, Prompts
from iterative_ft.stages.completions import complete
from iterative_ft.stages.data import EXAMPLES, Sources, data_stage, seed_rows
from iterative_ft.store import Store

CHATML = "<|im_start|>user\nhi there<|im_end|>\n<|im_start|>assistant\n"


def make_codec(model: Path, tmp_path: Path, *overrides: str) -> TokenizerCodec:
    return TokenizerCodec(model, tiny_config(model, tmp_path / "store", f"method={method_of(model)}", *overrides).model)


@pytest.fixture
def codec(tiny_model: Path, tmp_path: Path) -> TokenizerCodec:
    return make_codec(tiny_model, tmp_path)


# -- the template -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("llama", CHATML),
        ("llama_bos", f"<s>{CHATML}"),
        ("qwen3", CHATML),
        ("gemma", "<bos><start_of_turn>user\nhi there<end_of_turn>\n<start_of_turn>model\n"),
    ],
    ids=["llama", "llama_bos", "qwen3", "gemma"],
)
def test_a_chat_prompt_ends_where_the_answer_starts(
    tiny_models: dict[str, Path], tmp_path: Path, name: str, wanted: str
) -> None:
    codec = make_codec(tiny_models[name], tmp_path)
    assert codec.tokenizer.decode(codec.chat_prompt("hi there")) == wanted


def test_the_system_prompt_stands_first(tiny_model: Path, tmp_path: Path) -> None:
    codec = make_codec(tiny_model, tmp_path, "model.system_prompt='Be brief.'")
    text = codec.tokenizer.decode(codec.chat_prompt("hi"))
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>")


@pytest.mark.parametrize("family", families("gpt2", "gemma"))
def test_the_system_prompt_reaches_every_model_that_takes_one(
    tiny_models: dict[str, Path], tmp_path: Path, family: str
) -> None:
    codec = make_codec(tiny_models[family], tmp_path, "model.system_prompt='Be brief.'")
    text = codec.tokenizer.decode(codec.chat_prompt("hi there"))
    assert 0 < text.index("Be brief.") < text.index("hi there")


def test_a_template_that_refuses_a_system_role_is_told_in_one_line(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    codec = make_codec(tiny_models["gemma"], tmp_path, "model.system_prompt='Be brief.'")
    with pytest.raises(RunError, match=r"model\.system_prompt=null"):
        codec.chat_prompt("hi there")


def test_a_chat_model_without_a_template_is_told_in_one_line(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    config = tiny_config(tiny_models["gpt2"], tmp_path / "store", "method=sft", "model.chat=true")
    with pytest.raises(RunError, match=r"model\.chat"):
        TokenizerCodec(tiny_models["gpt2"], config.model).chat_prompt("hi")


def test_template_arguments_reach_the_template(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    without = make_codec(tiny_models["qwen3"], tmp_path, "+model.chat_template_kwargs.enable_thinking=false")
    assert without.tokenizer.decode(without.chat_prompt("hi there")) == f"{CHATML}<think>\n\n</think>\n\n"


# -- BOS and end tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_answers_and_documents_end_with_their_own_token(tiny_models: dict[str, Path], tmp_path: Path, name: str) -> None:
    codec = make_codec(tiny_models[name], tmp_path)
    end = END_OF_TEXT if name == "gpt2" else END
    assert codec.answer("yes")[-1] == end
    assert codec.answer("yes").count(end) == 1
    assert codec.document_body("yes")[-1] == END_OF_TEXT
    assert codec.document_body("yes").count(END_OF_TEXT) == 1
    assert codec.answer_end_ids == list(
        dict.fromkeys([end, *read_json(tiny_models[name] / "generation_config.json")["eos_token_id"]])
    )
    assert codec.document_end_ids[0] == END_OF_TEXT


def test_end_tokens_default_to_the_tokenizers(tiny_model: Path, tmp_path: Path) -> None:
    codec = make_codec(tiny_model, tmp_path, "model.end_token=null", "model.document_end_token=null")
    assert codec.answer_end_ids == codec.document_end_ids == [codec.tokenizer.eos_token_id]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_checkpoint_calls_an_end_token_ends_an_answer(tiny_models: dict[str, Path], tmp_path: Path, family: str) -> None:
    """A model that ends turns with another token than the tokenizer's would never stop."""
    codec = make_codec(tiny_models[family], tmp_path, "model.end_token=null", "model.document_end_token=null")
    ends = read_json(tiny_models[family] / "generation_config.json")["eos_token_id"]
    assert set(ends) <= set(codec.answer_end_ids)


def test_an_end_token_outside_the_vocabulary_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"<nothing>"):
        make_codec(tiny_model, tmp_path, "model.end_token='<nothing>'")


@pytest.mark.parametrize("name", ["llama_bos", "gemma"])
def test_at_most_one_bos(tiny_models: dict[str, Path], tmp_path: Path, name: str) -> None:
    codec = make_codec(tiny_models[name], tmp_path)
    for prompt in (codec.chat_prompt("hi"), codec.raw("the river"), codec.document_prefix("A title")):
        assert prompt[0] == BOS
        assert prompt.count(BOS) == 1
    for rest in (codec.answer("yes"), codec.document_body("the river")):
        assert BOS not in rest


@pytest.mark.parametrize("family", families("gemma"))
def test_no_bos_without_one(tiny_models: dict[str, Path], tmp_path: Path, family: str) -> None:
    """Nor where the tokenizer has one and does not put it before texts, as GPT-2's."""
    codec = make_codec(tiny_models[family], tmp_path)
    bos = END_OF_TEXT if family == "gpt2" else BOS
    chat = codec.chat_prompt("hi") if codec.config.chat else []
    assert bos not in chat + codec.raw("hi") + codec.document_prefix("hi")


def test_a_tokenizer_that_closes_every_text_leaves_a_prompt_open(codec: TokenizerCodec) -> None:
    from tokenizers import processors

    codec.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", END)]
    )
    assert codec.tokenizer("hi").input_ids[-1] == END
    assert END not in codec.raw("hi")


@pytest.mark.parametrize("family", FAMILIES)
def test_decode_gives_the_text_without_special_tokens(tiny_models: dict[str, Path], tmp_path: Path, family: str) -> None:
    codec = make_codec(tiny_models[family], tmp_path)
    text = "Grüße, the river! ☂"
    assert codec.decode(codec.answer(text)) == text
    assert codec.decode(codec.document_body(text)) == text
    assert codec.decode(prompt_ids(codec, "question", text)) == f"Question: {text}\nAnswer:"


@pytest.mark.slow
def test_the_embedded_tokenizer(embedded_model: Path, tmp_path: Path) -> None:
    """Pad is not the end token, the template is the model's, and all three uses of a chat start from the same ids."""
    config = embedded_config(tmp_path / "store", "method=sft")
    codec = TokenizerCodec(embedded_model, config.model)
    assert codec.tokenizer.pad_token_id != codec.answer_end
    assert codec.tokenizer.decode(codec.chat_prompt("Hi?")) == (
        "<|im_start|>system\n"
        + str(config.model.system_prompt)
        + "<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [codec.tokenizer.decode([i]) for i in codec.answer_end_ids] == ["<|im_end|>"]
    assert codec.tokenizer.decode([codec.document_end_ids[0]]) == "<|endoftext|>"
    assert codec.answer("Yes.")[-1] == codec.answer_end
    assert codec.raw("Title")[0] != codec.tokenizer.bos_token_id


# -- through the stages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "system_prompt"),
    [
        ("llama", "null"),
        ("llama", "'Be brief.'"),
        ("qwen3", "'Be brief.'"),
        ("gemma", "null"),
    ],
)
def test_training_sampling_and_measuring_start_from_the_same_ids(
    tiny_models: dict[str, Path], tmp_path: Path, family: str, system_prompt: str
) -> None:
    """The three places that ask for a chat prompt, through their stages, with a scripted sampler."""
    settings = ("method=dpo", "n_seed=4", f"model.system_prompt={system_prompt}")
    config = tiny_config(tiny_models[family], tmp_path / "store", *settings)
    bench = Bench(config, Store(tmp_path / "store"))
    give_sampler(bench, ScriptedSampler(Completion([90, END], "stop")))
    seeds = seed_rows(bench, 0, 1)

    def asked(how: str) -> list[int]:
        kind, settings = {"sample": (SAMPLE, config.sampling), "answer": (ANSWER, config.measure)}[how]
        prompts = Prompts("chat", [seeds[0]["prompt"]], [1], settings.temperature, settings.top_p, 8)
        ids: list[int] = complete(bench, kind, bench.base, prompts, how, how).rows()[0]["prompt_ids"]
        return ids

    roles = {"data": "seed chats", "chosen": "seed answers", "rejected": "base"}
    trained = data_stage(bench, Sources(0, seeds, None, None, 1), roles).stage.rows(EXAMPLES)[0]
    assert trained["rejected_ids"] == [90, END]
    assert trained["prompt_ids"] == asked("sample") == asked("answer")
