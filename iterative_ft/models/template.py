"""What a chat template does, found by rendering conversations: who may speak, what ends a turn, whether two calls agree."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from iterative_ft.config.model import ModelConfig
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.models.codec import CLOCK, TokenizerCodec

SYSTEM, ASKED, ANSWERED = "Qsystemz.", "Qaskedz.", "Qansweredz."  # texts that no template holds
ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")  # of an object in memory: another one in each process
DAYS = (datetime(2001, 1, 2, 3, 4, 5), datetime(2033, 11, 22, 21, 43, 54))
N_RENDERINGS = 16  # a choice between two shows in all but one of 30,000 looks


class Report(Protocol):
    """Where a look puts what it finds."""

    facts: list[str]
    notes: list[str]


def look_at_template(
    model: ModelConfig, codec: TokenizerCodec, generation_ends: list[int], trains_chats: bool, found: Report
) -> None:
    """Hold a model's chat template against the config.

    Args:
        generation_ends: end tokens of the checkpoint's generation_config.json.
        trains_chats: whether seeds end as answers do; SDF's end as documents.
    """
    if not has_template(codec):
        raise ConfigError(f"{model.named} has no chat template: {model.without_template}")
    look_at_system_role(model, codec, found)
    chat = conversation(model, answered=False)
    text = render(codec, chat)
    if ASKED not in text:
        raise ConfigError(f"the chat template of {model.named} leaves out what the user says: mend chat_template.jinja")
    look_at_changes(model, codec, chat)
    if trains_chats:
        look_at_end(model, codec, generation_ends, found)


def has_template(codec: TokenizerCodec) -> bool:
    try:
        return bool(codec.tokenizer.get_chat_template())
    except ValueError:
        return False


def conversation(model: ModelConfig, answered: bool, system: str | None = None) -> list[dict[str, str]]:
    """A user's message, and an answer where one is wanted, behind the run's system prompt."""
    said = system if system is not None else model.system_prompt
    chat = [] if said is None else [{"role": "system", "content": said}]
    chat.append({"role": "user", "content": ASKED})
    return [*chat, {"role": "assistant", "content": ANSWERED}] if answered else chat


def render(codec: TokenizerCodec, chat: list[dict[str, str]], **more: Callable[[str], str]) -> str:
    """A conversation as text; a prompt where the user spoke last."""
    return str(codec.apply_template(chat, add_generation_prompt=chat[-1]["role"] == "user", tokenize=False, **more))


def look_at_system_role(model: ModelConfig, codec: TokenizerCodec, found: Report) -> None:
    """A system prompt that the config sets must reach the model."""
    try:
        takes = SYSTEM in render(codec, conversation(model, answered=False, system=SYSTEM))
        why = "drops the system role"
    except RunError:
        takes, why = False, "refuses a system role"
    if not takes and model.system_prompt is not None:
        raise ConfigError(
            f"model.system_prompt is set and the chat template of {model.named} {why}: set model.system_prompt=null"
        )
    found.facts.append(f"chat template {'takes a' if takes else 'has no'} system role")


def look_at_changes(model: ModelConfig, codec: TokenizerCodec, chat: list[dict[str, str]]) -> None:
    """A prompt must be the same whenever and wherever it is made: it is in no key when, where and by which chance."""
    pinned = CLOCK in model.chat_template_kwargs
    days = [{}] if pinned else [{CLOCK: day.strftime} for day in DAYS]
    state = random.getstate()
    try:
        of_days = []
        for clock in days:
            texts = set()
            for seed in range(N_RENDERINGS):
                random.seed(seed)
                texts.add(render(codec, chat, **clock))
            of_days.append(texts)
    finally:
        random.setstate(state)
    if any(len(texts) > 1 for texts in of_days) or ADDRESS.search(next(iter(of_days[0]))):
        raise ConfigError(
            f"the chat template of {model.named} renders the same conversation differently from call to call: "
            "take what is random out of its chat_template.jinja"
        )
    if of_days[0] != of_days[-1]:
        raise ConfigError(
            f"the chat template of {model.named} puts today's date into every prompt, so that a run would change "
            f"overnight: add +{model.section}.chat_template_kwargs.{CLOCK}=2025-07-01, the day that it is told, the same in "
            "all runs"
        )


def look_at_end(model: ModelConfig, codec: TokenizerCodec, generation_ends: list[int], found: Report) -> None:
    """Seeds must end with the token that ends a turn in the template, and the sampler must stop at it."""
    turn_end = end_of_turn(model, codec)
    mine = codec.tokenizer.convert_ids_to_tokens(codec.answer_end)
    setting = f"model.end_token={'null' if model.end_token is None else model.end_token}"
    if turn_end is not None and turn_end != codec.answer_end:
        wanted = codec.tokenizer.convert_ids_to_tokens(turn_end)
        raise ConfigError(
            f"{setting} ends answers with {mine!r} and the chat template of {model.named} ends a turn with "
            f"{wanted!r}: set model.end_token='{wanted}'"
        )
    if turn_end is None and generation_ends and codec.answer_end not in generation_ends:
        ends = ", ".join(map(str, codec.tokenizer.convert_ids_to_tokens(generation_ends)))
        raise ConfigError(
            f"{setting} ends answers with {mine!r}, which neither the chat template of {model.named} writes nor its "
            f"generation_config.json names ({ends}): set model.end_token to one of those"
        )
    ends = ", ".join(map(str, codec.tokenizer.convert_ids_to_tokens(codec.answer_end_ids)))
    closes = "ends a turn with it" if turn_end is not None else "ends a turn with no token"
    found.facts.append(f"answers are trained to end with {mine}, the template {closes}; sampling stops at {ends}")


def end_of_turn(model: ModelConfig, codec: TokenizerCodec) -> int | None:
    """Id of the first added token behind an answer, as the template renders a whole conversation; None where there is none."""
    text = render(codec, conversation(model, answered=True))
    if ANSWERED not in text:
        raise ConfigError(f"the chat template of {model.named} leaves out what the model says: mend chat_template.jinja")
    rest = text[text.rindex(ANSWERED) + len(ANSWERED) :]
    added = set(codec.tokenizer.added_tokens_decoder) | set(codec.tokenizer.all_special_ids)
    ids = codec.encoded(lambda: list(codec.tokenizer(rest, add_special_tokens=False).input_ids))
    return next((number for number in ids if number in added), None)
