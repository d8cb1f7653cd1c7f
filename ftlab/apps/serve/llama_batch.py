"""Rows that generate together in llama.cpp, short ones in caches of their own and long ones in a shared cache."""

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import torch

from ftlab.apps.serve.batch import Batch, Row
from ftlab.apps.serve.llama_cache import LlamaCache

# llama.cpp logs hundreds of lines while it loads a file. The library keeps the address: never drop it.
SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)


class LlamaBatch(Batch):
    """Rows of a GGUF file.

    Args:
        path: the file; may be deleted afterwards.
        max_batch: rows at most.
        cells: size of each of the two key-value caches, in tokens. A row is short if its prompt and answer fit into
            `cells / max_batch`.
    Raises:
        MemoryError: there is no memory for the caches.
    """

    def __init__(self, path: Path, ends: frozenset[int], max_batch: int, cells: int) -> None:
        super().__init__(ends)
        llama_cpp.llama_log_set(SILENT, None)
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), llama_cpp.llama_model_default_params())
        self.limit = cells // max_batch
        self.short = LlamaCache(model, max_batch, self.limit * max_batch, shared=False)
        self.long = LlamaCache(model, max_batch, cells, shared=True)
        weakref.finalize(self, free, [(cache.batch, cache.context) for cache in (self.short, self.long)], model)

    def cache_of(self, row: Row) -> LlamaCache:
        """Return the cache that a row's sequence is in."""
        return self.short if len(row.job.prompt) + row.job.max_tokens <= self.limit else self.long

    def prefill(self, rows: Sequence[Row]) -> torch.Tensor:
        """Read the prompts of new rows, one after the other."""
        return torch.cat([self.cache_of(row).prefill(row) for row in rows])

    def decode(self, rows: Sequence[Row]) -> torch.Tensor:
        """Read the newest token of all rows, with one call for each cache."""
        logits: dict[Row, torch.Tensor] = {}
        for cache in (self.short, self.long):
            if mine := [row for row in rows if self.cache_of(row) is cache]:
                logits |= zip(mine, cache.decode(mine), strict=True)
        return torch.stack([logits[row] for row in rows])

    def keep(self, kept: Sequence[int]) -> None:
        """Keep everything: what a row has read may be the prefix of the next prompt."""


def free(caches: Sequence[tuple[Any, Any]], model: Any) -> None:
    """Free what llama.cpp has allocated: batches and contexts of caches, then their model."""
    for batch, context in caches:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
