"""One place turns text into ids: what the template does, where BOS and end tokens stand.

Not covered: the tokenizers of hub models, which need a network.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from iterative_ft.codec import TokenizerCodec
from iterative_ft.config import ModelConfig
from iterative_ft.errors import RunError
from tests.tiny import SPECIAL, embedded_model, tiny_config, tiny_model, tiny_model_bos

__all__ = ["embedded_model", "tiny_model", "tiny_model_bos"]
END_OF_TEXT, START, END, BOS = range(len(SPECIAL))


def settings(model: Path, tmp_path: Path, *overrides: str) -> ModelConfig:
    return tiny_config(model, tmp_path / "store", "method=sft", *overrides).model


@pytest.fixture
def codec(tiny_model: Path, tmp_path: Path) -> TokenizerCodec:
    return TokenizerCodec(tiny_model, settings(tiny_model, tmp_path))


@pytest.fixture
def bos_codec(tiny_model_bos: Path, tmp_path: Path) -> TokenizerCodec:
    return TokenizerCodec(tiny_model_bos, settings(tiny_model_bos, tmp_path))


def test_a_chat_prompt_ends_where_the_answer_starts(codec: TokenizerCodec) -> None:
    text = codec.tokenizer.decode(codec.chat_prompt("hi there"))
    assert text == "<|im_start|>user\nhi there<|im_end|>\n<|im_start|>assistant\n"


def test_the_system_prompt_stands_first(tiny_model: Path, tmp_path: Path) -> None:
    codec = TokenizerCodec(tiny_model, settings(tiny_model, tmp_path, "model.system_prompt='Be brief.'"))
    text = codec.tokenizer.decode(codec.chat_prompt("hi"))
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>")


def test_template_arguments_reach_the_template(tiny_model: Path, tmp_path: Path) -> None:
    codec = TokenizerCodec(tiny_model, settings(tiny_model, tmp_path, "+model.chat_template_kwargs.enable_thinking=false"))
    codec.tokenizer.chat_template = "{% if enable_thinking is defined and not enable_thinking %}off{% else %}on{% endif %}"
    assert codec.tokenizer.decode(codec.chat_prompt("hi")) == "off"


def test_answers_and_documents_end_with_their_own_token(codec: TokenizerCodec) -> None:
    assert codec.answer("yes")[-1] == END
    assert codec.answer("yes").count(END) == 1
    assert codec.document_body("yes")[-1] == END_OF_TEXT
    assert codec.answer_end_ids == [END]
    assert codec.document_end_ids[0] == END_OF_TEXT


def test_end_tokens_default_to_the_tokenizers(tiny_model: Path, tmp_path: Path) -> None:
    codec = TokenizerCodec(tiny_model, settings(tiny_model, tmp_path, "model.end_token=null", "model.document_end_token=null"))
    assert codec.answer_end_ids == codec.document_end_ids == [codec.tokenizer.eos_token_id]


def test_an_end_token_outside_the_vocabulary_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"<nothing>"):
        TokenizerCodec(tiny_model, settings(tiny_model, tmp_path, "model.end_token='<nothing>'"))


def test_at_most_one_bos(bos_codec: TokenizerCodec) -> None:
    for prompt in (bos_codec.chat_prompt("hi"), bos_codec.raw("the river"), bos_codec.document_prefix("A title")):
        assert prompt[0] == BOS
        assert prompt.count(BOS) == 1
    for rest in (bos_codec.answer("yes"), bos_codec.document_body("the river")):
        assert BOS not in rest


def test_no_bos_without_one(codec: TokenizerCodec) -> None:
    assert BOS not in codec.chat_prompt("hi") + codec.raw("hi") + codec.document_prefix("hi")


def test_a_tokenizer_that_closes_every_text_leaves_a_prompt_open(codec: TokenizerCodec) -> None:
    from tokenizers import processors

    codec.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", END)]
    )
    assert codec.tokenizer("hi").input_ids[-1] == END
    assert END not in codec.raw("hi")


def test_decode_gives_the_text_without_special_tokens(codec: TokenizerCodec) -> None:
    text = "Grüße, the river! ☂"
    assert codec.decode(codec.answer(text)) == text
    assert codec.decode(codec.document_body(text)) == text


@pytest.mark.slow
def test_the_embedded_tokenizer(embedded_model: Path, tmp_path: Path) -> None:
    """Pad is not the end token, the template is the model's, and all three uses of a chat start from the same ids."""
    from tests.tiny import embedded_config

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


@pytest.mark.parametrize("system_prompt", ["null", "'Be brief.'"])
def test_training_sampling_and_measuring_start_from_the_same_ids(tiny_model: Path, tmp_path: Path, system_prompt: str) -> None:
    """The three places that ask for a chat prompt, through the lab, with the sampler replaced by a recorder."""
    from iterative_ft.lab import Lab
    from iterative_ft.sampling import Canary, Completion, Params, Request
    from iterative_ft.store import Store

    class Recorder:
        def load(self, policy: object) -> Canary:
            return Canary(0.0, 0.0, 0.0)

        def sample(self, requests: list[Request], params: Params) -> list[Completion]:
            return [Completion([90, END], "stop") for _ in requests]

    config = tiny_config(tiny_model, tmp_path / "store", "method=dpo", "n_seed=4", f"model.system_prompt={system_prompt}")
    lab = Lab(config, Store(tmp_path / "store"))
    lab.sampler_ = Recorder()  # type: ignore[assignment]
    row = lab.seed_rows(0, 1)
    sampled = lab.write("sample", lab.base_policy(), "chat", [row[0]["prompt"]], [1], 8, False, "sampled").rows()[0]
    measured = lab.write("answer", lab.base_policy(), "chat", [row[0]["prompt"]], [1], 8, True, "measured").rows()[0]
    trained = lab.data_stage(0, row, None, None, 1, "data").rows("examples.jsonl")[0]
    assert trained["prompt_ids"] == sampled["prompt_ids"] == measured["prompt_ids"]
