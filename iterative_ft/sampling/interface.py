"""What every sampler takes and gives: requests in, token ids and the reason why each ended out."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol, TypedDict

from iterative_ft.models.policy import Policy


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
    top_logprobs: int = 0
    """Likeliest tokens whose log-probabilities are wanted at each position."""


@dataclass(frozen=True)
class Block:
    """Requests that are sampled alike and stored together."""

    requests: list[Request]
    params: Params


@dataclass(frozen=True)
class Completion:
    """What a policy wrote for one request."""

    ids: list[int]
    """As sampled, the end token included where there is one."""
    finish_reason: str
    """"stop": ended by itself; "length": cut off at the token limit; "string": met a stop string."""
    top: list[dict[int, float]] | None = None
    """Log-probabilities at each position of `ids` before any temperature, nats: of the likeliest tokens and of the one sampled.
    None unless they were asked for."""


@dataclass(frozen=True)
class Sampled:
    """What came of a block."""

    completions: list[Completion]
    seconds: float
    """Its share, by requests at work, of the call that it was in."""
    n_together: int
    """Requests of that call."""


class Answer(TypedDict):
    """A row of answers.jsonl in the store: what a policy wrote for one prompt."""

    prompt: str
    text: str
    """The ids as text, special tokens left out."""
    finish_reason: str
    """As in `Completion`."""
    seed: int
    prompt_ids: list[int]
    ids: list[int]


@dataclass(frozen=True)
class Canary:
    """What the sampler serves against what the trainer holds, on fixed texts, in nats a token.

    Each is half the mean squared difference of log-probabilities: the KL, where it is small.
    """

    error: float
    """Trainer's policy against what is served."""
    shift: float
    """Trainer's policy against base: how far training moved it."""
    noise: float
    """Trainer's base against served base: what arithmetic alone does."""
    kept: float = 1.0
    """Share of the shift that is served: 1 for the policy itself, 0 for base in its place."""

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

    def sample_blocks(self, blocks: list[Block]) -> Generator[Sampled]:
        """Complete each block as `sample` would, in their order; in few calls where what a request gets does not depend on
        its neighbours. A block comes as soon as it and those before it are done; until then no other call may be made.
        """

    @property
    def shares_calls(self) -> bool:
        """Whether blocks may share a call; False where each is a call of its own."""

    def sleep(self) -> None:
        """Give memory back while something else needs it: a GPU's, or that of the KV cache on a CPU."""

    def close(self) -> None:
        """Free everything."""


def served_dtype(wanted: str, device: str) -> str:
    """Precision of the served weights; "auto" is float32 on CPU, where policies are merged, and bfloat16 on CUDA.

    A merge rounded to bfloat16 lost up to a fifth of a small update here, which biases results towards "nothing changed".
    """
    return wanted if wanted != "auto" else ("bfloat16" if device == "cuda" else "float32")


def one_by_one(sample: Callable[[list[Request], Params], list[Completion]], blocks: list[Block]) -> Generator[Sampled]:
    """Each block in a call of its own."""
    for block in blocks:
        started = time.monotonic()
        found = sample(block.requests, block.params)
        yield Sampled(found, time.monotonic() - started, len(found))


def completion(
    ids: list[int], finish_reason: str | None, end_ids: list[int], top: list[dict[int, float]] | None = None
) -> Completion:
    """Name why an answer ended: by the model's own end token, at the token limit, or at a stop string."""
    if ids and ids[-1] in end_ids:
        return Completion(ids, "stop", top)
    return Completion(ids, "length" if finish_reason == "length" else "string", top)
