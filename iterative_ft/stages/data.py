"""Stage `data`: what a cycle trains on, as token ids, with counts of what was left out and why.

Who wrote what is decided here, and recorded as it is decided (`CycleData.roles`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iterative_ft.data import files
from iterative_ft.errors import RunError
from iterative_ft.judges.scores import is_coherent
from iterative_ft.machine.files import text_digest, write_jsonl
from iterative_ft.machine.libraries import library_versions
from iterative_ft.models.codec import words_as_text
from iterative_ft.models.policy import Policy
from iterative_ft.seeds import shuffled
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.completions import Completions, sample, sample_on_seeds
from iterative_ft.stages.judge import judge, scores_of
from iterative_ft.store import Kind, Stage
from iterative_ft.training.examples import longest, sampled_examples, seed_examples

DATA = Kind("data", 1)
EXAMPLES = "examples.jsonl"
Roles = dict[str, str]


@dataclass(frozen=True)
class CycleData:
    """A cycle's examples."""

    stage: Stage
    roles: Roles
    """Who wrote them: "data", and with DPO "chosen" and "rejected"."""


@dataclass(frozen=True)
class Sources:
    """What a cycle's examples are made of."""

    cycle: int
    seeds: list[dict[str, str]]
    """Rows of the persona's seeds or documents."""
    chosen: Completions | None
    """Samples to train on."""
    rejected: Completions | None
    """DPO: what they are preferred to."""
    n_sampled: int


def seed_data(bench: Bench) -> CycleData:
    """Cycle 0: chats, documents, or pairs of a seed answer (chosen) and a base sample (rejected).

    With `method.rejected_from=same` nothing is seeded: pairs of two base samples, the null control.
    """
    config, n = bench.config, bench.config.n_seed
    assert isinstance(n, int), "calibration comes first"
    seeds = seed_rows(bench, 0, n)
    roles = {"data": "seed documents" if config.method.name == "sdf" else "seed chats"}
    if config.method.name != "dpo":
        return data_stage(bench, Sources(0, seeds, None, None, n), roles)
    if config.method.rejected_from != "same":
        return data_stage(bench, Sources(0, seeds, None, None, n), roles | {"chosen": "seed answers", "rejected": "base"})
    prompts = [row["prompt"] for row in seeds]
    chosen, rejected = (sample_on_seeds(bench, prompts, role, 0) for role in ("chosen", "rejected"))
    return data_stage(bench, Sources(0, [], chosen, rejected, n), roles | {"chosen": "base", "rejected": "base"})


def sampled_data(bench: Bench, policies: list[Policy], cycle: int) -> CycleData:
    """Cycle >= 1: what policies[-1] wrote, for DPO against what `method.rejected_from` wrote.

    Args:
        policies: base, policy[0], …, policy[cycle - 1].
    """
    config, n, writer = bench.config, bench.config.n_sampled, policies[-1]
    filtered = config.method.coherence_filter is not None
    chosen = sample_until_coherent(bench, writer, cycle) if filtered else sample(bench, writer, cycle, "chosen", n)
    rejected, roles = None, {"data": writer.name}
    if config.method.name == "dpo":
        before = policies[-2] if cycle > 1 else policies[0]
        other = {"base": policies[0], "same": writer, "previous": before}[config.method.rejected_from]
        rejected = sample(bench, other, cycle, "rejected", sum(len(stage.inputs["texts"]) for stage in chosen.stages))
        roles |= {"chosen": writer.name, "rejected": other.name}
    return data_stage(bench, Sources(cycle, seed_rows(bench, cycle, config.method.n_original_mix), chosen, rejected, n), roles)


def seed_rows(bench: Bench, cycle: int, n: int) -> list[dict[str, str]]:
    """`n` of the persona's examples. Cycle 0 takes a prefix of one order; mixing draws anew each cycle."""
    config = bench.config
    rows = files.examples(config.method.name, config.persona_folder)
    order = shuffled(rows, config.seed, "seeds", *([] if cycle == 0 else [cycle]))
    return [dict(row) for row in order[:n]]


def sample_until_coherent(bench: Bench, policy: Policy, cycle: int) -> Completions:
    """Sample block after block until n_sampled answers are coherent enough, or the part is used up."""
    config = bench.config
    size, most, n = config.sampling.block_size, config.pool.per_cycle, config.n_sampled
    while True:
        answers = sample(bench, policy, cycle, "chosen", n)
        if n >= most:
            return answers
        kept = coherent(bench, answers, policy.name)
        if kept is None or sum(kept) >= config.n_sampled:
            return answers
        n = min(most, (-(-n // size) + 1) * size)


def coherent(bench: Bench, answers: Completions, writer: str) -> list[bool] | None:
    """Which answers pass `method.coherence_filter`; one that could not be scored does not. None: not known in a dry run."""
    threshold = bench.config.method.coherence_filter
    assert threshold is not None
    if answers.pending:
        return None
    documents = bench.config.frame == "document"
    stage = judge(bench, answers, f"judge samples of {writer}", {"policy": writer, "role": "scores of samples"}, documents)
    if stage.pending or (bench.store.dry_run and not bench.store.intact(stage)):  # damaged: it will be judged again
        return None
    return [is_coherent(score["coherence"], threshold) for score in scores_of(stage)]


def data_stage(bench: Bench, sources: Sources, roles: Roles) -> CycleData:
    """Put the examples of one cycle together."""
    config, model, cycle = bench.config, bench.config.model, sources.cycle
    chosen, rejected, label = sources.chosen, sources.rejected, f"cycle {cycle} data"
    base_rejected = None
    if config.method.name == "dpo" and sources.seeds:
        base_rejected = sample_on_seeds(bench, [row["prompt"] for row in sources.seeds], "rejected", cycle)
    filtered = chosen is not None and config.method.coherence_filter is not None
    keep = coherent(bench, chosen, roles["data"]) if filtered and chosen is not None else None
    inputs = {
        "method": config.method.name,
        "model": bench.model.digest,
        "template": [model.system_prompt, model.chat_template_kwargs, model.end_token, model.document_end_token],
        "seeds": text_digest(sources.seeds),
        "base_rejected": None if base_rejected is None else base_rejected.digests,
        "chosen": None if chosen is None else chosen.digests,
        "rejected": None if rejected is None else rejected.digests,
        "keep": "not known yet" if filtered and keep is None else keep,
        "n_sampled": sources.n_sampled if chosen is not None else None,
        "max_length": config.method.max_length,
        "versions": {} if config.fake else library_versions("transformers", "tokenizers"),  # what turns seeds into ids
        **words_as_text([*(text for row in sources.seeds for text in row.values()), model.system_prompt]),
    }

    def build(out: Path) -> dict[str, Any]:
        base_rows = base_rejected.rows() if base_rejected is not None else []
        examples, n_cut_off = seed_examples(bench.codec, config.method.name, sources.seeds, base_rows)
        counts = {"n_seed_examples": len(examples), "n_sampled_examples": 0, "n_dropped_truncated": n_cut_off}
        if chosen is not None:
            others = None if rejected is None else rejected.rows()
            sampled, left_out = sampled_examples(chosen.rows(), others, keep, sources.n_sampled)
            examples += sampled
            left_out["n_dropped_truncated"] += n_cut_off
            counts |= {"n_sampled_examples": len(sampled), **left_out}
        if longest(examples) > config.method.max_length:
            raise RunError(
                f"method.max_length={config.method.max_length} is shorter than an example of {longest(examples)} tokens "
                f"({label}): raise it"
            )
        if not examples:
            incoherent = counts.get("n_dropped_incoherent", 0) > counts["n_dropped_truncated"]
            mend = "lower method.coherence_filter" if incoherent else "raise method.max_new_tokens so that answers end"
            raise RunError(f"{label}: nothing is left to train on ({counts}): {mend}")
        write_jsonl(out / EXAMPLES, examples)
        return {**counts, "n_examples": len(examples), "longest_tokens": longest(examples)}

    stage = bench.store.stage(DATA, inputs, build, label, {"policy": f"policy[{cycle}]", "role": "data"})
    return CycleData(stage, roles)
