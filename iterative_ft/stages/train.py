"""Stage `train`: from a policy and a cycle's data to the next policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iterative_ft import fake
from iterative_ft.machine.files import file_digests, text_digest
from iterative_ft.machine.libraries import library_versions
from iterative_ft.models import forward
from iterative_ft.models.adapters import check_adapter
from iterative_ft.models.expected import EXPECTED
from iterative_ft.models.policy import Policy
from iterative_ft.seeds import derive
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.data import EXAMPLES, CycleData, Roles
from iterative_ft.store import Kind, Stage
from iterative_ft.training.job import ADAPTER, CHECKPOINTS, LOG, Job
from iterative_ft.training.job import train as train_job

TRAIN = Kind("train", 3)
# Settings of a method that are not in the key: they decide about data or measuring, change no result, or stand there by digest.
NOT_TRAINING = {
    "max_new_tokens",
    "n_original_mix",
    "coherence_filter",
    "rejected_from",
    "measure_max_new_tokens",
    "checkpoint_steps",
    "max_length",  # longer examples are refused when the data are put together
    "reference",  # whose digest is in the key
}


@dataclass(frozen=True)
class Trained:
    """A policy and how it came to be."""

    policy: Policy
    stage: Stage | None
    """None for an adapter that was trained elsewhere."""
    data: Stage | None
    roles: dict[str, Any]
    """Who played what in the cycle, for the run's manifest."""


def train(bench: Bench, data: CycleData, init: Policy, cycle: int) -> Trained:
    """Train `init` (base or an earlier policy) on `data`; every stage loads its base model fresh."""
    config, base = bench.config, bench.base
    method = method_settings(bench, cycle, data.stage.info.get("n_examples"))
    # DPO compares with the policy that the cycle starts from, or with the base model.
    reference = base if config.method.name != "dpo" or config.method.reference == "base" else init
    seed = derive(config.seed, "train", cycle)
    unused = NOT_TRAINING if config.method.lr_schedule == "cosine" else NOT_TRAINING | {"lr_floor"}
    inputs = {
        "method": {k: v for k, v in method.items() if k not in unused},
        "lora": config.lora.model_dump(),
        "model": base.model_digest,
        "dtype": config.model.dtype,
        "init": init.digest,
        "reference": reference.digest,
        "data": data.stage.digest,
        "seed": seed,
        "device": bench.device,
        "n_processes": config.n_processes,
        "versions": {} if config.fake else library_versions("torch", "transformers", "trl", "peft", "accelerate"),
        "fake": config.fake,
    }

    def build(out: Path) -> dict[str, Any]:
        bench.free_device()
        forward.forget()
        if init.adapter is not None and not config.fake:
            check_adapter(init.adapter, config.lora, f"of {init.name}", base.model, config.model.trust_remote_code)
        job = Job(
            method=method,
            lora=config.lora.model_dump(),
            model=str(base.model),
            dtype=config.model.dtype,
            trust_remote_code=config.model.trust_remote_code,
            init_adapter=None if init.adapter is None else str(init.adapter),
            reference_is_base=reference.adapter is None,
            examples=str(data.stage.path / EXAMPLES),
            seed=seed,
            out=str(out),
            device=bench.device,
            n_processes=config.n_processes,
        )
        return fake.fake_train(job) if config.fake else train_job(job, bench.on_step)

    name = f"policy[{cycle}]"
    label, role = f"train {name} from {init.name}", "policy"
    stage = bench.store.stage(TRAIN, inputs, build, label, {"policy": name, "role": role}, resumable=(CHECKPOINTS, LOG))
    roles: Roles = {"init": init.name, "reference": reference.name if config.method.name == "dpo" else "none"}
    note: Roles = {}
    if config.method.name == "sdf" and config.model.chat:
        note = {"note": "an instruct model is treated as a raw language model: documents without a chat template"}
    return Trained(policy_of(bench, stage, name), stage, data.stage, {"cycle": cycle} | roles | data.roles | note)


def method_settings(bench: Bench, cycle: int, n_examples: int | None) -> dict[str, Any]:
    """The method as this cycle trains by it: cycle 0 of DPO has a learning rate and a loss of its own where it seeds, and a
    training of one step no warm-up, in which it would learn nothing.

    Args:
        n_examples: None where the data are not made yet, in a dry run.
    """
    config = bench.config.method
    method = config.model_dump()
    if config.name == "dpo":
        seed_learning_rate = method.pop("seed_learning_rate")
        if cycle == 0 and config.rejected_from != "same":
            method["learning_rate"] = seed_learning_rate
        else:
            method["seed_sft_weight"] = 0.0  # nothing is seeded
    examples_a_step = config.batch_size * config.gradient_accumulation
    if n_examples is not None and config.epochs == 1 and n_examples <= examples_a_step:
        method["warmup"] = 0.0
    return method


def policy_of(bench: Bench, stage: Stage, name: str) -> Policy:
    """The policy whose adapter a train stage holds."""
    return Policy(name, bench.base.model, bench.base.model_digest, stage.path / ADAPTER, stage.digest, stage.path / EXPECTED)


def adopt(bench: Bench, folder: Path) -> Trained:
    """Take an adapter that was trained elsewhere as policy[0]."""
    base, config, folder = bench.base, bench.config, folder.expanduser()
    digests = file_digests(folder)
    if not config.fake and not bench.store.dry_run:  # before that the look at the model has done it
        check_adapter(folder, config.lora, f"in start_adapter={folder}", base.model, config.model.trust_remote_code)
    policy = Policy("policy[0]", base.model, base.model_digest, folder, text_digest(digests))
    return Trained(policy, None, None, {"cycle": 0, "init": "start_adapter", "reference": "none", "data": str(folder)})


def training_rows(stage: Stage) -> list[dict[str, float]]:
    """The training curve of a train stage: a row a step."""
    return stage.rows(LOG)
