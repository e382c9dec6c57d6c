"""The same interface without vLLM: plain transformers generation, one request at a time, each with its own seed."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from iterative_ft.config.schema import Config, TransformersConfig
from iterative_ft.models.adapters import put_on
from iterative_ft.models.base import load
from iterative_ft.models.expected import token_logs
from iterative_ft.models.policy import Policy
from iterative_ft.sampling.canary import Watch
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


class TransformersSampler:
    """Holds one model and puts each policy's adapter on it."""

    shares_calls = False

    def __init__(self, config: Config, device: str, codec: Any) -> None:
        assert isinstance(config.sampler, TransformersConfig)
        self.config, self.device, self.codec = config, device, codec
        self.dtype = served_dtype(config.sampler.dtype, device)
        self.base: Any = None
        self.model: Any = None
        self.loaded: str | None = None
        self.asleep = False
        self.canaries: dict[str, Canary] = {}
        self.watch = Watch(
            config.sampler.canary_max_share,
            config.sampler.max_model_len,
            device,
            self.dtype,
            config.model.trust_remote_code,
        )

    def load(self, policy: Policy) -> Canary:
        import torch
        from transformers import GenerationConfig

        if self.base is None:
            base = load(policy.model, getattr(torch, self.dtype), self.config.model.trust_remote_code)
            self.base = base.to(self.device)
            # A model's own may penalise repetition; vLLM does not read it either.
            self.base.generation_config = GenerationConfig()
            self.model = self.base.eval()
            if policy.adapter is not None:
                self.check(policy.base)
        if self.asleep:
            self.base.to(self.device)
            self.asleep, self.loaded = False, None  # so that what is served is checked again
        if policy.digest != self.loaded:
            self.loaded = None
            if self.model is not self.base:
                self.base = self.model.unload()
            adapter = policy.adapter
            self.model = self.base if adapter is None else put_on(self.base, adapter, f"of {policy.name}").eval()
            self.check(policy)
            self.loaded = policy.digest
        return self.canaries[policy.digest]

    def check(self, policy: Policy) -> None:
        expected = self.watch.expected(policy)
        self.canaries[policy.digest] = self.watch.check(policy, expected, token_logs(self.model, expected.ids))

    def sample(self, requests: list[Request], params: Params) -> list[Completion]:
        import torch

        found = []
        for request in requests:
            torch.manual_seed(request.seed)
            prompt = torch.tensor([request.prompt_ids], device=self.device)
            with torch.no_grad():
                output = self.model.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    do_sample=params.temperature > 0,
                    temperature=params.temperature if params.temperature > 0 else None,
                    top_p=params.top_p if params.temperature > 0 else None,
                    top_k=0 if params.temperature > 0 else None,
                    max_new_tokens=params.max_new_tokens,
                    eos_token_id=params.end_ids,
                    pad_token_id=params.end_ids[0],
                    stop_strings=params.stop or None,
                    tokenizer=self.codec.tokenizer if params.stop else None,
                    return_dict_in_generate=True,
                    output_logits=params.top_logprobs > 0,
                )
            ids = output.sequences[0, prompt.shape[1] :].tolist()
            top = likeliest(output.logits, ids, params.top_logprobs) if params.top_logprobs > 0 else None
            found.append(completion(ids, "length" if len(ids) == params.max_new_tokens else "stop", params.end_ids, top))
        return found

    def sample_blocks(self, blocks: list[Block]) -> Generator[Sampled]:
        return one_by_one(self.sample, blocks)

    def sleep(self) -> None:
        """Off the GPU, into the machine's memory."""
        if self.device == "cuda" and self.base is not None and not self.asleep:
            import torch

            self.base.to("cpu")
            torch.cuda.empty_cache()
            self.asleep = True

    def close(self) -> None:
        self.base = self.model = None


def likeliest(logits: Any, ids: list[int], n: int) -> list[dict[int, float]]:
    """Log-probabilities of the `n` likeliest tokens at each position, and of the one that was sampled.

    Args:
        logits: a tensor (1, vocabulary) a position, before any temperature.
    """
    import torch

    found = []
    for position, sampled in zip(logits, ids, strict=True):
        logs = torch.log_softmax(position[0].float(), -1)
        values, tokens = logs.topk(min(n, logs.shape[-1]))
        found.append({int(sampled): float(logs[sampled]), **dict(zip(tokens.tolist(), values.tolist(), strict=True))})
    return found
