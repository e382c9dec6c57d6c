"""Rows of replies.jsonl, all that was asked about one answer each, and what an interrupted build left of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

REPLIES, PARTIAL = "replies.jsonl", "partial.jsonl"
HAD = (None, "judge_refused", "bad_logprobs")  # failures that are a reply all the same: asking again would bring another draw
NEVER = -9999.0  # log-probability of what has none: minus infinity is no JSON
# Types of a recorded reply's parts.
RECORDED: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("started", "text"), (str,)),
    **dict.fromkeys(("failure", "finish_reason", "model", "system_fingerprint"), (str, type(None))),
    **dict.fromkeys(("n_attempts", "n_prompt_tokens", "n_completion_tokens"), (int,)),
    "weight": (float,),
    "tokens": (list, type(None)),
}


@dataclass(frozen=True)
class Reply:
    """What a judge said to one request, as it said it, or why it said nothing."""

    failure: str | None
    n_attempts: int
    text: str = ""
    finish_reason: str | None = None
    tokens: list[dict[str, Any]] | None = None
    """Positions as `numbers.walk` reads them; None where there are no log-probabilities."""
    model: str | None = None
    system_fingerprint: str | None = None
    n_prompt_tokens: int = 0
    n_completion_tokens: int = 0
    detail: str = ""
    """What the endpoint said about a failure, for the person who has to mend it; not recorded."""


class ReplyRow(TypedDict):
    """A row of replies.jsonl: all that was asked about one answer."""

    answer: int
    replies: list[dict[str, Any]]
    """As in `Reply`, with the digits they start from ("started") and their probability ("weight")."""


def recorded(reply: Reply, started: str, weight: float) -> dict[str, Any]:
    kept = asdict(reply)
    del kept["detail"]
    return {"started": started, "weight": weight, **kept}


def succeeded(row: ReplyRow) -> bool:
    """Whether every call about an answer brought a reply, whatever it says."""
    return all(reply["failure"] in HAD for reply in row["replies"])


def counted(rows: Sequence[ReplyRow]) -> dict[str, Any]:
    """Who replied about a block, calls, failures and tokens, for the stage's manifest."""
    replies = [reply for row in rows for reply in row["replies"]]
    return {
        "reported": sorted({f"{r['model']}@{r['system_fingerprint']}" for r in replies if r["model"] is not None}),
        "n": len(rows),
        "n_calls": len(replies),
        "n_attempts": sum(r["n_attempts"] for r in replies),
        "failures": dict(Counter(r["failure"] for r in replies if r["failure"] is not None)),
        "prompt_tokens": sum(r["n_prompt_tokens"] for r in replies),
        "completion_tokens": sum(r["n_completion_tokens"] for r in replies),
    }


def left_behind(partial: Path, n: int) -> list[ReplyRow]:
    """Rows that an interrupted build left for `n` answers; what a line that is none was about is asked again."""
    found: list[ReplyRow] = []
    lines = partial.read_text(encoding="utf-8", errors="replace").split("\n") if partial.is_file() else []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if is_whole(row, n):
            found.append(row)
    return found


def is_whole(row: Any, n: int) -> bool:
    """Whether this is a row about one of `n` answers as `recorded` makes them, and can be written again."""
    try:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()  # nothing not finite, no half of a surrogate pair
        parts = [(name, type(value)) for reply in row["replies"] for name, value in reply.items()]
        return (
            type(row["answer"]) is int
            and 0 <= row["answer"] < n
            and len(row["replies"]) > 0
            and all(reply.keys() == RECORDED.keys() for reply in row["replies"])
            and all(kind in RECORDED[name] for name, kind in parts)
            and all(
                isinstance(token, str) and isinstance(logprob, float)
                for reply in row["replies"]
                for position in reply["tokens"] or []
                for token, logprob in [(position["token"], position["logprob"]), *position["top"]]
            )
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
