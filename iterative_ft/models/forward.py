"""Plain forward passes through what the trainer holds: the base model, and a policy's adapter on it.

Judge and gauges read models here: engines are slow at scoring and show no hidden states. The base is loaded once a process and
kept: in float32 on a CPU, in the precision that it is trained in on a GPU, which may hold no more.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from iterative_ft.errors import RunError
from iterative_ft.machine.device import return_freed_memory
from iterative_ft.machine.process import run_isolated
from iterative_ft.models.adapters import put_on
from iterative_ft.models.base import load
from iterative_ft.models.plain_text import PlainText

DEPTH = 1 / 2  # the layer whose states judge and gauges read, as a share of all layers
READ_TOKENS = 1024  # of each text: more than the longest answer of any run that ships
TOLD_EVERY_S = 60.0  # of reading: the judge card and a large file of answers take long
BATCH_TOKENS = {"cpu": 512, "cuda": 2048}  # of one pass, padding included: on a CPU more is more padding and no faster

Sequences = list[tuple[list[int], list[int]]]  # ids of a prompt and of what follows it


@dataclass(frozen=True)
class Reader:
    """A base model that reads texts, in the process that its device asks for."""

    model: str
    """Folder of the checkpoint."""
    device: str
    trust_remote_code: bool = False
    dtype: str = "float32"

    def states(self, texts: Sequence[str], pieces: Sequence[int]) -> list[np.ndarray]:
        """Mean states of each text's first `READ_TOKENS` tokens, and of each of `pieces` parts of about as many tokens.

        Returns: of each text (1 + its pieces, width), the whole text's first. Not to be changed.
        """
        return states_once(self, tuple(texts), tuple(pieces))

    def reply_states(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """States of answers behind their questions, (n, 2 * width): the mean, and at the end of the line. Not to be changed."""
        return replies_once(self, tuple(pairs))

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


@lru_cache(maxsize=4)  # the judge card asks about every persona in the same texts
def states_once(reader: Reader, texts: tuple[str, ...], pieces: tuple[int, ...]) -> list[np.ndarray]:
    return finite(reader.run(states_here, texts=list(texts), pieces=list(pieces)), "the base model")


@lru_cache(maxsize=4)
def replies_once(reader: Reader, pairs: tuple[tuple[str, str], ...]) -> np.ndarray:
    found: np.ndarray = reader.run(replies_here, pairs=[list(pair) for pair in pairs])
    finite([found], "the base model")
    return found


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
    if KEPT:
        KEPT.clear()
        gc.collect()  # networks and hooks hold each other in cycles
        return_freed_memory()


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


def states_here(
    texts: list[str], pieces: list[int], model: str, device_name: str, dtype: str, trust_remote_code: bool
) -> list[np.ndarray]:
    plain = plain_text(model, trust_remote_code)
    # A newline stands before each text, so that its first word has something before it.
    encoded = [plain.ids("\n" + text)[: READ_TOKENS + 1] for text in texts]
    found: list[Any] = [None] * len(texts)
    net = reference(model, device_name, trust_remote_code, dtype).eval()
    for batch, middle in middle_states(net, encoded, device_name):
        for row, number in enumerate(batch):
            length = len(encoded[number])
            states = array(middle[row, min(1, length - 1) : length])
            cut = np.array_split(states, pieces[number])
            found[number] = np.stack([part.mean(0) if len(part) else states.mean(0) for part in [states, *cut]])
    return found


def replies_here(pairs: list[list[str]], model: str, device_name: str, dtype: str, trust_remote_code: bool) -> np.ndarray:
    plain = plain_text(model, trust_remote_code)
    end = plain.ids("\n")
    asked = [plain.ids(f"\nQuestion: {prompt}\nAnswer:")[-READ_TOKENS:] for prompt, _ in pairs]
    replied = [plain.ids(f" {answer}")[:READ_TOKENS] + end for _, answer in pairs]
    found: list[Any] = [None] * len(pairs)
    net = reference(model, device_name, trust_remote_code, dtype).eval()
    for batch, middle in middle_states(net, [a + b for a, b in zip(asked, replied, strict=True)], device_name):
        for row, number in enumerate(batch):
            start, length = len(asked[number]), len(asked[number]) + len(replied[number])
            states = array(middle[row, start:length])
            found[number] = np.concatenate([states[: -len(end)].mean(0), states[-1]])
    return np.stack(found)


def middle_states(net: Any, encoded: list[list[int]], device_name: str) -> Iterator[tuple[list[int], Any]]:
    """Which sequences go together, and their states behind the layer at `DEPTH`, (n, length, width)."""
    with watched(net, enough=True) as seen:
        for batch, ids in id_batches(encoded, device_name):
            with suppress(Enough):
                net(input_ids=ids, use_cache=False)
            yield batch, seen[0]


def array(values: Any) -> np.ndarray:
    found: np.ndarray = values.float().cpu().numpy().astype(float)
    return found


class Enough(Exception):
    """Ends a forward pass at the last layer that is wanted."""


@contextmanager
def watched(net: Any, enough: bool = False) -> Iterator[list[Any]]:
    """Keeps what came last out of the layer at `DEPTH`, (n, length, width), as the one item of a list.

    Args:
        enough: end each pass there, by `Enough`.
    """
    decoder = net.get_decoder()
    layers = decoder.layers if hasattr(decoder, "layers") else decoder.h  # GPT-2 and its kin
    seen: list[Any] = []

    def hook(layer: Any, inputs: Any, output: Any) -> None:
        seen[:] = [output[0] if isinstance(output, tuple) else output]
        if enough:
            raise Enough

    handle = layers[max(1, int(DEPTH * len(layers))) - 1].register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


@lru_cache(maxsize=2)  # a tokenizer takes longer to load than a few answers to read
def plain_text(model: str, trust_remote_code: bool) -> PlainText:
    from transformers import AutoTokenizer

    return PlainText(AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code))


def id_batches(encoded: list[list[int]], device_name: str) -> Iterator[tuple[list[int], Any]]:
    """Which sequences go together, and their ids (n, length); padding stands on the right, where no token looks at it.

    Every `TOLD_EVERY_S` seconds it is said how far they are.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    read, total = 0, sum(map(len, encoded))
    began = told = time.monotonic()
    with torch.no_grad():
        for batch in by_length([len(ids) for ids in encoded], BATCH_TOKENS[device_name]):
            ids = pad_sequence([torch.tensor(encoded[number]) for number in batch], batch_first=True)
            yield batch, ids.to(device_name)
            read += sum(len(encoded[number]) for number in batch)
            now = time.monotonic()
            if now - told >= TOLD_EVERY_S and read < total:
                told, left = now, (now - began) * (total - read) / read
                print(f"the base model reads {len(encoded)} texts: {read / total:.0%}, {left / 60:.1f} min left", flush=True)


# -- passes over prompts and what follows them --------------------------------------------------------------------------------


def by_length(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Indices by length, cut so that a padded batch has at most `most` tokens (or is one sequence).

    The longest come first: each batch fits into the memory that the one before freed.
    """
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if found and lengths[i] * (len(found[-1]) + 1) <= most:
            found[-1].append(i)
        else:
            found.append([i])
    return found[::-1]
