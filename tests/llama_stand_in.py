"""A stand-in for `llama_cpp` that computes with a transformers model, where the library is not installed.

It has the functions that the server calls, and refuses what llama.cpp refuses: positions out of order, a full cache.
"""

import ctypes
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from transformers import PreTrainedModel


def stand_in(model: PreTrainedModel) -> ModuleType:
    """Return a module that computes the logits of `model`, whatever file it opens."""
    module = ModuleType("llama_cpp")
    module.GGML_TYPE_F16, module.GGML_TYPE_Q8_0 = 1, 8
    vocabulary = model.get_input_embeddings().weight.shape[0]

    def begin(_, settings):
        return SimpleNamespace(cells=[[] for _ in range(settings.n_seq_max)], size=settings.n_ctx, logits=None)

    def batch(size, *_):
        new = SimpleNamespace(n_tokens=0, seq_id=[[0] for _ in range(size)])
        for name in ("token", "pos", "n_seq_id", "logits"):
            setattr(new, name, [0] * size)
        return new

    def decode(context, new):
        rows = []
        for place in range(new.n_tokens):
            held = context.cells[new.seq_id[place][0]]
            if new.pos[place] != len(held):
                return -1
            held.append(new.token[place])
            if new.logits[place]:
                rows.append(model(torch.tensor([held])).logits[0, -1].float().detach().numpy())
        context.logits = np.ascontiguousarray(rows)
        return int(sum(map(len, context.cells)) > context.size)

    def remove(context, sequence, start, _):
        del context.cells[sequence][max(start, 0) :]
        return True

    def copy(context, source, target, _, end):
        context.cells[target] = context.cells[source][:end]

    functions = {
        "log_callback": lambda function: function,
        "model_load_from_file": lambda path, _: path,
        "model_default_params": SimpleNamespace,
        "model_get_vocab": lambda path: path,
        "vocab_n_tokens": lambda _: vocabulary,
        "context_default_params": SimpleNamespace,
        "init_from_model": begin,
        "get_memory": lambda context: context,
        "batch_init": batch,
        "decode": decode,
        "get_logits": lambda context: context.logits.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        "memory_seq_rm": remove,
        "memory_seq_cp": copy,
        "log_set": lambda *_: None,
        "batch_free": lambda _: None,
        "free": lambda _: None,
        "model_free": lambda _: None,
    }
    for name, function in functions.items():
        setattr(module, f"llama_{name}", function)
    return module
