"""Plain forward passes through what the trainer holds: the base model, and a policy's adapter on it.

Judge and gauges read models here: engines are slow at scoring and show no hidden states. The base is loaded once a process and
kept: in float32 on a CPU, in the precision that it is trained in on a GPU, which may hold no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from iterative_ft.errors import RunError
from iterative_ft.machine.process import run_isolated
from iterative_ft.models.adapters import put_on
from iterative_ft.models.base import load
from iterative_ft.models.plain_text import PlainText

STATE_TOKENS = 64  # of each text, for the states; an answer of the embedded model has about that many
DEPTHS = (1 / 2, 2 / 3)  # layers whose states are kept, as shares of all layers
NLL_TOKENS = 24  # of each text, for the likelihood: word salad shows in the first sentence
BATCH_TEXTS = 32  # of one forward pass for states and nll
BATCH_TOKENS = 2048  # of one forward pass over sequences, padding included

Sequences = list[tuple[list[int], list[int]]]  # ids of a prompt and of what follows it


@dataclass(frozen=True)
class Reader:
    """A base model that reads texts, in the process that its device asks for."""

    model: str
    """Folder of the checkpoint."""
    device: str
    trust_remote_code: bool = False
    dtype: str = "float32"

    def states(self, texts: Sequence[str]) -> np.ndarray:
        """(n, len(DEPTHS) * width): middle layers' states, the mean of a text's first `STATE_TOKENS`. Not to be changed."""
        return states_once(self, tuple(texts))

    def nll(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Negative log-likelihood, nats, of each of a text's first `NLL_TOKENS` tokens. Not to be changed."""
        return nll_once(self, tuple(texts))

    def run(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """Call a function that takes a reader's fields, where the device's memory is given back."""
        return run_isolated(
            function,
            device=self.device,
            model=self.model,
            device_name=self.device,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            **arguments,
        )


@lru_cache(maxsize=2)  # the judge card asks about every persona in the same texts
def states_once(reader: Reader, texts: tuple[str, ...]) -> np.ndarray:
    found: np.ndarray = reader.run(states_here, texts=texts)
    finite([found], "the base model")
    return found


@lru_cache(maxsize=2)
def nll_once(reader: Reader, texts: tuple[str, ...]) -> list[np.ndarray]:
    found: list[np.ndarray] = reader.run(nll_here, texts=texts)
    return finite(found, "the base model")


def finite(values: list[np.ndarray], whose: str) -> list[np.ndarray]:
    """The values; one that is NaN or infinite is an error here, since no comparison further on would notice it."""
    if not all(np.isfinite(part).all() for part in values):
        raise RunError(f"{whose} gives values that are not finite: its weights are broken, nothing is measured with it")
    return values


# -- what is held -------------------------------------------------------------------------------------------------------------

KEPT: dict[tuple[str, str], Any] = {}  # at most one: folder and precision -> base model


def reading_dtype(device: str, trained_in: str) -> str:
    """Precision of forward passes: float32 costs a CPU little; a GPU that trains a model may not hold it twice as large."""
    return trained_in if device == "cuda" else "float32"


def reference(model: str, device: str, trust_remote_code: bool, dtype: str = "float32") -> Any:
    """The base model, kept by this process."""
    if (model, dtype) not in KEPT:
        import torch

        KEPT.clear()
        KEPT[model, dtype] = load(model, getattr(torch, dtype), trust_remote_code).to(device)
    return KEPT[model, dtype]


def forget() -> None:
    """Free the base model; the next forward pass loads it again."""
    KEPT.clear()


@contextmanager
def held(model: str, adapter: str | None, device: str, trust_remote_code: bool, dtype: str = "float32") -> Iterator[Any]:
    """The policy: the kept base, for the time of the context with the adapter on it."""
    base = reference(model, device, trust_remote_code, dtype).eval()
    if adapter is None:
        yield base
        return
    policy = put_on(base, adapter, f"in {adapter}").eval()
    try:
        yield policy
    finally:
        policy.unload()


# -- passes over texts --------------------------------------------------------------------------------------------------------


def states_here(texts: tuple[str, ...], model: str, device_name: str, dtype: str, trust_remote_code: bool) -> np.ndarray:
    import torch

    found: list[Any] = [None] * len(texts)
    for net, ids, lengths in text_batches(texts, STATE_TOKENS, model, device_name, dtype, trust_remote_code):
        middle = torch.cat(middle_states(net, ids), dim=-1).float()
        for row, (number, length) in enumerate(lengths):
            found[number] = middle[row, 1:length].mean(0).cpu().numpy().astype(float)
    return np.stack(found)


class Enough(Exception):
    """Ends a forward pass at the last layer that is wanted."""


def middle_states(net: Any, ids: Any) -> list[Any]:
    """The states behind the layers at `DEPTHS`, each (n, length, width); the layers after them are not run."""
    decoder = net.get_decoder()
    layers = decoder.layers if hasattr(decoder, "layers") else decoder.h  # GPT-2 and its kin
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


def nll_here(texts: tuple[str, ...], model: str, device_name: str, dtype: str, trust_remote_code: bool) -> list[np.ndarray]:
    import torch

    found: list[Any] = [None] * len(texts)
    for net, ids, lengths in text_batches(texts, NLL_TOKENS, model, device_name, dtype, trust_remote_code):
        logits = net(input_ids=ids, use_cache=False).logits[:, :-1].float()
        scored = ids[:, 1:]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), scored.flatten(), reduction="none").view_as(scored)
        for row, (number, length) in enumerate(lengths):
            found[number] = losses[row, : length - 1].cpu().numpy().astype(float)
    return found


def text_batches(
    texts: tuple[str, ...], n_tokens: int, model: str, device_name: str, dtype: str, trust_remote_code: bool
) -> Iterator[tuple[Any, Any, list[tuple[int, int]]]]:
    """The base model, ids (n, length) of some texts' first tokens after a newline, and each text's number and length."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    # A newline stands before each text, so that its first word is scored as well.
    plain = PlainText(tokenizer)
    encoded = [plain.ids("\n" + text)[: n_tokens + 1] for text in texts]
    # Longest first: each batch then fits into the memory that the one before it freed.
    order = sorted(range(len(texts)), key=lambda i: -len(encoded[i]))
    net = reference(model, device_name, trust_remote_code, dtype)
    for start in range(0, len(order), BATCH_TEXTS):
        chosen = order[start : start + BATCH_TEXTS]
        # Padding stands on the right, where causal attention never looks at it.
        ids = torch.zeros(len(chosen), len(encoded[chosen[0]]), dtype=torch.long)
        for row, number in enumerate(chosen):
            ids[row, : len(encoded[number])] = torch.tensor(encoded[number])
        with torch.no_grad(), torch.autocast(device_name, dtype=torch.bfloat16):
            yield net, ids.to(device_name), [(number, len(encoded[number])) for number in chosen]


# -- passes over prompts and what follows them --------------------------------------------------------------------------------


def by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices by length, cut so that a padded batch has at most `BATCH_TOKENS` tokens (or is one sequence)."""
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if found and lengths[i] * (len(found[-1]) + 1) <= BATCH_TOKENS:
            found[-1].append(i)
        else:
            found.append([i])
    return found
