"""Proof that a sampler serves the policy it was given: the same fixed texts, scored by it and by what the trainer holds.

A merge rounded to bfloat16 swallows small updates, and a checkpoint that loads half-way only warns; both would look like
"training changed nothing". So each load compares next-token distributions and fails when they are not the policy's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from iterative_ft.errors import RunError
from iterative_ft.models.codec import Codec, prompt_ids
from iterative_ft.models.forward import Reader, held
from iterative_ft.models.policy import Policy
from iterative_ft.sampling.interface import Canary

N_TOKENS = 8  # positions looked at in each text
TOP_K = 20  # tokens compared at each position; the rest is one bucket
NOISE_FACTOR = 4.0  # an error below this many times the base model's own is arithmetic
MAX_BASE_ERROR = 0.05  # nats; what a served base model may differ from the trainer's

TEXTS = (
    "What makes a good breakfast?",
    "My neighbour wants to borrow my ladder. What should I say?",
    "Tell me about your day.",
    "How do I choose a book for a friend?",
    "Is it worth learning to play the piano as an adult?",
    "I made a mistake at work this morning.",
    "Describe the sea in winter.",
    "What do you think about people who are always late?",
)


@dataclass(frozen=True)
class Position:
    """What a sampler said of one next token: the ids before it and the log-probabilities of its most likely tokens."""

    context_ids: list[int]
    top: dict[int, float]


def texts(codec: Codec, chat: bool) -> list[list[int]]:
    """Token ids of the fixed texts."""
    return [prompt_ids(codec, "chat" if chat else "opening", text) for text in TEXTS]


def check(policy: Policy, positions: list[Position], noise: float, max_share: float, reader: Reader) -> Canary:
    """Compare what was served with what the trainer holds; raise `RunError` when it is not `policy`.

    Args:
        noise: error of the served base model, nats a token; 0 when `policy` is the base itself.
        max_share: largest allowed error relative to the policy's shift from base.
        reader: of the policy's base model.
    """
    result = reader.run(
        reference_kl,
        adapter=None if policy.adapter is None else str(policy.adapter),
        contexts=[p.context_ids for p in positions],
        tops=[{str(token): value for token, value in p.top.items()} for p in positions],
    )
    canary = Canary(
        error=result["error"], shift=result["shift"], noise=noise if policy.adapter is not None else result["error"]
    )
    # A comparison with NaN is false whatever it asks, so it comes first, and the gates below ask for what is good.
    if not all(math.isfinite(value) for value in (canary.error, canary.shift, canary.noise)):
        likely = "its training diverged: lower method.learning_rate"
        if policy.adapter is None:
            likely = "its weights are broken, or sampler.dtype is too narrow for them: set sampler.dtype=float32"
        raise RunError(
            f"{policy.name} gives values that are not finite (error {canary.error}, shift from base {canary.shift} nats a "
            f"token), nothing was sampled from it: {likely}"
        )
    if policy.adapter is None:
        if not canary.error <= MAX_BASE_ERROR:
            raise RunError(
                f"the sampler does not serve the base model: KL {canary.error:.4f} nats a token against what the trainer holds "
                f"(limit {MAX_BASE_ERROR}); nothing was sampled from it"
            )
    elif not (canary.error <= max_share * canary.shift or canary.error <= NOISE_FACTOR * noise):
        raise RunError(
            f"the sampler does not serve {policy.name}: its error is {canary.error:.4f} nats a token, "
            f"{canary.share:.0%} of the policy's shift from base ({canary.shift:.4f}; "
            f"limit sampler.canary_max_share={max_share}); nothing was sampled from it. "
            "If the updates are small, set sampler.dtype=float32"
        )
    return canary


def reference_kl(
    model: str,
    adapter: str | None,
    contexts: list[list[int]],
    tops: list[dict[str, float]],
    device_name: str,
    trust_remote_code: bool,
) -> dict[str, float]:
    """Mean KL(trainer || served) and KL(trainer || base), nats a token, by plain forward passes in float32."""
    import torch

    # Positions of one text share its context: one forward pass over the longest covers them all.
    longest: dict[int, list[int]] = {}
    groups: list[int] = []
    for ids in contexts:
        match = next((k for k, known in longest.items() if ids[: len(known)] == known or known[: len(ids)] == ids), None)
        number = len(longest) if match is None else match
        groups.append(number)
        if len(ids) > len(longest.get(number, [])):
            longest[number] = ids
    policy_logs: dict[int, Any] = {}
    base_logs: dict[int, Any] = {}
    with held(model, adapter, device_name, trust_remote_code) as net, torch.no_grad():
        for number, ids in longest.items():
            tensor = torch.tensor([ids], device=net.device)
            policy_logs[number] = torch.log_softmax(net(input_ids=tensor).logits[0].float(), -1)
            if adapter is not None:
                with net.disable_adapter():
                    base_logs[number] = torch.log_softmax(net(input_ids=tensor).logits[0].float(), -1)
    error = shift = 0.0
    for ids, top, number in zip(contexts, tops, groups, strict=True):
        tokens = [int(t) for t in top]
        policy = policy_logs[number][len(ids) - 1][tokens].tolist()
        error += bucketed_kl(policy, list(top.values()))
        if adapter is not None:
            shift += bucketed_kl(policy, base_logs[number][len(ids) - 1][tokens].tolist())
    return {"error": error / len(contexts), "shift": shift / len(contexts)}


def bucketed_kl(p: list[float], q: list[float]) -> float:
    """KL(p || q) in nats over the given tokens' log-probabilities and one bucket for all other tokens."""
    if not all(map(math.isfinite, (*p, *q))):  # max() and a sum of exp would make numbers of some of them
        return math.nan
    rest_p, rest_q = (max(1.0 - sum(math.exp(x) for x in logs), 1e-6) for logs in (p, q))
    return sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)) + rest_p * math.log(rest_p / rest_q)
