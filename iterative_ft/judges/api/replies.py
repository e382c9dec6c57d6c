"""The API judge: ask an endpoint about every answer of a block, keep what it said, and turn replies into scores.

Asking and scoring are apart. Replies are a stage of their own, never asked for twice; how they become scores (the floor on
numeric mass, say) can change without another call.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iterative_ft.config.schema import ApiConfig
from iterative_ft.errors import RunError
from iterative_ft.judges.api.completion import Reply
from iterative_ft.judges.api.endpoint import Endpoint, address, altered_fields
from iterative_ft.judges.api.numbers import Tree, agrees, sound, walk, writes_whole_numbers, written
from iterative_ft.judges.api.recorded import PARTIAL, REPLIES, Asked, is_whole, left_behind, recorded, succeeded
from iterative_ft.judges.api.rubric import Rubric
from iterative_ft.judges.scores import Score
from iterative_ft.machine.files import write_jsonl

SMALL_BRANCH = 0.005  # leading digits less likely than this are not asked about: they move a score by half a point at most
# Settings that decide what is said; the rest (waits, retries, prices) may change without asking again.
# judge.fields is one of them where it changes more than a name.
DECIDES = ("model", "temperature", "max_new_tokens", "top_logprobs", "follow_digits", "extra_body", "attempt")


@dataclass(frozen=True)
class Grade:
    """What one request about one answer came to: a score, a mark, or a named failure."""

    score: float | None
    failure: str | None = None
    mark: str | None = None
    mass: float | None = None
    """Probability that the reply is a whole number on the scale; None where the endpoint gave no distribution."""


def request_inputs(config: ApiConfig, rubric: Rubric) -> dict[str, Any]:
    """What replies depend on beside the answers: the endpoint by name, never its key."""
    decides = {name: getattr(config, name) for name in DECIDES}
    altered = altered_fields(config)
    if altered:
        decides["fields"] = altered
    return {"judge": "api", "endpoint": address(config), "asks": rubric.asks, "prompts": rubric.digest, **decides}


def ask_block(
    out: Path, config: ApiConfig, rubric: Rubric, answers: list[tuple[str, str]], earlier: list[Asked]
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


def ask_one(endpoint: Endpoint, rubric: Rubric, number: int, prompt: str, text: str) -> tuple[Asked, str]:
    """One answer's row of replies, and what the endpoint said about a failure."""
    config, messages = endpoint.config, rubric.messages(prompt, text)
    first = endpoint.ask(messages)
    replies = [recorded(first, "", 1.0)]
    if config.follow_digits and usable(first):
        assert first.tokens is not None
        whole = writes_whole_numbers(first.tokens)
        todo = walk(first.tokens, config.score_scale, whole).open
        while todo:
            started, weight = todo.popitem()
            if weight < SMALL_BRANCH:
                continue
            reply = endpoint.ask(messages, started)
            replies.append(recorded(reply, started, weight))
            if usable(reply, started):
                assert reply.tokens is not None
                todo |= {
                    digits: p
                    for digits, p in walk(reply.tokens, config.score_scale, whole, started, weight).open.items()
                    if len(digits) > len(started)
                }
    return {"answer": number, "replies": replies}, first.detail


def usable(reply: Reply, started: str = "") -> bool:
    """Whether a reply's tokens can be walked."""
    if reply.failure is not None or not reply.tokens:
        return False
    return sound(reply.tokens) and agrees(reply.tokens, reply.text, started)


def down(config: ApiConfig, row: Asked, n: int, detail: str) -> str:
    said, failure = f" ({detail})" if detail else "", row["replies"][0]["failure"]
    if failure in ("http_400", "http_422"):
        said += "; a field of the request that it refuses can be renamed or left out (judge.fields)"
    elif failure is not None and failure.startswith("http_3"):
        said += "; judge.base_url has to be the address that answers"
    return (
        f"the judge's endpoint {address(config)} failed {n} calls in a row, last: {failure}{said}: mend "
        "it and run the same command again, which goes on from the replies had so far (to record failures instead and go on: "
        "judge.max_failures_in_a_row=null)"
    )


def counts(config: ApiConfig, rubric: Rubric, rows: list[Asked]) -> dict[str, Any]:
    """Identity, calls, tokens and cost of a block's replies, for the stage's manifest."""
    replies = [reply for row in rows for reply in row["replies"]]
    info: dict[str, Any] = {
        "judge": "api",
        "endpoint": address(config),
        "model": config.model,
        "reported": sorted({f"{r['model']}@{r['system_fingerprint']}" for r in replies if r["model"] is not None}),
        "prompts": rubric.digest,
        "n": len(rows),
        "n_calls": len(replies),
        "n_attempts": sum(r["n_attempts"] for r in replies),
        "failures": dict(Counter(r["failure"] for r in replies if r["failure"] is not None)),
        "prompt_tokens": sum(r["n_prompt_tokens"] for r in replies),
        "completion_tokens": sum(r["n_completion_tokens"] for r in replies),
    }
    prices = config.usd_per_million_prompt_tokens, config.usd_per_million_completion_tokens
    if prices[0] is not None and prices[1] is not None:
        info["cost_usd"] = round((prices[0] * info["prompt_tokens"] + prices[1] * info["completion_tokens"]) / 1e6, 6)
    return info


def grade(row: Asked, rubric: Rubric, config: ApiConfig, whole: bool) -> Grade:
    """What the replies about one answer come to.

    Args:
        whole: whether the judge's tokenizer writes numbers of several digits as one token.
    """
    first, top = row["replies"][0], config.score_scale
    if first["failure"] is not None:
        return Grade(None, first["failure"])
    if first["finish_reason"] == "content_filter":
        return Grade(None, "content_filter")
    word, tokens = first["text"].strip(" \n\t.\"'*").upper(), first["tokens"]
    if not word:
        return Grade(None, "empty")
    doubtful = tokens is not None and not (sound(tokens) and agrees(tokens, first["text"]))
    if word in rubric.marks:
        return Grade(None, "bad_logprobs") if doubtful else Grade(None, mark=word.lower())
    number = written(first["text"])
    if number is None:
        return Grade(None, "not_a_number")
    if first["finish_reason"] == "length":
        return Grade(None, "cut_off")  # half a number, perhaps
    if number > top:
        return Grade(None, "out_of_range")
    if doubtful:
        return Grade(None, "bad_logprobs")
    if tokens is None or not any(position["top"] for position in tokens):
        return Grade(100 * number / top)
    tree = walk(tokens, top, whole)
    for reply in row["replies"][1:]:
        follow(tree, reply, top, whole)
    if tree.mass < config.numeric_mass_floor or tree.mass == 0:
        unseen = sum(tree.open.values()) > 0 and tree.mass + sum(tree.open.values()) >= config.numeric_mass_floor
        return Grade(None, "digits_unresolved" if unseen else "low_numeric_mass", mass=tree.mass)
    return Grade(100 * tree.mean / top, mass=tree.mass)


def follow(tree: Tree, reply: dict[str, Any], top: int, whole: bool) -> None:
    """Put in place of open leading digits what the judge said when it was asked to go on from them."""
    started = reply["started"]
    if reply["failure"] is not None or not reply["tokens"] or started not in tree.open:
        return
    if not sound(reply["tokens"]) or not agrees(reply["tokens"], reply["text"], started):
        return
    branch = walk(reply["tokens"], top, whole, started, tree.open.pop(started))
    for number, p in branch.numbers.items():
        tree.add(str(number), p, top)
    for digits, p in branch.open.items():
        tree.open[digits] = tree.open.get(digits, 0.0) + p


def score_rows(
    trait: list[Asked],
    coherence: list[Asked],
    rubrics: tuple[Rubric, Rubric],
    config: ApiConfig,
    version: str,
) -> list[Score]:
    """Rows of scores.jsonl, one an answer. Where either request failed there is no score at all, only the failure's name."""
    replies = [r for row in (*trait, *coherence) for r in row["replies"]]
    told = [r for r in replies if r["tokens"] and sound(r["tokens"]) and agrees(r["tokens"], r["text"], r["started"])]
    whole = any(writes_whole_numbers(r["tokens"]) for r in told)
    found: list[Score] = []
    for pair in zip(trait, coherence, strict=True):
        grades = [grade(row, rubric, config, whole) for row, rubric in zip(pair, rubrics, strict=True)]
        names = [f"{r.asks}_{g.failure}" for r, g in zip(rubrics, grades, strict=True) if g.failure is not None]
        trait_score, coherence_score = (None, None) if names else (rounded(g.score) for g in grades)
        found.append(
            {
                "trait": trait_score,
                "coherence": coherence_score,
                "flaw": None,
                "failure": names[0] if names else None,
                "mark": grades[0].mark,
                "trait_mass": rounded(grades[0].mass),
                "coherence_mass": rounded(grades[1].mass),
                "judge": version,
            }
        )
    return found


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
