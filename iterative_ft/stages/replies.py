"""Stage `replies`: what a language model said as a judge about a block of answers, behind an endpoint or on an engine."""

from __future__ import annotations

import time
from itertools import groupby
from pathlib import Path
from typing import Any

from iterative_ft.config.judges import ApiConfig, EngineConfig
from iterative_ft.judges import engine
from iterative_ft.judges.api import replies as endpoint
from iterative_ft.judges.rubric.prompts import Rubric
from iterative_ft.judges.rubric.recorded import PARTIAL, REPLIES, Reply, ReplyRow
from iterative_ft.machine.files import write_jsonl
from iterative_ft.sampling.interface import Block, Params, Request
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.blocks import ANSWERS, Order, sampler_inputs
from iterative_ft.store import Kind, Purpose, Stage, stage_key
from iterative_ft.store.ahead import claimed, put

REPLY = Kind("replies", 1)
TOGETHER = 8  # requests of a block on a CPU: a judge's prompts are long, and a compiled engine takes few tokens at a time


def replies(
    bench: Bench, rubrics: tuple[Rubric, Rubric], blocks: list[Stage], label: str, purpose: Purpose
) -> list[list[Stage]]:
    """Replies to each rubric about each block of answers."""
    settings = bench.config.judge
    if isinstance(settings, ApiConfig):
        return [
            [
                from_endpoint(bench, settings, rubric, block, reply_label(label, rubric, number, len(blocks)), purpose)
                for number, block in enumerate(blocks)
            ]
            for rubric in rubrics
        ]
    assert isinstance(settings, EngineConfig)
    wanted = [(rubric, block) for rubric in rubrics for block in blocks]
    labels = [reply_label(label, rubric, number, len(blocks)) for rubric in rubrics for number in range(len(blocks))]
    orders = [
        Order(REPLY, engine_inputs(bench, settings, rubric, block), name)
        for (rubric, block), name in zip(wanted, labels, strict=True)
    ]
    found = [from_engine(bench, settings, number, wanted, orders, purpose) for number in range(len(wanted))]
    return [found[: len(blocks)], found[len(blocks) :]]


# -- behind an endpoint -------------------------------------------------------------------------------------------------------


def from_endpoint(bench: Bench, settings: ApiConfig, rubric: Rubric, block: Stage, label: str, purpose: Purpose) -> Stage:
    """What an endpoint said about one block of answers."""
    inputs = endpoint.request_inputs(settings, rubric) | {"answers": block.digest}

    def build(out: Path) -> dict[str, Any]:
        before = bench.store.find(REPLY.name, stage_key(REPLY, inputs | {"attempt": settings.attempt - 1}))
        earlier = [] if before is None else before.rows(REPLIES)
        return endpoint.ask_block(out, settings, rubric, texts_of(block), earlier)

    return bench.store.stage(REPLY, inputs, build, label, purpose, resumable=(PARTIAL,))


def texts_of(block: Stage) -> list[tuple[str, str]]:
    """Prompts and answers of a block."""
    return [(row["prompt"], row["text"]) for row in block.rows(ANSWERS)]


# -- on an engine -------------------------------------------------------------------------------------------------------------


def from_engine(
    bench: Bench, settings: EngineConfig, number: int, wanted: list[tuple[Rubric, Stage]], orders: list[Order], purpose: Purpose
) -> Stage:
    """What the engine said about one block of answers by one rubric.

    The first that is missing asks for all that are missing after it, in the same engine call.
    """
    room = bench.judging.config.sampler.max_model_len

    def build(out: Path) -> dict[str, Any]:
        others = list(range(number + 1, len(wanted)))
        with claimed(bench.store, [(REPLY, orders[other].inputs) for other in others]) as mine:
            chosen = [number, *(others[place] for place in mine)]
            started = time.monotonic()
            rows = ask_engine(bench, settings, [wanted[one] for one in chosen])
            each_s = (time.monotonic() - started) / len(chosen)
            for one, found in list(zip(chosen, rows, strict=True))[1:]:

                def build_other(folder: Path, found: list[ReplyRow] = found) -> dict[str, Any]:
                    return write_replies(folder, found, settings, room) | {"seconds": each_s}

                put(bench.store, REPLY, orders[one].inputs, build_other, orders[one].label)
        return write_replies(out, rows[0], settings, room) | {"seconds": each_s}

    return bench.store.stage(REPLY, orders[number].inputs, build, orders[number].label, purpose)


def reply_label(label: str, rubric: Rubric, number: int, n: int) -> str:
    """What the screen calls the replies about block `number` of `n`."""
    return f"{label}: ask about {rubric.asks}" + (f" {number + 1}/{n}" if n > 1 else "")


def engine_inputs(bench: Bench, settings: EngineConfig, rubric: Rubric, block: Stage) -> dict[str, Any]:
    """What the engine's replies about a block depend on: not on the engine's room, unless a text was refused for want of it."""
    judging = bench.judging
    model, room = judging.config.model, judging.config.sampler.max_model_len
    inputs = {
        **engine.request_inputs(settings, rubric.asks, rubric.digest),
        "answers": block.digest,
        "model": judging.model.digest,
        "template": [model.chat_template_kwargs, model.end_token],
        **sampler_inputs(judging),
    }
    before = bench.store.find(REPLY.name, stage_key(REPLY, inputs))
    if before is not None and "too_long" in before.info.get("failures", {}) and before.info.get("room", 0) < room:
        inputs["room"] = room  # there is more now: asked again
    return inputs


def write_replies(out: Path, rows: list[ReplyRow], settings: EngineConfig, room: int) -> dict[str, Any]:
    write_jsonl(out / REPLIES, rows)
    return engine.counts(rows, settings) | {"room": room}


def ask_engine(bench: Bench, settings: EngineConfig, wanted: list[tuple[Rubric, Stage]]) -> list[list[ReplyRow]]:
    """Ask the base weights of the judging model about blocks of answers; rows of replies, a list a block."""
    judging = bench.judging
    rows_of = {block.key: texts_of(block) for _, block in wanted}  # both rubrics ask about the same
    texts = [(rubric, prompt, text) for rubric, block in wanted for prompt, text in rows_of[block.key]]
    owners = [number for number, (_, block) in enumerate(wanted) for _ in rows_of[block.key]]
    codec, room = judging.codec, judging.config.sampler.max_model_len
    prompts = [codec.conversation(rubric.messages(prompt, text)) for rubric, prompt, text in texts]
    params = Params(0.0, 1.0, settings.max_new_tokens, list(codec.answer_end_ids), [], settings.top_logprobs)
    who = judging.config.model.name if settings.model is None else settings.model, judging.model.digest[:12]
    sampler = judging.sampler
    sampler.load(judging.with_expected(judging.base))

    def say(questions: list[engine.Question]) -> list[Reply]:
        ids = [[*prompts[q.answer], *codec.answer(q.started)[:-1]] if q.started else prompts[q.answer] for q in questions]
        fits = [number for number, one in enumerate(ids) if len(one) + params.max_new_tokens <= room or bench.config.fake]
        blocks: list[Block] = []  # none crosses a stage's: what is said of it must not depend on which others are missing
        for _, own in groupby(fits, lambda number: owners[questions[number].answer]):
            requests = [Request(ids[number], seed=0) for number in own]
            together = TOGETHER if judging.device == "cpu" else len(requests)
            blocks += [Block(requests[at : at + together], params) for at in range(0, len(requests), together)]
        written = [completion for sampled in sampler.sample_blocks(blocks) for completion in sampled.completions]
        found = [engine.refused("too_long", *who)] * len(ids)
        for number, completion in zip(fits, written, strict=True):
            ended = completion.finish_reason == "stop"
            said = engine.Written(completion.ids, ended, completion.top, len(ids[number]))
            found[number] = engine.reply_of(said, codec.token_text, *who)
        return found

    rows = engine.ask(len(texts), settings, say)
    found, at = [], 0
    for _, block in wanted:
        n = len(rows_of[block.key])
        found.append([{**row, "answer": place} for place, row in enumerate(rows[at : at + n])])
        at += n
    return found  # type: ignore[return-value]
