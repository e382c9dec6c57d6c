"""Stage `gauge`: numbers about a policy's outputs that need no judge.

Those of the answers' texts are always taken; those that need forward passes are switched on by `gauges` in the config, and
come from what the trainer holds (on a CPU in float32, on a GPU as it was trained), not from the sampler's engine.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from iterative_ft.data import files
from iterative_ft.judges import gauges
from iterative_ft.judges.embedder import embed, embedder_identity
from iterative_ft.machine.files import text_digest, write_json, write_jsonl
from iterative_ft.machine.libraries import library_versions
from iterative_ft.models.codec import prompt_ids
from iterative_ft.models.policy import Policy
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.completions import Completions
from iterative_ft.store import Kind, Stage

GAUGE = Kind("gauge", 2)
VALUES = "gauges.json"  # name -> number, the names as in metrics.jsonl
BRANCHING = "branching.jsonl"  # a row an output position


def gauge(bench: Bench, policy: Policy, answers: Completions) -> list[Stage]:
    """Every gauge that the run takes of a policy."""
    taken = [of_answers(bench, policy, answers), of_policy(bench, policy, answers)]
    return [stage for stage in taken if stage is not None]


def values_of(stage: Stage) -> dict[str, float]:
    """Name -> number."""
    found: dict[str, float] = json.loads((stage.path / VALUES).read_text())
    return found


def of_answers(bench: Bench, policy: Policy, answers: Completions) -> Stage:
    """Gauges of the answers' texts."""
    embeds = bench.config.gauges.self_similarity and not bench.config.fake
    inputs = {"gauges": "answers", "answers": answers.digests, "embedder": embedder_identity("embedded") if embeds else None}

    def build(out: Path) -> None:
        rows = answers.rows()
        values = gauges.text_gauges([row["text"] for row in rows], [row["finish_reason"] for row in rows])
        if embeds:
            value = gauges.self_similarity(embed([row["text"] for row in rows]), [row["prompt"] for row in rows])
            values |= {} if value is None else {"answers/self_similarity": value}
        write_values(out, values)

    label = f"gauges of {policy.name}'s answers"
    return bench.store.stage(GAUGE, inputs, build, label, {"policy": policy.name, "role": "gauges of answers"})


def of_policy(bench: Bench, policy: Policy, answers: Completions) -> Stage | None:
    """Gauges that take forward passes, as far as they are switched on; None when none is, or the policy is a fake."""
    config, flags, model = bench.config, bench.config.gauges, bench.config.model
    if config.fake or not (flags.perplexity or flags.branching_factor or flags.kl_from_base):
        return None
    own = flags.branching_factor or flags.kl_from_base
    texts = heldout_texts(config.persona_folder) if flags.perplexity else {}
    inputs = {
        "gauges": "policy",
        "policy": policy.digest,
        "model": policy.model_digest,
        "answers": answers.digests if own else [],
        "texts": text_digest(texts) if texts else None,
        "frame": config.frame,
        "template": [model.system_prompt, model.chat_template_kwargs, model.end_token, model.document_end_token],
        "branching_factor": flags.branching_factor,
        "kl_from_base": flags.kl_from_base,
        "device": bench.device,
        "versions": library_versions("torch", "transformers", "peft"),
        **({"reads_in": bench.reader.dtype} if bench.device == "cuda" else {}),
    }

    def build(out: Path) -> None:
        bench.free_device()
        values: dict[str, float] = {}
        for name, rows in texts.items():
            nll, _ = bench.reader.token_values(policy.adapter, [in_frame(bench, row) for row in rows])
            values[f"gauge/perplexity_{name}"] = gauges.perplexity(nll)
        if own:
            written = [(row["prompt_ids"], row["ids"]) for row in answers.rows() if row["ids"]]
            nll, kl = bench.reader.token_values(policy.adapter, written, kl=flags.kl_from_base)
            if flags.kl_from_base and kl:
                values["gauge/kl_from_base"] = float(np.mean(np.concatenate(kl)))
            if flags.branching_factor:
                factors = gauges.branching(nll)
                write_jsonl(out / BRANCHING, [{"position": p, "branching_factor": round(b, 5)} for p, b in enumerate(factors)])
                values |= {"gauge/branching_factor": float(np.mean(factors))} if factors else {}
        write_values(out, values)

    purpose = {"policy": policy.name, "role": "gauges of the policy"}
    return bench.store.stage(GAUGE, inputs, build, f"gauges of {policy.name}", purpose)  # type: ignore[arg-type]


def heldout_texts(persona: Path) -> dict[str, list[dict[str, str]]]:
    """Answers that no policy was trained on: the persona's strong and weak ones, and plain ones (what a policy lost)."""
    mine = [row for row in files.heldout(persona) if row["strength"] in ("strong", "weak")]
    found = {strength: [row for row in mine if row["strength"] == strength] for strength in ("strong", "weak")}
    found["plain"] = [row for row in files.heldout(files.SHIPPED / "plain") if row["strength"] == "plain"]
    return {name: rows for name, rows in found.items() if rows}


def in_frame(bench: Bench, row: dict[str, str]) -> tuple[list[int], list[int]]:
    """Ids of a held-out prompt and answer as the run asks its questions; no end token: when to stop is another matter."""
    codec = bench.codec
    if bench.config.frame == "chat":
        return prompt_ids(codec, "chat", row["prompt"]), codec.answer(row["answer"])[:-1]
    return prompt_ids(codec, "question", row["prompt"]), codec.document_body(f" {row['answer']}")[:-1]


def write_values(out: Path, values: dict[str, float]) -> None:
    write_json(out / VALUES, {name: round(value, 6) for name, value in values.items()})
