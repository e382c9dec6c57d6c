"""TRL's trainers, set up for token ids. The only module that imports TRL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from iterative_ft.training.callbacks import ReturnMemory, StepLog
from iterative_ft.training.one_row import OneRow
from iterative_ft.training.settings import Job


class IdsSFTTrainer(OneRow, SFTTrainer):  # type: ignore[misc]
    """SFT and SDF on token ids, the examples of a batch in one row where the model allows it."""


class IdsDPOTrainer(OneRow, DPOTrainer):  # type: ignore[misc]
    """DPO on token ids that were sampled: nothing is decoded and encoded again. Pairs in one row where the model allows it."""

    pairs = True

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the policy alone: transformers would load the adapter "ref" and leave the policy at its start."""
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(self.model, load_peft_weights(resume_from_checkpoint, device="cpu"), adapter_name="default")


def arguments(job: Job) -> dict[str, Any]:
    """TRL's arguments from the method's settings; what the user passes through under `trl` wins."""
    method, out = job.method, Path(job.out)
    schedule = {"cosine": "cosine_with_min_lr", "constant": "constant_with_warmup", "linear": "linear"}[method["lr_schedule"]]
    if job.n_processes > 1 and method["batch_size"] % job.n_processes != 0:
        raise ValueError(f"method.batch_size={method['batch_size']} does not divide among {job.n_processes} processes")
    values: dict[str, Any] = {
        "output_dir": str(out / "checkpoints"),
        "learning_rate": method["learning_rate"],
        "lr_scheduler_type": schedule,
        "warmup_steps": min(method["warmup"], 1 - 1e-9),  # below 1 it is a share of all steps, from 1 a number
        "per_device_train_batch_size": method["batch_size"] // job.n_processes,
        "gradient_accumulation_steps": method["gradient_accumulation"],
        "num_train_epochs": method["epochs"],
        "weight_decay": method["weight_decay"],
        "adam_beta1": method["adam"]["beta1"],
        "adam_beta2": method["adam"]["beta2"],
        "adam_epsilon": method["adam"]["epsilon"],
        "max_grad_norm": method["max_grad_norm"],
        "max_length": method["max_length"],
        "save_strategy": "steps",
        "save_steps": method["checkpoint_steps"],
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it would show 0 for the loss of a step that diverged
        "report_to": "none",
        "seed": job.seed,
        "data_seed": job.seed,
        "bf16": job.dtype == "bfloat16",
        "use_cpu": job.device == "cpu",
        "gradient_checkpointing": job.device == "cuda",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": job.device == "cuda",
    }
    if method["lr_schedule"] == "cosine":
        values["lr_scheduler_kwargs"] = {"min_lr_rate": method["lr_floor"]}
    passed = dict(method["trl"])
    if "lr_scheduler_kwargs" in passed:  # beside lr_floor, not in its place
        passed["lr_scheduler_kwargs"] = values.get("lr_scheduler_kwargs", {}) | passed["lr_scheduler_kwargs"]
    return values | passed


def callbacks(job: Job, steps: StepLog) -> list[TrainerCallback]:
    return [steps, ReturnMemory()] if job.device == "cpu" else [steps]


def score_completions_only() -> None:
    """Have TRL's language-model head score the positions that the loss reads, on a CPU as it does on a GPU.

    Without Triton, TRL 1.x scores prompts and padding too, so that shapes stay the same on devices that compile for each
    (`trl.trainer.utils.add_fused_lm_head`). A CPU does not compile: the loss is the same, and a DPO step took 0.7 of the time.
    """
    from trl.trainer import utils

    utils._use_triton = lambda device: True  # in this module it decides about the positions alone


def make_sft(model: Any, tokenizer: Any, dataset: Any, job: Job, steps: StepLog) -> Any:
    """SFT and SDF: next-token loss where labels are not -100."""
    options = {**arguments(job), "dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False}
    return IdsSFTTrainer(
        model=model,
        args=SFTConfig(**options),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=callbacks(job, steps),
    )


def make_dpo(model: Any, tokenizer: Any, dataset: Any, job: Job, steps: StepLog) -> Any:
    """DPO (Rafailov et al. 2023, eq. 7), its reference a frozen copy of the start, or the base model.

    TRL copies the adapter it is given into a frozen one named "ref". Where the reference is base that copy is deleted: TRL then
    computes it with all adapters off.
    """
    method = job.method
    options: dict[str, Any] = {"beta": method["beta"]}
    if method["seed_sft_weight"] > 0:
        options |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, method["seed_sft_weight"]]}
    options |= arguments(job)
    trainer = IdsDPOTrainer(
        model=model,
        args=DPOConfig(**options),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=callbacks(job, steps),
    )
    if (job.reference_is_base or job.init_adapter is None) and "ref" in trainer.model.peft_config:
        trainer.model.delete_adapter("ref")
    return trainer


TRAINERS: dict[str, Callable[..., Any]] = {"sft": make_sft, "sdf": make_sft, "dpo": make_dpo}
