"""The API judge: ask an endpoint about every answer of a block and keep what it said.

Asking and scoring (judges/rubric/grades.py) are apart. Replies are a stage of their own, never asked for twice; how they become
scores (the floor on numeric mass, say) can change without another call.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from iterative_ft.config.judges import ApiConfig
from iterative_ft.errors import RunError
from iterative_ft.judges.api.endpoint import Endpoint, address, altered_fields
from iterative_ft.judges.rubric.grades import left_open
from iterative_ft.judges.rubric.numbers import writes_whole_numbers
from iterative_ft.judges.rubric.prompts import Rubric
from iterative_ft.judges.rubric.recorded import (
    HAD,
    PARTIAL,
    REPLIES,
    ReplyRow,
    counted,
    is_whole,
    left_behind,
    recorded,
    succeeded,
)
from iterative_ft.machine.files import write_jsonl

# Settings that decide what is said; the rest (waits, retries, prices) may change without asking again.
# judge.fields is one of them where it changes more than a name.
DECIDES = ("model", "temperature", "max_new_tokens", "top_logprobs", "follow_digits", "extra_body", "attempt")


def request_inputs(config: ApiConfig, rubric: Rubric) -> dict[str, Any]:
    """What replies depend on beside the answers: the endpoint by name, never its key."""
    decides = {name: getattr(config, name) for name in DECIDES}
    altered = altered_fields(config)
    if altered:
        decides["fields"] = altered
    return {"judge": "api", "endpoint": address(config), "asks": rubric.asks, "prompts": rubric.digest, **decides}


def ask_block(
    out: Path, config: ApiConfig, rubric: Rubric, answers: list[tuple[str, str]], earlier: list[ReplyRow]
) -> dict[str, Any]:
    """Ask about each answer, `max_concurrency` at a time, and write replies.jsonl: a row an answer, in their order.

    Args:
        out: work folder; replies in its partial.jsonl, left by a crash, are taken over.
        answers: prompts and texts.
        earlier: rows of an earlier attempt; what it got is not asked for again.
    Raises:
        RunError: the endpoint refuses every call, or too many calls in a row failed. Replies so far stay in `out`.
    """
    partial = out / PARTIAL
    left = left_behind(partial, len(answers))
    write_jsonl(partial, left)  # without a line that a kill cut off
    rows = {row["answer"]: row for row in [*(row for row in earlier if is_whole(row, len(answers))), *left] if succeeded(row)}
    n_had, in_a_row = len(rows), 0
    endpoint = Endpoint(config)
    try:
        with ThreadPoolExecutor(config.max_concurrency) as pool, partial.open("a", encoding="utf-8") as file:
            trouble: RunError | None = None
            try:
                futures = [
                    pool.submit(ask_one, endpoint, rubric, i, prompt, text)
                    for i, (prompt, text) in enumerate(answers)
                    if i not in rows
                ]
                for future in as_completed(futures):  # after trouble too: calls under way still bring replies
                    try:
                        row, detail = future.result()
                    except RunError as error:
                        trouble = trouble or error
                        endpoint.stop.set()
                        continue
                    rows[row["answer"]] = row
                    file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                    in_a_row = 0 if succeeded(row) else in_a_row + 1
                    if trouble is None and in_a_row == config.max_failures_in_a_row:
                        trouble = RunError(down(config, row, in_a_row, detail))
                        endpoint.stop.set()
            except BaseException:  # an interrupt: leave without the rest, and without what is under way
                endpoint.abort()
                raise
            if trouble is not None:
                raise trouble
    finally:
        endpoint.close()
    found = [rows[i] for i in range(len(answers))]
    write_jsonl(out / REPLIES, found)
    partial.unlink()
    return counts(config, rubric, found) | {"n_taken_over": n_had}


def ask_one(endpoint: Endpoint, rubric: Rubric, number: int, prompt: str, text: str) -> tuple[ReplyRow, str]:
    """One answer's row of replies, and what the endpoint said about the first call that brought none."""
    config, messages = endpoint.config, rubric.messages(prompt, text)
    first = endpoint.ask(messages)
    replies, detail = [recorded(first, "", 1.0)], first.detail
    if config.follow_digits:
        whole = writes_whole_numbers(first.tokens or [])
        todo = left_open(first, config.score_scale, whole)
        while todo:
            started, weight = todo.popitem()
            reply = endpoint.ask(messages, started)
            replies.append(recorded(reply, started, weight))
            detail = detail or reply.detail
            todo |= left_open(reply, config.score_scale, whole, started, weight)
    return {"answer": number, "replies": replies}, detail


def down(config: ApiConfig, row: ReplyRow, n: int, detail: str) -> str:
    said = f" ({detail})" if detail else ""
    failure = next((reply["failure"] for reply in row["replies"] if reply["failure"] not in HAD), None)
    if failure in ("http_400", "http_422"):
        said += "; a field of the request that it refuses can be renamed or left out (judge.fields)"
    elif failure is not None and failure.startswith("http_3"):
        said += "; judge.base_url has to be the address that answers"
    return (
        f"the judge's endpoint {address(config)} failed {n} calls in a row, last: {failure}{said}: mend "
        "it and run the same command again, which goes on from the replies had so far (to record failures instead and go on: "
        "judge.max_failures_in_a_row=null)"
    )


def counts(config: ApiConfig, rubric: Rubric, rows: list[ReplyRow]) -> dict[str, Any]:
    """Identity, calls, tokens and cost of a block's replies, for the stage's manifest."""
    known = {"judge": "api", "endpoint": address(config), "model": config.model, "prompts": rubric.digest}
    info: dict[str, Any] = known | counted(rows)
    prices = config.usd_per_million_prompt_tokens, config.usd_per_million_completion_tokens
    if prices[0] is not None and prices[1] is not None:
        info["cost_usd"] = round((prices[0] * info["prompt_tokens"] + prices[1] * info["completion_tokens"]) / 1e6, 6)
    return info
