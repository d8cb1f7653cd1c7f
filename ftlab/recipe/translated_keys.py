"""Keys of LLaMA-Factory and older libraries that a recipe lacks: renamed, dropped with a note, or refused by name."""

from typing import Any

# old key -> (new key, reason): renamed by the libraries or by other frameworks, same value.
RENAMED = {
    "evaluation_strategy": ("eval_strategy", "transformers renamed it"),
    "max_seq_length": ("cutoff_len", "trl calls it max_length now"),
    "enable_liger_kernel": ("use_liger_kernel", "transformers' name for it"),
    "num_layer_trainable": ("freeze_trainable_layers", "LLaMA-Factory renamed it"),
    "name_module_trainable": ("freeze_trainable_modules", "LLaMA-Factory renamed it"),
    "dpo_beta": ("pref_beta", "LLaMA-Factory renamed it"),
    "kto_beta": ("pref_beta", "LLaMA-Factory renamed it"),
    "orpo_beta": ("pref_beta", "LLaMA-Factory renamed it"),
    "dpo_loss": ("pref_loss", "LLaMA-Factory renamed it"),
    "dpo_ftx": ("pref_ftx", "LLaMA-Factory renamed it"),
    "sft_packing": ("packing", "LLaMA-Factory renamed it"),
    "checkpoint_dir": ("adapter_name_or_path", "LLaMA-Factory renamed it"),
    "dev_ratio": ("val_size", "LLaMA-Factory renamed it"),
    "prompt_template": ("template", "LLaMA-Factory renamed it"),
    "neft_alpha": ("neftune_noise_alpha", "transformers' name for it"),
    "per_gpu_train_batch_size": ("per_device_train_batch_size", "transformers renamed it"),
    "no_cuda": ("use_cpu", "transformers renamed it"),
    "disable_shuffling": ("train_sampling_strategy", "true is now sequential"),
    "group_by_length": ("train_sampling_strategy", "true is now group_by_length"),
    "disable_gradient_checkpointing": ("gradient_checkpointing", "with the opposite value"),
}
RENAMED_VALUES: dict[str, dict[bool, Any]] = {
    "group_by_length": {True: "group_by_length", False: "random"},
    "disable_shuffling": {True: "sequential", False: "random"},
    "disable_gradient_checkpointing": {True: False, False: True},
}
# key -> why it can be ignored.
DROPPED = {
    "overwrite_cache": "examples are encoded again whenever their file changes",
    "preprocessing_num_workers": "examples are encoded in one process",
    "preprocessing_batch_size": "examples are encoded one by one",
    "dataloader_persistent_workers": "a setting of loader processes",
    "save_safetensors": "weights are always safetensors",
    "logging_dir": "trackers write into the run folder",
    "low_cpu_mem_usage": "transformers always does it",
    "offload_state_dict": "transformers no longer has it: weights are read one by one",
    "use_fast_tokenizer": "fast tokenizers are always used",
    "upcast_layernorm": "trained norms are float32 unless `pure_bf16` is set; frozen ones keep their dtype",
    "streaming": "examples are kept in a file and read from it as they are needed, so that memory stays flat; a hub's "
    "data set is downloaded whole",
    "buffer_size": "examples are shuffled as a whole",
    "pissa_convert": "a PiSSA adapter is always saved as one for the unchanged base",
    "do_eval": "`eval_strategy` decides",
    "do_predict": "`ftlab eval` answers and scores",
    "logging_first_step": "the first and the last step are always logged",
    "prediction_loss_only": "evaluation during training computes the loss alone",
    "include_for_metrics": "evaluation during training computes the loss alone",
    "batch_eval_metrics": "evaluation during training computes the loss alone",
    "eval_do_concat_batches": "evaluation during training computes the loss alone",
    "eval_use_gather_object": "evaluation during training computes the loss alone",
    "length_column_name": "lengths are counted from the tokens",
    "remove_unused_columns": "every stage gets the columns that its trainer takes",
    "ray_run_name": "a run is named by its output_dir",
    "ray_storage_filesystem": "Ray's record goes to ray_storage_path, and the run itself to output_dir",
    "print_param_status": "the run's README says what was trained",
    "reward_model_type": "the folder says whether it holds an adapter or a model",
    "ppo_buffer_size": "a batch is per_device_train_batch_size x gradient_accumulation_steps prompts",
    "ppo_score_norm": "advantages are normalized, batch by batch",
    "ppo_whiten_rewards": "advantages are normalized, batch by batch",
    "ppo_target": "the price of KL is fixed: `pref_beta`",
    "split_special_tokens": "special tokens in data are checked before training",
    "ignore_pad_token_for_loss": "padding is never trained on",
    "data_shared_file_system": "the first process of each machine encodes, the others read what it wrote",
    "include_effective_tokens_per_second": "it only adds a figure to the log",
    "upcast_lmhead_output": "the loss is computed in float32",
    "use_kv_cache": "generation always caches",
    "use_reentrant_gc": "both ways of recomputing give the same gradients",
    "use_v1_kernels": "the fast paths of `shortcuts` are chosen by what the machine and the model allow",
    "init_special_tokens": "rows of added tokens are drawn around the mean of the others",
    "resize_vocab": "the embedding grows by what `add_tokens` names",
    "block_diag_attn": "packed examples never attend to each other",
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
    "images, video or sound": (
        "media_dir", "image_max_pixels", "image_min_pixels", "image_do_pan_and_scan", "crop_to_patches",
        "video_max_pixels", "video_min_pixels", "video_fps", "video_maxlen", "use_audio_in_video",
        "audio_sampling_rate", "freeze_multi_modal_projector",
    ),
}  # fmt: skip
MAIN_OF = {name: main for main, names in BESIDE.items() for name in names}
DROPPED |= {name: f"it only has an effect with {main}" for name, main in MAIN_OF.items()}
# key -> (values without effect, what it would need and what to use instead).
OUT_OF_REACH = {
    "use_unsloth": "Unsloth needs a CUDA GPU and its own build; remove the key",
    "use_unsloth_gc": "Unsloth needs a CUDA GPU and its own build; use `gradient_checkpointing: true`",
    "use_badam": "the package badam had its last release in March 2025; use `optim: lomo` or LoRA",
    "use_adam_mini": "the package adam-mini had its last release in November 2024; use `optim: adamw_8bit`",
    "use_kt": "KTransformers is a cluster back end; use torchrun or deepspeed",
    "use_swanlab": "SwanLab's callback is broken in this transformers; write `report_to: tensorboard`, wandb or mlflow",
    "mixture_of_depths": "the package mixture-of-depth had its last release in June 2024; remove the key",
    "shift_attn": "no maintained library has LongLoRA's attention; use `flash_attn: fa2` and `rope_scaling`",
    "fp8": "FP8 needs an H100-class GPU and accelerate's own setting; use bf16",
    "train_from_scratch": "lesson 06 trains from scratch",
    "add_special_tokens": "control tokens in data are escaped, so it would never be seen; write `add_tokens`",
    "new_special_tokens": "control tokens in data are escaped, so it would never be seen; write `add_tokens`",
    "new_special_tokens_config": "control tokens in data are escaped, so it would never be seen; write `add_tokens`",
    "visual_inputs": "text models only",
    "freeze_vision_tower": "text models only",
    "freeze_language_model": "text models only",
    "eval_on_each_dataset": "validation sets are scored together; run `ftlab eval` once for each",
    "apollo_scale_front": "transformers' APOLLO has no such argument; remove the key",
    "tool_format": "the model's own chat template writes tools; remove the key",
    "preserve_thinking": "the model's own chat template decides what it keeps of earlier reasoning; remove the key",
    "adapter_folder": "write the whole path in `adapter_name_or_path`",
    "model_max_length": "write `cutoff_len`",
    "max_length": "trl counts an example's tokens by it, LLaMA-Factory prompt and answer of a chat; write `cutoff_len` "
    "or `max_new_tokens`",
    "compute_dtype": "write `bf16`, `fp16` or `pure_bf16`",
    "ref_model_quantization_bit": "a reference has the dtype of the trained model; remove the key",
    "reward_model_adapters": "name the adapter in `reward_model`",
    "reward_model_quantization_bit": "a reward model is loaded in the machine's own dtype; remove the key",
    "pref_bco_weight": "trl's DPO has no weight for a BCO loss; use `pref_loss: sigmoid`",
    "loraplus_lr_embedding": "LoRA+ trains embeddings at PEFT's own rate of 1e-6; remove the key",
    "eval_num_beams": "answers that are scored are greedy; remove the key",
    "skip_special_tokens": "control tokens are never part of an answer; remove the key",
    "quantization_device_map": "write `device_map`",
    "length_penalty": "answers here are not scored by length; remove the key",
    "export_hub_model_id": "ftlab does not upload; use `hf upload NAME export_dir`",
    "enable_torch_profiler": "run it under torch.profiler yourself: `ftlab recipe show` prints the script",
    "use_mca": "Megatron is another engine; use torchrun",
    "use_hyper_parallel": "HyperParallel is another engine; use torchrun",
    "task": "write `tasks`: lm-eval's names (docs/evaluate.md)",
    "task_dir": "write `tasks`: lm-eval's names (docs/evaluate.md)",
    "n_shot": "a task file says how many examples are shown (docs/evaluate.md)",
    "save_dir": "write `output_dir`",
    "master_addr": "set MASTER_ADDR in the environment",
    "master_port": "set MASTER_PORT in the environment",
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
    "Megatron is another engine; use torchrun",
)  # fmt: skip
# Values of `stage` and `finetuning_type` that LLaMA-Factory has and ftlab lacks.
ELSEWHERE = {
    ("reward_model_type", "api"): "a reward is a function here; write `reward_funcs`, or a folder in `reward_model`",
    ("finetuning_type", "qlora"): "write `finetuning_type: lora` and `quantization_bit: 4`",
    ("pref_loss", "kto_pair"): "trl's DPO has no such loss; use `stage: kto`",
    ("init_lora_weights", True): "PEFT's own start needs no key; remove it",
    ("init_lora_weights", "pissa"): "write `pissa_init: true`",
    (
        "init_lora_weights",
        "eva",
    ): "EVA takes its start from activations of your data; use `pissa_init: true`",
    ("init_lora_weights", "corda"): "CorDA takes its start from activations of your data; use `pissa_init: true`",
    ("init_lora_weights", "loftq"): "PEFT's LoftQ needs a CUDA GPU; use `pissa_init: true` without `quantization_bit`",
    ("infer_backend", "vllm"): "vLLM needs a CUDA GPU; `ftlab serve` has the same API",
    ("infer_backend", "sglang"): "SGLang needs a CUDA GPU; `ftlab serve` has the same API",
    ("quantization_method", "hqq"): "HQQ is not installed here; use bnb",
    ("quantization_method", "eetq"): "EETQ needs a CUDA GPU; use bnb",
    ("export_legacy_format", True): "pickles are not written; safetensors load everywhere",
    ("report_to", "swanlab"): "its callback is broken in this transformers; use tensorboard, wandb or mlflow",
    ("resume_from_checkpoint", False): "remove the key: `fresh=true` starts over",
}
