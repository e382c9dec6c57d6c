"""A look at a model before any work: what its config, tokenizer and weights' headers say against what a run takes for granted.

No weights are read. What would give wrong numbers in silence, or stop the run after hours, is one line at the start instead;
what is only worth knowing is a note.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from iterative_ft.config.gpu import look_at_gpu
from iterative_ft.config.model import ModelConfig
from iterative_ft.config.schema import Config
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.machine.device import computes_in_bfloat16, resolve_device
from iterative_ft.models import template
from iterative_ft.models.adapters import CONFIG as ADAPTER_CONFIG
from iterative_ft.models.base import NO_WEIGHTS
from iterative_ft.models.codec import Frame, TokenizerCodec, generation_ends, prompt_ids
from iterative_ft.models.headers import HeaderError, checkpoint

EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")


@dataclass(frozen=True)
class Text:
    """A text that a run will put to its model, as far as it is known at the start."""

    where: str
    """"question 3", "seed example 5", "prompt 7 of cycle 2"."""
    frame: Frame
    prompt: str
    answer: str | None = None
    """What training adds; None where the model is to go on."""
    max_new_tokens: int = 0
    limit: str = ""
    """The setting that `max_new_tokens` comes from; "" where it is fixed."""
    trained: bool = False
    """Whether the prompt and what follows it are trained on."""


@dataclass
class Found:
    """What a look found."""

    facts: list[str] = field(default_factory=list)
    """For a dry run."""
    notes: list[str] = field(default_factory=list)
    """Worth saying at the start of a run too."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's files say."""

    n_embeddings: int | None
    n_positions: int | None
    scaled_positions: bool
    kind: str
    n_parameters: int
    settings: dict[str, Any]
    """Its config.json."""


def look(config: Config, folder: Path, texts: Sequence[Text], weights: bool = True) -> Found:
    """Hold a model against a run.

    Args:
        folder: of its checkpoint and tokenizer.
        texts: all that the run knows.
        weights: whether the weights' files lie in `folder` (a hub model's are downloaded later).
    Raises:
        ConfigError: the run would go wrong, in one line that names the setting and the fix.
    """
    found = Found()
    try:
        files = look_at_files(config.model, folder, weights)
        codec = codec_of(folder, config.model)
        found.facts.append(f"{files.kind}, {files.n_parameters / 1e6:.1f} M parameters" if weights else files.kind)
        look_at_gpu(config, files.settings, found.notes, found.facts)
        look_at_precision(config, found)
        if config.model.chat:
            template.look_at_template(config.model, codec, generation_ends(folder), config.frame == "chat", found)
        look_at_bos(codec, found)
        look_at_texts(config, files, codec, texts, found)
    except RunError as error:  # found by the code that a run goes through, before there is a run
        raise ConfigError(str(error)) from error
    return found


def look_at_judge(config: Config, folder: Path, texts: Sequence[Text], weights: bool = True) -> None:
    """Hold a model that judges, and does nothing else, against what it will be asked.

    Args:
        config: the run's, with the judge's model in place of its own.

    Raises:
        ConfigError: as `look`.
    """
    found = Found()
    try:
        files = look_at_files(config.model, folder, weights)
        codec = codec_of(folder, config.model)
        template.look_at_template(config.model, codec, generation_ends(folder), False, found)
        look_at_texts(config, files, codec, texts, found)
    except RunError as error:
        raise ConfigError(str(error)) from error


def look_at_precision(config: Config, found: Found) -> None:
    """A processor that emulates bfloat16 is said."""
    found.facts.append(f"trains in {config.model.dtype}")
    settings = {"model.dtype": config.model.dtype, "sampler.dtype": getattr(config.sampler, "dtype", None)}
    slow = [name for name, dtype in settings.items() if dtype == "bfloat16"]
    if slow and resolve_device(config.device) == "cpu" and not computes_in_bfloat16():
        found.notes.append(
            "this processor does not compute in bfloat16 and takes several times as long with it: "
            f"set {' and '.join(slow)} to float32"
        )


def codec_of(folder: Path, model: ModelConfig) -> TokenizerCodec:
    """The codec of a model's section of the config, made once for all cells of a sweep."""
    return codec_once(folder, type(model), model.model_dump_json())


@lru_cache(maxsize=4)
def codec_once(folder: Path, kind: type[ModelConfig], model: str) -> TokenizerCodec:
    return TokenizerCodec(folder, kind.model_validate_json(model))


def look_at_files(model: ModelConfig, folder: Path, weights: bool) -> Checkpoint:
    """What config.json and the weights' headers say; a folder that holds no whole model is an error."""
    named = model.named
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            raise ConfigError(
                f"{named} holds an adapter, no model: set start_adapter={model.path} and model.path to its base model"
            )
        raise ConfigError(f"{named} holds no config.json: name the folder of a saved model, or a hub id")
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        inner = settings.get("text_config") or settings
        positions, rows = (inner.get(key) for key in (position_key(inner), "vocab_size"))
        scaled = bool(inner.get("rope_scaling") or (inner.get("rope_parameters") or {}).get("factor"))
        kind = str(settings.get("model_type"))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{named}: its config.json is damaged, save or download the model again") from error
    n_parameters = 0
    if weights:
        try:
            tensors = checkpoint(folder)
        except HeaderError as error:
            raise ConfigError(f"{named}: {error}; save or download the model again") from error
        if not tensors:
            raise ConfigError(f"{named} {NO_WEIGHTS}")
        n_parameters = sum(product(t.shape) for t in tensors.values())
        rows = next((t.shape[0] for name, t in sorted(tensors.items()) if EMBEDDINGS.search(name) and len(t.shape) == 2), rows)
    return Checkpoint(whole(rows), whole(positions), scaled, kind, n_parameters, settings)


def position_key(settings: dict[str, Any]) -> str:
    """What a model's config calls the longest text it takes."""
    return next((key for key in ("max_position_embeddings", "n_positions", "max_seq_len") if key in settings), "n_positions")


def whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def product(shape: Sequence[int]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def look_at_bos(codec: TokenizerCodec, found: Found) -> None:
    """A text starts with one BOS at most, and a chat with one where other texts have one."""
    bos, token = codec.tokenizer.bos_token_id, codec.tokenizer.bos_token
    if bos is None:
        return
    texts = {"a plain text": codec.raw("The river.")}
    if codec.config.chat:
        texts["a chat"] = codec.chat_prompt("The river.")
    for what, ids in texts.items():
        if ids[:2] == [bos, bos]:
            raise ConfigError(
                f"{codec.config.named} starts {what} with two {token!r}: take one out of its chat template "
                "(chat_template.jinja) or tokenizer"
            )
    starts = {what: ids[:1] == [bos] for what, ids in texts.items()}
    found.facts.append("; ".join(f"{what} starts with{'' if one else 'out'} BOS" for what, one in starts.items()))
    if starts["a plain text"] and not starts.get("a chat", True):
        found.notes.append(
            f"the tokenizer of {codec.config.name} puts {token!r} before every text and its chat template does not: chats go "
            "without one; if the model was trained with it, put {{ bos_token }} into the template"
        )


# -- texts --------------------------------------------------------------------------------------------------------------------


def look_at_texts(config: Config, files: Checkpoint, codec: TokenizerCodec, texts: Sequence[Text], found: Found) -> None:
    """Encode all that is known: every id has an embedding, and every text fits, with what is to follow it."""
    name, served, trained = config.model.name, config.sampler.max_model_len, config.method.max_length
    positions = None if files.scaled_positions else files.n_positions
    if config.sampler.name == "vllm" and positions is not None and served > positions:
        raise ConfigError(
            f"sampler.max_model_len={served} is more than the {positions} positions of {name}: set it to {positions} or less"
        )
    used = {*codec.answer_end_ids, *codec.document_end_ids}
    most = {"sampled": 0, "trained on": 0}
    for text in texts:
        prompt = prompt_ids(codec, text.frame, text.prompt)
        written: list[int] = []
        if text.answer is not None:
            written = codec.answer(text.answer) if text.frame == "chat" else codec.document_body(text.answer)
        used.update(prompt, written)
        n_known = len(prompt) + len(written)
        n = n_known + text.max_new_tokens
        if text.max_new_tokens:
            most["sampled"] = max(most["sampled"], n)
            check_length(text, n_known, served, f"sampler.max_model_len={served} is", "raise it")
        if text.trained:
            most["trained on"] = max(most["trained on"], n)
            check_length(text, n_known, trained, f"method.max_length={trained} is", "raise it")
        if positions is not None:
            check_length(
                text, n_known, positions, f"the model {name} has {positions} positions, which is", "take another model"
            )
    look_at_ids(codec, files.n_embeddings, used, found)
    found.facts.append(
        f"{len(texts)} known texts, with what follows them at most {most['sampled']} tokens where sampled ({served} allowed), "
        f"{most['trained on']} where trained on ({trained} allowed)"
    )


def check_length(text: Text, n_known: int, allowed: int, limit: str, fix: str) -> None:
    """Refuse a text that does not fit a limit with what is to follow it."""
    n = n_known + text.max_new_tokens
    if n <= allowed:
        return
    words = " ".join(text.prompt.split())
    start = words if len(words) <= 40 else f"{words[:40]}…"
    has, lower = f"has {n_known} tokens", ""
    if text.limit:
        has, lower = f"{has}, and up to {text.limit}={text.max_new_tokens} follow", f", lower {text.limit}"
    elif text.max_new_tokens:
        has = f"{has}, and up to {text.max_new_tokens} follow"
    raise ConfigError(
        f"{limit} too short for {text.where} ({start!r}), which {has}: {fix} ({n} or more){lower}, or shorten the text"
    )


def look_at_ids(codec: TokenizerCodec, n_embeddings: int | None, used: set[int], found: Found) -> None:
    """Every id that a text can become needs a row in the embeddings; special tokens that nothing uses may lack one."""
    vocabulary: dict[str, int] = codec.tokenizer.get_vocab()
    known = "an unknown number of" if n_embeddings is None else n_embeddings
    found.facts.append(f"{len(vocabulary)} tokens, {known} embeddings")
    if n_embeddings is None:
        return
    beyond = sorted((number, token) for token, number in vocabulary.items() if number >= n_embeddings)
    special = set(codec.tokenizer.added_tokens_decoder)
    wrong = next(((number, token) for number, token in beyond if number in used or number not in special), None)
    if wrong is not None:
        raise ConfigError(
            f"{codec.config.named}: its tokenizer has the token {wrong[1]!r} with the id {wrong[0]} and the model "
            f"{n_embeddings} embeddings: name a model with its own tokenizer, or resize the embeddings"
        )
    if beyond:
        found.notes.append(
            f"{len(beyond)} special token(s) of {codec.config.name} have no embedding ({beyond[0][1]!r}); no text uses them"
        )
