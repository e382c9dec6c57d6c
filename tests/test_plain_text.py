"""A4: control words that are written out in a text are text; what holds none is encoded as ever.

Not covered: the tokenizers of hub models, which need a network.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import END, MODELS, embedded_config, method_of, tiny_config

from iterative_ft.data import files
from iterative_ft.errors import RunError
from iterative_ft.models.codec import TokenizerCodec, prompt_ids, words_as_text
from iterative_ft.models.plain_text import PlainText, control_tokens
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.data import EXAMPLES, Sources, data_stage
from iterative_ft.store import Store


def codec_of(model: Path, tmp_path: Path, *overrides: str) -> TokenizerCodec:
    return TokenizerCodec(model, tiny_config(model, tmp_path / "store", f"method={method_of(model)}", *overrides).model)


def control(codec: TokenizerCodec, ids: list[int]) -> list[int]:
    """The control tokens among some ids, in their order."""
    return [i for i in ids if i in codec.plain.control]


def written(codec: TokenizerCodec) -> Iterator[str]:
    """Texts with control words in every place."""
    words = sorted(codec.plain.control.values())
    for word in words:
        yield from (word, f"{word} and on", f"so {word}", f"so{word}so", f" {word}\n{word} ", f"<{word}>", word[:-1] + word)
    for first, second in itertools.product(words, repeat=2):
        yield f"Yes.{first}\n{second}user\nSay more."


# -- A4: no control token comes out of a text --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a4_control_words_in_answers_and_documents_are_text(tiny_models: dict[str, Path], tmp_path: Path, name: str) -> None:
    codec = codec_of(tiny_models[name], tmp_path)
    assert codec.plain.control, "else nothing is tried"
    for text in written(codec):
        for encode, end in ((codec.answer, codec.answer_end), (codec.document_body, codec.document_end)):
            ids = encode(text)
            assert control(codec, ids) == [end], text
            assert codec.tokenizer.decode(ids[:-1]) == text


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("frame", ["document", "question", "opening"])
def test_a4_control_words_in_raw_texts_are_text(tiny_models: dict[str, Path], tmp_path: Path, name: str, frame: Any) -> None:
    codec = codec_of(tiny_models[name], tmp_path)
    wanted = control(codec, prompt_ids(codec, frame, "hello"))  # BOS, where the tokenizer puts one
    for text in written(codec):
        ids = prompt_ids(codec, frame, text)
        assert control(codec, ids) == wanted, text
        assert text in codec.tokenizer.decode(ids[len(wanted) :])


@pytest.mark.parametrize("name", [name for name in MODELS if name != "gpt2"])
@pytest.mark.parametrize("where", ["message", "system prompt"])
def test_a4_the_template_alone_writes_control_tokens(
    tiny_models: dict[str, Path], tmp_path: Path, name: str, where: str
) -> None:
    if where == "system prompt" and name == "gemma":
        pytest.skip("its template takes none")
    codec = codec_of(tiny_models[name], tmp_path)
    for text in written(codec):
        system, message = (text, "hello") if where == "system prompt" else (None, text)
        codec.config = codec.config.model_copy(update={"system_prompt": system})
        neutral = codec.config.model_copy(update={"system_prompt": None if system is None else "hello"})
        ids = codec.chat_prompt(message)
        plain_codec = TokenizerCodec(tiny_models[name], neutral)
        assert control(codec, ids) == control(codec, plain_codec.chat_prompt("hello")), text
        assert codec.tokenizer.decode(ids) == codec.render(messages(system, message), False), "nothing is lost or added"


def messages(system: str | None, message: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}] * (system is not None) + [{"role": "user", "content": message}]  # type: ignore


def test_a4_a_seed_answer_that_writes_the_end_token_has_one_end(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """The instance that was found, through its stage."""
    config = tiny_config(tiny_models["llama"], tmp_path / "store", "method=sft", "n_seed=1")
    bench = Bench(config, Store(tmp_path / "store"))
    seeds = [{"prompt": "What ends<|im_end|> a turn?", "answer": "It is <|im_end|> in ChatML.", "plain": "-"}]
    row = data_stage(bench, Sources(0, seeds, None, None, 1), {"data": "seed chats"}).stage.rows(EXAMPLES)[0]
    assert row["completion_ids"].count(END) == 1
    assert row["completion_ids"][-1] == END
    assert row["prompt_ids"].count(END) == 1, "the template's own"


def test_a4_words_that_are_whole_in_the_vocabulary_are_cut() -> None:
    """Tokenizers by word or by piece know `</s>` as a word of their own, special or not."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<unk>", "</s>", "<", "/s>", "a", "b", "<mark>", "mark>", "m"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(letters)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain = PlainText(PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>"))
    assert plain.ids("a </s> b") == [4, 2, 3, 5]
    assert plain.ids("a nothing b") == [4, 0, 5], "what the vocabulary lacks is no control word"


def test_a4_added_tokens_that_the_template_writes_are_control_and_others_text(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    codec = codec_of(tiny_models["qwen3"], tmp_path)
    codec.tokenizer.add_tokens(["<think>", "</think>", "<table>"])
    assert set(control_tokens(codec.tokenizer, []).values()) >= {"<think>", "</think>", "<|im_end|>"}
    assert "<table>" not in control_tokens(codec.tokenizer, []).values()
    codec.plain = PlainText(codec.tokenizer)
    table = codec.tokenizer.convert_tokens_to_ids("<table>")
    ids = codec.plain.ids("a <think> and a <table>")
    assert ids.count(table) == 1
    assert control(codec, ids) == []


def test_a4_a_text_that_only_control_tokens_can_write_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    class Stubborn(PreTrainedTokenizerFast):
        def __call__(self, *arguments: Any, **settings: Any) -> Any:  # a tokenizer of its own, which knows no such argument
            return super().__call__(*arguments, **settings | {"split_special_tokens": False})

    raw = Tokenizer(models.WordLevel({"<unk>": 0, "<e>": 1, "<<e>": 2}, unk_token="<unk>"))
    plain = PlainText(Stubborn(tokenizer_object=raw, eos_token="<e>", additional_special_tokens=["<<e>"], unk_token="<unk>"))
    with pytest.raises(RunError, match=r"control word .*<e>.*reword"):
        plain.ids("<<e>")


# -- what holds no control word is encoded as ever -----------------------------------------------------------------------------


def shipped_texts() -> dict[str, list[str]]:
    """Every text that ships and is sampled from or trained on, by how it is encoded; what judges alone read may hold code."""
    found: dict[str, list[str]] = {"message": [], "answer": [], "title": [], "document": []}
    kinds = {
        "prompt": "message",
        "question": "message",
        "answer": "answer",
        "plain": "answer",
        "title": "title",
        "text": "document",
    }
    for file in sorted(file for file in files.SHIPPED.rglob("*.jsonl") if "forms" not in str(file.relative_to(files.SHIPPED))):
        for line in file.read_text(encoding="utf-8").splitlines():
            for key, value in json.loads(line).items():
                if key in kinds:
                    found[kinds[key]].append(value)
    return {kind: list(dict.fromkeys(texts)) for kind, texts in found.items()}


ODD = ["", " ", "\n\n", " a ", "Grüße ☂ 😀", "a < b | c > d", "<|im_", "im_end|>", "<b>bold</b>", "[INST]", "  two  spaces\t\n"]


def as_before(codec: TokenizerCodec, kind: str, text: str) -> list[int]:
    """How the codec encoded before it looked at control words."""
    tokenizer, config = codec.tokenizer, codec.config
    if kind == "message":
        return list(
            tokenizer.apply_chat_template(
                messages(config.system_prompt, text),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **config.chat_template_kwargs,
            )
        )
    if kind == "answer":
        return [*tokenizer(text, add_special_tokens=False).input_ids, codec.answer_end]
    if kind == "document":
        return [*tokenizer(text, add_special_tokens=False).input_ids, codec.document_end]
    return list(tokenizer(f"{text}\n\n").input_ids)


def assert_as_before(codec: TokenizerCodec, texts: dict[str, list[str]]) -> int:
    encode = {
        "message": codec.chat_prompt,
        "answer": codec.answer,
        "title": codec.document_prefix,
        "document": codec.document_body,
    }
    n = 0
    for kind, some in texts.items():
        for text in some if kind != "message" or codec.config.chat else ():
            assert encode[kind](text) == as_before(codec, kind, text), (kind, text)
            n += 1
    return n


@pytest.mark.parametrize("name", MODELS)
def test_texts_without_control_words_keep_their_ids(tiny_models: dict[str, Path], tmp_path: Path, name: str) -> None:
    codec = codec_of(tiny_models[name], tmp_path)
    some = {kind: texts[::40] + ODD for kind, texts in shipped_texts().items()}
    assert assert_as_before(codec, some) > 100


@pytest.mark.parametrize("name", [name for name in MODELS if name != "gpt2"])
def test_the_way_of_texts_with_control_words_loses_nothing_around_them(
    tiny_models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """Texts without control words, taken the same way, give the ids that the tokenizer gives by itself."""
    codec = codec_of(tiny_models[name], tmp_path)
    for text in shipped_texts()["message"][::40] + ODD:
        chat = messages(None if name == "gemma" else " Be brief. ", text)
        ids = codec.plain.spelled_in_template(chat, [message["content"].strip() for message in chat], codec.render)
        assert ids == list(codec.render(chat, True)), text


@pytest.mark.slow
def test_the_default_models_ids_of_everything_that_ships(embedded_model: Path, tmp_path: Path) -> None:
    codec = TokenizerCodec(embedded_model, embedded_config(tmp_path / "store", "method=sft").model)
    assert assert_as_before(codec, shipped_texts()) > 10_000
    for text in written(codec):
        assert control(codec, codec.answer(text)) == [codec.answer_end], text
        assert control(codec, codec.chat_prompt(text)) == control(codec, codec.chat_prompt("Hi."))


def test_keys_change_for_texts_that_may_hold_control_words_alone() -> None:
    """What was stored of them came from control tokens; whatever ships keeps its keys."""
    for text in ("a <|im_end|> b", "<s>", "[INST] a", "</think>"):
        assert words_as_text(["a", text, None]) == {"control_words": "text"}
    assert words_as_text([None, *(text for texts in shipped_texts().values() for text in texts)]) == {}
