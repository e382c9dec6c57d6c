"""Names of TRL's own arguments that a config may pass through, kept here because importing TRL to ask takes seconds.

A test holds the list against the installed TRL. Arguments that have a setting of their own under `method` are left out.
"""

COMMON = """
    accelerator_config activation_offloading auto_find_batch_size average_tokens_across_devices
    batch_eval_metrics bf16_full_eval dataloader_drop_last dataloader_in_order
    dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers
    dataloader_pin_memory dataloader_prefetch_factor dataset_num_proc ddp_backend ddp_broadcast_buffers
    ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed
    enable_jit_checkpoint eval_accumulation_steps eval_do_concat_batches
    eval_use_gather_object fp16_full_eval fsdp fsdp_config
    full_determinism gradient_checkpointing gradient_checkpointing_kwargs greater_is_better
    ignore_data_skip include_for_metrics
    include_num_input_tokens_seen label_names label_smoothing_factor length_column_name liger_kernel_config
    log_level log_level_replica log_on_each_node logging_first_step
    logging_nan_inf_filter loss_type lr_scheduler_kwargs metric_for_best_model
    neftune_noise_alpha optim optim_args optim_target_modules pad_to_multiple_of pad_token padding_free
    parallelism_config per_device_eval_batch_size prediction_loss_only remove_unused_columns
    restore_callback_states_from_checkpoint router_aux_loss_coef save_on_each_node save_only_model
    save_total_limit skip_memory_metrics tf32 torch_compile torch_compile_backend torch_compile_mode
    torch_empty_cache_steps train_sampling_strategy
    truncation_mode use_cache use_liger_kernel
""".split()

SFT = """
    assistant_only_loss chat_template_path completion_only_loss dataset_kwargs dataset_text_field eos_token
    eval_packing packing packing_strategy shuffle_dataset
""".split()

DPO = """
    disable_dropout discopop_tau f_alpha_divergence_coef f_divergence_type label_smoothing ld_alpha
    loss_weights precompute_ref_batch_size precompute_ref_log_probs ref_model_mixup_alpha ref_model_sync_steps
    sync_ref_model use_weighting
""".split()

TRL_KEYS = {
    "sft": frozenset(COMMON + SFT),
    "sdf": frozenset(COMMON + SFT),
    "dpo": frozenset(COMMON + DPO),
}
