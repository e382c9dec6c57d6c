"""How fast the loop is on this machine, against plain ways of doing the same: python -m tests.bench (make bench).

Each comparison is made in turns, in one process or one after the other, so that what else the machine does hits both. The
parts took 22 minutes on two idle cores, the whole run (--run) 25 more. One table at the end, ratios first.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from iterative_ft.machine.libraries import prepare_libraries

N_PROMPTS = 256  # as many as a cycle's part of the pool has
N_ROUNDS = 3
N_EXAMPLES = 24


class Table(list[tuple[str, str, str, str]]):
    """Rows of the table at the end; each is also said when it is known."""

    def append(self, row: tuple[str, str, str, str]) -> None:
        super().append(row)
        print("  ".join(cell for cell in row if cell), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="also a whole small run against the plain way (tests/peers.py)")
    options = parser.parse_args()
    prepare_libraries()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    started = time.monotonic()
    table = Table()
    if options.run:  # first: its processes want the memory
        whole_run(table)
    with tempfile.TemporaryDirectory() as folder:
        parts(Path(folder), table)
    widths = [max(len(row[i]) for row in table) for i in range(4)]
    print()
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{time.monotonic() - started:.0f} s in all, load average {os.getloadavg()[0]:.1f}")


def whole_run(table: Table) -> None:
    from tests import peers

    with tempfile.TemporaryDirectory() as folder:
        own = peers.ours(Path(folder), 2)
        most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # GiB of the largest process
        plain = peers.plain(Path(folder), 2, own["model"])
    table.append(("", "small run: peak memory", f"{most:.1f} GiB", ""))
    for name in ("all", "sampling", "training"):
        row = (
            f"{own[name] / plain[name]:.2f} of the time",
            f"small run: {name}",
            f"{own[name]:.0f} s",
            f"{plain[name]:.0f} s plain",
        )
        table.append(row)


def parts(folder: Path, table: Table) -> None:
    from iterative_ft.data import files
    from iterative_ft.models.base import prepare
    from iterative_ft.models.codec import TokenizerCodec
    from iterative_ft.sampling.interface import Block, Params, Request
    from iterative_ft.sampling.vllm import VLLMSampler
    from tests.tiny import embedded_config, policy_of

    config = embedded_config(folder / "store", "method=sft")
    model = folder / "model"
    model.mkdir()
    table.append(("", "base model from its file", f"{timed(lambda: prepare(config.model, model)):.1f} s", ""))
    codec = TokenizerCodec(model, config.model)
    for method in ("sft", "dpo"):
        adapter = training(folder, model, method, codec, table)
    sampler = VLLMSampler(config, "cpu", codec)
    base = policy_of(model)
    table.append(("", "engine start, with import and canary", f"{timed(lambda: sampler.load(base)):.1f} s", ""))
    policy = policy_of(model, adapter)
    for name, target in (("a policy", policy), ("base again", base)):
        table.append(("", f"engine loads {name}", f"{timed(lambda target=target: sampler.load(target)):.1f} s", ""))  # type: ignore[misc]
    prompts = files.pool("prompts", "shipped", "prompt")[:N_PROMPTS]
    requests = [Request(codec.chat_prompt(text), seed) for seed, text in enumerate(prompts)]
    wanted = config.sampling.temperature, config.sampling.top_p, config.method.max_new_tokens  # as a run asks
    params = Params(*wanted, end_ids=list(codec.answer_end_ids), stop=[])
    size = config.sampling.block_size
    blocks = [Block(requests[i : i + size], params) for i in range(0, len(requests), size)]
    sampling(sampler, model, config, blocks, table)  # last: two engines of one process share what either shuts down


def sampling(sampler: Any, model: Path, config: Any, blocks: list[Any], table: Table) -> None:
    """Tokens a second of the sampler, of a call a block, and of bare engines of the same and of half the precision."""
    from vllm import LLM, SamplingParams

    def bare(dtype: str) -> Callable[[], int]:
        engine = LLM(
            model=str(model),
            dtype=dtype,
            max_model_len=config.sampler.max_model_len,
            enforce_eager=config.sampler.enforce_eager,
            kv_cache_memory_bytes=int(config.sampler.kv_cache_gib * 2**30),
            enable_prefix_caching=False,  # the prompts come again in each round, and the sampler empties its cache too
            use_tqdm_on_load=False,
        )
        params = blocks[0].params
        # No seed: a seeded request whose prefill is split over steps ends a bare engine on a CPU.
        plain = SamplingParams(temperature=params.temperature, max_tokens=params.max_new_tokens, stop_token_ids=params.end_ids)
        texts = [{"prompt_token_ids": request.prompt_ids} for block in blocks for request in block.requests]
        return lambda: sum(len(o.outputs[0].token_ids) for o in engine.generate(texts, plain, use_tqdm=False))

    def together() -> int:
        return sum(len(c.ids) for sampled in sampler.sample_blocks(blocks) for c in sampled.completions)

    def apart() -> int:
        return sum(len(c.ids) for block in blocks for c in sampler.sample(block.requests, block.params))

    together()  # the first shared call also proves that tokens do not depend on neighbours
    ways: dict[str, Callable[[], int]] = {
        "one call": together,
        f"calls of {config.sampling.block_size}": apart,
        "bare LLM, float32": bare("float32"),
        "bare LLM, bfloat16": bare("bfloat16"),
    }
    speeds = in_turns(ways)
    own = speeds["one call"]
    for name in list(ways)[1:]:
        ratio = statistics.median(a / b for a, b in zip(own, speeds[name], strict=True))
        found = f"{statistics.median(own):.0f} tokens/s", f"{statistics.median(speeds[name]):.0f} {name}"
        table.append((f"{ratio:.2f} times the speed", "sampling", *found))


def in_turns(ways: dict[str, Callable[[], int]]) -> dict[str, list[float]]:
    """Units of work a second of each way, a number a round."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # nobody's first round counts
    for _ in range(N_ROUNDS):
        for name, way in ways.items():
            began = time.monotonic()
            n = way()
            speeds[name].append(n / (time.monotonic() - began))
    return speeds


def training(folder: Path, model: Path, method: str, codec: Any, table: Table) -> Path:
    """Examples a second of one short training on seed chats, and of TRL on their texts. DPO rejects other chats' answers."""
    from iterative_ft.data import files
    from iterative_ft.machine.files import write_jsonl
    from iterative_ft.training.job import ADAPTER, Job, train
    from tests import peers
    from tests.tiny import embedded_config

    settings = embedded_config(folder / "store", f"method={method}")
    rows = files.seeds(settings.persona_folder)[: N_EXAMPLES + 1]
    examples: list[dict[str, Any]] = []
    texts: list[dict[str, str]] = []
    for row, other in pairwise(rows):
        prompt, ids = codec.chat_prompt(row["prompt"]), codec.answer(row["answer"])
        rejected = {"chosen_ids": ids, "rejected_ids": codec.answer(other["answer"])}
        examples.append({"prompt_ids": prompt, **(rejected if method == "dpo" else {"completion_ids": ids})})
        answer = {"chosen": row["answer"], "rejected": other["answer"]} if method == "dpo" else {"completion": row["answer"]}
        texts.append({"prompt": row["prompt"], **answer})
    write_jsonl(folder / f"{method}.jsonl", examples)

    def ours(number: int) -> dict[str, Any]:
        out = folder / f"{method}{number}"
        out.mkdir()
        job = Job(
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
        )
        return train(job, lambda step, n_steps, loss: None)

    def plain(number: int) -> float:
        task = {"model": str(model), "pairs": texts, "out": str(folder / f"plain{number}"), "cycle": 0}
        trainer = peers.trainer_of(task | {"config": settings.model_dump(mode="json")})
        return timed(trainer.train)

    ratios, own, theirs = [], [], []
    for number in range(N_ROUNDS):
        own.append(ours(number))
        theirs.append(plain(number))
        ratios.append(theirs[-1] / own[-1]["loop_seconds"])
    seconds = statistics.median(info["loop_seconds"] for info in own)
    found = f"{N_EXAMPLES / seconds:.2f} examples/s", f"{N_EXAMPLES / statistics.median(theirs):.2f} TRL's defaults"
    table.append((f"{statistics.median(ratios):.2f} times the speed", f"training {method}", *found))
    # A parameter costs 2 operations a token: forward and the gradient of what flows in; DPO's reference is a forward more.
    n_tokens, passes = own[0]["n_tokens"], 6 if method == "dpo" else 4
    share = passes * n_parameters(model) * n_tokens / seconds / matrix_peak(settings.model.dtype)
    table.append((f"{share:.0%} of the matrix peak", f"training {method}", f"{n_tokens / seconds:.0f} tokens/s", ""))
    return folder / f"{method}0" / ADAPTER


def n_parameters(model: Path) -> int:
    from iterative_ft.models.headers import checkpoint

    return sum(math.prod(tensor.shape) for tensor in checkpoint(model).values())


def matrix_peak(dtype: str) -> float:
    """Operations a second of a product of such matrices, 1024 x 2048 x 2048."""
    import torch

    a, b = (torch.ones(rows, 2048, dtype=getattr(torch, dtype)) for rows in (1024, 2048))
    a @ b
    return max(10 * 2 * 1024 * 2048 * 2048 / timed(lambda: [a @ b for _ in range(10)]) for _ in range(5))


def timed(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
