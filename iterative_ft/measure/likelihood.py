"""What the base model makes of a text: how likely it is, and how its middle layers read it.

Plain forward passes, since engines are slow at scoring and show no hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from iterative_ft.child import run_isolated

STATE_TOKENS = 64  # of each text, for the states; an answer of the embedded model has about that many
DEPTHS = (1 / 2, 2 / 3)  # layers whose states are kept, as shares of all layers
NLL_TOKENS = 24  # of each text, for the likelihood: word salad shows in the first sentence
BATCH = 32


class Enough(Exception):
    """Ends a forward pass at the last layer that is wanted."""


def states(texts: list[str], model: str, device: str, trust_remote_code: bool = False) -> np.ndarray:
    """(n, len(DEPTHS) * width): middle layers' states, averaged over a text's first `STATE_TOKENS` tokens. Not to be changed.

    Args:
        model: folder of the base model.
    """
    return states_once(tuple(texts), model, device, trust_remote_code)


def nll(texts: list[str], model: str, device: str, trust_remote_code: bool = False) -> list[list[float]]:
    """Negative log-likelihood, nats, of each of a text's first `NLL_TOKENS` tokens. Not to be changed."""
    return nll_once(tuple(texts), model, device, trust_remote_code)


@lru_cache(maxsize=2)  # the judge card asks about every persona in the same texts
def states_once(texts: tuple[str, ...], model: str, device: str, trust_remote_code: bool) -> np.ndarray:
    found = run_isolated(
        states_here, device=device, texts=texts, model=model, device_name=device, trust_remote_code=trust_remote_code
    )
    return np.asarray(found)


@lru_cache(maxsize=2)
def nll_once(texts: tuple[str, ...], model: str, device: str, trust_remote_code: bool) -> list[list[float]]:
    return run_isolated(
        nll_here, device=device, texts=texts, model=model, device_name=device, trust_remote_code=trust_remote_code
    )


def states_here(texts: tuple[str, ...], model: str, device_name: str, trust_remote_code: bool) -> list[list[float]]:
    import torch

    found: list[list[float]] = [[] for _ in texts]
    for net, ids, lengths in batches(texts, STATE_TOKENS, model, device_name, trust_remote_code):
        middle = torch.cat(middle_states(net, ids), dim=-1).float()
        for row, (number, length) in enumerate(lengths):
            found[number] = middle[row, 1:length].mean(0).tolist()
    return found


def middle_states(net: Any, ids: Any) -> list[Any]:
    """The states behind the layers at `DEPTHS`, each (n, length, width); the layers after them are not run."""
    layers = net.get_decoder().layers
    kept: list[Any] = []

    def keep(last: bool) -> Callable[..., None]:
        def hook(layer: Any, inputs: Any, output: Any) -> None:
            kept.append(output[0] if isinstance(output, tuple) else output)
            if last:
                raise Enough

        return hook

    hooks = [layers[int(depth * len(layers)) - 1].register_forward_hook(keep(depth == DEPTHS[-1])) for depth in DEPTHS]
    try:
        net.base_model(input_ids=ids, use_cache=False)
    except Enough:
        pass
    finally:
        for handle in hooks:
            handle.remove()
    return kept


def nll_here(texts: tuple[str, ...], model: str, device_name: str, trust_remote_code: bool) -> list[list[float]]:
    import torch

    found: list[list[float]] = [[] for _ in texts]
    for net, ids, lengths in batches(texts, NLL_TOKENS, model, device_name, trust_remote_code):
        logits = net(input_ids=ids, use_cache=False).logits[:, :-1].float()
        scored = ids[:, 1:]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), scored.flatten(), reduction="none").view_as(scored)
        for row, (number, length) in enumerate(lengths):
            found[number] = losses[row, : length - 1].tolist()
    return found


def batches(
    texts: tuple[str, ...], n_tokens: int, model: str, device_name: str, trust_remote_code: bool
) -> Iterator[tuple[Any, Any, list[tuple[int, int]]]]:
    """The base model, ids (n, length) of some texts' first tokens after a newline, and each text's number and length."""
    import torch
    from transformers import AutoTokenizer

    from iterative_ft.sampling.canary import cached_base

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    # A newline stands before each text, so that its first word is scored as well.
    encoded = [tokenizer("\n" + text, add_special_tokens=False).input_ids[: n_tokens + 1] for text in texts]
    # Longest first: each batch then fits into the memory that the one before it freed.
    order = sorted(range(len(texts)), key=lambda i: -len(encoded[i]))
    net = cached_base(model, device_name, trust_remote_code)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        # Padding stands on the right, where causal attention never looks at it.
        ids = torch.zeros(len(chosen), len(encoded[chosen[0]]), dtype=torch.long)
        for row, number in enumerate(chosen):
            ids[row, : len(encoded[number])] = torch.tensor(encoded[number])
        with torch.no_grad(), torch.autocast(device_name, dtype=torch.bfloat16):
            yield net, ids.to(device_name), [(number, len(encoded[number])) for number in chosen]
