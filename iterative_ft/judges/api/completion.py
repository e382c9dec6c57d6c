"""What an endpoint said to one request: a chat completion, read strictly. Whatever is none has a name, and never a number."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from iterative_ft.judges.api.mask import MASKED, readable
from iterative_ft.judges.api.transport import Unanswered
from iterative_ft.judges.rubric.recorded import NEVER, Reply

LONGEST_NAME = 200  # characters of a model's or fingerprint's name
MOST_TOKENS = 1_000_000_000  # of a prompt or reply: above it a count is a mistake


class Wrong(ValueError):
    """A part of a reply is not what it should be; the text says which."""


def parse(body: bytes, attempt: int, mask: Callable[[str], str] = str) -> Reply:
    """Read a chat completion.

    Args:
        mask: takes secrets out of a text, before anything is kept.
    Raises:
        Unanswered: ("malformed") it is none.
    """
    try:
        return read(json.loads(body, object_pairs_hook=once), attempt, mask)
    except (ValueError, RecursionError) as error:
        raise Unanswered("malformed", retry=False, detail=str(error) or type(error).__name__) from None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one that names a key twice says two things."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Wrong("a key is given twice")
    return found


def read(whole: Any, attempt: int, mask: Callable[[str], str]) -> Reply:
    choices = part(whole, "choices", list)
    if not choices:
        raise Wrong("choices is empty")
    choice = choices[0]
    message = part(choice, "message", dict)
    if message is None:
        raise Wrong("message is missing")
    refusal = part(message, "refusal", str)
    text = mask(readable(part(message, "content", str) or ""))
    content = part(part(choice, "logprobs", dict) or {}, "content", list)
    usage = part(whole, "usage", dict) or {}
    failure, tokens = "judge_refused" if refusal else None, None
    if content:
        tokens = [position(entry, mask) for entry in content]
        chances = [p for found in tokens for p in (found["logprob"], *(p for _, p in found["top"]))]
        joined = "".join(found["token"] for found in tokens)
        if mask(joined) != joined:  # a secret cut into tokens
            tokens = [{**found, "token": MASKED, "top": [[MASKED, p] for _, p in found["top"]]} for found in tokens]
        if not all(map(math.isfinite, chances)):
            failure, tokens = failure or "bad_logprobs", None
    return Reply(
        failure=failure,
        n_attempts=attempt,
        text=text,
        finish_reason=named(choice, "finish_reason", mask),
        tokens=tokens,
        model=named(whole, "model", mask),
        system_fingerprint=named(whole, "system_fingerprint", mask),
        n_prompt_tokens=count(usage, "prompt_tokens"),
        n_completion_tokens=count(usage, "completion_tokens"),
    )


def part(whole: Any, key: str, kind: type) -> Any:
    """What `whole` has under `key`, of this kind; None where it has nothing."""
    if not isinstance(whole, dict):
        raise Wrong(f"no object where {key} is due")
    found = whole.get(key)
    if found is not None and not isinstance(found, kind):
        raise Wrong(f"{key} is of another kind")
    return found


def named(whole: dict[str, Any], key: str, mask: Callable[[str], str]) -> str | None:
    """A short text on one line."""
    found = part(whole, key, str)
    if found is None:
        return None
    if len(found) > LONGEST_NAME:
        raise Wrong(f"{key} is {len(found)} characters long")
    return mask("".join(c if c.isprintable() else "\ufffd" for c in readable(found)))


def count(usage: dict[str, Any], key: str) -> int:
    """A number of tokens; 0 where the endpoint does not say."""
    found = usage.get(key)
    if found is None:
        return 0
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= MOST_TOKENS:
        raise Wrong(f"{key} is no count")
    return int(found)


def position(entry: Any, mask: Callable[[str], str]) -> dict[str, Any]:
    """One token of a reply with its alternatives, the most likely first."""
    top = part(entry, "top_logprobs", list) or []
    return {"token": token(entry, mask), "logprob": logprob(entry), "top": [[token(o, mask), logprob(o)] for o in top]}


def token(entry: Any, mask: Callable[[str], str]) -> str:
    found = part(entry, "token", str)
    if found is None:
        raise Wrong("a token is missing")
    return mask(readable(found))


def logprob(entry: dict[str, Any]) -> float:
    """A log-probability as reported, not finite where it can be none; what never happens is `NEVER`."""
    found = entry.get("logprob")
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise Wrong("logprob is no number")
    try:
        found = float(found)
    except OverflowError:  # a whole number of hundreds of digits
        found = -math.inf if found < 0 else math.inf
    return max(found, NEVER) if found < 0 else found
