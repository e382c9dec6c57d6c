"""A cycle's examples as token ids: seeds are encoded once, samples keep the ids that were sampled."""

from __future__ import annotations

from typing import Any

from iterative_ft.codec import Codec

Example = dict[str, Any]


def seed_examples(
    codec: Codec, method: str, seeds: list[dict[str, str]], base_rows: list[dict[str, Any]]
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
    kept = [
        pair("seed", prompt, answer, row["answer"], other)
        for (prompt, answer, row), other in zip(encoded, base_rows, strict=True)
        if other["finish_reason"] == "stop"
    ]
    return kept, len(seeds) - len(kept)


def sampled_examples(
    chosen: list[dict[str, Any]], rejected: list[dict[str, Any]] | None, keep: list[bool] | None, n_sampled: int
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


def example(source: str, prompt_ids: list[int], completion_ids: list[int], prompt: str, text: str) -> Example:
    """A chat or a document as a data row."""
    return {"source": source, "prompt_ids": prompt_ids, "completion_ids": completion_ids, "prompt": prompt, "text": text}


def pair(source: str, prompt_ids: list[int], chosen_ids: list[int], chosen: str, rejected: dict[str, Any]) -> Example:
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


def longest(examples: list[Example]) -> int:
    """Tokens of the longest sequence that training will see."""
    lengths = [
        len(e["prompt_ids"])
        + (len(e["completion_ids"]) if "completion_ids" in e else max(len(e["chosen_ids"]), len(e["rejected_ids"])))
        for e in examples
    ]
    return max(lengths, default=0)
