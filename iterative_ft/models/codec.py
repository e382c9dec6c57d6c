"""Text to token ids and back, in one place, so that training, sampling and measuring see the same template.

Control words that are written out in a text are text (plain_text.py): only the template and the codec write control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from iterative_ft.config.schema import ModelConfig
from iterative_ft.errors import RunError
from iterative_ft.models.plain_text import PlainText


class Codec(Protocol):
    """Tokenisation of one model."""

    def chat_prompt(self, message: str) -> list[int]:
        """Ids of a user message up to where the answer starts."""

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

        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=config.trust_remote_code)
        self.config = config
        self.answer_end = self.token_id(config.end_token)
        self.document_end = self.token_id(config.document_end_token)
        self.answer_end_ids = [self.answer_end]
        self.document_end_ids = list(dict.fromkeys([self.document_end, int(self.tokenizer.eos_token_id)]))
        self.plain = PlainText(self.tokenizer, [*self.answer_end_ids, *self.document_end_ids])

    def token_id(self, token: str | None) -> int:
        if token is None:
            return int(self.tokenizer.eos_token_id)
        vocabulary = self.tokenizer.get_vocab()
        if token not in vocabulary:
            raise RunError(
                f"model.end_token or document_end_token {token!r} is no token of {self.config.name}: name one that is"
            )
        return int(vocabulary[token])

    def chat_prompt(self, message: str) -> list[int]:
        messages = [{"role": "user", "content": message}]
        if self.config.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self.config.system_prompt})
        return self.plain.in_template(messages, self.render)

    def render(self, messages: Sequence[dict[str, str]], tokenize: bool) -> Any:
        """A chat in the model's template, up to where the answer starts: as ids, or as a text."""
        return self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=tokenize, return_dict=False, **self.config.chat_template_kwargs
        )

    def answer(self, text: str) -> list[int]:
        return [*self.plain.ids(text), self.answer_end]

    def document_prefix(self, title: str) -> list[int]:
        return self.raw(f"{title}\n\n")

    def document_body(self, text: str) -> list[int]:
        return [*self.plain.ids(text), self.document_end]

    def raw(self, text: str) -> list[int]:
        ids = self.plain.with_additions(text)
        while ids and ids[-1] in (self.tokenizer.eos_token_id, self.document_end):
            ids.pop()  # some tokenizers close every text
        return ids

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


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
