"""The judge on the run's own engine: whom to ask what, in which order, and what came back as replies like an endpoint's.

It knows no engine: `say` puts token ids to one. All answers are asked about in one call, and where a tokenizer writes numbers
digit by digit, all their other leading digits in a second and a third.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from iterative_ft.config.judges import EngineConfig
from iterative_ft.judges.rubric.grades import left_open
from iterative_ft.judges.rubric.numbers import writes_whole_numbers
from iterative_ft.judges.rubric.recorded import NEVER, Reply, ReplyRow, counted, recorded


@dataclass(frozen=True)
class Question:
    """One request: which answer it is about, and the digits that are written already."""

    answer: int
    started: str = ""


@dataclass(frozen=True)
class Written:
    """What the engine wrote to one request, token by token."""

    ids: list[int]
    ended: bool
    """Whether it ended by itself; its last id is then the end token."""
    top: list[dict[int, float]] | None
    """Log-probabilities at each position, nats, the written token's among them."""
    n_prompt_tokens: int


def request_inputs(settings: EngineConfig, asks: str, prompts: str) -> dict[str, Any]:
    """What replies depend on beside the answers, the model and the engine."""
    decides = {name: getattr(settings, name) for name in ("max_new_tokens", "top_logprobs", "follow_digits")}
    return {"judge": "engine", "asks": asks, "prompts": prompts, **decides}


def ask(n: int, settings: EngineConfig, say: Callable[[list[Question]], list[Reply]]) -> list[ReplyRow]:
    """Ask about `n` answers: a row an answer, in their order, as an endpoint's.

    Args:
        say: one engine call.
    """
    firsts = say([Question(number) for number in range(n)])
    found: list[ReplyRow] = [{"answer": number, "replies": [recorded(reply, "", 1.0)]} for number, reply in enumerate(firsts)]
    whole = [writes_whole_numbers(reply.tokens or []) for reply in firsts]
    todo: dict[Question, float] = {}

    def open_up(question: Question, reply: Reply, weight: float) -> None:
        if settings.follow_digits:
            left = left_open(reply, settings.score_scale, whole[question.answer], question.started, weight)
            todo.update({Question(question.answer, digits): p for digits, p in left.items()})

    for number, reply in enumerate(firsts):
        open_up(Question(number), reply, 1.0)
    while todo:
        asked, todo = todo, {}
        for (question, weight), reply in zip(asked.items(), say(list(asked)), strict=True):
            found[question.answer]["replies"].append(recorded(reply, question.started, weight))
            open_up(question, reply, weight)
    return found


def reply_of(written: Written, token_text: Callable[[int], str], model: str, version: str) -> Reply:
    """What the engine wrote, as an endpoint would report it.

    A reply without log-probabilities, or with some that are not finite, is a named failure: an engine can always give them.

    Args:
        model, version: who judged: a name, and a digest of its weights.
    """
    said = written.ids[:-1] if written.ended else written.ids
    texts = {token: token_text(token) for token in {*written.ids, *(t for top in written.top or [] for t in top)}}
    failure, tokens = None, None
    if written.ids and (written.top is None or len(written.top) != len(written.ids) or not all(written.top)):
        failure = "no_logprobs"
    elif written.top is not None:
        tokens = [position(token, top, texts) for token, top in zip(written.ids, written.top, strict=True)]
        if tokens and not all(math.isfinite(p) for found in tokens for p in (found["logprob"], *(p for _, p in found["top"]))):
            failure, tokens = "bad_logprobs", None
    return Reply(
        failure=failure,
        n_attempts=1,
        text="".join(texts[token] for token in said),
        finish_reason="stop" if written.ended else "length",
        tokens=tokens,
        model=model,
        system_fingerprint=version,
        n_prompt_tokens=written.n_prompt_tokens,
        n_completion_tokens=len(written.ids),
    )


def refused(failure: str, model: str, version: str) -> Reply:
    """The reply to a request that was not put to the engine."""
    return Reply(failure=failure, n_attempts=0, model=model, system_fingerprint=version)


def position(token: int, top: dict[int, float], texts: dict[int, str]) -> dict[str, Any]:
    """One token with its alternatives, the most likely first; a written token without a log-probability gets none (NaN)."""
    ordered = sorted(top.items(), key=lambda pair: -pair[1])
    return {
        "token": texts[token],
        "logprob": floor(top.get(token, math.nan)),
        "top": [[texts[other], floor(p)] for other, p in ordered],
    }


def floor(logprob: float) -> float:
    """Minus infinity is no JSON."""
    return NEVER if logprob == -math.inf else float(logprob)


def counts(rows: Sequence[ReplyRow], settings: EngineConfig) -> dict[str, Any]:
    """Calls and tokens of a block's replies, for the stage's manifest."""
    return {"judge": "engine", "endpoint": "engine", "model": settings.model, **counted(rows)}
