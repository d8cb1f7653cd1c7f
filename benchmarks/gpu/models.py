"""Models with random weights in three sizes, and a tokenizer trained on data/: made here, nothing is fetched."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import DATA, Place, Unfit

# SmolLM2-135M, Llama-3.2-1B and Qwen2.5-7B as their config.json have them.
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "135M": (
        "llama",
        {"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
         "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    ),
    "1B": (
        "llama",
        {"num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    ),
    "7B": (
        "qwen2",
        {"num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
         "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
    ),
}  # fmt: skip
# What a dry run has instead.
TINY = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 2048}  # fmt: skip
CONTEXT = 4096
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LEARNT_TOKENS = 2000


def make(size: str, place: Place) -> dict[str, float]:
    """Write a random model and its tokenizer into the work folder; return its number of weights.

    Raises:
        Unfit: the disk cannot take it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family, shape = SIZES[size]
    shape = shape | (TINY if place.dry else {})
    tokenizer = make_tokenizer(shape["vocab_size"])
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(family, **shape, **ends, max_position_embeddings=CONTEXT)
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(config).num_parameters()
    require_room(size, 2 * weights, place)
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available() and 3 * weights < torch.cuda.mem_get_info()[0]
    with torch.device("cuda" if on_gpu else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(place.model(size))
    tokenizer.save_pretrained(place.model(size))
    return {"weights": float(weights)}


def require_room(size: str, needed: int, place: Place) -> None:
    """Refuse a model that the disk cannot take beside what the runs write.

    Raises:
        Unfit: with both sizes.
    """
    free = shutil.disk_usage(place.folder).free
    if 1.5 * needed > free:
        raise Unfit(f"{size} needs {1.5 * needed / 1e9:.0f} GB of disk, {place.folder} has {free / 1e9:.0f}")


def make_tokenizer(vocabulary: int) -> Any:
    """Return a byte-level tokenizer trained on data/, with ChatML and exactly as many tokens as the model.

    Random weights choose every token alike, so that each must have a text; merges for as many would need more data.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = learnt_model()
    marks = ("<|im_start|>", "<|im_end|>")
    entries = dict(model["vocab"])
    entries |= {f"filler{number}": number for number in range(len(entries), vocabulary - len(marks))}
    inner = Tokenizer(models.BPE(entries, [tuple(merge) for merge in model["merges"]]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=marks[1], pad_token=marks[1])
    tokenizer.add_special_tokens({"additional_special_tokens": [marks[0]]})
    tokenizer.chat_template = CHATML
    return tokenizer


@functools.cache
def learnt_model() -> dict[str, Any]:
    """Return the vocabulary and the merges that byte-pair encoding learns from data/: once for models of all sizes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learnt.train_from_iterator(
        texts(), trainers.BpeTrainer(vocab_size=LEARNT_TOKENS, initial_alphabet=alphabet, show_progress=False)
    )
    return json.loads(learnt.to_str())["model"]


def texts() -> list[str]:
    """Return the files of data/ as texts."""
    return [path.read_text(encoding="utf-8") for path in sorted(Path(DATA).glob("*.json*"))]
