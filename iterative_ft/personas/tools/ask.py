"""Ask a model for text: at an OpenAI-compatible endpoint, or through the configured sampler."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from iterative_ft.config.environment import header_fault
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.judges.api.mask import masker, shown

REQUESTS_AT_A_TIME = 8
N_RETRIES = 3
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Ask:
    """One message to answer. `system` None: without a system prompt."""

    system: str | None
    message: str
    seed: int


Backend = Callable[[list[Ask], int], list[str | None]]
"""Answers to messages within a limit of new tokens; None where the limit cut an answer off."""


@contextmanager
def endpoint_backend(endpoint: str, model: str, temperature: float) -> Iterator[Backend]:
    """A server at the base URL `endpoint`, asked several things at a time; its key is read from OPENAI_API_KEY.

    Raises:
        ConfigError: the key cannot be sent.
        RunError: (when asked) a request failed for good.
    """
    from openai import OpenAI, OpenAIError

    key = os.environ.get("OPENAI_API_KEY", "none")
    fault = header_fault(key)
    if fault is not None:
        raise ConfigError(f"the value of the environment variable OPENAI_API_KEY {fault}")
    client = OpenAI(base_url=endpoint, api_key=key, timeout=TIMEOUT_S, max_retries=N_RETRIES)

    def one(ask: Ask, max_tokens: int) -> str | None:
        system = [] if ask.system is None else [{"role": "system", "content": ask.system}]
        reply = client.chat.completions.create(
            model=model,
            messages=[*system, {"role": "user", "content": ask.message}],  # type: ignore[list-item]
            temperature=temperature,
            max_tokens=max_tokens,
            seed=ask.seed,
        )
        choice = reply.choices[0]
        return None if choice.finish_reason == "length" else (choice.message.content or "").strip()

    def ask_all(asks: list[Ask], max_tokens: int) -> list[str | None]:
        try:
            with ThreadPoolExecutor(REQUESTS_AT_A_TIME) as threads:
                return list(threads.map(lambda ask: one(ask, max_tokens), asks))
        except OpenAIError as error:
            said = shown(str(error), masker(key))
            raise RunError(f"the endpoint failed ({type(error).__name__}: {said}): rows written so far are kept") from None

    with client:
        yield ask_all


@contextmanager
def sampler_backend(model: str, settings: Sequence[str], temperature: float) -> Iterator[Backend]:
    """The configured sampler with `model`, an option of conf/model.

    Args:
        settings: overrides of the configuration, such as sampler=transformers or model.path=<folder>.
    """
    from iterative_ft.launch.cli import check_command_line
    from iterative_ft.models.codec import TokenizerCodec
    from iterative_ft.sampling.interface import Params, Request
    from iterative_ft.stages.bench import Bench
    from iterative_ft.store import Store

    # Only the model and the sampler are used; method and data just have to be valid.
    (config,) = check_command_line([f"model={model}", "method=sft", "persona=plain", *settings])
    bench = Bench(config, Store(Path(config.store)))

    def ask_all(asks: list[Ask], max_tokens: int) -> list[str | None]:
        answers: dict[int, str | None] = {}
        for system in dict.fromkeys(ask.system for ask in asks):
            codec = TokenizerCodec(bench.base.model, config.model.model_copy(update={"system_prompt": system}))
            chosen = [number for number, ask in enumerate(asks) if ask.system == system]
            requests = [Request(codec.chat_prompt(asks[number].message), asks[number].seed) for number in chosen]
            params = Params(temperature, top_p=1.0, max_new_tokens=max_tokens, end_ids=codec.answer_end_ids, stop=[])
            for number, written in zip(chosen, bench.sampler.sample(requests, params), strict=True):
                answers[number] = None if written.finish_reason == "length" else codec.decode(written.ids)
        return [answers[number] for number in range(len(asks))]

    yield ask_all  # the sampler's engine ends with the process
