"""Texts to ids so that no control token comes out of one: `<|im_end|>` written in an answer is eleven characters, no end.

A tokenizer takes control words wherever they stand. What holds none, which is nearly everything, is encoded as the tokenizer
does by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from iterative_ft.errors import RunError

MARK, FIRST = "\ue000{}\ue001", 0xE100  # stands for a message while the template is rendered: characters for private use


class PlainText:
    """How one tokenizer encodes what people and models wrote."""

    def __init__(self, tokenizer: Any, ends: Iterable[int] = ()) -> None:
        """Find out which tokens steer the model.

        Args:
            ends: tokens that end a turn or a document, whatever the tokenizer calls them.
        """
        self.tokenizer = tokenizer
        self.control = control_tokens(tokenizer, ends)
        """id -> the word that stands for it."""
        self.words = re.compile("|".join(re.escape(w) for w in sorted(self.control.values(), key=len, reverse=True)) or "(?!)")
        added = [token for i, token in tokenizer.added_tokens_decoder.items() if i in self.control]
        self.takes_left = {token.content for token in added if token.lstrip}
        """Words that take the white space on their left into themselves; `takes_right` likewise."""
        self.takes_right = {token.content for token in added if token.rstrip}

    def ids(self, text: str) -> list[int]:
        """Ids of a text, no BOS or end added; none of them is a control token.

        Raises:
            RunError: the tokenizer makes a control token of it, however it is cut.
        """
        ids = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        return ids if self.control.keys().isdisjoint(ids) else self.spelled(text)

    def spelled(self, text: str) -> list[int]:
        """Ids of a text that holds control words, which are written out."""
        ids = self.split(text)
        if self.control.keys().isdisjoint(ids):
            return ids
        # Words that are whole in the vocabulary, or not special to the tokenizer: cut behind their first letter.
        cuts = [0, *(found.start() + 1 for found in self.words.finditer(text)), len(text)]
        ids = [i for start, end in pairwise(cuts) for i in self.split(text[start:end])]
        left = [self.control[i] for i in ids if i in self.control]
        if left:
            shown = text if len(text) <= 60 else f"{text[:57]}..."
            raise RunError(f"the control word {left[0]} in {shown!r} cannot be encoded as plain text: reword the text")
        return ids

    def split(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    def with_additions(self, text: str) -> list[int]:
        """Ids of a text with what the tokenizer puts around every text, such as BOS."""
        as_it_is = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        whole = list(self.tokenizer(text).input_ids)
        if self.control.keys().isdisjoint(as_it_is):
            return whole
        n = len(as_it_is)
        before = next((at for at in range(len(whole) - n + 1) if whole[at : at + n] == as_it_is), 0)
        return whole[:before] + self.spelled(text) + whole[before + n :]

    def in_template(
        self, messages: Sequence[dict[str, str]], render: Callable[[Sequence[dict[str, str]], bool], Any]
    ) -> list[int]:
        """Ids of a chat, in which the template alone writes control tokens.

        Args:
            render: puts messages through the template: into ids, or (False) into a text.
        """
        texts = [message["content"].strip() for message in messages]
        if all(self.control.keys().isdisjoint(self.tokenizer(text, add_special_tokens=False).input_ids) for text in texts):
            return list(render(messages, True))
        return self.spelled_in_template(messages, texts, render)

    def spelled_in_template(
        self, messages: Sequence[dict[str, str]], texts: Sequence[str], render: Callable[[Sequence[dict[str, str]], bool], Any]
    ) -> list[int]:
        """Ids of a chat: what the template writes as the tokenizer takes it, what stands in messages as plain text.

        Args:
            texts: of the messages, without white space around them.
        """
        # White space stays around the marks, for templates that trim.
        marks = [MARK.format(chr(FIRST + number)) for number in range(len(texts))]
        marked = [
            m | {"content": m["content"].replace(t, k, 1) if t else m["content"]}
            for m, t, k in zip(messages, texts, marks, strict=True)
        ]
        rendered: str = render(marked, False)
        if any(text and rendered.count(mark) != 1 for text, mark in zip(texts, marks, strict=True)):
            raise RunError(
                f"the chat template rewrites messages, so that control words in {texts[-1][:60]!r} cannot be encoded as plain "
                "text: reword the text"
            )
        written = dict(zip(marks, texts, strict=True))
        spans = [(0, 0), *(found.span() for found in self.words.finditer(rendered)), (len(rendered), len(rendered))]
        ids: list[int] = []
        done = 0
        for (left, start), (end, right) in pairwise(spans):
            segment = rendered[start:end]
            if not any(mark in segment for mark in marks):
                continue
            ids += self.tokenizer(rendered[done:start], add_special_tokens=False).input_ids
            segment = segment.lstrip() if rendered[left:start] in self.takes_right else segment
            segment = segment.rstrip() if rendered[end:right] in self.takes_left else segment
            ids += self.ids(re.sub("|".join(marks), lambda mark: written[mark.group()], segment))
            done = end
        return ids + list(self.tokenizer(rendered[done:], add_special_tokens=False).input_ids)


def control_tokens(tokenizer: Any, ends: Iterable[int]) -> dict[int, str]:
    """Tokens that steer the model: the special ones, those that end something, and those that the chat template writes.

    Other added tokens, such as Gemma's for HTML, are text; so are, unless they end something, the token for what the vocabulary
    lacks and words of two characters, with which some models pad.
    """
    added = tokenizer.added_tokens_decoder
    template = str(tokenizer.chat_template or "")
    steering = {i for i, t in added.items() if t.special or (any(map(str.isalnum, t.content)) and t.content in template)}
    always = {tokenizer.bos_token_id, tokenizer.eos_token_id, *ends} - {None}
    words = {
        i: added[i].content if i in added else str(tokenizer.convert_ids_to_tokens(i))
        for i in {*steering, *tokenizer.all_special_ids, *always}
    }
    return {i: word for i, word in words.items() if i in always or (i != tokenizer.unk_token_id and len(word) > 2)}
