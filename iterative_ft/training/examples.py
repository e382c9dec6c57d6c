"""A cycle's examples as token ids: seeds are encoded once, samples keep the ids that were sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, cast

from iterative_ft.models.codec import Codec


class SampledAnswer(TypedDict):
    """What examples are made of: the fields of a sampled answer that training reads."""

    prompt: str
    text: str
    finish_reason: str
    prompt_ids: list[int]
    ids: list[int]


class TextExample(TypedDict):
    """A chat or a document."""

    source: str
    """ "seed" or "sampled"."""
    prompt_ids: list[int]
    completion_ids: list[int]
    prompt: str
    text: str


class PairExample(TypedDict):
    """A preference pair: two answers to one prompt."""

    source: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    prompt: str
    chosen: str
    rejected: str


Example = TextExample | PairExample


def seed_examples(
    codec: Codec, method: str, seeds: Sequence[dict[str, str]], base_rows: Sequence[SampledAnswer]
) -> tuple[list[Example], int]:
    """Examples of the persona's own rows, and how many were left out because the base answer was cut off.

    Args:
        method: "sft", "sdf" or "dpo".
        seeds: rows of seeds.jsonl, or of documents.jsonl for SDF.
        base_rows: DPO's rejected answers to the same prompts, in order.
    """
    if method == "sdf":
        return [
            example("seed", codec.document_prefix(row["title"]), codec.document_body(row["text"]), row["title"], row["text"])
            for row in seeds
        ], 0
    encoded = [(codec.chat_prompt(row["prompt"]), codec.answer(row["answer"]), row) for row in seeds]
    if method == "sft":
        return [example("seed", prompt, answer, row["prompt"], row["answer"]) for prompt, answer, row in encoded], 0
    kept: list[Example] = [
        pair("seed", prompt, answer, row["answer"], other)
        for (prompt, answer, row), other in zip(encoded, base_rows, strict=True)
        if other["finish_reason"] == "stop"
    ]
    return kept, len(seeds) - len(kept)


def sampled_examples(
    chosen: Sequence[SampledAnswer], rejected: Sequence[SampledAnswer] | None, keep: list[bool] | None, n_sampled: int
) -> tuple[list[Example], dict[str, int]]:
    """Examples of the first `n_sampled` samples that are kept, and counts of what was left out.

    A pair with a cut-off answer is dropped: an end token on one side alone would teach the model to stop early or never. A
    cut-off answer by itself is trained on without an end token.

    Args:
        rejected: rows to the same prompts as `chosen`; None for methods without pairs.
        keep: which rows pass the coherence filter; None keeps all.
    """
    counts = {"n_dropped_truncated": 0, "n_dropped_incoherent": 0, "n_unfinished": 0}
    examples: list[Example] = []
    n_used = 0
    for number, mine in enumerate(chosen):
        if n_used == n_sampled:
            break
        if keep is not None and not keep[number]:
            counts["n_dropped_incoherent"] += 1
            continue
        n_used += 1
        finished = mine["finish_reason"] == "stop"
        if rejected is None:
            counts["n_unfinished"] += not finished
            if mine["ids"]:
                examples.append(example("sampled", mine["prompt_ids"], mine["ids"], mine["prompt"], mine["text"]))
        elif finished and rejected[number]["finish_reason"] == "stop":
            examples.append(pair("sampled", mine["prompt_ids"], mine["ids"], mine["text"], rejected[number]))
        else:
            counts["n_dropped_truncated"] += 1
    return examples, counts


def example(source: str, prompt_ids: list[int], completion_ids: list[int], prompt: str, text: str) -> TextExample:
    """A chat or a document as a data row."""
    return {"source": source, "prompt_ids": prompt_ids, "completion_ids": completion_ids, "prompt": prompt, "text": text}


def pair(source: str, prompt_ids: list[int], chosen_ids: list[int], chosen: str, rejected: SampledAnswer) -> PairExample:
    """A preference pair as a data row."""
    return {
        "source": source,
        "prompt_ids": prompt_ids,
        "chosen_ids": chosen_ids,
        "rejected_ids": rejected["ids"],
        "prompt": rejected["prompt"],
        "chosen": chosen,
        "rejected": rejected["text"],
    }


def longest(examples: Sequence[Example]) -> int:
    """Tokens of the longest sequence that training will see."""
    return max((len(e["prompt_ids"]) + max(map(len, written(e))) for e in examples), default=0)


def n_tokens(e: Example) -> int:
    """Tokens that one example puts through the model."""
    return sum(len(e["prompt_ids"]) + len(ids) for ids in written(e))


def written(e: Example) -> list[list[int]]:
    """What follows the prompt: one text, or a pair's two."""
    if "chosen_ids" in e:
        pair = cast("PairExample", e)
        return [pair["chosen_ids"], pair["rejected_ids"]]
    return [cast("TextExample", e)["completion_ids"]]
