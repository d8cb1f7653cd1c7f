"""The key-value cache of one llama.cpp context: each row is one of its sequences, and ended ones stay as prefix cache.

Source: llama.h of https://github.com/ggml-org/llama.cpp; its server reuses prefixes in the same way.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import llama_cpp
import numpy as np
import torch

from ftlab import device
from ftlab.apps.serve.batch import Row

# Tokens per call at most.
READ = 512
# An idle sequence is overwritten by a prompt that shares at least this much of it; otherwise the prefix is copied.
CONTINUES = 0.5


class LlamaCache:
    """Sequences of a model, with one cache for all or one for each.

    In a shared cache one sequence may be as long as all together, but attention visits the cells of every sequence.

    Args:
        model: llama.cpp's pointer; must outlive the cache.
        sequences: their number.
        cells: size in tokens, of all sequences together; allocated here.
        shared: one cache for all; otherwise each sequence has `cells / sequences` of its own.
    Raises:
        MemoryError: there is no memory for the cache.
    """

    def __init__(self, model: Any, sequences: int, cells: int, shared: bool) -> None:
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.cells, self.shared = cells, shared
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.kv_unified = cells, sequences, shared
        settings.n_batch = settings.n_ubatch = READ
        settings.n_threads = settings.n_threads_batch = device.cores()
        self.context = llama_cpp.llama_init_from_model(model, settings)
        if not self.context:
            raise MemoryError(f"llama.cpp cannot allocate a key-value cache for {cells} tokens")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(READ, 0, 1)
        # The tokens whose keys and values each sequence holds, and when it was last in use.
        self.held: list[list[int]] = [[] for _ in range(sequences)]
        self.used = [0] * sequences
        self.calls = 0
        self.sequence: dict[Row, int] = {}

    def prefill(self, row: Row) -> torch.Tensor:
        """Read the prompt of a new row, except for a prefix that some sequence holds already.

        Returns:
            the logits (1, vocabulary) of what follows it.
        """
        prompt = row.job.prompt
        self.sequence[row] = number = self.place(prompt)
        while len(self.held[number]) < len(prompt):
            start = len(self.held[number])
            logits = self.evaluate({number: prompt[start : start + READ]})
        return logits

    def decode(self, rows: Sequence[Row]) -> torch.Tensor:
        """Read the newest token of rows; return the logits (rows, vocabulary) of what follows it."""
        return self.evaluate({self.sequence[row]: [row.generated[-1]] for row in rows})

    def idle(self) -> list[int]:
        """Return the sequences without a row, the least recently used first."""
        self.sequence = {row: number for row, number in self.sequence.items() if not row.finish}
        free = set(range(len(self.held))) - set(self.sequence.values())
        return sorted(free, key=lambda number: self.used[number])

    def place(self, prompt: list[int]) -> int:
        """Return an idle sequence that holds the longest known prefix of a prompt, without its last token."""
        idle = self.idle()
        known = [min(common(held, prompt), len(prompt) - 1) for held in self.held]
        best = max(range(len(known)), key=known.__getitem__)
        if best in idle and known[best] >= CONTINUES * len(self.held[best]):
            number = best
        else:
            number = next((one for one in idle if not self.held[one]), idle[0])
        if known[number] < known[best]:
            self.copy(best, number)
        self.cut(number, known[best])
        return number

    def copy(self, source: int, target: int) -> None:
        """Let a sequence hold what another one holds; between two caches llama.cpp copies all or nothing."""
        self.cut(target, 0)
        llama_cpp.llama_memory_seq_cp(self.memory, source, target, -1, -1)
        self.held[target] = [*self.held[source]]

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
        """Drop idle sequences of a shared cache, the least recently used first, until `count` more tokens fit."""
        for number in self.idle() if self.shared else ():
            if sum(map(len, self.held)) + count <= self.cells:
                return
            self.cut(number, 0)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts begin with together.

    >>> common([1, 2, 3], [1, 2, 4, 5])
    2
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
