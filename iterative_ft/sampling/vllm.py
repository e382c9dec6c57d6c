"""The resident vLLM engine: on CPU policies are merged and reloaded in place, on CUDA vLLM serves the adapters itself."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Generator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from iterative_ft.config.model import JudgeModelConfig
from iterative_ft.config.schema import Config, VLLMConfig
from iterative_ft.errors import RunError, first_line
from iterative_ft.machine.device import return_freed_memory
from iterative_ft.models.adapters import base_shapes, check_files
from iterative_ft.models.policy import Policy, merge
from iterative_ft.models.served_names import Names, adapted, checkpoint_names, renamed_copy
from iterative_ft.sampling import cache_pages
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

AT_WORK = 128  # requests that the engine works on at a time, at least; the next begins as one ends
PROOF_BLOCKS, PROOF_TOKENS = 4, 16


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
        self.independent: bool | None = None  # whether tokens are the same in a shared call; None until it was tried

    def start(self, base: Policy) -> None:
        set_environment(self.device)
        from vllm import LLM

        options: dict[str, Any] = {
            "block_size": CACHE_BLOCK,
            "kv_cache_memory_bytes": int(self.settings.kv_cache_gib * 2**30),
            "max_num_batched_tokens": self.room(),
            "max_num_seqs": self.at_work,
            "worker_extension_cls": cache_pages.EXTENSION,
        }
        if self.device == "cuda":
            options = {
                "gpu_memory_utilization": self.settings.gpu_memory_utilization,
                "tensor_parallel_size": self.settings.tensor_parallel_size,
                "enable_sleep_mode": True,
            }
        if self.takes_adapters:
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
        if self.takes_adapters:
            self.names = self.names_for(base)
        self.check(base)
        self.loaded = base.model_digest

    @property
    def serves_adapters(self) -> bool:
        """Whether vLLM puts adapters on itself; on a CPU they are merged."""
        return self.device == "cuda"

    @property
    def takes_adapters(self) -> bool:
        """Whether any will come: a second model that judges is asked as it is."""
        return self.serves_adapters and not isinstance(self.config.model, JudgeModelConfig)

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
        (sampled,) = self.stream([Block(requests, params)])
        return sampled.completions

    def sample_blocks(self, blocks: list[Block]) -> Generator[Sampled]:
        if not self.shares_calls:
            yield from one_by_one(self.sample, blocks)
            return
        for together in calls(blocks, self.at_work, self.room()):
            if len(together) == 1 or self.independent:
                yield from self.stream(together)
            elif self.independent is None:
                yield from self.proving(together)
            else:
                yield from one_by_one(self.sample, together)

    def proving(self, blocks: list[Block]) -> Generator[Sampled]:
        """The first shared call, which proves that the blocks' tokens do not depend on their neighbours, or is broken off."""
        alone = self.beginnings(blocks[:PROOF_BLOCKS])
        written = self.stream(blocks)
        first = list(islice(written, PROOF_BLOCKS))
        pairs = zip(first, alone, strict=True)
        self.independent = all(one.completions[0].ids[: len(ids)] == ids for one, ids in pairs)
        if self.independent:
            yield from first
            yield from written
        else:
            written.close()
            print("note: here an answer depends on what is sampled beside it: each block is a call of its own", flush=True)
            yield from one_by_one(self.sample, blocks)

    @property
    def shares_calls(self) -> bool:
        """On a CPU in float32 a request's tokens do not depend on its neighbours; in bfloat16, and on a GPU, they do."""
        return self.device == "cpu" and self.dtype == "float32" and self.independent is not False

    @property
    def at_work(self) -> int:
        """Requests that the engine works on at a time: a block at least, whose requests start together."""
        return max(AT_WORK, self.config.sampling.block_size)

    def beginnings(self, blocks: list[Block]) -> list[list[int]]:
        """How the first request of each block begins in a small call."""
        lengths = [min(PROOF_TOKENS, block.params.max_new_tokens) for block in blocks]
        short = [
            Block(block.requests[:1], replace(block.params, max_new_tokens=n)) for block, n in zip(blocks, lengths, strict=True)
        ]
        return [sampled.completions[0].ids for sampled in self.stream(short)]

    def stream(self, blocks: list[Block]) -> Generator[Sampled]:
        """Complete all blocks in one call of the engine, from an empty prefix cache; each comes when those before it are done.

        A block's seconds are those of each step by its share of the requests that were at work.
        """
        from vllm.inputs import tokens_input

        n_tokens = step_tokens(blocks, self.at_work)
        if self.device == "cpu" and n_tokens > self.room():
            raise RunError(
                f"a block of {len(blocks[0].requests)} prompts with {n_tokens} tokens is more than a compiled engine takes "
                f"on a CPU ({self.room()}): set sampler.enforce_eager=true, or lower sampling.block_size"
            )
        engine = self.llm.llm_engine
        self.llm.reset_prefix_cache()
        owners: dict[str, int] = {}  # request -> its block
        for number, block in enumerate(blocks):
            for request in block.requests:
                name = str(len(owners))
                owners[name] = number
                prompt, params = tokens_input(request.prompt_ids), sampling_params(block.params, request.seed)
                engine.add_request(name, prompt, params, lora_request=self.adapter_request)
        left = dict.fromkeys(owners)  # in the order in which the engine takes them
        done: list[dict[str, Completion]] = [{} for _ in blocks]
        seconds = [0.0] * len(blocks)
        try:
            for number, block in enumerate(blocks):
                while len(done[number]) < len(block.requests):
                    began, at_work = time.monotonic(), [owners[name] for name in islice(left, self.at_work)]
                    outputs = engine.step()
                    share = (time.monotonic() - began) / len(at_work)
                    for owner in at_work:
                        seconds[owner] += share
                    for output in outputs:
                        if output.finished:
                            del left[output.request_id]
                            owner = owners[output.request_id]
                            done[owner][output.request_id] = found(output.outputs[0], blocks[owner].params)
                asked = [name for name, owner in owners.items() if owner == number]
                yield Sampled([done[number][name] for name in asked], seconds[number], len(owners))
        except GeneratorExit:  # nobody wants the rest
            engine.abort_request(list(left))
            raise

    def sleep(self) -> None:
        if self.llm is None or self.asleep:
            return
        if self.serves_adapters:
            self.llm.sleep(level=1)
            self.asleep = True
        elif not self.llm.llm_engine.has_unfinished_requests():  # nothing else is given away: it serves on as it is
            self.llm.reset_prefix_cache()
            self.llm.collective_rpc("give_cache_back")

    def wake(self) -> bool:
        """Take the device back; whether it had been given away. Adapters are then loaded anew, under other ids."""
        if not self.asleep:
            return False
        self.llm.wake_up()
        self.asleep = False
        self.adapter_ids.clear()
        self.remove_renamed()  # each comes back under another number
        return True

    def close(self) -> None:
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
            self.llm = None
        self.remove_renamed()

    def remove_renamed(self) -> None:
        if self.renamed is not None:
            shutil.rmtree(self.renamed, ignore_errors=True)
            self.renamed = None


def found(output: Any, params: Params) -> Completion:
    """What vLLM gave for one request."""
    top = None
    if params.top_logprobs > 0 and output.logprobs is not None:
        top = [{int(token): float(entry.logprob) for token, entry in entries.items()} for entries in output.logprobs]
    return completion(list(output.token_ids), output.finish_reason, params.end_ids, top)


def sampling_params(params: Params, seed: int) -> Any:
    """vLLM's parameters of one request."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=params.temperature,
        top_p=params.top_p,
        max_tokens=params.max_new_tokens,
        seed=seed,
        ignore_eos=True,  # the end tokens are ours to name
        stop_token_ids=params.end_ids,
        stop=params.stop,
        detokenize=bool(params.stop),
        logprobs=params.top_logprobs or None,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def step_tokens(blocks: list[Block], at_work: int) -> int:
    """Most tokens that one step of the engine may take, when `at_work` requests at most are begun in it."""
    lengths = sorted((len(request.prompt_ids) + 1 for block in blocks for request in block.requests), reverse=True)
    return sum(lengths[:at_work])


def calls(blocks: list[Block], at_work: int, room: int) -> list[list[Block]]:
    """Blocks cut into as few engine calls as keep the prompts that may begin together within the `room` of one step.

    A seeded request whose prompt is split over two steps crashes vLLM on a CPU.
    """
    found: list[list[Block]] = []
    for block in blocks:
        if found and step_tokens([*found[-1], block], at_work) <= room:
            found[-1].append(block)
        else:
            found.append([block])
    return found


def set_environment(device: str) -> None:
    """vLLM is configured by environment variables, read when it is imported; what the user set stays."""
    for name, value in (("VLLM_NO_USAGE_STATS", "1"), ("VLLM_LOGGING_LEVEL", "ERROR")):
        os.environ.setdefault(name, value)
    if device == "cpu":
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
