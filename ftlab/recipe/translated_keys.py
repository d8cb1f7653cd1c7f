"""Keys of LLaMA-Factory and older libraries that a recipe lacks: renamed, dropped with a note, or refused by name.

Every reason is a message (messages.toml), see `reason`.
"""

from typing import Any

from ftlab.errors import say

# old key -> (new key, reason): renamed by the libraries or by other frameworks, same value.
RENAMED = {
    "evaluation_strategy": ("eval_strategy", "why_transformers_renamed_it"),
    "max_seq_length": ("cutoff_len", "why_trl_calls_it_max_length"),
    "enable_liger_kernel": ("use_liger_kernel", "why_transformers_name"),
    "num_layer_trainable": ("freeze_trainable_layers", "why_llamafactory_renamed_it"),
    "name_module_trainable": ("freeze_trainable_modules", "why_llamafactory_renamed_it"),
    "dpo_beta": ("pref_beta", "why_llamafactory_renamed_it"),
    "kto_beta": ("pref_beta", "why_llamafactory_renamed_it"),
    "orpo_beta": ("pref_beta", "why_llamafactory_renamed_it"),
    "dpo_loss": ("pref_loss", "why_llamafactory_renamed_it"),
    "dpo_ftx": ("pref_ftx", "why_llamafactory_renamed_it"),
    "sft_packing": ("packing", "why_llamafactory_renamed_it"),
    "checkpoint_dir": ("adapter_name_or_path", "why_llamafactory_renamed_it"),
    "dev_ratio": ("val_size", "why_llamafactory_renamed_it"),
    "prompt_template": ("template", "why_llamafactory_renamed_it"),
    "neft_alpha": ("neftune_noise_alpha", "why_transformers_name"),
    "per_gpu_train_batch_size": ("per_device_train_batch_size", "why_transformers_renamed_it"),
    "no_cuda": ("use_cpu", "why_transformers_renamed_it"),
    "disable_shuffling": ("train_sampling_strategy", "why_true_is_sequential"),
    "group_by_length": ("train_sampling_strategy", "why_true_is_group_by_length"),
    "disable_gradient_checkpointing": ("gradient_checkpointing", "why_opposite_value"),
}
RENAMED_VALUES: dict[str, dict[bool, Any]] = {
    "group_by_length": {True: "group_by_length", False: "random"},
    "disable_shuffling": {True: "sequential", False: "random"},
    "disable_gradient_checkpointing": {True: False, False: True},
}
# key -> why it can be ignored.
DROPPED = {
    "overwrite_cache": "why_encoded_when_changed",
    "preprocessing_num_workers": "why_encoded_in_one_process",
    "preprocessing_batch_size": "why_encoded_one_by_one",
    "dataloader_persistent_workers": "why_loader_processes",
    "save_safetensors": "why_always_safetensors",
    "logging_dir": "why_trackers_in_run_folder",
    "low_cpu_mem_usage": "why_transformers_always",
    "offload_state_dict": "why_read_one_by_one",
    "use_fast_tokenizer": "why_fast_tokenizers",
    "upcast_layernorm": "why_norms_keep_dtype",
    "streaming": "why_read_as_needed",
    "buffer_size": "why_shuffled_as_a_whole",
    "pissa_convert": "why_pissa_saved_for_base",
    "do_eval": "why_eval_strategy_decides",
    "do_predict": "why_ftlab_eval_scores",
    "logging_first_step": "why_first_step_logged",
    "prediction_loss_only": "why_only_the_loss",
    "include_for_metrics": "why_only_the_loss",
    "batch_eval_metrics": "why_only_the_loss",
    "eval_do_concat_batches": "why_only_the_loss",
    "eval_use_gather_object": "why_only_the_loss",
    "length_column_name": "why_lengths_from_tokens",
    "remove_unused_columns": "why_columns_of_the_trainer",
    "ray_run_name": "why_named_by_output_dir",
    "ray_storage_filesystem": "why_ray_writes_two_places",
    "print_param_status": "why_readme_says_what_trained",
    "reward_model_type": "why_folder_says_its_kind",
    "ppo_buffer_size": "why_batch_in_prompts",
    "ppo_score_norm": "why_advantages_normalized",
    "ppo_whiten_rewards": "why_advantages_normalized",
    "ppo_target": "why_kl_fixed",
    "split_special_tokens": "why_special_tokens_checked",
    "ignore_pad_token_for_loss": "why_padding_untrained",
    "data_shared_file_system": "why_first_process_encodes",
    "include_effective_tokens_per_second": "why_one_more_figure",
    "upcast_lmhead_output": "why_loss_in_float32",
    "use_kv_cache": "why_generation_caches",
    "use_reentrant_gc": "why_same_gradients",
    "use_v1_kernels": "why_fast_paths_chosen",
    "init_special_tokens": "why_new_rows_near_the_mean",
    "resize_vocab": "why_embedding_grows_by_add_tokens",
    "block_diag_attn": "why_packed_apart",
}
# Keys that LLaMA-Factory reads only together with another one, which itself is refused if it has an effect.
BESIDE = {
    "use_badam": (
        "badam_mode", "badam_start_block", "badam_switch_mode", "badam_switch_interval", "badam_update_ratio",
        "badam_mask_mode", "badam_verbose",
    ),
    "use_galore": (
        "galore_target", "galore_rank", "galore_update_interval", "galore_scale", "galore_proj_type",
        "galore_layerwise",
    ),
    "use_apollo": (
        "apollo_target", "apollo_rank", "apollo_update_interval", "apollo_scale", "apollo_proj", "apollo_proj_type",
        "apollo_scale_type", "apollo_layerwise",
    ),
    "use_swanlab": (
        "swanlab_project", "swanlab_workspace", "swanlab_run_name", "swanlab_mode", "swanlab_logdir",
        "swanlab_lark_webhook_url",
    ),
    "use_kt": (
        "kt_weight_path", "kt_expert_checkpoint_path", "kt_use_lora_experts", "kt_lora_expert_num",
        "kt_lora_expert_intermediate_size",
    ),
    "use_hyper_parallel": ("hyper_parallel_args",),
    "fp8": ("fp8_backend", "fp8_enable_fsdp_float8_all_gather"),
    "enable_torch_profiler": (
        "profiler_output_dir", "profiler_wait_steps", "profiler_warmup_steps", "profiler_active_steps",
        "profiler_repeat", "profiler_record_shapes", "profiler_profile_memory", "profiler_with_stack",
        "profile_modules",
    ),
    "infer_backend: vllm": (
        "vllm_maxlen", "vllm_gpu_util", "vllm_enforce_eager", "vllm_max_lora_rank", "vllm_config",
    ),
    "infer_backend: sglang": (
        "sglang_maxlen", "sglang_mem_fraction", "sglang_tp_size", "sglang_config", "sglang_lora_backend",
    ),
}  # fmt: skip
MAIN_OF = {name: main for main, names in BESIDE.items() for name in names}
DROPPED |= dict.fromkeys(MAIN_OF, "why_only_with")
DROPPED |= dict.fromkeys(
    (
        "media_dir", "image_max_pixels", "image_min_pixels", "image_do_pan_and_scan", "crop_to_patches",
        "video_max_pixels", "video_min_pixels", "video_fps", "video_maxlen", "use_audio_in_video",
        "audio_sampling_rate", "freeze_multi_modal_projector",
    ),
    "why_only_with_media",
)  # fmt: skip
# key -> (values without effect, what it would need and what to use instead).
OUT_OF_REACH = {
    "use_unsloth": "why_unsloth_remove",
    "use_unsloth_gc": "why_unsloth_checkpointing",
    "use_badam": "why_badam_old",
    "use_adam_mini": "why_adam_mini_old",
    "use_kt": "why_ktransformers_cluster",
    "use_swanlab": "why_swanlab_broken",
    "mixture_of_depths": "why_mixture_of_depth_old",
    "shift_attn": "why_longlora_unmaintained",
    "fp8": "why_fp8_needs_h100",
    "train_from_scratch": "why_lesson_06_from_scratch",
    "add_special_tokens": "why_control_tokens_escaped",
    "new_special_tokens": "why_control_tokens_escaped",
    "new_special_tokens_config": "why_control_tokens_escaped",
    "visual_inputs": "why_text_models_only",
    "freeze_vision_tower": "why_text_models_only",
    "freeze_language_model": "why_text_models_only",
    "eval_on_each_dataset": "why_scored_together",
    "apollo_scale_front": "why_apollo_lacks_it",
    "tool_format": "why_template_writes_tools",
    "preserve_thinking": "why_template_keeps_reasoning",
    "adapter_folder": "why_write_whole_adapter_path",
    "model_max_length": "why_write_cutoff_len",
    "max_length": "why_two_max_lengths",
    "compute_dtype": "why_write_dtype_keys",
    "ref_model_quantization_bit": "why_reference_dtype",
    "reward_model_adapters": "why_write_reward_model",
    "reward_model_quantization_bit": "why_reward_model_dtype",
    "pref_bco_weight": "why_dpo_without_bco",
    "loraplus_lr_embedding": "why_loraplus_embedding_rate",
    "eval_num_beams": "why_scored_answers_greedy",
    "skip_special_tokens": "why_no_control_tokens_in_answers",
    "quantization_device_map": "why_write_device_map",
    "length_penalty": "why_no_length_scores",
    "export_hub_model_id": "why_upload_with_hf",
    "enable_torch_profiler": "why_profile_yourself",
    "use_mca": "why_megatron",
    "use_hyper_parallel": "why_hyperparallel",
    "task": "why_write_tasks",
    "task_dir": "why_write_tasks",
    "n_shot": "why_shots_in_task_file",
    "save_dir": "why_write_output_dir",
    "master_addr": "why_set_in_environment",
    "master_port": "why_set_in_environment",
}
# Values of these keys without effect; for the others it is false.
ASKS_NOTHING = {
    "freeze_vision_tower": True,
    "pref_bco_weight": 0,
    "loraplus_lr_embedding": 1e-6,
    "length_penalty": 1,
    "eval_num_beams": 1,
    "skip_special_tokens": True,
}
OUT_OF_REACH |= dict.fromkeys(
    (
        "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size",
        "expert_model_parallel_size", "context_parallel_size", "sequence_parallel", "use_distributed_optimizer",
        "overlap_param_gather", "overlap_grad_reduce", "bias_activation_fusion", "apply_rope_fusion",
        "moe_grouped_gemm", "moe_token_dispatcher_type", "recompute_granularity",
    ),
    "why_megatron",
)  # fmt: skip
# Values of `stage` and `finetuning_type` that LLaMA-Factory has and ftlab lacks.
ELSEWHERE = {
    ("reward_model_type", "api"): "why_reward_is_a_function",
    ("finetuning_type", "qlora"): "why_write_qlora_keys",
    ("pref_loss", "kto_pair"): "why_dpo_without_kto_pair",
    ("init_lora_weights", True): "why_peft_start_needs_no_key",
    ("init_lora_weights", "pissa"): "why_write_pissa_init",
    ("init_lora_weights", "eva"): "why_eva_needs_activations",
    ("init_lora_weights", "corda"): "why_corda_needs_activations",
    ("init_lora_weights", "loftq"): "why_loftq_needs_cuda",
    ("infer_backend", "vllm"): "why_vllm_needs_cuda",
    ("infer_backend", "sglang"): "why_sglang_needs_cuda",
    ("quantization_method", "hqq"): "why_hqq_not_installed",
    ("quantization_method", "eetq"): "why_eetq_needs_cuda",
    ("export_legacy_format", True): "why_no_pickles",
    ("report_to", "swanlab"): "why_swanlab_callback",
    ("resume_from_checkpoint", False): "why_fresh_starts_over",
}


def reason(message: str, key: str) -> str:
    """Return a reason from a table of keys in the user's language.

    >>> reason("why_set_in_environment", "master_addr"), reason("why_only_with", "badam_mode")
    ('set MASTER_ADDR in the environment', 'it only has an effect with use_badam')
    """
    return say(message, variable=key.upper(), main=MAIN_OF.get(key, ""))
