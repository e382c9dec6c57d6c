"""TRL's own arguments: those that a config may pass through, with what each may be, and why the others are refused.

Kept here because importing TRL to ask takes seconds. Tests hold the names against the installed TRL, and train with every
argument that is allowed: ids, starting weights, reference, resume and the first step's margins stay what they are without it.
Arguments that have a setting of their own under `method` are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero",
    "apo_down", "discopop", "sigmoid_norm",
)  # fmt: skip
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "rmsprop", "adagrad")


@dataclass(frozen=True)
class Allowed:
    """An argument that may be passed through."""

    methods: str
    """Of these methods."""
    takes: str
    fits: Callable[[Any], bool]
    """Whether a value is one of those; TRL would say so after sampling."""


def number(low: float, high: float) -> Callable[[Any], bool]:
    """A finite number in an interval, ends included."""
    return lambda x: isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) and low <= x <= high


def whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, int) and not isinstance(x, bool) and low <= x <= high


def flag(x: Any) -> bool:
    return isinstance(x, bool)


def one_of(names: tuple[str, ...]) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, str) and x in names


def losses(x: Any) -> bool:
    return (isinstance(x, str) and x in LOSSES) or (isinstance(x, list) and bool(x) and all(part in LOSSES for part in x))


def weights(x: Any) -> bool:
    return isinstance(x, list) and bool(x) and all(number(0, 1e6)(part) for part in x)


def only(keys: dict[str, Callable[[Any], bool]]) -> Callable[[Any], bool]:
    """A mapping of these keys alone."""
    return lambda x: isinstance(x, dict) and bool(x) and all(key in keys and keys[key](value) for key, value in x.items())


ALL, LANGUAGE, DPO = "sft sdf dpo", "sft sdf", "dpo"
ALLOWED: dict[str, Allowed] = {
    # How a step is made: the gradient, the optimizer, the schedule.
    "optim": Allowed(ALL, f"one of {', '.join(OPTIMIZERS)}", one_of(OPTIMIZERS)),
    "lr_scheduler_kwargs": Allowed(ALL, "{num_cycles: <0 to 100>}", only({"num_cycles": number(0, 100)})),
    "gradient_checkpointing": Allowed(ALL, "true or false", flag),
    "gradient_checkpointing_kwargs": Allowed(ALL, "{use_reentrant: true or false}", only({"use_reentrant": flag})),
    "torch_empty_cache_steps": Allowed(ALL, "a whole number from 1", whole(1, 10**9)),
    "pad_to_multiple_of": Allowed(ALL, "a whole number from 1 to 1024", whole(1, 1024)),
    # Other losses on the same ids.
    "neftune_noise_alpha": Allowed(LANGUAGE, "a number from 0 to 100", number(0, 100)),
    "loss_type": Allowed(ALL, f"for dpo one or a list of {', '.join(LOSSES)}; else nll or dft", losses),
    "loss_weights": Allowed(DPO, "a list of numbers, one a loss_type", weights),
    "label_smoothing": Allowed(DPO, "a number from 0 to 0.49", number(0, 0.49)),
    "f_divergence_type": Allowed(DPO, f"one of {', '.join(DIVERGENCES)}", one_of(DIVERGENCES)),
    "f_alpha_divergence_coef": Allowed(DPO, "a number from 0 to 1", number(0, 1)),
    "ld_alpha": Allowed(DPO, "a number from 0 to 1", number(0, 1)),
    "discopop_tau": Allowed(DPO, "a number from 0.001 to 10", number(0.001, 10)),
}

# Why the others are refused: reason -> names.
REFUSED_OF_ALL = {
    "training reads token ids as they were sampled, one example a row": """
        dataset_num_proc label_names length_column_name pad_token padding_free remove_unused_columns train_sampling_strategy
        truncation_mode""",
    "a killed stage goes on from its own checkpoints, and ends as if it had not been killed": """
        enable_jit_checkpoint ignore_data_skip restore_callback_states_from_checkpoint save_on_each_node save_only_model
        save_total_limit""",
    "which processes train and how they share the work is decided by the machine": """
        accelerator_config average_tokens_across_devices ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb
        ddp_find_unused_parameters ddp_static_graph ddp_timeout deepspeed fsdp fsdp_config parallelism_config""",
    "a batch is batch_size examples, in an order that the seed decides": """
        auto_find_batch_size dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context
        dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor""",
    "nothing is evaluated while training": """
        batch_eval_metrics bf16_full_eval eval_accumulation_steps eval_do_concat_batches eval_use_gather_object fp16_full_eval
        greater_is_better include_for_metrics metric_for_best_model per_device_eval_batch_size prediction_loss_only""",
    "the training log is the project's own, and a loss that is no number has to show in it": """
        debug include_num_input_tokens_seen log_level log_level_replica log_on_each_node logging_first_step
        logging_nan_inf_filter skip_memory_metrics""",
    "it changes what is computed in a way that no test here covers": """
        activation_offloading full_determinism label_smoothing_factor liger_kernel_config optim_args optim_target_modules
        router_aux_loss_coef tf32 torch_compile torch_compile_backend torch_compile_mode use_cache use_liger_kernel""",
}
REFUSED_OF_LANGUAGE = {
    "training reads token ids as they were sampled, one example a row, and scores what method.loss_on and the answer are": """
        assistant_only_loss chat_template_path completion_only_loss dataset_kwargs dataset_text_field eos_token eval_packing
        packing packing_strategy shuffle_dataset""",
}
REFUSED_OF_DPO = {
    "the reference is the policy that a cycle starts from, or base (method.reference), computed beside it": """
        precompute_ref_batch_size precompute_ref_log_probs ref_model_mixup_alpha ref_model_sync_steps sync_ref_model""",
    "with it, margins or losses of the first step are not those of equal policies": """
        disable_dropout neftune_noise_alpha use_weighting""",
}
REFUSED_OF = {
    "sft": REFUSED_OF_ALL | REFUSED_OF_LANGUAGE,
    "sdf": REFUSED_OF_ALL | REFUSED_OF_LANGUAGE,
    "dpo": REFUSED_OF_ALL | REFUSED_OF_DPO,
}
REFUSED = {
    method: {name: reason for reason, names in reasons.items() for name in names.split()}
    for method, reasons in REFUSED_OF.items()
}
TRL_KEYS = {
    method: frozenset([*REFUSED[method], *(name for name, rule in ALLOWED.items() if method in rule.methods.split())])
    for method in ("sft", "sdf", "dpo")
}
"""Every name that TRL knows and `method` has no setting for."""


def trl_fault(method: str, passed: dict[str, Any], lr_schedule: str, seed_sft_weight: float) -> str | None:
    """What is wrong with known arguments that are to be passed through, or None."""
    for key, value in passed.items():
        if key in REFUSED[method]:
            return f"method.trl.{key}={value} cannot be passed through: {REFUSED[method][key]}; remove it"
        rule = ALLOWED[key]
        fits = one_of(("nll", "dft")) if key == "loss_type" and method != "dpo" else rule.fits
        if not fits(value):
            return f"method.trl.{key}={value!r} is wrong: it takes {rule.takes}"
    if "lr_scheduler_kwargs" in passed and lr_schedule != "cosine":
        return f"method.trl.lr_scheduler_kwargs goes with method.lr_schedule=cosine alone, and it is {lr_schedule}: remove it"
    return loss_fault(passed, seed_sft_weight) if method == "dpo" else None


def loss_fault(passed: dict[str, Any], seed_sft_weight: float) -> str | None:
    """What of DPO's losses does not go together, or None."""
    if seed_sft_weight > 0 and ("loss_type" in passed or "loss_weights" in passed):
        return (
            "method.trl.loss_type and loss_weights would take the place of the loss that cycle 0 adds "
            f"(method.seed_sft_weight={seed_sft_weight:g}): set method.seed_sft_weight=0 too"
        )
    named = passed.get("loss_type", "sigmoid")
    found = named if isinstance(named, list) else [named]
    if "loss_weights" in passed and len(passed["loss_weights"]) != len(found):
        return f"method.trl.loss_weights={passed['loss_weights']} needs one number for each loss_type ({', '.join(found)})"
    if "exo_pair" in found and not passed.get("label_smoothing", 0) > 0:
        return "method.trl.loss_type=exo_pair needs label_smoothing above 0: add +method.trl.label_smoothing=0.001"
    plain = {"nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down"} & set(found)
    if plain and passed.get("f_divergence_type", "reverse_kl") != "reverse_kl":
        divergence = passed["f_divergence_type"]
        return f"method.trl.f_divergence_type={divergence} does not go with loss_type={sorted(plain)[0]}: remove one"
    return None
