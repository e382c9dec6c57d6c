"""One block of prompts through the sampler: frame each text, sample, and keep ids, text and why each answer ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iterative_ft.codec import Codec
from iterative_ft.policy import Policy
from iterative_ft.sampling import Params, Request, Sampler
from iterative_ft.store import write_jsonl

ANSWERS = "answers.jsonl"
QUESTION_STOPS = ["\nQuestion:", "\n\n"]  # where an answer in a plain question-and-answer frame is over


@dataclass(frozen=True)
class Block:
    """Texts that are sampled as one engine batch."""

    texts: list[str]
    seeds: list[int]
    frame: str
    """"chat" (the model's template), "document" (a title), "question" (plain frame for base models), "opening" (raw text)."""
    temperature: float
    top_p: float
    max_new_tokens: int


def write_block(out: Path, block: Block, policy: Policy, codec: Codec, sampler: Sampler) -> dict[str, Any]:
    """Let `policy` write; answers.jsonl goes into `out`, counts, speed and the canary are returned."""
    encode: dict[str, Callable[[str], list[int]]] = {
        "chat": codec.chat_prompt,
        "document": codec.document_prefix,
        "question": lambda text: codec.raw(f"Question: {text}\nAnswer:"),
        "opening": codec.raw,
    }
    requests = [Request(encode[block.frame](text), seed) for text, seed in zip(block.texts, block.seeds, strict=True)]
    params = Params(
        temperature=block.temperature,
        top_p=block.top_p,
        max_new_tokens=block.max_new_tokens,
        end_ids=list(codec.answer_end_ids if block.frame == "chat" else codec.document_end_ids),
        stop=QUESTION_STOPS if block.frame == "question" else [],
    )
    started = time.monotonic()
    canary = sampler.load(policy)
    loaded = time.monotonic()
    completions = sampler.sample(requests, params)
    seconds = time.monotonic() - loaded
    rows = []
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
