"""Engines: `generate` of transformers, a minimal decoding loop, quantized weights, or llama.cpp.

Each engine has `device` and `generate`, which takes GenerationConfig's fields, so that any code that works with a
model works with every engine.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from ftlab import device
from ftlab.errors import fail
from ftlab.runs import gguf, weight_only
from ftlab.runs.adapters import merge_adapter

# New token ids (1, n) -> logits (1, vocabulary) of the next token.
Step = Callable[[torch.Tensor], torch.Tensor]


class Kind(NamedTuple):
    """One engine: its weight format ("" if unchanged), and the GGUF format if llama.cpp runs it."""

    weights: str = ""
    bits: int = 0
    gguf: str = ""


KINDS = {
    "huggingface": Kind(),
    "static": Kind(),
    "loop": Kind(),
    "int8": Kind("8 bits, a scale per output", bits=8),
    "int4": Kind("4 bits, a scale and an offset per 32", bits=4),
    "llama.cpp": Kind("GGUF q8_0", gguf="q8_0"),
    "llama.cpp-q4": Kind("GGUF q4_0", gguf="q4_0"),
}
# Longest context for llama.cpp, which reserves its key-value cache when the file is opened, and of models that have no
# longest one, such as those with a recurrent state.
CONTEXT = 8192
HONOURED = {
    "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "num_beams", "eos_token_id",
    "pad_token_id",
    # Checked by the reader of the stream.
    "stop_strings", "tokenizer",
}  # fmt: skip


class Loop:
    """A minimal `generate` for one row, token by token.

    Args:
        begin: returns a Step for a new text.
        config: the model's own GenerationConfig.
        context: tokens that prompt and answer may take together.
    """

    device = torch.device("cpu")

    def __init__(self, begin: Callable[[], Step], config: GenerationConfig, context: int) -> None:
        self.begin, self.config, self.context = begin, config, context

    @torch.inference_mode()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        streamer: BaseStreamer | None = None,
        stopping_criteria: Sequence[Callable[..., torch.Tensor]] = (),
        logits_processor: Sequence[LogitsProcessor] = (),
        **fields: Any,
    ) -> torch.Tensor:
        """Return `input_ids` (1, seq_len) and the new tokens after them.

        Raises:
            LabError: more than one row, a prompt longer than the context, or an unsupported field.
        """
        if unknown := sorted(fields.keys() - HONOURED):
            raise fail("engine_field", where=", ".join(unknown))
        config = copy.deepcopy(self.config)
        config.update(**{name: value for name, value in fields.items() if hasattr(config, name)})
        room = self.context - input_ids.shape[1]
        if input_ids.shape[0] > 1 or (config.num_beams or 1) > 1:
            raise fail("engine_field", where="num_beams" if input_ids.shape[0] == 1 else "batch_size")
        if room < 1:
            raise fail("engine_context", tokens=input_ids.shape[1], context=self.context)
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        change = LogitsProcessorList([*logits_processor, *processors(config)])
        step, new = self.begin(), input_ids
        if streamer:
            streamer.put(input_ids)
        for _ in range(min(config.max_new_tokens or 256, room)):
            scores = change(input_ids, step(new).float())
            new = torch.multinomial(scores.softmax(-1), 1) if config.do_sample else scores.argmax(-1, keepdim=True)
            input_ids = torch.cat([input_ids, new], dim=-1)
            if streamer:
                streamer.put(new[0])
            if new.item() in ends or any(stop(input_ids, scores).all() for stop in stopping_criteria):
                break
        if streamer:
            streamer.end()
        return input_ids


def processors(config: GenerationConfig) -> LogitsProcessorList:
    """Return the logits processors of `generate`, in its order and with its defaults."""
    result = LogitsProcessorList()
    if (config.repetition_penalty or 1.0) != 1.0:
        result.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.do_sample:
        if (config.temperature or 1.0) != 1.0:
            result.append(TemperatureLogitsWarper(config.temperature))
        if top_k := 50 if config.top_k is None else config.top_k:
            result.append(TopKLogitsWarper(top_k))
        if (config.top_p or 1.0) < 1.0:
            result.append(TopPLogitsWarper(config.top_p))
    return result


def context_length(config: PreTrainedConfig) -> int:
    """Return the number of tokens that a model can read."""
    return getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None) or CONTEXT


def takes_cache(model: PreTrainedModel | PeftModel) -> bool:
    """Return True if a model continues from a `DynamicCache`; others ignore it, or have a class of their own."""
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    return "past_key_values" in signature(model.forward).parameters and model.config.model_type != "minimax"


def transformers_loop(model: PreTrainedModel) -> Loop:
    """Return the loop over a model's own forward pass."""

    def begin() -> Step:
        cache, before = DynamicCache(config=model.config), 0

        def step(ids: torch.Tensor) -> torch.Tensor:
            nonlocal before
            # Bamba counts from 0 without them.
            positions = torch.arange(before, before + ids.shape[1], device=ids.device)[None]
            before += ids.shape[1]
            inputs = {"position_ids": positions, "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
            return model(input_ids=ids, **inputs).logits[:, -1]

        return step

    loop = Loop(begin, model.generation_config, context_length(model.config))
    loop.device = model.device
    return loop


def llama_cpp_loop(path: Path, model: PreTrainedModel) -> Loop:
    """Return the loop over a GGUF file of `model` in llama.cpp."""
    import llama_cpp

    context = min(CONTEXT, context_length(model.config))
    threads = device.cores()
    reader = llama_cpp.Llama(
        str(path), n_ctx=context, n_threads=threads, n_threads_batch=threads, n_gpu_layers=-1, verbose=False
    )

    def begin() -> Step:
        reader.reset()
        return step

    def step(ids: torch.Tensor) -> torch.Tensor:
        reader.eval(ids[0].tolist())
        logits = llama_cpp.llama_get_logits_ith(reader.ctx, -1)
        return torch.from_numpy(np.ctypeslib.as_array(logits, shape=(1, reader.n_vocab())).copy())

    return Loop(begin, model.generation_config, context)


def static(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with a static cache; on a GPU `generate` compiles it automatically."""
    clone = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    clone.generation_config.cache_implementation = "static"
    return clone


def require(name: str, model: PreTrainedModel | PeftModel) -> None:
    """Refuse an engine that cannot run here.

    Raises:
        LabError: a library is missing, it needs another kind of processor, or the model another kind of cache.
    """
    kind = KINDS[name]
    if (kind.bits or name == "loop") and not takes_cache(model):
        raise fail("engine_cache", where=name, family=model.config.model_type)
    if name == "static" and model.config.model_type == "falcon" and model.config.alibi:
        # transformers builds Falcon's ALiBi for the tokens so far, and a static cache has the positions to come too.
        raise fail("engine_static_alibi", where=name)
    if kind.bits and model.device.type != "cpu":
        raise fail("engine_cpu", where=name)
    if kind.gguf and find_spec("llama_cpp") is None:
        raise fail("engine_llama_cpp", where=name)


def build(name: str, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | Loop:
    """Build an engine by name; an adapter is merged for all but `huggingface`.

    Args:
        name: a key of KINDS.
    Raises:
        LabError: a library or a kind of processor is missing, or GGUF does not support this model.
    """
    require(name, model)
    kind = KINDS[name]
    if name == "huggingface":
        return model
    if isinstance(model, PeftModel):
        model = merge_adapter(model)
    if name == "static":
        return static(model)
    if kind.gguf:
        with gguf_file(model, tokenizer, name) as path:
            return llama_cpp_loop(path, model)
    return transformers_loop(weight_only.quantized(model, kind.bits) if kind.bits else model)


@contextmanager
def gguf_file(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> Iterator[Path]:
    """Write the GGUF file of an engine; it is deleted at the end of the context.

    Args:
        name: a key of KINDS with a GGUF format.
    Raises:
        LabError: GGUF does not support this model.
    """
    # On Unix an open file stays readable after its deletion.
    with tempfile.TemporaryDirectory(prefix="ftlab-gguf-", ignore_cleanup_errors=True) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        path = Path(scratch) / "model.gguf"
        gguf.write(Path(scratch), path, KINDS[name].gguf)
        yield path
