"""The resident vLLM engine: on CPU policies are merged and reloaded in place, on CUDA vLLM serves the adapters itself."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from iterative_ft.config.schema import Config, VLLMConfig
from iterative_ft.errors import RunError, first_line
from iterative_ft.machine.device import return_freed_memory
from iterative_ft.models.adapters import base_shapes, check_files
from iterative_ft.models.policy import Policy, merge
from iterative_ft.models.served_names import Names, adapted, checkpoint_names, renamed_copy
from iterative_ft.sampling.adapter_names import EXTENSION, RANKS, names_that_fit
from iterative_ft.sampling.canary import Logs, Watch
from iterative_ft.sampling.interface import (
    Block,
    Canary,
    Completion,
    Params,
    Request,
    Sampled,
    completion,
    one_by_one,
    served_dtype,
)
from iterative_ft.sampling.reload import CapturedWarnings, not_loaded

DEFAULT_ROOM, COMPILED_ROOM = 4096, 16384  # tokens of a step on a CPU: vLLM's own, and what a compiled engine gets at most
# Tokens of a block of the KV cache on a CPU, the fewest that vLLM takes there (its default is 128): a question that is asked
# twice is read once, as far as whole blocks go, and attention passes over fewer empty places. The tokens stay the same.
CACHE_BLOCK = 32

MOST_TOGETHER = 128  # requests of a large call
PROOF_TOKENS = 16


class VLLMSampler:
    """One engine for all policies of a base model."""

    def __init__(self, config: Config, device: str, codec: Any) -> None:
        assert isinstance(config.sampler, VLLMConfig)
        self.config, self.settings, self.device, self.codec = config, config.sampler, device, codec
        self.dtype = served_dtype(config.sampler.dtype, device)
        self.llm: Any = None
        self.loaded: str | None = None  # digest of the policy that is served
        self.adapter_request: Any = None
        self.adapter_ids: dict[str, int] = {}  # of those that the engine holds since it last woke
        self.n_adapters = 0
        self.names: Names = {}  # of an adapter's modules, where it is served under others than it was trained
        self.renamed: Path | None = None  # where copies under those names lie
        self.canaries: dict[str, Canary] = {}
        self.watch = Watch(
            config.sampler.canary_max_share, config.sampler.max_model_len, device, self.dtype, config.model.trust_remote_code
        )
        self.asleep = False
        self.independent: bool | None = None  # whether tokens are the same in a large call; None until it was tried

    def start(self, base: Policy) -> None:
        set_environment(self.device)
        from vllm import LLM

        options: dict[str, Any] = {
            "block_size": CACHE_BLOCK,
            "kv_cache_memory_bytes": int(self.settings.kv_cache_gib * 2**30),
            "max_num_batched_tokens": self.room(),
            "max_num_seqs": max(MOST_TOGETHER, self.config.sampling.block_size),
        }
        if self.device == "cuda":
            options = {
                "gpu_memory_utilization": self.settings.gpu_memory_utilization,
                "tensor_parallel_size": self.settings.tensor_parallel_size,
                "enable_sleep_mode": True,
            }
        if self.serves_adapters:
            rank = next(rank for rank in RANKS if rank >= self.config.lora.rank)
            options |= {"enable_lora": True, "max_lora_rank": rank, "worker_extension_cls": EXTENSION}
        try:
            self.llm = LLM(
                model=str(base.model),
                dtype=self.dtype,
                max_model_len=self.settings.max_model_len,
                enforce_eager=self.settings.enforce_eager,
                generation_config="vllm",
                trust_remote_code=self.config.model.trust_remote_code,
                seed=0,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **options,
            )
        except (
            ValueError,
            RuntimeError,
            OSError,
        ) as error:  # a limit it cannot serve, a model that it does not know, no memory
            raise RunError(f"vLLM could not start for {self.config.model.name}: {first_line(error)}") from error
        if self.serves_adapters:
            self.names = self.names_for(base)
        self.check(base)
        self.loaded = base.model_digest

    @property
    def serves_adapters(self) -> bool:
        """Whether vLLM puts adapters on itself; on a CPU they are merged."""
        return self.device == "cuda"

    def room(self) -> int:
        """Tokens that one step of a CPU's engine may take: all of a call's prompts, so that none is split.

        vLLM 0.32 fails on a split prompt with a seed of its own (`CPU Generator does not use offset`). A compiled engine runs
        a step of that size when it starts, so it gets less.
        """
        whole_call = self.config.sampling.block_size * self.settings.max_model_len
        return max(DEFAULT_ROOM, whole_call if self.settings.enforce_eager else min(whole_call, COMPILED_ROOM))

    def load(self, policy: Policy) -> Canary:
        if self.llm is None:
            self.start(policy if policy.adapter is None else policy.base)
        if self.wake():  # what it holds now is checked like something new
            self.loaded = None
        if policy.digest != self.loaded:
            self.loaded = None  # a failed load serves nothing
            if self.serves_adapters:
                self.use_adapter(policy)
            elif policy.adapter is None:
                self.reload(policy.model)
            else:
                folder = Path(tempfile.mkdtemp(prefix="iterative_ft-merged-"))
                try:
                    merge(policy, folder, self.dtype, self.config.model.trust_remote_code)
                    self.reload(folder)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
                return_freed_memory()  # the merge held the model twice
            try:
                self.check(policy)
            except RunError:
                self.adapter_ids.pop(policy.digest, None)  # what the engine holds under that id is not it
                raise
            self.loaded = policy.digest
        return self.canaries[policy.digest]

    def names_for(self, base: Policy) -> Names:
        """Names under which the engine has a place for every layer that is to be trained."""
        modules = adapted(base_shapes(base.model, self.config.model.trust_remote_code), self.config.lora.targets)

        def ask(names: list[str]) -> list[str]:
            found: list[list[str]] = self.llm.collective_rpc("unplaced", args=(names,))
            return sorted({name for worker in found for name in worker})

        return names_that_fit(ask, modules, checkpoint_names(base.model, modules), self.config.model.name)

    def use_adapter(self, policy: Policy) -> None:
        """CUDA: address the adapter in each request, under a name, id and path of its own."""
        from vllm.lora.request import LoRARequest

        if policy.adapter is None:
            self.adapter_request = None
            return
        check_files(policy.adapter, base_shapes(policy.model, self.config.model.trust_remote_code), f"of {policy.name}")
        if policy.digest not in self.adapter_ids:
            self.n_adapters += 1
            self.adapter_ids[policy.digest] = self.n_adapters
        number, folder = self.adapter_ids[policy.digest], policy.adapter
        if self.names:
            self.renamed = self.renamed or Path(tempfile.mkdtemp(prefix="iterative_ft-renamed-"))
            folder = renamed_copy(policy.adapter, self.renamed / str(number), self.names)
        self.adapter_request = LoRARequest(f"{policy.digest}-{number}", number, str(folder))

    def reload(self, folder: Path) -> None:
        """CPU: put a checkpoint's weights in place. Weights that are missing from it are an error, not vLLM's warning."""
        with CapturedWarnings() as captured:
            try:
                self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            except (KeyError, ValueError) as error:
                raise RunError(f"vLLM refused the checkpoint {folder.name}: {error}") from error
        missing = not_loaded(captured.messages)
        if missing:
            raise RunError(
                f"vLLM left {len(missing)} weight(s) of the checkpoint unloaded ({', '.join(missing[:3])}): nothing was sampled"
            )

    def check(self, policy: Policy) -> None:
        """Compare what is served with what the trainer holds."""
        expected = self.watch.expected(policy)
        self.canaries[policy.digest] = self.watch.check(policy, expected, self.token_logs(expected.ids))

    def token_logs(self, ids: list[list[int]]) -> Logs:
        """Log-probabilities of each text's tokens after the first, nats, as they are served."""
        from vllm import SamplingParams

        scored = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, ignore_eos=True, detokenize=False)
        self.llm.reset_prefix_cache()
        prompts = [{"prompt_token_ids": text} for text in ids]
        outputs = self.llm.generate(prompts, scored, use_tqdm=False, lora_request=self.adapter_request)
        return [
            [entries[token].logprob for token, entries in zip(text[1:], output.prompt_logprobs[1:], strict=True)]
            for text, output in zip(ids, outputs, strict=True)
        ]

    def sample(self, requests: list[Request], params: Params) -> list[Completion]:
        return self.call([Block(requests, params)])[0]

    def sample_blocks(self, blocks: list[Block]) -> Iterator[Sampled]:
        for together in calls(blocks, self.most_together, self.room()):
            if len(together) > 1 and self.independent is False:
                yield from one_by_one(self.sample, together)
                continue
            started = time.monotonic()
            done = self.call(together)
            seconds = time.monotonic() - started
            if len(together) > 1 and self.independent is None:
                self.independent = self.same_alone(together, done)
            if len(together) > 1 and not self.independent:
                print("note: here an answer depends on what is sampled beside it: each block is a call of its own", flush=True)
                yield from one_by_one(self.sample, together)
                continue
            n_together = sum(map(len, done))
            n_tokens = max(1, sum(len(c.ids) for completions in done for c in completions))
            for completions in done:
                yield Sampled(completions, seconds * sum(len(c.ids) for c in completions) / n_tokens, n_together)

    @property
    def most_together(self) -> int:
        """On a CPU in float32 a request's tokens do not depend on its neighbours; in bfloat16, and on a GPU, they do."""
        return MOST_TOGETHER if self.device == "cpu" and self.dtype == "float32" and self.independent is not False else 0

    def same_alone(self, blocks: list[Block], done: list[list[Completion]]) -> bool:
        """Whether the first request of each block begins as it did in the large call when it is sampled in a small one."""
        lengths = [min(PROOF_TOKENS, block.params.max_new_tokens) for block in blocks]
        short = [
            Block(block.requests[:1], replace(block.params, max_new_tokens=n)) for block, n in zip(blocks, lengths, strict=True)
        ]
        alone = self.call(short)
        return all(
            mine[0].ids[:PROOF_TOKENS] == theirs[0].ids[: len(mine[0].ids)] for mine, theirs in zip(alone, done, strict=True)
        )

    def call(self, blocks: list[Block]) -> list[list[Completion]]:
        """All blocks in one call of the engine, from an empty prefix cache."""
        from vllm import SamplingParams

        n_requests = sum(len(block.requests) for block in blocks)
        n_tokens = sum(prompt_tokens(block) for block in blocks)
        if self.device == "cpu" and n_tokens > self.room():
            raise RunError(
                f"a call of {n_requests} prompts with {n_tokens} tokens is more than a compiled engine takes on a CPU "
                f"({self.room()}): set sampler.enforce_eager=true, or lower sampling.block_size"
            )
        self.llm.reset_prefix_cache()
        prompts = [{"prompt_token_ids": request.prompt_ids} for block in blocks for request in block.requests]
        sampling = [
            SamplingParams(
                temperature=block.params.temperature,
                top_p=block.params.top_p,
                max_tokens=block.params.max_new_tokens,
                seed=request.seed,
                ignore_eos=True,  # the end tokens are ours to name
                stop_token_ids=block.params.end_ids,
                stop=block.params.stop,
                detokenize=bool(block.params.stop),
                logprobs=block.params.top_logprobs or None,
            )
            for block in blocks
            for request in block.requests
        ]
        outputs = iter(self.llm.generate(prompts, sampling, use_tqdm=False, lora_request=self.adapter_request))
        return [[found(output.outputs[0], block.params) for output in islice(outputs, len(block.requests))] for block in blocks]

    def sleep(self) -> None:
        if self.device == "cuda" and self.llm is not None and not self.asleep:
            self.llm.sleep(level=1)
            self.asleep = True

    def wake(self) -> bool:
        """Take the device back; whether it had been given away. Adapters are then loaded anew, under other ids."""
        if not self.asleep:
            return False
        self.llm.wake_up()
        self.asleep = False
        self.adapter_ids.clear()
        return True

    def close(self) -> None:
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
            self.llm = None
        if self.renamed is not None:
            shutil.rmtree(self.renamed, ignore_errors=True)


def found(output: Any, params: Params) -> Completion:
    """What vLLM gave for one request."""
    top = None
    if params.top_logprobs > 0 and output.logprobs is not None:
        top = [{int(token): float(entry.logprob) for token, entry in entries.items()} for entries in output.logprobs]
    return completion(list(output.token_ids), output.finish_reason, params.end_ids, top)


def prompt_tokens(block: Block) -> int:
    """Tokens that a block takes of the engine's first step."""
    return sum(len(request.prompt_ids) + 1 for request in block.requests)


def calls(blocks: list[Block], most: int, room: int) -> list[list[Block]]:
    """Blocks cut into engine calls of at most `most` requests, whose prompts fit the `room` of one step of the engine.

    A seeded request whose prompt is split over two steps crashes vLLM on a CPU.
    """
    found: list[list[Block]] = []
    n = n_tokens = 0
    for block in blocks:
        size, length = len(block.requests), prompt_tokens(block)
        if not found or n + size > most or n_tokens + length > room:
            found.append([])
            n = n_tokens = 0
        found[-1].append(block)
        n, n_tokens = n + size, n_tokens + length
    return found


def set_environment(device: str) -> None:
    """vLLM is configured by environment variables, read when it is imported; what the user set stays."""
    for name, value in (("VLLM_NO_USAGE_STATS", "1"), ("VLLM_LOGGING_LEVEL", "ERROR")):
        os.environ.setdefault(name, value)
    if device == "cpu":
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
