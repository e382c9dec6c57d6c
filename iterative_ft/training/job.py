"""One training stage: load the base fresh, put the starting adapter on it, train with TRL, save the adapter.

Examples are token ids from end to end. The stage checkpoints in its own folder and goes on from the last checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from iterative_ft.machine.device import freed_memory_kept, return_freed_memory
from iterative_ft.machine.files import read_jsonl
from iterative_ft.machine.libraries import quiet_transformers
from iterative_ft.machine.process import run_isolated
from iterative_ft.models.adapters import put_on
from iterative_ft.models.base import load
from iterative_ft.models.expected import EXPECTED, Expected, all_finite, expect, write_expected
from iterative_ft.models.forward import held
from iterative_ft.training.diverged import Diverged, diverged
from iterative_ft.training.examples import Example, TextExample, n_tokens
from iterative_ft.training.settings import Job

LOG = "train_log.jsonl"
ADAPTER = "adapter"
CHECKPOINTS = "checkpoints"


def train(job: Job, on_step: Callable[[int, int, float], None] | None = None) -> dict[str, Any]:
    """Write the adapter and the training curve into `job.out`; return counts and timings.

    On CUDA this happens in a child process, under accelerate when it is for several GPUs.

    Args:
        on_step: told step, number of steps and loss as they come, when training happens in this process.

    Raises:
        Diverged: it did; nothing of it is left, since nothing of it is worth going on from.
    """
    started = time.monotonic()
    try:
        if job.device == "cpu" and job.n_processes == 1:
            with freed_memory_kept():
                result = train_here(asdict(job), on_step)
        else:
            result = run_isolated(train_here, device=job.device, n_processes=job.n_processes, job=asdict(job))
    except Diverged:
        remove_checkpoints(Path(job.out))
        shutil.rmtree(Path(job.out, ADAPTER), ignore_errors=True)
        for name in (LOG, EXPECTED):
            Path(job.out, name).unlink(missing_ok=True)
        raise
    remove_checkpoints(Path(job.out))
    return {**result, "train_seconds": round(time.monotonic() - started, 3)}


def remove_checkpoints(out: Path) -> None:
    """Under another name first: a kill in between must not leave half of one where the next attempt would go on from it."""
    with suppress(FileNotFoundError):
        doomed = (out / CHECKPOINTS).rename(out / f"{CHECKPOINTS}-done")
        shutil.rmtree(doomed, ignore_errors=True)


def train_here(job: dict[str, Any], on_step: Callable[[int, int, float], None] | None = None) -> dict[str, Any]:
    """Train in this process; `job` holds the fields of a `Job`, as another process gets them."""
    return train_as_told(Job(**job), on_step)


def train_as_told(job: Job, on_step: Callable[[int, int, float], None] | None) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, PrinterCallback, set_seed

    from iterative_ft.training.callbacks import StepLog
    from iterative_ft.training.trainers import TRAINERS, score_completions_only

    quiet_transformers()
    method, out = job.method, Path(job.out)
    set_seed(job.seed)
    tokenizer = AutoTokenizer.from_pretrained(job.model, trust_remote_code=job.trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked by length, so any token will do
    base = load(job.model, getattr(torch, job.dtype), job.trust_remote_code)
    lora = job.lora
    if job.init_adapter is None:
        model = get_peft_model(
            base,
            LoraConfig(
                r=lora["rank"],
                lora_alpha=lora["alpha"],
                lora_dropout=lora["dropout"],
                target_modules=lora["targets"],
                bias="none",
                task_type="CAUSAL_LM",
            ),
        )
    else:
        model = put_on(base, job.init_adapter, "to go on from", train_dropout=lora["dropout"])
    initial = adapter_digest(model)
    examples = read_jsonl(Path(job.examples))
    score_completions_only()
    make_trainer = TRAINERS[method["name"]]
    steps = StepLog(out / LOG, on_step)
    trainer = make_trainer(model, tokenizer, Dataset.from_list(to_columns(examples, method)), job, steps)
    trainer.remove_callback(PrinterCallback)  # without progress bars it prints every row; our own log has them
    checkpoints = out / CHECKPOINTS
    last = last_checkpoint(checkpoints)
    steps.start_from(0 if last is None else int(last.name.split("-")[1]))
    if last is not None:  # TRL counts tokens from 0 in each process
        seen = [row["num_tokens"] for row in (trainer_state(last) or {}).get("log_history", []) if "num_tokens" in row]
        trainer._total_train_tokens = int(seen[-1]) if seen else 0
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    seconds = time.monotonic() - started
    steps.finish(trainer.state.log_history)
    result: dict[str, Any] = {
        "n_examples": len(examples),
        "n_steps": trainer.state.global_step,
        "resumed_from_step": 0 if last is None else int(last.name.split("-")[1]),
        "n_tokens": sum(n_tokens(example) for example in examples) * method["epochs"],
        "loop_seconds": round(seconds, 3),
        "init_adapter_sha256": initial,
    }
    trained = trainer.accelerator.unwrap_model(trainer.model)
    whole = adapter_state(trained) if trainer.is_fsdp_enabled else None  # FSDP: put together by all processes, each has a part
    norm = adapter_norm(adapter_state(trained) if whole is None else whole)
    if not math.isfinite(norm):
        raise diverged(trainer.state.global_step, "the adapter's norm", norm)
    if trainer.is_world_process_zero():
        (out / ADAPTER).mkdir(exist_ok=True)
        trained.save_pretrained(out / ADAPTER, selected_adapters=["default"], state_dict=whole)
        (out / ADAPTER / "README.md").unlink(missing_ok=True)
        result["adapter_norm"] = norm
        make_adapter_portable(out / ADAPTER)
    if trainer.is_world_process_zero() or trainer.is_fsdp_enabled:
        expected = what_it_gives(trainer, trained, tokenizer, job)
        if not all_finite(expected.logs):
            raise diverged(trainer.state.global_step, "a log-probability", math.nan)
    if trainer.is_world_process_zero():
        write_expected(out / EXPECTED, expected)
    return result


def what_it_gives(trainer: Any, trained: Any, tokenizer: Any, job: Job) -> Expected:
    """What the trained policy gives to the canary's texts, in the precision that it is served in.

    A CPU serves the checkpoint as it was saved. Training in less than its precision rounded it, so it is read anew there.
    """
    if trainer.is_fsdp_enabled:  # only the whole knows how to put its parts together; all processes take part
        return expect(trainer.model.eval(), tokenizer, trained.config)
    if job.device == "cpu" and job.dtype != "float32":
        return_freed_memory()  # what the steps freed would stand beside the second model
        with held(job.model, str(Path(job.out, ADAPTER)), "cpu", job.trust_remote_code) as policy:
            return expect(policy, tokenizer, policy.config)
    plain = trained.base_model.eval()  # without what the trainer put around it: autocast
    return expect(plain, tokenizer, plain.config)


def to_columns(examples: list[Example], method: dict[str, Any]) -> list[dict[str, Any]]:
    """What TRL's collators read: DPO's three id lists as they are, or ids with labels."""
    if method["name"] == "dpo":
        pairs = cast("list[dict[str, Any]]", examples)
        return [{name: pair[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for pair in pairs]
    keep_prompt = method["name"] == "sdf" and method["loss_on"] == "document"
    return [
        {
            "input_ids": row["prompt_ids"] + row["completion_ids"],
            "labels": (row["prompt_ids"] if keep_prompt else [-100] * len(row["prompt_ids"])) + row["completion_ids"],
        }
        for row in cast("list[TextExample]", examples)
    ]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint: one whose trainer's state, which is written last, can be read."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True)
    return next((p for p in found if trainer_state(p) is not None), None)


def trainer_state(checkpoint: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return state


def adapter_state(model: Any) -> dict[str, Any]:
    found = {name: p.detach() for name, p in model.named_parameters() if ".default." in name}
    return {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in found.items()}  # FSDP's parts made whole


def adapter_digest(model: Any) -> str:
    """sha256 of the adapter's weights in float32, for the proof that a cycle started where it should."""
    import hashlib

    digest = hashlib.sha256()
    for name, value in sorted(adapter_state(model).items()):
        digest.update(name.encode())
        digest.update(value.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def adapter_norm(weights: dict[str, Any]) -> float:
    """Frobenius norm of the whole adapter's weights; not finite where any of them is not, or far beyond what training gives."""
    return float(sum(float(value.float().pow(2).sum()) for value in weights.values()) ** 0.5)


def make_adapter_portable(folder: Path) -> None:
    """Take the path of the base out of the adapter's config: the same training must give the same bytes anywhere."""
    file = folder / "adapter_config.json"
    saved = json.loads(file.read_text())
    saved["base_model_name_or_path"] = ""
    targets = saved["target_modules"]
    saved["target_modules"] = sorted(targets) if isinstance(targets, list) else targets
    file.write_text(json.dumps(saved, indent=1, sort_keys=True) + "\n")
