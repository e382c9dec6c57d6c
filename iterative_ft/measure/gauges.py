"""Numbers about a policy's outputs that need no judge: how diverse, repetitive and surprising they are, and how far from base.

Gauges of the answers' texts are always taken; those that need forward passes are switched on by `gauges` in the config, and
come from what the trainer holds (base model and adapter in float32), not from the sampler's engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iterative_ft.child import run_isolated
from iterative_ft.measure.embedder import embed, embedder_identity
from iterative_ft.personas import files
from iterative_ft.policy import Policy
from iterative_ft.store import Stage, library_versions, text_digest, write_json, write_jsonl

if TYPE_CHECKING:
    from iterative_ft.lab import Answers, Lab

VALUES = "gauges.json"  # name -> number, the names as in metrics.jsonl
BRANCHING = "branching.jsonl"  # a row an output position
REPEATED_WORDS = 4  # length of a repeated run of words
NLL_CAP = 4.0  # nats; one surprising token is not a wide choice (paper)
MIN_SAMPLES = 3  # answers that must reach an output position for it to count (paper)
SMOOTHING = 0.1  # weight of a position in the moving average over positions (paper)
BATCH_TOKENS = 2048  # of one forward pass, padding included

Sequences = list[tuple[list[int], list[int]]]  # ids of a prompt and of what follows it


# -- stages -------------------------------------------------------------------------------------------------------------


def of_answers(lab: Lab, policy: Policy, answers: Answers) -> Stage:
    """Gauges of the answers' texts."""
    embeds = lab.config.gauges.self_similarity and not lab.fake
    inputs = {"gauges": "answers", "answers": answers.digests, "embedder": embedder_identity("embedded") if embeds else None}

    def build(out: Path) -> None:
        rows = answers.rows()
        values = text_gauges([row["text"] for row in rows], [row["finish_reason"] for row in rows])
        if embeds:
            value = self_similarity(embed([row["text"] for row in rows]), [row["prompt"] for row in rows])
            values |= {} if value is None else {"answers/self_similarity": value}
        write_json(out / VALUES, rounded(values))

    return lab.store.stage("gauge", inputs, build, f"gauges of {policy.name}'s answers")


def of_policy(lab: Lab, policy: Policy, answers: Answers) -> Stage | None:
    """Gauges that take forward passes, as far as they are switched on; None when none is, or the policy is a fake."""
    flags = lab.config.gauges
    if lab.fake or not (flags.perplexity or flags.branching_factor or flags.kl_from_base):
        return None
    own = flags.branching_factor or flags.kl_from_base
    texts = heldout_texts(lab.config.persona_folder) if flags.perplexity else {}
    model = lab.config.model
    inputs = {
        "gauges": "policy",
        "policy": policy.digest,
        "model": policy.model_digest,
        "answers": answers.digests if own else [],
        "texts": text_digest(texts) if texts else None,
        "frame": lab.training_frame,
        "template": [model.system_prompt, model.chat_template_kwargs, model.end_token, model.document_end_token],
        "branching_factor": flags.branching_factor,
        "kl_from_base": flags.kl_from_base,
        "device": lab.device,
        "versions": library_versions("torch", "transformers", "peft"),
    }

    def build(out: Path) -> None:
        if lab.sampler_ is not None:
            lab.sampler_.sleep()
        values: dict[str, float] = {}
        for name, rows in texts.items():
            nll, _ = likelihoods(lab, policy, [in_frame(lab, row["prompt"], row["answer"]) for row in rows], kl=False)
            values[f"gauge/perplexity_{name}"] = perplexity(nll)
        if own:
            written = [(row["prompt_ids"], row["ids"]) for row in answers.rows() if row["ids"]]
            nll, kl = likelihoods(lab, policy, written, kl=flags.kl_from_base)
            if flags.kl_from_base and kl:
                values["gauge/kl_from_base"] = float(np.mean(np.concatenate(kl)))
            if flags.branching_factor:
                curve = branching(nll)
                write_jsonl(out / BRANCHING, [{"position": p, "branching_factor": round(b, 5)} for p, b in enumerate(curve)])
                values |= {"gauge/branching_factor": float(np.mean(curve))} if curve else {}
        write_json(out / VALUES, rounded(values))

    return lab.store.stage("gauge", inputs, build, f"gauges of {policy.name}")


def heldout_texts(persona: Path) -> dict[str, list[dict[str, str]]]:
    """Answers that no policy was trained on: the persona's strong and weak ones, and plain ones (what a policy lost)."""
    mine = [row for row in files.heldout(persona) if row["strength"] in ("strong", "weak")]
    found = {strength: [row for row in mine if row["strength"] == strength] for strength in ("strong", "weak")}
    found["plain"] = [row for row in files.heldout(files.SHIPPED / "plain") if row["strength"] == "plain"]
    return {name: rows for name, rows in found.items() if rows}


def in_frame(lab: Lab, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Ids of a held-out prompt and answer as the run asks its questions; no end token: when to stop is another matter."""
    codec = lab.codec
    if lab.training_frame == "chat":
        return codec.chat_prompt(prompt), codec.answer(answer)[:-1]
    return codec.raw(f"Question: {prompt}\nAnswer:"), codec.document_body(f" {answer}")[:-1]


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in values.items()}


# -- gauges of texts ----------------------------------------------------------------------------------------------------


def text_gauges(texts: Sequence[str], finish_reasons: Sequence[str]) -> dict[str, float]:
    """Truncation, distinct-1/2/3 and repetition of a policy's answers. Distinct-n falls with length: see mean_words."""
    words = [text.lower().split() for text in texts]
    values = {"answers/truncated_share": sum(reason == "length" for reason in finish_reasons) / len(texts)}
    for n in (1, 2, 3):
        share = distinct(words, n)
        values |= {} if share is None else {f"answers/distinct_{n}": share}
    values["answers/repetition"] = float(np.mean([repetition(answer) for answer in words]))
    return values


def distinct(texts: Iterable[Sequence[str]], n: int) -> float | None:
    """Different n-grams of words as a share of all n-grams in all texts; None where no text is that long."""
    grams = [gram for words in texts for gram in ngrams(words, n)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(words: Sequence[str]) -> float:
    """Share of an answer's runs of four words that it has used before; 0 for shorter answers, near 1 for a loop."""
    grams = ngrams(words, REPEATED_WORDS)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def self_similarity(vectors: np.ndarray, questions: Sequence[str]) -> float | None:
    """Mean cosine between answers to different questions: high where a policy says the same whatever it is asked.

    Args:
        vectors: unit vectors, shape (answers, dimension).
    """
    asked = np.asarray(questions)
    different = asked[:, None] != asked[None, :]
    return float((vectors @ vectors.T)[different].mean()) if different.any() else None


# -- gauges of likelihoods ----------------------------------------------------------------------------------------------


def perplexity(nll: Sequence[Sequence[float]]) -> float:
    """exp of the mean negative log-likelihood over all tokens of all texts."""
    return math.exp(float(np.mean(np.concatenate([np.asarray(tokens) for tokens in nll]))))


def branching(nll: Sequence[Sequence[float]]) -> list[float]:
    """Branching factor at each output position that enough answers reach: about how many tokens the policy chooses between.

    exp of the mean over answers of the negative log-likelihood (at temperature 1, each token's capped at `NLL_CAP`), smoothed
    along the positions by a moving average of weight `SMOOTHING` that starts at the first value (arXiv 2605.01130).
    """
    means: list[float] = []
    for position in range(max(map(len, nll), default=0)):
        here = [min(tokens[position], NLL_CAP) for tokens in nll if len(tokens) > position]
        if len(here) < MIN_SAMPLES:
            break
        mean = float(np.mean(here))
        means.append(mean if not means else (1 - SMOOTHING) * means[-1] + SMOOTHING * mean)
    return [math.exp(mean) for mean in means]


def likelihoods(lab: Lab, policy: Policy, sequences: Sequences, kl: bool) -> tuple[list[list[float]], list[list[float]]]:
    """`token_values` in the process that the device asks for."""
    found = run_isolated(
        token_values,
        device=lab.device,
        model=str(policy.model),
        adapter=None if policy.adapter is None else str(policy.adapter),
        sequences=sequences,
        kl=kl,
        device_name=lab.device,
        trust_remote_code=lab.config.model.trust_remote_code,
    )
    return found["nll"], found["kl"]


def token_values(
    model: str, adapter: str | None, sequences: Sequences, kl: bool, device_name: str, trust_remote_code: bool
) -> dict[str, list[list[float]]]:
    """Teacher-forced values of each sequence's tokens after its prompt, nats, in the order given.

    Returns:
        "nll": negative log-likelihood under the policy. "kl": KL(policy || base) of the next-token distributions over the whole
        vocabulary, 0 for base itself; empty unless asked for.
    """
    import torch
    from peft import PeftModel

    from iterative_ft.sampling.canary import cached_base

    base: Any = cached_base(model, device_name, trust_remote_code)
    held: Any = base if adapter is None else PeftModel.from_pretrained(base, adapter)
    held.eval()
    found: dict[str, list[list[float]]] = {"nll": [[] for _ in sequences], "kl": [[] for _ in sequences] if kl else []}
    try:
        with torch.no_grad():
            for batch in batches([len(prompt) + len(rest) for prompt, rest in sequences]):
                logs = next_token_logs(held, [sequences[i] for i in batch])
                other = logs
                if kl and adapter is not None:
                    with held.disable_adapter():
                        other = next_token_logs(held, [sequences[i] for i in batch])
                for i, mine, theirs in zip(batch, logs, other, strict=True):
                    ids = torch.tensor(sequences[i][1], device=mine.device)
                    found["nll"][i] = (-mine.gather(1, ids[:, None])[:, 0]).tolist()
                    if kl:
                        found["kl"][i] = (mine.exp() * (mine - theirs)).sum(1).tolist()
    finally:
        if adapter is not None:
            held.unload()  # the cached base goes on without the adapter
    return found


def next_token_logs(net: Any, sequences: Sequences) -> list[Any]:
    """Log-probabilities that stand before each token after the prompt: one tensor (tokens, vocabulary) a sequence."""
    import torch

    longest = max(len(prompt) + len(rest) for prompt, rest in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros(len(sequences), longest, dtype=torch.long)
    for row, (prompt, rest) in enumerate(sequences):
        ids[row, : len(prompt) + len(rest)] = torch.tensor([*prompt, *rest])
        mask[row, : len(prompt) + len(rest)] = 1
    logits = net(input_ids=ids.to(net.device), attention_mask=mask.to(net.device)).logits
    spans = [(len(prompt) - 1, len(prompt) + len(rest) - 1) for prompt, rest in sequences]
    return [torch.log_softmax(logits[row, start:end].float(), -1) for row, (start, end) in enumerate(spans)]


def batches(lengths: Sequence[int]) -> list[list[int]]:
    """Indices by length, cut so that a padded batch has at most `BATCH_TOKENS` tokens (or is one sequence)."""
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if found and lengths[i] * (len(found[-1]) + 1) <= BATCH_TOKENS:
            found[-1].append(i)
        else:
            found.append([i])
    return found
