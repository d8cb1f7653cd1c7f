"""Rows that generate together in llama.cpp: each is one of its sequences, and ended ones stay as a prefix cache.

Source: llama.h of https://github.com/ggml-org/llama.cpp; its server reuses prefixes in the same way.
"""

import os
import weakref
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch

from ftlab import device
from ftlab.apps.serve.batch import Batch, Row

# Tokens per call at most.
READ = 512
# An idle sequence is overwritten by a prompt that shares at least this much of it; otherwise the prefix is copied.
CONTINUES = 0.5
# Types of keys and values, the first that the model allows. On a CPU, logits over a cache in 16 bits depend on how many
# tokens of the prompt were read in one call, so on what was in the cache before; over one in 8 bits they do not.
CACHE = llama_cpp.GGML_TYPE_Q8_0, llama_cpp.GGML_TYPE_F16
# llama.cpp logs hundreds of lines while it loads a file. The library keeps the address: never drop it.
SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)


class LlamaBatch(Batch):
    """Rows of a GGUF file.

    Args:
        path: the file; may be deleted afterwards.
        max_batch: rows at most.
        cells: size of the key-value cache of all sequences, in tokens; allocated here.
    Raises:
        MemoryError: there is no memory for the cache.
    """

    def __init__(self, path: Path, ends: frozenset[int], max_batch: int, cells: int) -> None:
        super().__init__(ends)
        self.cells = cells
        llama_cpp.llama_log_set(SILENT, None)
        self.model = llama_cpp.llama_model_load_from_file(os.fsencode(path), llama_cpp.llama_model_default_params())
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.kv_unified = cells, max_batch, True
        settings.n_batch = settings.n_ubatch = READ
        settings.n_threads = settings.n_threads_batch = device.cores()
        for kind in CACHE:
            settings.type_k = settings.type_v = kind
            if context := llama_cpp.llama_init_from_model(self.model, settings):
                break
        else:
            raise MemoryError(f"llama.cpp cannot allocate a key-value cache for {cells} tokens")
        self.context = context
        self.memory = llama_cpp.llama_get_memory(context)
        self.batch = llama_cpp.llama_batch_init(READ, 0, 1)
        weakref.finalize(self, free, self.batch, context, self.model)
        # The tokens whose keys and values each sequence holds, and when it was last in use.
        self.held: list[list[int]] = [[] for _ in range(max_batch)]
        self.used = [0] * max_batch
        self.calls = 0
        self.sequence: dict[Row, int] = {}

    def prefill(self, rows: Sequence[Row]) -> torch.Tensor:
        """Read the prompts of new rows, except for a prefix that some sequence holds already."""
        logits = []
        for row in rows:
            prompt = row.job.prompt
            self.sequence[row] = number = self.place(prompt)
            while len(self.held[number]) < len(prompt):
                start = len(self.held[number])
                last = self.evaluate({number: prompt[start : start + READ]})
            logits.append(last)
        return torch.cat(logits)

    def decode(self, rows: Sequence[Row]) -> torch.Tensor:
        """Read the newest token of all rows."""
        return self.evaluate({self.sequence[row]: [row.generated[-1]] for row in rows})

    def keep(self, kept: Sequence[int]) -> None:
        """Keep everything: what a row has read may be the prefix of the next prompt."""

    def idle(self) -> list[int]:
        """Return the sequences without a row, the least recently used first."""
        self.sequence = {row: number for row, number in self.sequence.items() if not row.finish}
        free = set(range(len(self.held))) - set(self.sequence.values())
        return sorted(free, key=lambda number: self.used[number])

    def place(self, prompt: list[int]) -> int:
        """Return an idle sequence that holds the longest known prefix of a prompt, without its last token."""
        idle = self.idle()
        shared = [min(common(held, prompt), len(prompt) - 1) for held in self.held]
        best = max(range(len(shared)), key=shared.__getitem__)
        if best in idle and shared[best] >= CONTINUES * len(self.held[best]):
            number = best
        else:
            number = next((one for one in idle if not self.held[one]), idle[0])
        self.cut(number, shared[best] if number == best else 0)
        if shared[best] and number != best:
            llama_cpp.llama_memory_seq_cp(self.memory, best, number, 0, shared[best])
            self.held[number] = prompt[: shared[best]]
        return number

    def cut(self, number: int, length: int) -> None:
        """Drop what a sequence holds after its first `length` tokens; everything if the model cannot drop a part."""
        if length == len(self.held[number]):
            return
        if not llama_cpp.llama_memory_seq_rm(self.memory, number, length, -1):
            length = 0
            llama_cpp.llama_memory_seq_rm(self.memory, number, -1, -1)
        del self.held[number][length:]

    def evaluate(self, new: dict[int, list[int]]) -> torch.Tensor:
        """Read tokens of some sequences, READ in all at most; return the logits (sequences, vocabulary) after them.

        Raises:
            RuntimeError: llama.cpp failed.
        """
        self.make_room(sum(map(len, new.values())))
        self.calls += 1
        batch, place = self.batch, 0
        for number, ids in new.items():
            self.used[number] = self.calls
            for offset, token in enumerate(ids):
                batch.token[place], batch.pos[place] = token, len(self.held[number]) + offset
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, number
                batch.logits[place] = offset == len(ids) - 1
                place += 1
        batch.n_tokens = place
        if code := llama_cpp.llama_decode(self.context, batch):
            # Some of the tokens may have been read before it failed.
            for number in new:
                llama_cpp.llama_memory_seq_rm(self.memory, number, -1, -1)
                self.held[number] = []
            raise RuntimeError(f"llama_decode returned {code}")
        for number, ids in new.items():
            self.held[number] += ids
        logits = llama_cpp.llama_get_logits(self.context)
        return torch.from_numpy(np.ctypeslib.as_array(logits, shape=(len(new), self.vocabulary)).copy())

    def make_room(self, count: int) -> None:
        """Drop idle sequences, the least recently used first, until `count` more tokens fit."""
        for number in self.idle():
            if sum(map(len, self.held)) + count <= self.cells:
                return
            self.cut(number, 0)


def free(batch: Any, context: Any, model: Any) -> None:
    """Free what llama.cpp has allocated."""
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix of two lists of tokens.

    >>> common([1, 2, 3], [1, 2, 4, 5])
    2
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
