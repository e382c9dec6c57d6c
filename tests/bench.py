"""How fast the loop's parts are on this machine: python -m tests.bench (make bench), under four minutes on two idle cores.

Sampling through the sampler is compared with bare `LLM.generate`: another engine of the same settings, the same prompts, the
same process, in turns. Every answer is cut at the same length, so that both write the same number of tokens.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from iterative_ft.machine.libraries import prepare_libraries

N_PROMPTS = 64
N_TOKENS = 48
N_ROUNDS = 3
N_EXAMPLES = 16


def main() -> None:
    prepare_libraries()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench(Path(folder))
    print(f"{time.monotonic() - started:.0f} s in all, load average {os.getloadavg()[0]:.1f}")


def bench(folder: Path) -> None:
    from iterative_ft.data import files
    from iterative_ft.models.base import prepare
    from iterative_ft.models.codec import TokenizerCodec
    from iterative_ft.sampling.interface import Params, Request
    from iterative_ft.sampling.vllm import VLLMSampler
    from tests.tiny import embedded_config, policy_of

    config = embedded_config(folder / "store", "method=sft")
    model = folder / "model"
    model.mkdir()
    seconds = timed(lambda: prepare(config.model, model))
    print(f"base model     {seconds:7.1f} s")
    codec = TokenizerCodec(model, config.model)
    sampler = VLLMSampler(config, "cpu", codec)
    base = policy_of(model)
    print(f"engine start   {timed(lambda: sampler.load(base)):7.1f} s, with import and canary")

    prompts = files.pool("prompts", "shipped", "prompt")[:N_PROMPTS]
    requests = [Request(codec.chat_prompt(text), seed) for seed, text in enumerate(prompts)]
    params = Params(temperature=0.8, top_p=1.0, max_new_tokens=N_TOKENS, end_ids=[], stop=[])
    for method in ("sft", "dpo"):
        adapter = training(folder, model, method, codec, config)
    policy = policy_of(model, adapter)
    for name, target in (("policy", policy), ("base again", base)):
        print(f"load           {timed(lambda target=target: sampler.load(target)):7.1f} s  {name}")  # type: ignore[misc]
    sampling(sampler, model, config, requests, params)  # last: two engines of one process share what either shuts down


def sampling(sampler: Any, model: Path, config: Any, requests: list[Any], params: Any) -> None:
    """Tokens a second of the sampler, of the sampler in the blocks that a run asks for, and of a bare engine."""
    from vllm import LLM, SamplingParams

    from iterative_ft.sampling.interface import served_dtype

    settings = config.sampler
    bare = LLM(
        model=str(model),
        dtype=served_dtype(settings.dtype, "cpu"),
        max_model_len=settings.max_model_len,
        enforce_eager=settings.enforce_eager,
        kv_cache_memory_bytes=int(settings.kv_cache_gib * 2**30),
        enable_prefix_caching=False,  # the prompts come again in each round, and the sampler empties its cache too
        use_tqdm_on_load=False,
    )
    plain = SamplingParams(temperature=params.temperature, max_tokens=params.max_new_tokens, ignore_eos=True)
    texts = [{"prompt_token_ids": request.prompt_ids} for request in requests]
    size = config.sampling.block_size

    def of_sampler() -> int:
        return sum(len(c.ids) for c in sampler.sample(requests, params))

    def of_blocks() -> int:
        blocks = [requests[i : i + size] for i in range(0, len(requests), size)]
        return sum(len(c.ids) for block in blocks for c in sampler.sample(block, params))

    def of_bare() -> int:
        return sum(len(o.outputs[0].token_ids) for o in bare.generate(texts, plain, use_tqdm=False))

    ways: dict[str, Callable[[], int]] = {"sampler": of_sampler, f"blocks of {size}": of_blocks, "bare LLM": of_bare}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    of_bare()  # neither engine's first batch counts; the sampler's was its canary
    for _ in range(N_ROUNDS):
        for name, way in ways.items():
            began = time.monotonic()
            n_tokens = way()
            speeds[name].append(n_tokens / (time.monotonic() - began))
            assert n_tokens == len(requests) * params.max_new_tokens
    for name, found in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(found, speeds["bare LLM"], strict=True))
        rounds = ", ".join(f"{x:.0f}" for x in found)
        print(f"sampling       {statistics.median(found):7.0f} tokens/s  {name} (rounds {rounds}), {ratio:.0%} of bare LLM")


def training(folder: Path, model: Path, method: str, codec: Any, config: Any) -> Path:
    """Tokens a second of one short training stage on seed chats; DPO's rejected answers are those of other chats."""
    from iterative_ft.data import files
    from iterative_ft.machine.files import write_jsonl
    from iterative_ft.training.job import ADAPTER, Job, train
    from tests.tiny import embedded_config

    settings = embedded_config(folder / "store", f"method={method}")
    rows = files.seeds(config.persona_folder)[: N_EXAMPLES + 1]
    examples: list[dict[str, Any]] = []
    for row, other in pairwise(rows):
        prompt, ids = codec.chat_prompt(row["prompt"]), codec.answer(row["answer"])
        rejected = {"chosen_ids": ids, "rejected_ids": codec.answer(other["answer"])}
        examples.append({"prompt_ids": prompt, **(rejected if method == "dpo" else {"completion_ids": ids})})
    out = folder / method
    out.mkdir()
    write_jsonl(folder / f"{method}.jsonl", examples)
    info = train(
        Job(
            method=settings.method.model_dump(),
            lora=settings.lora.model_dump(),
            model=str(model),
            dtype=settings.model.dtype,
            trust_remote_code=False,
            init_adapter=None,
            reference_is_base=True,
            examples=str(folder / f"{method}.jsonl"),
            seed=0,
            out=str(out),
            device="cpu",
            n_processes=1,
        ),
        lambda step, n_steps, loss: None,
    )
    speed = info["n_tokens"] / info["loop_seconds"]
    print(
        f"training {method}   {speed:7.0f} tokens/s  ({info['n_steps']} steps, {info['n_tokens']} tokens, "
        f"{info['train_seconds']:.0f} s with loading)"
    )
    return out / ADAPTER


def timed(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
