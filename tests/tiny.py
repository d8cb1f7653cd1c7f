"""A random model of two layers, its tokenizer and rows to train it on: made on the spot, nothing downloaded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer(merges: Sequence[tuple[str, str]] = ()) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with ChatML: one token per byte and per merge, and the two control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(merge) for merge in merges]
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    inner = Tokenizer(models.BPE(vocabulary, list(merges)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def make_model(folder: Path) -> Path:
    """Write a random two-layer Llama of 64 hidden units and its tokenizer into `folder`."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 512, "bos_token_id": None}
    return written(LlamaForCausalLM, LlamaConfig, sizes, folder)


def make_mixture(folder: Path) -> Path:
    """Write a random two-layer Mixtral of four experts, two of them used for a token, and its tokenizer."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_local_experts": 4}
    return written(MixtralForCausalLM, MixtralConfig, sizes, folder)


def written(model_class: Any, config_class: Any, sizes: dict[str, Any], folder: Path) -> Path:
    """Write a random model of two layers and four heads, and its tokenizer, into `folder`."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = config_class(
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_small_model(source: Path, folder: Path) -> Path:
    """Write a random model of three layers with another model's tokenizer into `folder`: what a lesson can run on."""
    config = AutoConfig.from_pretrained(source)
    # Widths of 64 and its multiples: bitsandbytes quantizes in blocks of 64.
    config.update({"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "layer_types": None})
    config.update({"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "dtype": "float32"})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def make_rows(folder: Path) -> Path:
    """Write one small file per kind of row into `folder`: sft.json, text.json, preference.json, kto.json."""
    asked = [f"What is {a} plus {b}?" for a in range(4) for b in range(3)]
    files: dict[str, list[dict[str, Any]]] = {
        "sft": [{"instruction": question, "output": f"It is {i}."} for i, question in enumerate(asked)],
        "text": [{"text": f"{question} It is {i}. And so on."} for i, question in enumerate(asked)],
        "preference": [
            {"instruction": question, "chosen": f"It is {i}.", "rejected": "No idea at all."}
            for i, question in enumerate(asked)
        ],
        "kto": [
            {"instruction": question, "output": f"It is {i}.", "kto_tag": i % 2 == 0}
            for i, question in enumerate(asked)
        ],
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def make_recipe(model: Path, rows: Path, output_dir: Path) -> dict[str, Any]:
    """Return the keys of a recipe that trains in half a second: 6 LoRA steps, a checkpoint after every second one."""
    return {
        "model_name_or_path": str(model),
        "dataset": str(rows / "sft.json"),
        "output_dir": str(output_dir),
        "lora_rank": 4,
        "cutoff_len": 128,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "max_steps": 6,
        "save_steps": 2,
        "disable_tqdm": True,
    }
