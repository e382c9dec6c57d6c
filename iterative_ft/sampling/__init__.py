"""Policies write here: one interface, and the samplers behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from iterative_ft.config import Config
from iterative_ft.policy import Policy


@dataclass(frozen=True)
class Request:
    """One prompt and the seed of its sampling."""

    prompt_ids: list[int]
    seed: int


@dataclass(frozen=True)
class Params:
    """How a block of requests is sampled."""

    temperature: float
    top_p: float
    max_new_tokens: int
    end_ids: list[int]
    """Tokens at which the model ends by itself; kept in the ids."""
    stop: list[str]
    """Strings at which an answer is cut, for models without a template; cut-off ids stay in the ids."""


@dataclass(frozen=True)
class Completion:
    """What a policy wrote for one request."""

    ids: list[int]
    """As sampled, the end token included where there is one."""
    finish_reason: str
    """"stop": ended by itself; "length": cut off at the token limit; "string": met a stop string."""


@dataclass(frozen=True)
class Canary:
    """What the sampler serves against what the trainer holds, on fixed texts. KL in nats a token."""

    error: float
    """KL(trainer's policy || what is served)."""
    shift: float
    """KL(trainer's policy || base): how far training moved it."""
    noise: float
    """KL(trainer's base || served base): what arithmetic alone does."""

    @property
    def share(self) -> float:
        """Error relative to the shift; 0 for base."""
        return self.error / self.shift if self.shift > 0 else 0.0


class Sampler(Protocol):
    """One per process and base model, alive for the whole run."""

    def load(self, policy: Policy) -> Canary:
        """Serve `policy` from now on and check that it is served; nothing to do when it already is.

        Raises:
            RunError: the canary says that something else is served.
        """

    def sample(self, requests: list[Request], params: Params) -> list[Completion]:
        """Complete the requests as one batch, from an empty prefix cache."""

    def sleep(self) -> None:
        """Give a GPU's memory back while something else needs it."""

    def close(self) -> None:
        """Free everything."""


def served_dtype(wanted: str, device: str) -> str:
    """Precision of the served weights; "auto" is float32 on CPU, where policies are merged, and bfloat16 on CUDA.

    A merge rounded to bfloat16 lost up to a fifth of a small update here, which biases results towards "nothing changed".
    """
    return wanted if wanted != "auto" else ("bfloat16" if device == "cuda" else "float32")


def make_sampler(config: Config, device: str, codec: Any) -> Sampler:
    """The configured sampler, with its engine started."""
    return SAMPLERS[config.sampler.name](config, device, codec)


def make_vllm(config: Config, device: str, codec: Any) -> Sampler:
    from iterative_ft.sampling.vllm import VLLMSampler

    return VLLMSampler(config, device, codec)


def make_transformers(config: Config, device: str, codec: Any) -> Sampler:
    from iterative_ft.sampling.transformers import TransformersSampler

    return TransformersSampler(config, device, codec)


def make_fake(config: Config, device: str, codec: Any) -> Sampler:
    from iterative_ft.fake import FakeSampler

    return FakeSampler()


SAMPLERS: dict[str, Callable[[Config, str, Any], Sampler]] = {
    "vllm": make_vllm,
    "transformers": make_transformers,
    "fake": make_fake,
}
