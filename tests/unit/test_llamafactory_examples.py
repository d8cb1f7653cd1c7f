"""LLaMA-Factory's 43 example files for text models, each run as it is but for two steps, or answers of four tokens.

    pytest -s -m lengthy tests/unit/test_llamafactory_examples.py

prints what each of them does here. The shapes are those of its repository in August 2026, in its v0 format, written
anew: the keys and values that count, under the names of models and data sets that the files have. Tiny models lie under
those names, each of its family and with its chat template. What an extra of ftlab brings (`deepspeed`, `optim`)
is refused with the command that installs it where that is missing, and counted by itself. The file for Ray is run, as
there, in one process: USE_RAY=1 starts workers (test_ray.py).
"""

import io
import json
import re
import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import packed
import pytest
import tiny
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import llamafactory_tokens
from ftlab.apps import cli

ROOT = Path(__file__).parents[2]
QWEN3, QWEN2, LLAMA3 = "Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen2-1.5B-Instruct", "meta-llama/Meta-Llama-3-8B-Instruct"
QWEN25, PRO, MOE = "Qwen/Qwen2.5-0.5B-Instruct", "models/llama3-8b-instruct-pro", "Qwen/Qwen3-30B-A3B-Instruct-2507"
QUANTIZED = {
    "aqlm": "ISTA-DASLab/Meta-Llama-3-8B-Instruct-AQLM-2Bit-1x16",
    "awq": "TechxGenus/Meta-Llama-3-8B-Instruct-AWQ",
    "gptq": "TechxGenus/Meta-Llama-3-8B-Instruct-GPTQ",
}
# Name -> template, type of the config, number of layers, how its weights are quantized.
MODELS: dict[str, tuple[str, str, int, str]] = {
    QWEN3: ("qwen3_nothink", "qwen3", 2, ""),
    QWEN2: ("qwen", "qwen2", 2, ""),
    QWEN25: ("qwen", "qwen2", 2, ""),
    LLAMA3: ("llama3", "llama", 2, ""),
    PRO: ("llama3", "llama", 40, ""),
    MOE: ("qwen3_nothink", "qwen3_moe", 2, ""),
    QUANTIZED["aqlm"]: ("llama3", "llama", 2, "aqlm"),
    QUANTIZED["awq"]: ("llama3", "llama", 2, "awq"),
    QUANTIZED["gptq"]: ("llama3", "llama", 2, "gptq"),
}  # fmt: skip

SETS = {"dataset": "identity,alpaca_en_demo", "cutoff_len": 2048, "max_samples": 1000, "preprocessing_num_workers": 16}
OUTPUT = {"logging_steps": 10, "save_steps": 500, "plot_loss": True, "overwrite_output_dir": True}
STEPS = {
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "learning_rate": 1e-4, "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "ddp_timeout": 180000000,
}  # fmt: skip
NEWER = {"save_only_model": False, "report_to": "none", "dataloader_num_workers": 4, "trust_remote_code": True}
EVALUATED = {"val_size": 0.1, "per_device_eval_batch_size": 1, "eval_strategy": "steps", "eval_steps": 500}
LORA = {"finetuning_type": "lora", "lora_rank": 8, "lora_target": "all"}
OFT = {"finetuning_type": "oft", "oft_block_size": 32, "oft_target": "all"}
FULL: dict[str, Any] = {"finetuning_type": "full"}
BNB = {"quantization_bit": 4, "quantization_method": "bnb"}
TRAINED = {"stage": "sft", "do_train": True} | SETS | OUTPUT | STEPS
QWEN3_LORA = TRAINED | NEWER | LORA | {"model_name_or_path": QWEN3, "template": "qwen3_nothink", "bf16": True}
LLAMA3_LORA = TRAINED | NEWER | LORA | {"model_name_or_path": LLAMA3, "template": "llama3", "bf16": True}
LLAMA3_LORA |= {"output_dir": "saves/llama3-8b/lora/sft", "overwrite_cache": True}
LLAMA3_FULL = TRAINED | FULL | {"model_name_or_path": LLAMA3, "template": "llama3", "overwrite_cache": True}
LLAMA3_FULL |= {"output_dir": "saves/llama3-8b/full/sft"}
LLAMA3_OFT = {name: value for name, value in LLAMA3_LORA.items() if not name.startswith("lora_")} | OFT
LLAMA3_OFT |= {"output_dir": "saves/llama3-8b/oft/sft"}
QWEN2_FULL = TRAINED | NEWER | FULL | {"model_name_or_path": QWEN2, "template": "qwen", "bf16": True}
QWEN2_FULL |= {"output_dir": "saves/qwen2-1_5b/full/sft", "learning_rate": 1e-5}
FP8 = LLAMA3_FULL | EVALUATED | {"dataset": "identity", "cutoff_len": 1024, "bf16": True, "fp8": True}
ASKED = {"model_name_or_path": QWEN3, "template": "qwen3_nothink", "trust_remote_code": True}
ADAPTED = ASKED | {"adapter_name_or_path": "saves/qwen3-4b/lora/sft"}
EXPORTED = {"export_size": 5, "export_device": "cpu", "export_legacy_format": False}
MEGATRON = {
    "do_train": True, "stage": "sft", "finetuning_type": "full", "dataset": "alpaca_en_demo", "cutoff_len": 4096,
    "preprocessing_num_workers": 8, "template": "qwen3_nothink", "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8, "num_train_epochs": 2, "learning_rate": 3e-6, "logging_steps": 1,
    "save_steps": 100, "lr_scheduler_type": "constant", "bf16": True, "tensor_model_parallel_size": 1,
    "sequence_parallel": False, "pipeline_model_parallel_size": 4, "bias_activation_fusion": True,
    "apply_rope_fusion": True, "use_distributed_optimizer": True, "overlap_param_gather": True,
    "overlap_grad_reduce": True, "recompute_granularity": "full",
}  # fmt: skip

# In the order in which a later one takes what an earlier one left: the keys of each file.
EXAMPLES: dict[str, dict[str, Any]] = {
    "train_lora/pretrain": QWEN3_LORA | {"stage": "pt", "dataset": "c4_demo",
                                         "output_dir": "saves/qwen3-4b/lora/pretrain"},
    "train_lora/reward": QWEN3_LORA | {"stage": "rm", "dataset": "dpo_en_demo",
                                       "output_dir": "saves/qwen3-4b/lora/reward"},
    "train_lora/dpo": QWEN3_LORA | {"stage": "dpo", "dataset": "dpo_en_demo", "pref_beta": 0.1, "pref_loss": "sigmoid",
                                    "learning_rate": 5e-6, "output_dir": "saves/qwen3-4b/lora/dpo"},
    "train_lora/kto": QWEN3_LORA | {"stage": "kto", "dataset": "kto_en_demo", "pref_beta": 0.1, "learning_rate": 5e-6,
                                    "output_dir": "saves/qwen3-4b/lora/kto"},
    "train_lora/sft": QWEN3_LORA | {"output_dir": "saves/qwen3-4b/lora/sft"},
    "train_lora/sft_ds3": QWEN3_LORA | {"deepspeed": "examples/deepspeed/ds_z3_config.json",
                                        "gradient_accumulation_steps": 2, "output_dir": "saves/qwen3-4b/lora/sft_ds3"},
    "train_lora/sft_ray": QWEN3_LORA | {"ray_num_workers": 4, "output_dir": "tmp_dir"},
    "train_lora/preprocess": ASKED | SETS | LORA | {
        "stage": "sft", "do_train": True, "tokenized_path": "saves/qwen3-4b/dataset/sft", "overwrite_output_dir": True,
        "output_dir": "saves/qwen3-4b/lora/sft_preprocessed"},
    "train_full/sft": QWEN3_LORA | FULL | {"deepspeed": "examples/deepspeed/ds_z3_config.json", "learning_rate": 1e-5,
                                           "gradient_accumulation_steps": 2, "output_dir": "saves/qwen3-4b/full/sft"},
    "train_qlora/aqlm": LLAMA3_LORA | {"model_name_or_path": QUANTIZED["aqlm"]},
    "train_qlora/awq": LLAMA3_LORA | {"model_name_or_path": QUANTIZED["awq"]},
    "train_qlora/gptq": LLAMA3_LORA | {"model_name_or_path": QUANTIZED["gptq"]},
    "train_qlora/bnb_npu": QWEN3_LORA | BNB | {"double_quantization": False, "output_dir": "saves/qwen3-4b/qlora/npu"},
    "train_qlora/otfq": QWEN3_LORA | BNB | {"output_dir": "saves/qwen3-4b/qlora/sft"},
    "merge_lora/lora": ADAPTED | EXPORTED | {"export_dir": "saves/qwen3_sft_merged"},
    "merge_lora/full": ASKED | EXPORTED | {"model_name_or_path": "saves/qwen3-4b/full/sft",
                                           "export_dir": "saves/qwen3_full_sft"},
    "merge_lora/gptq": ASKED | EXPORTED | {"export_dir": "saves/qwen3_gptq", "export_quantization_bit": 4,
                                           "export_quantization_dataset": "data/c4_demo.json"},
    "inference/model": ASKED | {"infer_backend": "huggingface"},
    "inference/full": ASKED | {"model_name_or_path": "saves/qwen3-4b/full/sft", "infer_backend": "huggingface"},
    "inference/lora": ADAPTED | {"infer_backend": "huggingface"},
    "extras/adam_mini": QWEN2_FULL | {"use_adam_mini": True},
    "extras/apollo": LLAMA3_FULL | EVALUATED | {
        "use_apollo": True, "apollo_layerwise": True, "apollo_target": "all", "apollo_rank": 128, "apollo_scale": 32.0,
        "apollo_scale_type": "channel", "gradient_accumulation_steps": 1, "learning_rate": 1e-5, "pure_bf16": True},
    "extras/asft_full": QWEN2_FULL | {"use_asft_loss": True, "asft_alpha": 0.1},
    "extras/asft_lora": QWEN2_FULL | LORA | {"use_asft_loss": True, "asft_alpha": 0.1,
                                             "output_dir": "saves/qwen2-1_5b/lora/sft"},
    "extras/badam": LLAMA3_FULL | EVALUATED | {
        "use_badam": True, "badam_mode": "layer", "badam_switch_mode": "ascending", "badam_switch_interval": 50,
        "badam_verbose": 2, "cutoff_len": 1024, "learning_rate": 1e-5},
    "extras/dft": QWEN2_FULL | {"use_dft_loss": True},
    "extras/eaft": QWEN2_FULL | {"model_name_or_path": QWEN25, "use_eaft_loss": True,
                                 "output_dir": "qwen2.5-0_5b/full/sft_eaft"},
    "extras/fp8_deepspeed": FP8 | {"fp8_backend": "auto", "deepspeed": "examples/deepspeed/ds_z3_config.json"},
    "extras/fp8_fsdp": FP8 | {"fp8_backend": "torchao", "fp8_enable_fsdp_float8_all_gather": True,
                              "fsdp": "full_shard auto_wrap",
                              "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer"},
    "extras/fsdp_qlora": LLAMA3_LORA | {"quantization_bit": 4, "cutoff_len": 1024},
    "extras/galore": LLAMA3_FULL | EVALUATED | {
        "use_galore": True, "galore_layerwise": True, "galore_target": "mlp,self_attn", "galore_rank": 128,
        "galore_scale": 2.0, "cutoff_len": 1024, "gradient_accumulation_steps": 1, "pure_bf16": True},
    "extras/llama_pro": LLAMA3_FULL | EVALUATED | {
        "model_name_or_path": PRO, "finetuning_type": "freeze", "freeze_trainable_layers": 8,
        "freeze_trainable_modules": "all", "use_llama_pro": True, "cutoff_len": 1024, "fp16": True,
        "output_dir": "saves/llama3-8b-instruct-pro/freeze/sft"},
    "extras/loraplus": LLAMA3_LORA | {"loraplus_lr_ratio": 16.0, "cutoff_len": 1024},
    "extras/mod": LLAMA3_FULL | {"mixture_of_depths": "convert", "optim": "paged_adamw_8bit", "pure_bf16": True,
                                 "output_dir": "saves/llama3-8b-mod/full/sft"},
    "extras/muon": QWEN2_FULL | {"use_muon": True},
    "extras/pissa": LLAMA3_LORA | {"pissa_init": True, "pissa_iter": 16, "pissa_convert": True},
    "extras/nlg_eval": {
        "model_name_or_path": LLAMA3, "adapter_name_or_path": "saves/llama3-8b/lora/sft", "stage": "sft",
        "do_predict": True, "finetuning_type": "lora", "eval_dataset": "identity,alpaca_en_demo", "template": "llama3",
        "cutoff_len": 2048, "max_samples": 50, "overwrite_cache": True, "preprocessing_num_workers": 16,
        "output_dir": "saves/llama3-8b/lora/predict", "overwrite_output_dir": True, "per_device_eval_batch_size": 1,
        "predict_with_generate": True, "ddp_timeout": 180000000},
    "extras/oft": LLAMA3_OFT,
    "extras/qoft_awq": LLAMA3_OFT | {"model_name_or_path": QUANTIZED["awq"]},
    "extras/qoft_bnb_npu": LLAMA3_OFT | BNB | {"double_quantization": False},
    "extras/qoft_gptq": LLAMA3_OFT | {"model_name_or_path": QUANTIZED["gptq"]},
    "megatron/qwen3_moe": MEGATRON | {
        "model_name_or_path": MOE, "moe_grouped_gemm": True, "moe_token_dispatcher_type": "alltoall",
        "expert_model_parallel_size": 2, "output_dir": "saves/mca/qwen3_moe_full"},
    "megatron/qwen3": MEGATRON | {"model_name_or_path": QWEN3, "output_dir": "saves/mca/qwen3_full"},
}  # fmt: skip
# What is refused, by what the message must say. An accelerator or another engine:
NEEDS_OTHER_MACHINE = {
    "extras/fp8_deepspeed": "H100", "extras/fp8_fsdp": "H100",
    "megatron/qwen3": "Megatron is another engine", "megatron/qwen3_moe": "Megatron is another engine",
}  # fmt: skip
# Packages whose last releases are old.
DEAD = {
    "extras/adam_mini": "November 2024", "extras/badam": "March 2025", "extras/mod": "June 2024",
}  # fmt: skip
REFUSED = NEEDS_OTHER_MACHINE | DEAD
# Examples that need a package which is not installed by default.
EXTRAS = {
    "train_lora/sft_ds3": "deepspeed", "train_full/sft": "deepspeed",
    "extras/galore": "galore_torch", "extras/apollo": "apollo_torch",
    "train_qlora/gptq": "gptqmodel", "extras/qoft_gptq": "gptqmodel", "merge_lora/gptq": "gptqmodel",
    "train_qlora/awq": "gptqmodel", "extras/qoft_awq": "gptqmodel", "train_qlora/aqlm": "aqlm",
}  # fmt: skip
# Examples that read what such a one leaves.
AFTER = {"merge_lora/full": "train_full/sft", "inference/full": "train_full/sft"}


def make_model(name: str, folder: Path) -> None:
    """Write a tiny random model of a family, with its chat template, into `folder`."""
    template, kind, layers, quantization = MODELS[name]
    tokenizer = llamafactory_tokens.family_of(template, tiny.make_tokenizer())
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if quantization:
        packed.quantize(folder, quantization)


def make_data(folder: Path) -> None:
    """Write the data sets that the examples name into `folder`, in the formats that they have there."""
    asked = [f"What is {a} plus {b}?" for a in range(4) for b in range(3)]
    talk = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    roles = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entries: dict[str, dict[str, Any]] = {
        "identity": {},
        "alpaca_en_demo": {},
        "c4_demo": {"columns": {"prompt": "text"}},
        "dpo_en_demo": {"formatting": "sharegpt", "ranking": True, "columns": talk},
        "kto_en_demo": {
            "formatting": "sharegpt", "columns": {"messages": "messages", "kto_tag": "label"}, "tags": roles
        },
    }  # fmt: skip
    rows: dict[str, list[dict[str, Any]]] = {
        "identity": [{"instruction": f"Who are you? ({i})", "input": "", "output": "I am Ada."} for i in range(12)],
        "alpaca_en_demo": [
            {"instruction": one, "input": "", "output": f"It is {i}."} for i, one in enumerate(asked)
        ],
        "c4_demo": [{"text": f"{one} It is {i}. And so on."} for i, one in enumerate(asked)],
        "dpo_en_demo": [
            {"conversations": [{"from": "human", "value": one}], "chosen": {"from": "gpt", "value": f"It is {i}."},
             "rejected": {"from": "gpt", "value": "No idea."}}
            for i, one in enumerate(asked)
        ],
        "kto_en_demo": [
            {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": f"It is {i}."}],
             "label": i % 2 == 0}
            for i, one in enumerate(asked)
        ],
    }  # fmt: skip
    folder.mkdir()
    for name, content in rows.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    listed = {name: {"file_name": f"{name}.json"} | entry for name, entry in entries.items()}
    (folder / "dataset_info.json").write_text(json.dumps(listed))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder: what the example files find in LLaMA-Factory's own, and models beside it."""
    monkeypatch.chdir(tmp_path)
    for name in MODELS:
        make_model(name, tmp_path / name)
    make_data(tmp_path / "data")
    (tmp_path / "examples" / "deepspeed").mkdir(parents=True)
    shutil.copy(ROOT / "recipes" / "deepspeed" / "zero3.json", tmp_path / "examples/deepspeed/ds_z3_config.json")
    return tmp_path


def verb(keys: dict[str, Any]) -> list[str]:
    """Return the verb, and the overrides, that an example is run with."""
    if "infer_backend" in keys:
        return ["chat", "max_new_tokens=4"]
    if "do_predict" in keys:
        return ["eval", "max_new_tokens=4", "max_samples=2"]
    return ["export"] if "export_dir" in keys else ["train", "max_steps=2"]


def outcome(name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Run one example; return "runs", "needs a package", "refused" or "wrong", and the reason."""
    keys = EXAMPLES[name]
    path = Path(f"{name.replace('/', '_')}.yaml")
    path.write_text(yaml.safe_dump(keys))
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n/exit\n"))
    command, *changes = verb(keys)
    code = cli.main([command, str(path), *changes])
    _, said = capfd.readouterr()
    complaint = said.partition("ftlab: ")[2].strip()
    missing = EXTRAS.get(name) if not find_spec(EXTRAS.get(name, "torch")) else None
    if missing:
        fits = code == 2 and re.search(r"pip install \S", complaint)
        return "needs a package" if fits else "wrong", complaint or f"exit code {code}"
    if name in REFUSED:
        fits = code == 2 and REFUSED[name] in complaint and "Traceback" not in said
        return "refused" if fits else "wrong", complaint or f"exit code {code}: {said[-400:]}"
    # As there, a run with `tokenized_path` first writes the tokens and nothing else.
    left = Path(keys.get("export_dir") or keys.get("tokenized_path") or keys.get("output_dir") or ".")
    weights = "export_dir" in keys or ("do_train" in keys and "tokenized_path" not in keys)
    if code or not any(left.rglob("*.safetensors" if weights else "*")):
        return "wrong", complaint or f"exit code {code}: {said[-400:]}"
    return "runs", ""


@pytest.mark.slow
@pytest.mark.lengthy
def test_the_43_examples_run_or_are_refused_for_a_machine_or_a_dead_package(checkout, monkeypatch, capfd):
    done: dict[str, str] = {}
    for name in EXAMPLES:
        if done.get(AFTER.get(name, "")) == "needs a package":
            done[name], why = "needs a package", f"reads what {AFTER[name]} leaves"
        else:
            done[name], why = outcome(name, monkeypatch, capfd)
        with capfd.disabled():
            print(f"{name:24} {done[name]:16} {' '.join(why.split())[:160]}", flush=True)
    counts = Counter(done.values())
    with capfd.disabled():
        print(f"{len(done)} examples:", ", ".join(f"{number} {what}" for what, number in counts.items()))
    assert len(EXAMPLES) == 43
    assert not [name for name, what in done.items() if what == "wrong"]
    assert counts["runs"] + counts["needs a package"] == len(EXAMPLES) - len(REFUSED)
