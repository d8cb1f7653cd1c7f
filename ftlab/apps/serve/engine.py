"""One thread that generates for all requests: a bounded queue and a batch that never waits to be full."""

import contextlib
import ctypes
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from threading import Condition, Thread
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftlab.apps.serve.batch import Batch, PaddedBatch, Row
from ftlab.apps.serve.job import ADAPTER, Finish, Job, Piece
from ftlab.errors import fail
from ftlab.evaluate import only_keys_cached
from ftlab.runs import engines

log = logging.getLogger(__name__)
# Steps after which freed memory is returned: caches of changing sizes leave holes, which the C library keeps.
TRIM_EVERY = 200
# Positions in the key-value cache of all rows. llama.cpp allocates them at start: 0.4 GB with SmolLM2-135M, 1.0 GB
# with Qwen2.5-7B.
CACHE_TOKENS, LLAMA_CACHE_TOKENS = 65_536, 32_768


class Busy(Exception):
    """The queue is full: try again later."""


class Engine:
    """A model, and the thread that generates with it.

    Args:
        max_batch: answers generated in one batch.
        max_queue: answers that may wait; `submit` refuses more.
        cache_tokens: positions in the key-value cache of all rows, padding included; bounds memory. None: the backend's
            default.
        backend: "huggingface" for the model itself, or a GGUF engine of runs/engines.py.
    Raises:
        LabError: the model's cache holds something other than keys and values, which cannot be padded; llama.cpp is not
            installed, or GGUF does not fit this model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_batch: int = 32,
        max_queue: int = 64,
        cache_tokens: int | None = None,
        backend: str = "huggingface",
    ) -> None:
        if not only_keys_cached(model):
            raise fail("serve_architecture", where=type(model).__name__)
        self.model, self.tokenizer = model, tokenizer
        self.max_batch, self.max_queue = max_batch, max_queue
        self.cache_tokens = cache_tokens or (LLAMA_CACHE_TOKENS if engines.KINDS[backend].gguf else CACHE_TOKENS)
        ends = model.generation_config.eos_token_id or []
        ids = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self.ends = frozenset(ids)
        self.batches = self.batches_of(backend)
        self.waiting: deque[Job] = deque()
        self.calls: deque[tuple[str | None, Callable[[Any], Any], Future[Any]]] = deque()
        self.changed = Condition()
        self.closed = False
        self.steps = self.generated = self.read = 0
        self.thread = Thread(target=self.run, name="ftlab-engine", daemon=True)
        self.thread.start()

    def batches_of(self, backend: str) -> Mapping[str | None, Batch]:
        """Return a batch for each adapter, and one for the model without."""
        model, tokenizer = self.model, self.tokenizer
        if engines.KINDS[backend].gguf:
            engines.require(backend, model)
            with engines.gguf_file(model, tokenizer, backend) as path:
                # An extra: `require` raises if it is missing.
                from ftlab.apps.serve.llama_batch import LlamaBatch

                return {ADAPTER: LlamaBatch(path, self.ends, self.max_batch, self.cache_tokens)}
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        # A forward pass has at most one adapter, so rows of different adapters step in turn.
        names = [*model.peft_config] if isinstance(model, PeftModel) else [ADAPTER]
        return {name: PaddedBatch(model, self.ends, pad) for name in (*names, None)}

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may take together."""
        return min(engines.context_length(self.model.config), self.cache_tokens)

    @property
    def running(self) -> int:
        """Answers being generated now."""
        # Another thread moves rows from `joining` to `rows`: reading in that order misses none.
        return sum(len(batch.joining) + len(batch.rows) for batch in self.batches.values())

    @property
    def vocabulary(self) -> int:
        """The size of the model's vocabulary."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def busy(self) -> bool:
        """True while an answer waits or is being generated."""
        # In the order in which a job moves, for the same reason.
        return bool(self.waiting or self.calls) or self.running > 0

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, all or none.

        Raises:
            Busy: they do not fit into the queue.
        """
        with self.changed:
            if self.closed or len(self.waiting) + len(jobs) > self.max_queue:
                raise Busy
            self.waiting.extend(jobs)
            self.changed.notify()

    def call(self, adapter: str | None, function: Callable[[Any], Any]) -> Future[Any]:
        """Return a future of `function(model)`, run with an adapter active between two generation steps.

        Raises:
            Busy: too many wait.
        """
        future: Future[Any] = Future()
        with self.changed:
            if self.closed or len(self.calls) >= self.max_queue:
                raise Busy
            self.calls.append((adapter, function, future))
            self.changed.notify()
        return future

    def close(self) -> None:
        """End all answers and the thread."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def run(self) -> None:
        """Generate until closed; a step that fails ends only its own rows."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.closed or self.busy)
            if self.closed:
                break
            for adapter, batch in self.batches.items():
                try:
                    self.turn(batch, adapter)
                except Exception:
                    log.exception("a generation step failed")
                    self.end_rows(batch, "error")
            self.answer_call()
            if self.steps % TRIM_EVERY == 0:
                give_back()
        for batch in self.batches.values():
            self.end_rows(batch, "cancelled")
        for job in self.waiting:
            job.emit(Piece("", 0, "cancelled"))
        for _, _, future in self.calls:
            future.cancel()

    def answer_call(self) -> None:
        """Run one of the waiting calls, so that generation continues between two of them."""
        if not self.calls:
            return
        adapter, function, future = self.calls.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            with using(self.model, adapter):
                future.set_result(function(self.model))
        except Exception as error:
            future.set_exception(error)

    def turn(self, batch: Batch, adapter: str | None) -> None:
        """Drop cancelled jobs, generate one token for each row, and admit new rows."""
        for row in batch.rows:
            if row.job.cancelled:
                row.end("cancelled")
        batch.drop()
        with self.changed:
            has_waiting = any(job.adapter == adapter for job in self.waiting)
        if not (batch.rows or has_waiting):
            return
        with using(self.model, adapter):
            if batch.rows:
                self.steps += 1
                self.generated += len(batch.rows)
                batch.step()
            self.admit(batch, adapter)
            if batch.joining:
                self.generated += len(batch.joining)
                self.read += sum(len(row.job.prompt) for row in batch.joining)
                batch.join()

    def admit(self, batch: Batch, adapter: str | None) -> None:
        """Take jobs from the queue, in order, as long as they fit into a batch."""
        longest = max((row.length for row in batch.rows), default=0)
        most = max((row.job.max_tokens - len(row.generated) for row in batch.rows), default=0)
        with self.changed:
            self.forget()
            for job in [job for job in self.waiting if job.adapter == adapter]:
                longest, most = max(longest, len(job.prompt)), max(most, job.max_tokens)
                taken = len(batch.rows) + len(batch.joining)
                if taken and (taken >= self.max_batch or (taken + 1) * (longest + most) > self.cache_tokens):
                    break
                batch.joining.append(Row(job, self.tokenizer))
                self.waiting.remove(job)

    def forget(self) -> None:
        """Remove cancelled and expired jobs from the queue."""
        for job in list(self.waiting):
            if job.cancelled or time.monotonic() > job.deadline:
                self.waiting.remove(job)
                job.emit(Piece("", 0, "cancelled" if job.cancelled else "waited"))

    @staticmethod
    def end_rows(batch: Batch, finish: Finish) -> None:
        """End every row of a batch for the same reason."""
        for row in [*batch.rows, *batch.joining]:
            if not row.finish:
                row.end(finish)
        batch.joining = []
        batch.drop()


def using(model: PreTrainedModel | PeftModel, adapter: str | None) -> AbstractContextManager[None]:
    """Return a context in which one adapter of a model is active, or none."""
    if not isinstance(model, PeftModel):
        return nullcontext()
    if adapter is None:
        return model.disable_adapter()
    if model.active_adapter != adapter:
        model.set_adapter(adapter)
    return nullcontext()


def give_back() -> None:
    """Return freed memory to the system, if the C library (glibc) has a call for it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
