"""Stage `gauge`: numbers about a policy's outputs that need no judge.

Those of the answers' texts are always taken; those that need forward passes are switched on and off by `gauges` in the config,
and come from what the trainer holds (on a CPU in float32, on a GPU as it was trained), not from the sampler's engine.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from iterative_ft.data import files
from iterative_ft.judges import gauges
from iterative_ft.judges.embedder import embed, embedder_identity
from iterative_ft.machine.files import text_digest, write_json, write_jsonl
from iterative_ft.machine.libraries import library_versions
from iterative_ft.models.codec import prompt_ids
from iterative_ft.models.forward import DEPTH, Reader, Sequences
from iterative_ft.models.policy import Policy
from iterative_ft.models.sequences import sequence_states, token_values
from iterative_ft.seeds import shuffled
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.completions import Completions
from iterative_ft.store import Kind, Stage

GAUGE = Kind("gauge", 4)
VALUES = "gauges.json"  # name -> number, the names as in metrics.jsonl
BRANCHING = "branching.jsonl"  # a row an output position
DIRECTION = "direction.json"  # mean states of plain and of strong texts
DIRECTION_TEXTS = 64  # of each, at most
PLAIN_TEXTS = 16  # held-out ones whose perplexity is taken


def gauge(bench: Bench, policy: Policy, answers: Completions, of_base: Completions | None = None) -> list[Stage]:
    """Every gauge that the run takes of a policy.

    Args:
        of_base: what base answered to the same questions, for what a policy no longer says; None where it is not known.
    """
    taken = [of_answers(bench, policy, answers, of_base), of_policy(bench, policy, answers)]
    return [stage for stage in taken if stage is not None]


def values_of(stage: Stage) -> dict[str, float]:
    """Name -> number."""
    found: dict[str, float] = json.loads((stage.path / VALUES).read_text())
    return found


def of_answers(bench: Bench, policy: Policy, answers: Completions, of_base: Completions | None) -> Stage:
    """Gauges of the answers' texts."""
    embeds = bench.config.gauges.self_similarity and not bench.config.fake
    before = None if of_base is None or policy.adapter is None else of_base
    inputs = {
        "gauges": "answers",
        "answers": answers.digests,
        "base_answers": None if before is None else before.digests,
        "embedder": embedder_identity("embedded") if embeds else None,
    }

    def build(out: Path) -> None:
        rows = answers.rows()
        texts, questions = [row["text"] for row in rows], [row["prompt"] for row in rows]
        values = gauges.text_gauges(texts, [row["finish_reason"] for row in rows])
        more = {"self_bleu": gauges.self_bleu(texts, questions)}
        if before is not None:
            more["lost_words_share"] = gauges.lost_words([row["text"] for row in before.rows()], texts)
        if embeds:
            more["self_similarity"] = gauges.self_similarity(embed(texts), questions)
        write_values(out, values | {f"answers/{name}": value for name, value in more.items() if value is not None})

    label = f"gauges of {policy.name}'s answers"
    return bench.store.stage(GAUGE, inputs, build, label, {"policy": policy.name, "role": "gauges of answers"})


def of_policy(bench: Bench, policy: Policy, answers: Completions) -> Stage | None:
    """Gauges that take forward passes, as far as they are switched on; None when none is, or the policy is a fake."""
    config, flags = bench.config, bench.config.gauges
    if config.fake:
        return None
    line = direction(bench) if flags.persona_projection else None
    own = flags.branching_factor or flags.kl_from_base or flags.entropy or line is not None
    texts = heldout_texts(config.persona_folder, flags.perplexity) if flags.perplexity or flags.perplexity_plain else {}
    if not own and not texts:
        return None
    inputs = {
        "gauges": "policy",
        "policy": policy.digest,
        "answers": answers.digests if own else [],
        "texts": text_digest(texts) if texts else None,
        "direction": None if line is None else line.digest,
        "entropy": flags.entropy,
        "branching_factor": flags.branching_factor,
        "kl_from_base": flags.kl_from_base,
        **read_as(bench),
    }

    def build(out: Path) -> None:
        bench.free_device()
        values: dict[str, float] = {}
        held_out = [in_frame(bench, row) for rows in texts.values() for row in rows]
        written = [(row["prompt_ids"], row["ids"]) for row in answers.rows() if row["ids"]] if own else []
        read = token_values(bench.reader, policy.adapter, held_out + written, flags.kl_from_base)
        at = 0
        for name, rows in texts.items():
            values[f"gauge/perplexity_{name}"] = gauges.perplexity(read.part(at, at + len(rows)).nll)
            at += len(rows)
        if written:
            found = read.part(at)
            if flags.kl_from_base:
                values["gauge/kl_from_base"] = float(np.mean(np.concatenate(found.kl)))
            if flags.entropy:
                values["gauge/entropy"] = float(np.mean(np.concatenate(found.entropy)))
            if flags.branching_factor:
                factors = gauges.branching(found.nll)
                write_jsonl(out / BRANCHING, [{"position": p, "branching_factor": round(b, 5)} for p, b in enumerate(factors)])
                values |= {"gauge/branching_factor": float(np.mean(factors))} if factors else {}
            if line is not None:
                plain, strong = ends_of(line)
                values["gauge/persona_projection"] = gauges.projection(found.states.answer, plain, strong)
                moved = found.states.prompt - states_at_prompts(bench, written)
                values["gauge/persona_projection_prompt"] = gauges.projection(plain + moved, plain, strong)
        write_values(out, values)

    purpose = {"policy": policy.name, "role": "gauges of the policy"}
    return bench.store.stage(GAUGE, inputs, build, f"gauges of {policy.name}", purpose)  # type: ignore[arg-type]


def read_as(bench: Bench) -> dict[str, Any]:
    """What forward passes depend on beside weights and texts."""
    model = bench.config.model
    return {
        "model": bench.model.digest,
        "frame": bench.config.frame,
        "template": [model.system_prompt, model.chat_template_kwargs, model.end_token, model.document_end_token],
        "device": bench.device,
        "versions": library_versions("torch", "transformers", "peft"),
        **bench.reads_in,
    }


def direction(bench: Bench) -> Stage | None:
    """Mean states of plain and of strong answers in base, at the middle layer: what a policy's states are projected on.

    The answers are the judge's texts, which no policy trains on. None for a persona that has none of either.
    """
    texts = direction_texts(bench.config.persona_folder)
    if not all(texts.values()):
        return None
    inputs = {"gauges": "direction", "texts": text_digest(texts), "depth": DEPTH, **read_as(bench)}

    def build(out: Path) -> None:
        bench.free_device()
        found = {}
        for name, rows in texts.items():
            read = [in_frame(bench, row, whole=True) for row in rows]
            found[name] = sequence_states(bench.reader, None, read).answer.mean(0)
        write_json(out / DIRECTION, {name: [float(f"{x:.7g}") for x in mean] for name, mean in found.items()})

    purpose = {"policy": "base", "role": "direction of the persona"}
    label = f"direction of {bench.config.persona.name}"
    return bench.store.stage(GAUGE, inputs, build, label, purpose)  # type: ignore[arg-type]


def direction_texts(persona: Path) -> dict[str, list[dict[str, str]]]:
    """The judge's plain and strong texts of a persona; plain ones of the shipped `plain` where it has none of its own."""
    found = files.judge_texts(persona)
    texts = {name: [row for row in found if row["strength"] == name] for name in ("plain", "strong")}
    texts["plain"] = texts["plain"] or list(files.judge_texts(files.SHIPPED / "plain"))
    return {name: shuffled(rows, "direction", name)[:DIRECTION_TEXTS] for name, rows in texts.items()}


def ends_of(line: Stage) -> tuple[np.ndarray, np.ndarray]:
    """Mean states of plain and of strong texts, each (width,)."""
    found = json.loads((line.path / DIRECTION).read_text())
    return np.asarray(found["plain"]), np.asarray(found["strong"])


@lru_cache(maxsize=2)  # every policy of a run answers the same questions
def base_at_prompts(reader: Reader, prompts: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Base's states at the last token of each prompt, (prompts, width). Not to be changed."""
    return sequence_states(reader, None, [(list(prompt), [prompt[-1]]) for prompt in prompts]).prompt


def states_at_prompts(bench: Bench, written: Sequences) -> np.ndarray:
    """Base's states at the last token of each prompt, (sequences, width); each different prompt is read once."""
    place = {prompt: number for number, prompt in enumerate(sorted({tuple(prompt) for prompt, _ in written}))}
    return base_at_prompts(bench.reader, tuple(place))[[place[tuple(prompt)] for prompt, _ in written]]


def heldout_texts(persona: Path, styled: bool = True) -> dict[str, list[dict[str, str]]]:
    """Answers that no policy was trained on: the persona's strong and weak ones, and plain ones (what a policy lost).

    Args:
        styled: whether the persona's own are wanted.
    """
    mine = [row for row in files.heldout(persona) if row["strength"] in ("strong", "weak")] if styled else []
    found = {strength: [row for row in mine if row["strength"] == strength] for strength in ("strong", "weak")}
    plain = [row for row in files.heldout(files.SHIPPED / "plain") if row["strength"] == "plain"]
    found["plain"] = shuffled(plain, "perplexity")[:PLAIN_TEXTS]
    return {name: rows for name, rows in found.items() if rows}


def in_frame(bench: Bench, row: dict[str, str], whole: bool = False) -> tuple[list[int], list[int]]:
    """Ids of a prompt and an answer as the run asks its questions.

    Args:
        whole: with the end token that a chat's answer has; without it, for likelihoods, since when to stop is another matter.
    """
    codec = bench.codec
    if bench.config.frame == "chat":
        answer = codec.answer(row["answer"])
        return prompt_ids(codec, "chat", row["prompt"]), answer if whole else answer[:-1]
    return prompt_ids(codec, "question", row["prompt"]), codec.document_body(f" {row['answer']}")[:-1]


def write_values(out: Path, values: dict[str, float]) -> None:
    write_json(out / VALUES, {name: round(value, 6) for name, value in values.items()})
