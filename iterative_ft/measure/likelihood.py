"""What the base model makes of a text: how likely it is, and how its middle layers read it.

Plain forward passes, since engines are slow at scoring and show no hidden states.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from iterative_ft.child import run_isolated

READ_TOKENS = 64  # of each text, for the hidden states; an answer of the embedded model has about that many
NLL_TOKENS = 24  # of each text, for the likelihood: word salad shows in the first sentence
BATCH = 32
DEPTHS = (1 / 2, 2 / 3)  # layers whose states are kept, as shares of all layers


@dataclass(frozen=True)
class Reading:
    """n texts as the base model reads them."""

    nll: list[list[float]]
    """Negative log-likelihood, nats, of each of a text's first `NLL_TOKENS` tokens."""
    hidden: np.ndarray
    """(n, len(DEPTHS) * width): states of layers in the middle, averaged over a text's first `READ_TOKENS` tokens."""


def read(texts: list[str], model: str, device: str, trust_remote_code: bool = False) -> Reading:
    """Read texts with the model in folder `model`. The result is not to be changed."""
    return read_once(tuple(texts), model, device, trust_remote_code)


@lru_cache(maxsize=2)  # the judge card asks about every persona in the same texts
def read_once(texts: tuple[str, ...], model: str, device: str, trust_remote_code: bool) -> Reading:
    found = run_isolated(
        read_here, device=device, texts=list(texts), model=model, device_name=device, trust_remote_code=trust_remote_code
    )
    return Reading(found["nll"], np.asarray(found["hidden"]))


def read_here(texts: list[str], model: str, device_name: str, trust_remote_code: bool) -> dict[str, list[list[float]]]:
    import torch
    from transformers import AutoTokenizer

    from iterative_ft.sampling.canary import cached_base

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    # A newline stands before each text, so that its first word is scored as well.
    encoded = [tokenizer("\n" + text, add_special_tokens=False).input_ids[: READ_TOKENS + 1] for text in texts]
    # Longest first: each batch then fits into the memory that the one before it freed.
    order = sorted(range(len(texts)), key=lambda i: -len(encoded[i]))
    net = cached_base(model, device_name, trust_remote_code)
    nll: list[list[float]] = [[] for _ in texts]
    hidden: list[list[float]] = [[] for _ in texts]
    with torch.no_grad(), torch.autocast(device_name, dtype=torch.bfloat16):
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            longest = max(len(encoded[i]) for i in batch)
            # Padding stands on the right, where causal attention never looks at it.
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            for row, i in enumerate(batch):
                ids[row, : len(encoded[i])] = torch.tensor(encoded[i])
            ids = ids.to(device_name)
            states = net.base_model(input_ids=ids, output_hidden_states=True).hidden_states
            middle = torch.cat([states[int(depth * (len(states) - 1))] for depth in DEPTHS], dim=-1).float()
            scored = ids[:, 1 : NLL_TOKENS + 1]
            # The output head is a fifth of the work: it sees only the tokens that are scored.
            logits = net.get_output_embeddings()(states[-1][:, : scored.shape[1]]).float()
            losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), scored.flatten(), reduction="none")
            losses = losses.view_as(scored)
            for row, i in enumerate(batch):
                nll[i] = losses[row, : len(encoded[i]) - 1].tolist()
                hidden[i] = middle[row, 1 : len(encoded[i])].mean(0).tolist()
    return {"nll": nll, "hidden": hidden}
