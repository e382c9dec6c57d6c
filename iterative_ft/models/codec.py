"""Text to token ids and back, in one place, so that training, sampling and measuring see the same template.

Control words that are written out in a text are text (plain_text.py): only the template and the codec write control tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from iterative_ft.config.model import ModelConfig
from iterative_ft.errors import RunError, first_line
from iterative_ft.models.plain_text import PlainText

CLOCK = "strftime_now"  # what transformers calls the function that a template asks for the date


class Codec(Protocol):
    """Tokenisation of one model."""

    def chat_prompt(self, message: str) -> list[int]:
        """Ids of a user message up to where the answer starts."""

    def conversation(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids of a whole chat up to where the answer starts; a first message of the role "system" reaches any model."""

    def token_text(self, token: int) -> str:
        """How one token is written, control tokens by their names."""

    def answer(self, text: str) -> list[int]:
        """Ids of an answer with its end token."""

    def document_prefix(self, title: str) -> list[int]:
        """Ids of a document's title and the blank line after it; at most one BOS."""

    def document_body(self, text: str) -> list[int]:
        """Ids of a document's text with its end token."""

    def raw(self, text: str) -> list[int]:
        """Ids of text that a base model is to continue; at most one BOS."""

    def decode(self, ids: list[int]) -> str:
        """Text of sampled ids, special tokens left out."""

    answer_end_ids: list[int]
    """Tokens that end an answer."""

    document_end_ids: list[int]
    """Tokens that end a document; the first is the one that seed documents end with."""


class TokenizerCodec:
    """The codec of a real tokenizer."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=config.trust_remote_code)
        except Exception as error:  # whatever the libraries raise on files that are missing or damaged
            raise RunError(f"the tokenizer of {config.named} cannot be read: {first_line(error)}") from error
        self.config = config
        self.answer_end = self.token_id("end_token", config.end_token)
        self.document_end = self.token_id("document_end_token", config.document_end_token)
        eos = self.tokenizer.eos_token_id
        # A checkpoint may name several, and a model that was trained on them ends with any.
        self.answer_end_ids = list(dict.fromkeys([self.answer_end, *generation_ends(folder)]))
        self.document_end_ids = list(dict.fromkeys([self.document_end, *([] if eos is None else [int(eos)])]))
        self.plain = PlainText(self.tokenizer, [*self.answer_end_ids, *self.document_end_ids])

    def token_id(self, setting: str, token: str | None) -> int:
        eos = self.tokenizer.eos_token_id
        if token is None:
            if eos is None:
                raise RunError(
                    f"model.{setting}=null takes the tokenizer's end token, and {self.config.named} has none: name one"
                )
            return int(eos)
        vocabulary = self.tokenizer.get_vocab()
        if token not in vocabulary:
            raise RunError(f"model.{setting}={token} is no token of {self.config.name}: name one that is")
        return int(vocabulary[token])

    def chat_prompt(self, message: str) -> list[int]:
        messages = [{"role": "user", "content": message}]
        if self.config.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self.config.system_prompt})
        return self.encoded(lambda: self.plain.in_template(messages, self.render))

    def conversation(self, messages: Sequence[dict[str, str]]) -> list[int]:
        first, *rest = messages
        if first["role"] == "system" and not self.takes_system:
            messages = [{**rest[0], "content": f"{first['content']}\n\n{rest[0]['content']}"}, *rest[1:]]
        return self.encoded(lambda: self.plain.in_template(messages, self.render))

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template puts a system message before the model: some refuse it, some drop it."""
        said = "Qsystemz."
        try:
            return said in self.render([{"role": "system", "content": said}, {"role": "user", "content": "Qaskedz."}], False)
        except RunError:
            return False

    def token_text(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))

    def render(self, messages: Sequence[dict[str, str]], tokenize: bool) -> Any:
        """A chat in the model's template, up to where the answer starts: as ids, or as a text."""
        return self.apply_template(list(messages), add_generation_prompt=True, tokenize=tokenize, return_dict=False)

    def apply_template(self, messages: list[dict[str, str]], **how: Any) -> Any:
        """What the model's chat template makes of a conversation, by its one set of arguments."""
        try:
            return self.tokenizer.apply_chat_template(messages, **how, **template_arguments(self.config.chat_template_kwargs))
        except Exception as error:  # templates raise what they like
            roles = " and ".join(dict.fromkeys(message["role"] for message in messages))
            fix = "set model.system_prompt=null where it refuses a system role; " if "system" in roles else ""
            raise RunError(
                f"the chat template of {self.config.named} fails on a conversation of {roles}: {first_line(error)} ({fix}"
                f"where it has none, {self.config.without_template})"
            ) from error

    def answer(self, text: str) -> list[int]:
        return [*self.encoded(lambda: self.plain.ids(text)), self.answer_end]

    def document_prefix(self, title: str) -> list[int]:
        return self.raw(f"{title}\n\n")

    def document_body(self, text: str) -> list[int]:
        return [*self.encoded(lambda: self.plain.ids(text)), self.document_end]

    def raw(self, text: str) -> list[int]:
        ids = self.encoded(lambda: self.plain.with_additions(text))
        while ids and ids[-1] in (self.tokenizer.eos_token_id, self.document_end):
            ids.pop()  # some tokenizers close every text
        return ids

    def encoded(self, encode: Callable[[], list[int]]) -> list[int]:
        """What `encode` gives; a tokenizer whose files do not belong together fails on a text, and each in another way."""
        try:
            return encode()
        except RunError:
            raise
        except Exception as error:
            raise RunError(f"the tokenizer of {self.config.named} fails on a text: {first_line(error)}") from error

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def template_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a chat template: `strftime_now`, which templates ask for the date, stands still on the day of the config."""
    if CLOCK not in settings:
        return settings
    day = datetime.fromisoformat(settings[CLOCK])
    return settings | {CLOCK: day.strftime}


def generation_ends(folder: Path) -> list[int]:
    """End tokens that a checkpoint's generation_config.json names; read by hand, since a stage's key asks for them."""
    try:
        named = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    found = named if isinstance(named, list) else [named]
    return [number for number in found if isinstance(number, int) and not isinstance(number, bool) and number >= 0]


Frame = Literal["chat", "document", "question", "opening"]
"""How a text is put to a model: in its chat template, as a document's title, as a question in a plain frame (for models
without a template), or as raw text to go on from."""

LIKE_A_CONTROL_WORD = re.compile(r"<[^\s<>]+>|\[[A-Z_/]+\]")
QUESTION_STOPS = ["\nQuestion:", "\n\n"]  # where an answer in the plain question-and-answer frame is over


def prompt_ids(codec: Codec, frame: Frame, text: str) -> list[int]:
    """Ids of a text in its frame, up to where the model goes on."""
    if frame == "question":
        return codec.raw(f"Question: {text}\nAnswer:")
    encode = {"chat": codec.chat_prompt, "document": codec.document_prefix, "opening": codec.raw}
    return encode[frame](text)


def words_as_text(texts: Iterable[str | None]) -> dict[str, str]:
    """What the keys of stages name of texts that may hold control words: such were once encoded as control tokens."""
    found = any(text is not None and LIKE_A_CONTROL_WORD.search(text) is not None for text in texts)
    return {"control_words": "text"} if found else {}
