"""Forward passes over prompts and what follows them, under base or a policy: likelihoods, entropies, states.

Gauges read them here. One pass gives all values of its sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from iterative_ft.models.attention import causal_alone, runs_own_code
from iterative_ft.models.forward import BATCH_TOKENS, Enough, Reader, Sequences, array, by_length, finite, held, watched


@dataclass(frozen=True)
class TokenValues:
    """What one forward pass over sequences gives of the tokens after each prompt: an array a sequence, a value a token."""

    nll: list[np.ndarray]
    """Negative log-likelihood, nats."""
    entropy: list[np.ndarray]
    """Of the next-token distribution that stood before each token, over the whole vocabulary, nats."""
    kl: list[np.ndarray]
    """KL(policy || base) of the same distributions, nats, 0 for base itself; empty unless asked for."""
    states: SequenceStates

    def part(self, start: int, end: int | None = None) -> TokenValues:
        """Of the sequences from `start` to before `end`."""
        some = slice(start, end)
        states = SequenceStates(self.states.prompt[some], self.states.answer[some])
        return TokenValues(self.nll[some], self.entropy[some], self.kl[some], states)


@dataclass(frozen=True)
class SequenceStates:
    """Hidden states behind the layer at `DEPTH`, each (sequences, width)."""

    prompt: np.ndarray
    """At the last token of the prompt."""
    answer: np.ndarray
    """The mean over what follows the prompt."""


def token_values(reader: Reader, adapter: Path | None, sequences: Sequences, kl: bool = False) -> TokenValues:
    """Read sequences under the policy with `adapter` (None: the base).

    Raises:
        RunError: a value is not finite.
    """
    found = reader.run(token_values_here, adapter=named(adapter), sequences=sequences, kl=kl)
    for part in (found["nll"], found["entropy"], found["kl"], [found["prompt"], found["answer"]]):
        finite(part, owner(adapter))
    return TokenValues(found["nll"], found["entropy"], found["kl"], SequenceStates(found["prompt"], found["answer"]))


def sequence_states(reader: Reader, adapter: Path | None, sequences: Sequences) -> SequenceStates:
    """The states alone: no layer behind the middle one is run.

    Raises:
        RunError: a value is not finite.
    """
    found = reader.run(sequence_states_here, adapter=named(adapter), sequences=sequences)
    finite([found["prompt"], found["answer"]], owner(adapter))
    return SequenceStates(found["prompt"], found["answer"])


def named(adapter: Path | None) -> str | None:
    return None if adapter is None else str(adapter)


def owner(adapter: Path | None) -> str:
    return "the base model" if adapter is None else f"the policy of {adapter}"


def token_values_here(
    model: str,
    adapter: str | None,
    sequences: Sequences,
    kl: bool,
    device_name: str,
    dtype: str,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """The parts of `TokenValues` and of its states, by name: a child process writes no objects."""
    import torch

    nll: list[Any] = [None] * len(sequences)
    entropy: list[Any] = [None] * len(sequences)
    divergence: list[Any] = [None] * len(sequences) if kl else []
    states = Collected(len(sequences))
    with held(model, adapter, device_name, trust_remote_code, dtype) as net, torch.no_grad():
        begun = common_beginning(net, sequences)
        mine_begun, base_begun = Beginning(begun), Beginning(begun)
        for numbers, batch in batches(net, sequences, len(begun)):
            with watched(net) as seen:
                logs = next_token_logs(net, batch, mine_begun)
            states.add(numbers, batch, seen[0])
            other = logs
            if kl and adapter is not None:
                with net.disable_adapter():
                    other = next_token_logs(net, batch, base_begun)
            for i, mine, theirs in zip(numbers, logs, other, strict=True):
                ids = torch.tensor(sequences[i][1], device=mine.device)
                chances = mine.exp()
                nll[i] = array(-mine.gather(1, ids[:, None])[:, 0])
                entropy[i] = array(torch.special.entr(chances).sum(1))
                if kl:
                    divergence[i] = array((chances * (mine - theirs)).sum(1))
    return {"nll": nll, "entropy": entropy, "kl": divergence, **states.whole()}


def sequence_states_here(
    model: str, adapter: str | None, sequences: Sequences, device_name: str, dtype: str, trust_remote_code: bool
) -> dict[str, Any]:
    import torch

    states = Collected(len(sequences))
    with held(model, adapter, device_name, trust_remote_code, dtype) as net, torch.no_grad():
        beginning = Beginning(common_beginning(net, sequences))
        for numbers, batch in batches(net, sequences, len(beginning.ids)):
            with watched(net, enough=True) as seen, suppress(Enough):
                batch.run(net, beginning)
            states.add(numbers, batch, seen[0])
    return states.whole()


class Collected:
    """States of sequences, gathered batch by batch."""

    def __init__(self, n: int) -> None:
        self.prompts: list[Any] = [None] * n
        self.answers: list[Any] = [None] * n

    def add(self, numbers: Sequence[int], batch: Batch, states: Any) -> None:
        """Take a batch's: (sequences, length - begun, width)."""
        for row, (number, (prompt, rest)) in enumerate(zip(numbers, batch.sequences, strict=True)):
            end = len(prompt) - batch.begun
            self.prompts[number] = array(states[row, end - 1].float())
            self.answers[number] = array(states[row, end : end + len(rest)].float().mean(0))

    def whole(self) -> dict[str, np.ndarray]:
        return {"prompt": stacked(self.prompts), "answer": stacked(self.answers)}


def stacked(rows: list[np.ndarray]) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, 0))


def common_beginning(net: Any, sequences: Sequences) -> list[int]:
    """The tokens that all prompts begin with, as far as the network may read them once for all.

    A prompt's last token is not among them: its states are wanted. There are none where a token may depend on more than those
    before it.
    """
    if len(sequences) < 2 or runs_own_code(net) or not causal_alone(net.config):
        return []
    columns = zip(*(prompt[:-1] for prompt, _ in sequences), strict=False)
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]


class Beginning:
    """Tokens that sequences begin with, and their keys and values by one network once it has read them."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids
        self.keys: Any = None

    def options(self, net: Any, n: int) -> dict[str, Any]:
        """What a pass over the rest of `n` sequences is to be called with."""
        if not self.ids:
            return {"use_cache": False}
        if self.keys is None:
            import torch
            from transformers import DynamicCache

            self.keys = DynamicCache()
            with suppress(Enough):
                ids = torch.tensor([self.ids], device=net.device)
                net(input_ids=ids, past_key_values=self.keys, use_cache=True, logits_to_keep=1)
        keys = deepcopy(self.keys)  # a pass adds its own
        keys.batch_repeat_interleave(n)
        return {"use_cache": True, "past_key_values": keys}


@dataclass(frozen=True)
class Batch:
    """Sequences of one pass, padded on the right, without what all begin with."""

    sequences: Sequences
    begun: int
    """Tokens of the beginning."""
    ids: Any
    """(sequences, length - begun)"""
    mask: Any
    """(sequences, length), 1 for tokens and 0 for padding."""

    def run(self, net: Any, beginning: Beginning, **options: Any) -> Any:
        """The model's outputs for `ids`."""
        options |= beginning.options(net, len(self.sequences))
        return net(input_ids=self.ids, attention_mask=self.mask, **options)


def batches(net: Any, sequences: Sequences, begun: int) -> Iterator[tuple[list[int], Batch]]:
    """All sequences in batches of about one length, each with their numbers."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    lengths = [len(prompt) + len(rest) for prompt, rest in sequences]
    # A beginning takes no time in a batch, but each row has its keys in memory.
    costs = [max(length - begun, length // 4) for length in lengths]
    for numbers in by_length(costs, BATCH_TOKENS[net.device.type]):
        read = [sequences[i] for i in numbers]
        ids = pad_sequence([torch.tensor([*prompt, *rest]) for prompt, rest in read], batch_first=True)
        mask = pad_sequence([torch.ones(lengths[i], dtype=torch.long) for i in numbers], batch_first=True)
        yield numbers, Batch(read, begun, ids[:, begun:].to(net.device), mask.to(net.device))


def next_token_logs(net: Any, batch: Batch, beginning: Beginning) -> list[Any]:
    """Log-probabilities that stand before each token after the prompt: one tensor (tokens, vocabulary) a sequence."""
    import torch

    # The output head is run from where the first answer of the batch starts: a vocabulary's worth of numbers a token is much.
    start = min(len(prompt) for prompt, _ in batch.sequences) - 1
    logits = batch.run(net, beginning, logits_to_keep=batch.mask.shape[1] - start).logits
    spans = [(len(prompt) - 1 - start, len(prompt) + len(rest) - 1 - start) for prompt, rest in batch.sequences]
    return [torch.log_softmax(logits[row, first:last].float(), -1) for row, (first, last) in enumerate(spans)]
