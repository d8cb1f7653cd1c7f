"""The keys of a recipe: name, type, default, range, meaning, and the library field each becomes.

The names are LLaMA-Factory's, so that a YAML written for it runs here. Any other key is a field of
`transformers.TrainingArguments` under its own name and lands in `Recipe.training`.
"""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ftlab.errors import messages, say
from ftlab.recipe.training_fields import FIELDS
from ftlab.saved_weights import WHOLE_MODELS, several

# Methods of PEFT other than LoRA, under PEFT's own names: they change the layers that `lora_target` names, or they add
# virtual tokens.
LAYER_METHODS = ("adalora", "fourierft", "ia3", "ln_tuning", "loha", "lokr", "oft", "vera")
PROMPT_METHODS = ("p_tuning", "prefix_tuning", "prompt_tuning")
# Methods whose saved adapter lacks part of the training state: AdaLoRA's importance scores, P-tuning's encoder.
SAVED_IN_PART = ("adalora", "p_tuning")
# Methods that PEFT supports on bitsandbytes' layers, or that do not change the layers.
ON_QUANTIZED = ("lora", "adalora", "ia3", "oft", "vera", *PROMPT_METHODS)


def key(default: Any, meaning: str, becomes: str = "", **limits: Any) -> Any:
    """Declare one key: its default, meaning, library field ("": ftlab's own) and range."""
    return Field(default, description=meaning, json_schema_extra={"becomes": becomes}, **limits)


class Recipe(BaseModel):
    """One run. `training` holds the TrainingArguments fields that were given as keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    # model
    model_name_or_path: str = key(..., "catalogue name, local folder or hub id", "from_pretrained(...)", min_length=1)
    adapter_name_or_path: str | None = key(
        None,
        "adapter folder to continue from; of several, separated by commas, all but the last are merged into the base",
        "PeftModel.from_pretrained(...), merge_and_unload()",
    )
    create_new_adapter: bool = key(
        False, "merge every adapter of `adapter_name_or_path` into the base and train a new one", "merge_and_unload()"
    )
    model_revision: str = key(
        "main",
        "branch, tag or commit of a hub's model, and of a hub's `ref_model` or `teacher_model`",
        "from_pretrained(revision=)",
        min_length=1,
    )
    cache_dir: str | None = key(
        None, "folder that models of a hub are kept in; null: HF_HOME's", "from_pretrained(cache_dir=)", min_length=1
    )
    trust_remote_code: bool = key(False, "run code that comes with the model", "from_pretrained(trust_remote_code=)")
    template: str | None = key(None, "family of the chat template, checked; null: the model's own", "chat_template")
    allow_other_template: bool = key(
        False, "let `template` replace the model's own chat template, and save it with the run", "chat_template"
    )
    add_tokens: str | None = key(
        None,
        "tokens that the vocabulary lacks, separated by commas; embedding and output layer are trained with them",
        "tokenizer.add_tokens, resize_token_embeddings",
        min_length=1,
    )
    enable_thinking: bool | None = key(
        None,
        "whether the chat template asks for reasoning before an answer, where it can (Qwen3); null: its own default",
        "apply_chat_template(enable_thinking=)",
    )
    default_system: str | None = key(None, "system turn for training examples and chats that have none", "messages[0]")
    flash_attn: Literal["auto", "disabled", "sdpa", "fa2", "fa3"] = key(
        "auto",
        "attention kernel; auto on a CPU: plain products for rows up to 512 tokens",
        "from_pretrained(attn_implementation=)",
    )
    rope_scaling: Literal["linear", "dynamic", "yarn", "llama3"] | None = key(
        None,
        "stretch positions where `cutoff_len` exceeds the length that the model was trained for",
        "from_pretrained(rope_parameters=)",
    )
    device_map: str | dict[str, int | str] | None = key(
        None,
        "where the weights go: auto, balanced, a device such as cuda:1, or a device for each module",
        "from_pretrained(device_map=)",
    )
    max_memory: dict[int | str, int | str] | None = key(
        None,
        "most memory for weights on each device, such as {0: 10GiB, cpu: 30GiB}; implies device_map: auto",
        "from_pretrained(max_memory=)",
    )
    offload_folder: str | None = key(
        None,
        "where weights go that fit on no device; such a model cannot be trained",
        "from_pretrained(offload_folder=)",
    )
    quantization_bit: Literal[4, 8] | None = key(
        None, "load the frozen base in 4 or 8 bit (QLoRA)", "BitsAndBytesConfig(load_in_4bit= / load_in_8bit=)"
    )
    quantization_method: Literal["bnb", "bitsandbytes"] = key("bnb", "quantization library", "BitsAndBytesConfig")
    quantization_type: Literal["nf4", "fp4"] = key("nf4", "4-bit data type", "bnb_4bit_quant_type")
    double_quantization: bool = key(True, "quantize the scales too", "bnb_4bit_use_double_quant")

    # method
    stage: Literal["pt", "sft", "rm", "dpo", "kto", "orpo", "simpo", "ppo", "grpo", "rloo", "gkd"] = key(
        "sft",
        "pt: raw text; sft: answers; rm: reward model; dpo, kto, orpo, simpo: preferences; ppo, grpo, rloo: rewards; "
        "gkd: a teacher's probabilities",
        "SFT/Reward/DPO/KTO/ORPO/CPO/GRPO/RLOO/GKDTrainer, ftlab's PPOTrainer",
    )
    do_train: bool = key(True, "false: `ftlab train` refuses the recipe, which is for eval, chat or export")
    finetuning_type: Literal[
        "lora", "full", "freeze", "bitfit", "adalora", "fourierft", "ia3", "ln_tuning", "loha", "lokr", "oft",
        "vera", "p_tuning", "prefix_tuning", "prompt_tuning",
    ] = key(
        "lora",
        "lora: low-rank matrices added to the weights; full: all weights; freeze: the last layers; bitfit: biases; "
        "the others are PEFT's methods of these names",
        "peft_config",
    )  # fmt: skip
    peft_config: dict[str, Any] = key(
        {},
        "fields of the PEFT config of a `finetuning_type` other than lora, such as {oft_block_size: 64}",
        "OFTConfig, IA3Config, VeraConfig ...",
    )
    lora_rank: int = key(8, "rank of the two matrices", "LoraConfig.r", ge=1)
    lora_alpha: int | None = key(None, "their product is scaled by alpha / r; null: 2 r", "LoraConfig.lora_alpha", ge=1)
    lora_dropout: float = key(0.0, "fraction of their inputs set to 0", "LoraConfig.lora_dropout", ge=0, lt=1)
    lora_target: str = key(
        "all", "all, or layer names separated by commas; for every method that changes layers", "target_modules"
    )
    additional_target: str | None = key(None, "layers trained whole and saved", "modules_to_save")
    use_rslora: bool = key(False, "scale by alpha / sqrt(r)", "LoraConfig.use_rslora")
    use_dora: bool = key(False, "train direction and magnitude separately", "LoraConfig.use_dora")
    pissa_init: bool = key(False, "start from the weights' largest singular values", "LoraConfig.init_lora_weights")
    pissa_iter: int = key(16, "iterations of the fast SVD; -1: exact", "init_lora_weights='pissa_niter_16'", ge=-1)
    init_lora_weights: Literal["gaussian", "olora", "orthogonal"] | None = key(
        None, "another start: A from a normal distribution, the factors of the weight's QR, or orthogonal matrices",
        "LoraConfig.init_lora_weights",
    )  # fmt: skip
    loraplus_lr_ratio: float | None = key(
        None, "learning rate of B over that of A", "peft.optimizers.create_loraplus_optimizer", gt=0
    )
    freeze_trainable_layers: int = key(2, "freeze: layers trained, from the end (negative: from the start)")
    freeze_trainable_modules: str = key("all", "freeze: names inside those layers, or all")
    freeze_extra_modules: str | None = key(None, "freeze: names outside the layers, such as lm_head")
    use_llama_pro: bool = key(
        False, "freeze: layers at equal distances are trained instead: the blocks that LLaMA Pro has inserted"
    )
    pure_bf16: bool = key(False, "full, freeze: keep the trained weights in bfloat16", "from_pretrained(dtype=)")
    use_muon: bool = key(False, "train matrices with Muon, all other weights with AdamW", "torch.optim.Muon")
    use_dft_loss: bool = key(False, "weight each token by its probability", "SFTConfig.loss_type='dft'")
    use_asft_loss: bool = key(
        False, "DFT's loss, and stay close to the model before training, or to `ref_model`", "SFTTrainer.compute_loss"
    )
    asft_alpha: float = key(0.1, "weight of ASFT's KL divergence from the reference", "SFTTrainer.compute_loss", ge=0)
    use_eaft_loss: bool = key(False, "weight each token by the model's entropy", "SFTTrainer.compute_loss")
    eaft_alpha: float = key(1.0, "exponent of EAFT's weights; 0: all tokens alike", "SFTTrainer.compute_loss", ge=0)
    moe_aux_loss_coef: float | None = key(
        None,
        "weight of a mixture's balancing loss; null: the model's own, 0: without",
        "SFTConfig.router_aux_loss_coef",
        ge=0,
    )
    moe_aux_loss_per_layer: bool = key(
        False, "balance the experts of every layer; false: of all layers together, where idle experts may cancel out"
    )

    # preferences
    pref_beta: float = key(
        0.1,
        "how far the model may move from its reference; ppo, grpo, rloo: coefficient of the KL penalty",
        "beta, PPOConfig.kl_coef",
        gt=0,
    )
    pref_loss: Literal["sigmoid", "hinge", "ipo", "robust", "orpo", "simpo"] = key(
        "sigmoid", "the preference loss", "DPOConfig.loss_type"
    )
    ref_model: str | None = key(
        None,
        "dpo, kto, use_asft_loss: the reference, where it is not the model that training starts from",
        "DPOTrainer(ref_model=)",
        min_length=1,
    )
    ref_model_adapters: str | None = key(
        None, "an adapter on `ref_model`: its folder, or its run's", "PeftModel", min_length=1
    )
    pref_ftx: float = key(0.0, "weight of an SFT loss added to DPO's", "DPOConfig.loss_weights", ge=0)
    dpo_label_smoothing: float = key(0.0, "assumed fraction of swapped pairs", "label_smoothing", ge=0, lt=0.5)
    ld_alpha: float | None = key(None, "weight of the longer answer's tail", "DPOConfig.ld_alpha", ge=0, le=1)
    simpo_gamma: float = key(0.5, "margin of SimPO", "CPOConfig.simpo_gamma", ge=0)
    kto_chosen_weight: float = key(1.0, "weight of desirable answers", "KTOConfig.desirable_weight", ge=0)
    kto_rejected_weight: float = key(1.0, "weight of undesirable answers", "KTOConfig.undesirable_weight", ge=0)

    # distillation
    teacher_model: str | None = key(
        None, "gkd: the model whose probabilities are learned; it has the same tokens", "GKDTrainer(teacher_model=)",
        min_length=1,
    )  # fmt: skip
    lmbda: float = key(
        0.5, "gkd: share of batches whose answers the model writes itself, instead of the data's", "GKDConfig.lmbda",
        ge=0, le=1,
    )  # fmt: skip
    beta: float = key(
        0.5, "gkd: 0 is KL(teacher || model), 1 KL(model || teacher), between them Jensen-Shannon's divergence",
        "GKDConfig.beta", ge=0, le=1,
    )  # fmt: skip
    seq_kd: bool = key(False, "gkd: the teacher writes the answers of all other batches", "GKDConfig.seq_kd")

    # rewards
    reward_funcs: str | None = key(
        None,
        "exact_answer (1 for the row's answer and nothing else), short_answer (a tenth less per word above three); "
        "separated by commas, added up",
        "GRPOTrainer(reward_funcs=)",
    )
    reward_model: str | None = key(None, "run folder, adapter or model of stage rm", "GRPOTrainer(reward_funcs=)")
    num_generations: int = key(
        8, "grpo, rloo: completions per prompt, compared with each other", "num_generations", ge=2
    )
    ppo_epochs: int = key(4, "ppo: optimizer steps per batch of completions", "PPOConfig.num_ppo_epochs", ge=1)

    # data
    dataset: str | None = key(None, "registry names or paths, separated by commas", "train_dataset")
    eval_dataset: str | None = key(None, "the same, for validation", "eval_dataset")
    dataset_dir: str = key("data", "the folder of dataset_info.json")
    dataset_substitutions: dict[str, str] = key({}, "values for {{name}} placeholders in the data")
    max_samples: int | None = key(None, "maximum examples of each data set", "Dataset.select", ge=1)
    mix_strategy: Literal["concat", "interleave_under", "interleave_over"] = key(
        "concat", "concatenate the data sets, or interleave them", "interleave_datasets"
    )
    on_bad_rows: Literal["refuse", "drop"] = key(
        "refuse", "examples that cannot be used: refuse the data set, or drop them and report how many and which"
    )
    interleave_probs: str | None = key(None, "one probability per set, separated by commas", "interleave_datasets")
    val_size: float = key(0.0, "fraction (below 1) or number of examples held out", "Dataset.train_test_split", ge=0)
    cutoff_len: int = key(2048, "maximum tokens of an example", "max_length", ge=8)
    packing: bool | None = key(
        None,
        "sft: pack several examples into one row, without attention between them; pt: join the texts and cut them "
        "every cutoff_len tokens, "
        "false: each text separately; null: true only for pt",
        "SFTConfig.packing",
    )
    tokenized_path: str | None = key(
        None,
        "folder of encoded examples: read instead of the data sets; where it does not exist, `ftlab train` encodes "
        "them, saves them there and ends",
        "Dataset.save_to_disk, load_from_disk",
        min_length=1,
    )
    train_on_prompt: bool = key(False, "include the prompt in the loss", "labels")
    mask_history: bool = key(False, "train only on the last of several answers", "labels")

    # run
    output_dir: str | None = key(None, "the run folder", "TrainingArguments.output_dir")
    nproc_per_node: int | None = key(
        None,
        "processes on this machine; null: one for each accelerator that CUDA_VISIBLE_DEVICES leaves",
        "torchrun --nproc-per-node",
        ge=1,
    )
    use_ray: bool = key(
        False, "start the processes as workers of Ray, on this machine or a cluster", "ray.train.torch.TorchTrainer"
    )
    ray_num_workers: int = key(1, "use_ray: processes on all machines", "ScalingConfig.num_workers", ge=1)
    ray_init_kwargs: dict[str, Any] = key({}, "use_ray: such as {address: auto} for a cluster that runs", "ray.init")
    ray_storage_path: str | None = key(
        None, "use_ray: where Ray keeps its own record of the run; null: ~/ray_results", "RunConfig.storage_path"
    )
    resources_per_worker: dict[str, int | float] | None = key(
        None,
        "use_ray: what each process needs, such as {GPU: 1, CPU: 8}; null: a GPU where this machine has one, or a CPU",
        "ScalingConfig.resources_per_worker",
    )
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = key(
        "PACK", "use_ray: fill machine after machine, or spread over them", "ScalingConfig.placement_strategy"
    )
    early_stopping_steps: int | None = key(
        None, "stop after this many evaluations without improvement", "EarlyStoppingCallback", ge=1
    )
    shortcuts: bool = key(
        True,
        "on a CPU: fast paths for LoRA, loss, attention and shared prefixes, numerically equivalent; "
        "false: only the libraries",
    )
    overwrite_output_dir: bool = key(
        False, "replace the run of another recipe in output_dir; a run of this recipe is kept"
    )
    plot_loss: bool = key(True, "write loss.png", "matplotlib")
    training: dict[str, Any] = key({}, "fields of transformers.TrainingArguments", "TrainingArguments")

    # evaluation
    eval_figures: str | None = key(
        None,
        "eval: what is scored, separated by commas: loss, accuracy, exact_match, contains, json, tool_calls, bleu, "
        "rouge; null: loss, exact_match and what the next two keys add; multiple_choice for rows with choices",
    )
    tasks: str | None = key(
        None,
        "eval: benchmarks instead of examples, separated by commas: a task file of lm-eval, the name of one in "
        "data/tasks, or of one of lm-eval's own, such as mmlu",
        "lm_eval.evaluate",
    )
    predict_with_generate: bool = key(
        False, "eval: also BLEU-4 and ROUGE, and every answer in generated_predictions.jsonl"
    )
    compute_accuracy: bool = key(False, "eval: also the share of answer tokens that are the likeliest at their place")

    # chat and export
    infer_backend: Literal[
        "huggingface", "hf", "auto", "static", "loop", "int8", "int4", "llama.cpp", "llama.cpp-q4"
    ] = key(
        "huggingface",
        "chat: the engine; auto: the fastest here that stays close to the original weights; "
        "int8, int4, llama.cpp and llama.cpp-q4 round the weights",
        "model.generate",
    )
    infer_dtype: Literal["auto", "float16", "bfloat16", "float32"] = key(
        "auto", "dtype for chat", "from_pretrained(dtype=)"
    )
    do_sample: bool = key(True, "chat: sample tokens instead of greedy decoding", "GenerationConfig.do_sample")
    temperature: float = key(
        0.95,
        "chat, ppo, grpo, rloo, gkd: above 1 flattens the distribution, below 1 sharpens it",
        "GenerationConfig.temperature",
        gt=0,
    )
    top_p: float = key(
        0.7,
        "chat: sample from the most likely tokens with this total probability",
        "GenerationConfig.top_p",
        gt=0,
        le=1,
    )
    top_k: int = key(50, "chat: sample from this many most likely tokens; 0: all", "GenerationConfig.top_k", ge=0)
    max_new_tokens: int = key(
        1024, "chat, ppo, grpo, rloo, gkd: longest answer, in tokens", "GenerationConfig.max_new_tokens", ge=1
    )
    repetition_penalty: float = key(
        1.0, "chat: above 1 reduces repetition", "GenerationConfig.repetition_penalty", gt=0
    )
    num_beams: int = key(1, "chat: beams of a beam search", "GenerationConfig.num_beams", ge=1)
    export_dir: str | None = key(None, "where a merged model goes", "merge_and_unload().save_pretrained(...)")
    export_size: int = key(5, "largest weight file, in GB", "save_pretrained(max_shard_size=)", ge=1)
    export_device: Literal["cpu", "auto"] = key("cpu", "where the merge is computed", "from_pretrained(device_map=)")
    export_dtype: Literal["auto", "float32", "bfloat16", "float16"] = key(
        "auto", "dtype of the saved weights; auto: the base's own", "model.to(dtype)"
    )
    export_gguf: Literal["f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"] | None = key(
        None, "also write one GGUF file, for llama.cpp and Ollama, in this format", "gguf.GGUFWriter"
    )
    export_quantization_bit: Literal[2, 3, 4, 8] | None = key(
        None, "quantize the exported weights by GPTQ to this many bits", "GPTQConfig.bits"
    )
    export_quantization_dataset: str | None = key(
        None, "file with a column `text` that GPTQ is calibrated on", "GPTQConfig.dataset"
    )
    export_quantization_nsamples: int = key(128, "texts to calibrate GPTQ on", "GPTQConfig.dataset", ge=1)
    export_quantization_maxlen: int = key(1024, "tokens of each such text", "GPTQConfig.dataset", ge=1)
    export_legacy_format: Literal[False] = key(False, "true would write pickles, which ftlab does not")

    @model_validator(mode="after")
    def checked(self) -> "Recipe":
        """Return the recipe itself if its keys are consistent."""
        self.fits_together()
        return self

    def fits_together(self) -> None:
        """Refuse keys that contradict each other.

        Raises:
            ValueError: naming the pair.
        """
        if self.train_on_prompt and self.mask_history:
            raise ValueError(say("fits_labels"))
        if self.quantization_bit and self.finetuning_type not in ON_QUANTIZED:
            raise ValueError(say("fits_quantized", names=", ".join(ON_QUANTIZED)))
        if self.quantization_bit and self.infer_backend not in ("huggingface", "hf"):
            raise ValueError(say("fits_backend"))
        if self.val_size and self.eval_dataset:
            raise ValueError(say("fits_validation"))
        if self.val_size > 1 and self.val_size != int(self.val_size):
            raise ValueError(say("fits_val_size"))
        for name in ("ref_model", "teacher_model"):
            if getattr(self, name) and (self.training.get("fsdp") or self.training.get("deepspeed")):
                raise ValueError(say("fits_second_shard", key=name))
            if getattr(self, name) and self.rope_scaling:
                raise ValueError(say("fits_second_rope", key=name))
        if self.ref_model_adapters and self.quantization_bit:
            raise ValueError(say("fits_ref_adapters"))
        if self.packing and self.stage not in ("sft", "pt"):
            raise ValueError(say("fits_packing", stage=self.stage))
        if self.objective in ("rm", *PREFERENCES) and self.training.get("train_sampling_strategy") in BY_LENGTH:
            name = f"train_sampling_strategy: {self.training['train_sampling_strategy']}"
            raise ValueError(say("fits_by_length", key=name, stage=self.stage))
        if self.training.get("fsdp") and self.training.get("deepspeed"):
            raise ValueError(say("fits_sharding"))
        self.fits_names("eval_figures", EVAL_FIGURES)
        self.fits_start()
        self.fits_method()
        if self.use_muon:
            self.fits_muon()
        if self.use_asft_loss or self.use_eaft_loss:
            self.fits_loss()
        if self.add_tokens:
            self.fits_tokens()
        if self.stage in REWARDED:
            self.fits_rewards()
        self.fits_teacher()

    def fits_start(self) -> None:
        """Refuse keys that cannot be combined with an initialization that changes the base weights.

        Raises:
            ValueError: naming the pair.
        """
        if self.pissa_init and self.init_lora_weights:
            raise ValueError(say("fits_two_starts"))
        if not self.changes_base:
            return
        name = "pissa_init" if self.pissa_init else "init_lora_weights: olora"
        if self.use_dora:
            raise ValueError(say("fits_dora", key=name))
        # PEFT subtracts the initialization again for TRL's second adapter; PPO's reference is the changed base.
        if self.adapts and self.objective in ("ppo", *COPIED) and not (self.ref_model and self.compares):
            raise ValueError(say("fits_changed_reference", key=name, stage=self.stage))
        if self.quantization_bit:
            raise ValueError(say("fits_changed_base", key=name))
        if self.training.get("fsdp") or self.training.get("deepspeed"):
            raise ValueError(say("fits_whole_start", key=name))

    def fits_method(self) -> None:
        """Refuse keys that a recipe's `finetuning_type` cannot use.

        Raises:
            ValueError: naming them.
        """
        kind, lora = self.finetuning_type, self.finetuning_type == "lora"
        if self.merges and self.quantization_bit:
            raise ValueError(say("fits_merge_quantized"))
        if self.merges and (self.training.get("fsdp") or self.training.get("deepspeed")):
            raise ValueError(say("fits_merge_sharded"))
        if self.merges and self.stage == "rm":
            raise ValueError(say("fits_merge_reward"))
        if self.adapter_name_or_path and not self.adapts:
            raise ValueError(say("fits_continue", kind=kind))
        if self.loraplus_lr_ratio and not lora:
            raise ValueError(say("fits_loraplus"))
        if self.peft_config and lora:
            raise ValueError(say("fits_peft_config"))
        if kind in PROMPT_METHODS and self.packs:
            raise ValueError(say("fits_virtual_packing", kind=kind))
        if kind in ("p_tuning", "prompt_tuning") and self.objective in ("orpo", "simpo"):
            raise ValueError(say("fits_virtual_count", stage=self.objective))
        if kind in PROMPT_METHODS and self.objective in (*GROUPED, "gkd"):
            raise ValueError(say("fits_virtual_padding", stage=self.stage, kind=kind))
        if kind in ("p_tuning", "prompt_tuning") and self.stage == "rm":
            raise ValueError(say("fits_virtual_reward"))
        if kind == "adalora" and self.objective in COPIED:
            raise ValueError(say("fits_adalora_second", stage=self.objective))
        if kind == "adalora" and self.training.get("fsdp"):
            raise ValueError(say("fits_adalora_shards"))
        if kind in SAVED_IN_PART and (self.early_stopping_steps or self.training.get("load_best_model_at_end")):
            raise ValueError(say("fits_saved_in_part", kind=kind))

    def fits_best(self) -> None:
        """Refuse to load the best checkpoint without evaluations, or if their steps have no checkpoints.

        Raises:
            ValueError: naming the keys.
        """
        asked = self.training
        if not (self.early_stopping_steps or asked.get("load_best_model_at_end")):
            return
        name = "early_stopping_steps" if self.early_stopping_steps else "load_best_model_at_end"
        evaluates, saves = asked.get("eval_strategy", "no"), asked.get("save_strategy", "steps")
        if evaluates == "no":
            raise ValueError(say("fits_evaluations", key=name))
        if saves not in (evaluates, "best"):
            raise ValueError(say("fits_best", key=name, strategy=evaluates))

    def fits_tokens(self) -> None:
        """Refuse runs in which added tokens would stay untrained, or whose reference model lacks them.

        Raises:
            ValueError: naming the key in the way.
        """
        if self.finetuning_type not in ("full", "lora", *LAYER_METHODS):
            raise ValueError(say("fits_embedding", kind=self.finetuning_type))
        if self.adapter_name_or_path and self.dataset:
            raise ValueError(say("fits_tokens_first"))
        if self.ref_model or (self.objective in COPIED and not self.adapts):
            raise ValueError(say("fits_tokens_reference", stage=self.stage))

    def fits_muon(self) -> None:
        """Refuse keys that describe another optimizer than Muon.

        Raises:
            ValueError: naming the first.
        """
        if self.loraplus_lr_ratio:
            raise ValueError(say("fits_muon_loraplus"))
        others = ("optim", "optim_args", "optim_target_modules", "fsdp", "deepspeed")
        for name in (name for name in others if self.training.get(name)):
            raise ValueError(say("fits_muon", key=name))

    def fits_loss(self) -> None:
        """Refuse keys that cannot be combined with ASFT's and EAFT's losses.

        Raises:
            ValueError: naming the pair.
        """
        name = "use_asft_loss" if self.use_asft_loss else "use_eaft_loss"
        for other in ("use_dft_loss", "use_eaft_loss"):
            if other != name and getattr(self, other):
                raise ValueError(say("fits_two_losses", key=name, other=other))
        if self.objective == "sft" and self.finetuning_type in ("p_tuning", "prompt_tuning"):
            raise ValueError(say("fits_virtual_loss", key=name))
        if self.training.get("label_smoothing_factor"):
            raise ValueError(say("fits_smoothing", key=name))
        if self.use_asft_loss and (self.training.get("fsdp") or self.training.get("deepspeed")):
            raise ValueError(say("fits_asft_shards"))
        if self.use_asft_loss and self.changes_base and not self.ref_model:
            raise ValueError(say("fits_asft_base"))

    def fits_rewards(self) -> None:
        """Refuse keys that stages with rewards cannot use.

        Raises:
            ValueError: naming them.
        """
        if not (self.reward_funcs or self.reward_model):
            raise ValueError(say("fits_rewards", stage=self.stage))
        self.fits_names("reward_funcs", REWARDS)
        if self.stage == "ppo" and self.finetuning_type != "lora":
            raise ValueError(say("fits_ppo_lora"))
        asked = {"nproc_per_node": self.nproc_per_node or 1, "ray_num_workers": self.ray_num_workers}
        for name, processes in asked.items():
            if self.stage == "ppo" and processes > 1:
                raise ValueError(say("fits_ppo_process", key=name))
        if self.stage == "ppo" and (self.loraplus_lr_ratio or self.val_size or self.eval_dataset):
            raise ValueError(say("fits_ppo_keys"))

    def fits_teacher(self) -> None:
        """Refuse distillation without a teacher or with a teacher that lacks tokens, and a teacher in another stage.

        Raises:
            ValueError: naming the key.
        """
        if self.stage != "gkd":
            if "beta" in self.model_fields_set:
                raise ValueError(say("fits_beta", stage=self.stage))
            return
        if not self.teacher_model:
            raise ValueError(say("fits_teacher"))
        if self.add_tokens:
            raise ValueError(say("fits_teacher_tokens"))

    def fits_names(self, name: str, known: Sequence[str]) -> None:
        """Refuse unknown names in a comma-separated list.

        Raises:
            ValueError: naming the known ones.
        """
        for one in filter(None, (part.strip() for part in (getattr(self, name) or "").split(","))):
            if one not in known:
                raise ValueError(say("fits_name", key=name, name=one, names=", ".join(known)))

    @property
    def source(self) -> dict[str, Any]:
        """The options of `models.fetch`."""
        own = {"revision": self.model_revision, "cache_dir": self.cache_dir}
        return {"trust_remote_code": self.trust_remote_code} | own

    @property
    def continues(self) -> bool:
        """Whether an adapter is trained further; otherwise the named adapters are merged."""
        return self.adapter_name_or_path is not None and not self.create_new_adapter

    @property
    def merges(self) -> str:
        """The key, for a message, that merges adapters into the base before training; "" without one."""
        if not self.adapter_name_or_path:
            return ""
        if self.create_new_adapter:
            return "create_new_adapter"
        return "adapter_name_or_path: a,b" if len(several(self.adapter_name_or_path)) > 1 else ""

    @property
    def own_loss(self) -> bool:
        """Whether the loss is ASFT's or EAFT's, which TRL lacks (runs/losses.py)."""
        return self.objective == "sft" and (self.use_asft_loss or self.use_eaft_loss)

    @property
    def encodes(self) -> bool:
        """Whether `ftlab train` only encodes the examples: `tokenized_path` names a folder that does not exist yet."""
        return self.tokenized_path is not None and not Path(self.tokenized_path).expanduser().exists()

    @property
    def compares(self) -> bool:
        """Whether the loss reads a reference that `ref_model` may name."""
        return self.objective in ("dpo", "kto") or (self.objective == "sft" and self.use_asft_loss)

    @property
    def second_model(self) -> str | None:
        """The key that names a second whole model for the loss, None without one."""
        if self.objective == "gkd":
            return "teacher_model"
        return "ref_model" if self.ref_model and self.compares else None

    @property
    def writes(self) -> bool:
        """Whether training generates answers."""
        return self.objective in REWARDED or (self.objective == "gkd" and (self.lmbda > 0 or self.seq_kd))

    @property
    def adapts(self) -> bool:
        """Whether an adapter is trained, not the model itself."""
        return self.finetuning_type not in WHOLE_MODELS

    @property
    def frozen_base(self) -> bool:
        """Whether no weight of the model itself is trained: LN tuning trains copies of its norms."""
        return self.adapts and self.finetuning_type != "ln_tuning"

    @property
    def changes_base(self) -> bool:
        """Whether an adapter's initialization is subtracted from the base weights."""
        return self.pissa_init or self.init_lora_weights == "olora"

    @property
    def in_ray(self) -> bool:
        """Whether Ray starts the processes: the recipe says so, or LLaMA-Factory's USE_RAY does."""
        return self.use_ray or os.environ.get("USE_RAY", "").lower() in ("1", "true", "y")

    @property
    def objective(self) -> str:
        """The stage, with LLaMA-Factory's `stage: dpo` + `pref_loss: orpo | simpo` resolved."""
        return self.pref_loss if self.stage == "dpo" and self.pref_loss in ("orpo", "simpo") else self.stage

    @property
    def packs(self) -> bool:
        """Whether examples are packed; without the key, as in LLaMA-Factory."""
        return self.stage == "pt" if self.packing is None else self.packing


# The functions of rewards.py that a recipe can name.
REWARDS = ("exact_answer", "short_answer")
# The figures that `ftlab eval` computes.
EVAL_FIGURES = (
    "loss", "accuracy", "exact_match", "contains", "json", "tool_calls", "bleu", "rouge", "multiple_choice",
)  # fmt: skip
# Keys that affect the weights in these stages only.
SAMPLING = ("temperature", "max_new_tokens")
# Keys that do not affect the weights, and so may change when a run is resumed.
OUTSIDE_THE_RUN = (
    "output_dir", "overwrite_output_dir", "do_train", "plot_loss", "infer_backend", "infer_dtype", "do_sample",
    "temperature", "top_p", "top_k", "max_new_tokens", "repetition_penalty", "num_beams", "export_dir", "export_size",
    "export_device", "export_dtype", "export_gguf", "export_quantization_bit", "export_quantization_dataset",
    "export_quantization_nsamples", "export_quantization_maxlen", "export_legacy_format", "shortcuts", "eval_figures",
    "predict_with_generate", "compute_accuracy", "tasks", "device_map", "max_memory", "offload_folder",
    "nproc_per_node", "use_ray", "ray_num_workers", "ray_init_kwargs", "ray_storage_path", "resources_per_worker",
    "placement_strategy", "cache_dir", "tokenized_path",
)  # fmt: skip
TRAINING_OUTSIDE_THE_RUN = (
    "resume_from_checkpoint", "report_to", "run_name", "project", "save_total_limit", "disable_tqdm", "log_level",
    "dataloader_num_workers", "dataloader_pin_memory", "ddp_timeout", "do_train", "do_eval", "do_predict",
)  # fmt: skip

# TrainingArguments fields a recipe may not set -> why (translated_keys.reason): a secret would be copied into the run
# folder, the rest is ftlab's.
REFUSED_TRAINING = {
    "hub_token": "why_set_hf_token",
    "ms_hub_token": "why_set_modelscope_token",
    "om_hub_token": "why_set_hf_token",
    "swanlab_api_key": "why_set_swanlab_key",
    "swanlab_lark_secret": "why_no_secret",
    "local_rank": "why_torchrun_sets_it",
    "enable_jit_checkpoint": "why_saves_on_sigterm",
    "logging_nan_inf_filter": "why_hides_a_broken_loss",
}
TRAINING_HINTS = {
    name: field.hint
    for name, field in FIELDS.items()
    if name not in Recipe.model_fields and name not in REFUSED_TRAINING
}
# transformers declares it as text, for the command line, and warns at any value.
TRAINING_HINTS["fsdp"] = bool | None


class Condition(NamedTuple):
    """Keys that have an effect in some runs only.

    Attributes:
        names: the keys.
        met: the condition.
        needs: the condition in words: a message, or a key and its value, which need no translation.
    """

    names: tuple[str, ...]
    met: Callable[[Recipe], bool]
    needs: str


PREFERENCES = ("dpo", "kto", "orpo", "simpo")
REWARDED = ("ppo", "grpo", "rloo")
# Stages whose trainer compares the completions of a prompt, and generates those of an optimizer step together.
GROUPED = ("grpo", "rloo")
# Stages whose trainer keeps a frozen copy of the trained weights as the reference.
COPIED = ("dpo", "kto", *GROUPED)
# Stages whose trainer takes the weight of a mixture's balancing loss.
BALANCED = ("pt", "sft", *COPIED)
# Stages whose trainer keeps a model's dropout: trl's others switch it off (`disable_dropout`), and so does PPO.
WITH_DROPOUT = ("pt", "sft", *GROUPED)
# Values of `train_sampling_strategy` for which transformers counts the tokens of each example.
BY_LENGTH = ("group_by_length", "batch_rebalance")
# Schedules that start at the full learning rate.
WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
# Optimizers to which transformers passes no `adam_beta1` and `adam_beta2`.
WITHOUT_BETAS = (
    "adafactor", "adagrad", "adalomo", "galore_adafactor", "grokadamw", "lomo", "rmsprop", "schedule_free_sgd", "sgd"
)  # fmt: skip
CONDITIONS = (
    Condition(
        ("export_quantization_dataset", "export_quantization_nsamples", "export_quantization_maxlen"),
        lambda recipe: recipe.export_quantization_bit is not None,
        "export_quantization_bit",
    ),
    Condition(
        ("lora_rank", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "pissa_init", "init_lora_weights"),
        lambda recipe: recipe.finetuning_type == "lora",
        "needs_lora",
    ),
    Condition(
        ("lora_target", "additional_target"),
        lambda recipe: recipe.finetuning_type in ("lora", *LAYER_METHODS),
        "needs_layers",
    ),
    Condition(
        ("lora_dropout",),
        lambda recipe: recipe.finetuning_type != "lora" or recipe.objective in WITH_DROPOUT,
        "needs_dropout_stage",
    ),
    Condition(("peft_config",), lambda recipe: recipe.adapts, "needs_peft"),
    Condition(("create_new_adapter",), lambda recipe: recipe.adapter_name_or_path is not None, "needs_adapter"),
    Condition(
        ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules", "use_llama_pro"),
        lambda recipe: recipe.finetuning_type == "freeze",
        "finetuning_type: freeze",
    ),
    Condition(("pissa_iter",), lambda recipe: recipe.pissa_init, "pissa_init: true"),
    Condition(
        ("quantization_type", "double_quantization"), lambda recipe: recipe.quantization_bit == 4, "quantization_bit: 4"
    ),
    Condition(
        ("offload_folder",),
        lambda recipe: recipe.device_map is not None or recipe.max_memory is not None,
        "needs_device_map",
    ),
    Condition(("allow_other_template",), lambda recipe: recipe.template is not None, "needs_template"),
    Condition(
        ("use_dft_loss", "use_asft_loss", "use_eaft_loss"), lambda recipe: recipe.objective == "sft", "stage: sft"
    ),
    Condition(("asft_alpha",), lambda recipe: recipe.use_asft_loss, "use_asft_loss: true"),
    Condition(("eaft_alpha",), lambda recipe: recipe.use_eaft_loss, "use_eaft_loss: true"),
    Condition(
        ("moe_aux_loss_coef", "moe_aux_loss_per_layer"),
        lambda recipe: recipe.objective in BALANCED,
        "needs_balanced_stage",
    ),
    Condition(
        ("default_system",),
        lambda recipe: recipe.objective != "pt",
        "needs_turns",
    ),
    Condition(("train_on_prompt", "mask_history"), lambda recipe: recipe.objective == "sft", "stage: sft"),
    Condition(
        ("pref_beta",),
        lambda recipe: recipe.objective in PREFERENCES + REWARDED,
        "needs_preference_or_reward_stage",
    ),
    Condition(("ref_model",), lambda recipe: recipe.compares, "needs_reference"),
    Condition(
        ("ref_model_adapters",),
        lambda recipe: recipe.ref_model is not None and recipe.compares,
        "needs_ref_model",
    ),
    Condition(("pref_loss",), lambda recipe: recipe.stage == "dpo", "stage: dpo"),
    Condition(("pref_ftx", "ld_alpha"), lambda recipe: recipe.objective == "dpo", "needs_dpo_loss"),
    Condition(
        ("dpo_label_smoothing",),
        lambda recipe: recipe.objective == "dpo" and recipe.pref_loss in ("sigmoid", "robust"),
        "needs_sigmoid_or_robust",
    ),
    Condition(("simpo_gamma",), lambda recipe: recipe.objective == "simpo", "stage: simpo"),
    Condition(("kto_chosen_weight", "kto_rejected_weight"), lambda recipe: recipe.objective == "kto", "stage: kto"),
    Condition(("reward_funcs", "reward_model"), lambda recipe: recipe.objective in REWARDED, "needs_reward_stage"),
    Condition(("num_generations",), lambda recipe: recipe.objective in GROUPED, "needs_grouped_stage"),
    Condition(("teacher_model", "lmbda"), lambda recipe: recipe.objective == "gkd", "stage: gkd"),
    Condition(
        ("seq_kd",),
        lambda recipe: recipe.objective == "gkd" and recipe.lmbda < 1,
        "needs_written_answers",
    ),
    Condition(("ppo_epochs",), lambda recipe: recipe.objective == "ppo", "stage: ppo"),
    Condition(
        ("top_p", "top_k", "do_sample", "repetition_penalty", "num_beams"),
        lambda recipe: not recipe.writes,
        "needs_chat",
    ),
    Condition(
        ("mix_strategy", "interleave_probs"),
        lambda recipe: "," in (recipe.dataset or "") + (recipe.eval_dataset or ""),
        "needs_several_sets",
    ),
    Condition(
        ("label_smoothing_factor",),
        lambda recipe: recipe.objective in ("pt", "sft") and not recipe.use_dft_loss,
        "needs_plain_loss",
    ),
    Condition(
        ("train_sampling_strategy",),
        lambda recipe: (
            recipe.objective not in REWARDED or recipe.training.get("train_sampling_strategy") not in BY_LENGTH
        ),
        "needs_no_reward_stage",
    ),
    Condition(
        ("data_seed",),
        lambda recipe: recipe.objective not in (*REWARDED, "kto"),
        "needs_data_seed_stage",
    ),
    Condition(
        ("adam_beta1", "adam_beta2"),
        lambda recipe: not str(recipe.training.get("optim", "")).startswith(WITHOUT_BETAS),
        "needs_betas",
    ),
    Condition(
        ("adam_epsilon",),
        lambda recipe: (
            not str(recipe.training.get("optim", "")).removeprefix("paged_").startswith((*WITHOUT_BETAS, "lion"))
        ),
        "needs_adam",
    ),
    Condition(("num_train_epochs",), lambda recipe: recipe.training.get("max_steps", -1) <= 0, "max_steps: -1"),
    Condition(
        ("warmup_steps",),
        lambda recipe: recipe.training.get("lr_scheduler_type") not in WITHOUT_WARMUP,
        "needs_warming_scheduler",
    ),
    Condition(("eval_steps",), lambda recipe: recipe.training.get("eval_strategy") == "steps", "eval_strategy: steps"),
    Condition(
        ("eval_delay", "eval_accumulation_steps", "per_device_eval_batch_size", "bf16_full_eval", "fp16_full_eval"),
        lambda recipe: recipe.training.get("eval_strategy", "no") != "no" or bool(recipe.training.get("eval_on_start")),
        "needs_eval_strategy",
    ),
    Condition(
        ("save_steps",), lambda recipe: recipe.training.get("save_strategy", "steps") == "steps", "save_strategy: steps"
    ),
    Condition(
        ("logging_steps",),
        lambda recipe: recipe.training.get("logging_strategy", "steps") == "steps",
        "logging_strategy: steps",
    ),
    Condition(
        ("metric_for_best_model", "greater_is_better"),
        lambda recipe: bool(
            recipe.early_stopping_steps
            or recipe.training.get("load_best_model_at_end")
            or recipe.training.get("save_strategy") == "best"
            or recipe.training.get("lr_scheduler_type") == "reduce_lr_on_plateau"
        ),
        "load_best_model_at_end: true",
    ),
    Condition(
        ("run_name", "project"),
        lambda recipe: recipe.training.get("report_to", "none") not in ("none", [], ["none"]),
        "report_to",
    ),
    Condition(
        ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        lambda recipe: "trackio" in recipe.training.get("report_to", ()),
        "report_to: trackio",
    ),
    Condition(
        ("hub_model_id", "hub_strategy", "hub_private_repo", "hub_revision", "hub_always_push"),
        lambda recipe: bool(recipe.training.get("push_to_hub")),
        "push_to_hub: true",
    ),
    Condition(
        ("ray_num_workers", "ray_init_kwargs", "ray_storage_path", "resources_per_worker", "placement_strategy"),
        lambda recipe: recipe.in_ray,
        "use_ray: true",
    ),
    Condition(("nproc_per_node",), lambda recipe: not recipe.in_ray, "needs_no_ray"),
    Condition(("fsdp_config",), lambda recipe: bool(recipe.training.get("fsdp")), "fsdp: true"),
    Condition(
        ("liger_kernel_config",), lambda recipe: bool(recipe.training.get("use_liger_kernel")), "use_liger_kernel: true"
    ),
    Condition(
        ("optim_target_modules",),
        lambda recipe: str(recipe.training.get("optim", "")).startswith(("galore", "apollo")),
        "needs_galore_or_apollo",
    ),
)


def ineffective(recipe: Recipe) -> list[tuple[str, Any, str]]:
    """Return (key, value, what it needs) of every given key that has no effect in this run."""
    own = {name: getattr(recipe, name) for name in recipe.model_fields_set if name != "training"}
    changed = {name: value for name, value in own.items() if value != Recipe.model_fields[name].default}
    changed |= recipe.training
    unmet = [condition for condition in CONDITIONS if not condition.met(recipe)]
    return [
        (name, changed[name], say(condition.needs) if condition.needs in messages() else condition.needs)
        for condition in unmet
        for name in condition.names
        if name in changed
    ]


def finite(value: object) -> bool:
    """Return True if a value, and every value inside it, is finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(finite(inner) for inner in value.values())
    return all(finite(inner) for inner in value) if isinstance(value, list) else True
