"""Tokens per second of `generate`, of the faster engines, and of sixteen answers at once: 64 new tokens, one model.

`generate` and the engines make one answer at a time, timed from its first token to its last; `16 at once` is compared
with one prompt in the same process, from call to return.
"""

import json
import sys
import time
from importlib.util import find_spec

from benchmarks import turns

ENGINES = ("huggingface", "loop", "int8", "int4", "llama.cpp", "llama.cpp-q4")
BATCH = "16 at once"
NEW_TOKENS = 64


def measure(repeats: int, steps: int) -> dict:
    """Print and return the medians of every variant, and their ratios."""
    here = [name for name in ENGINES if find_spec("llama_cpp") or not name.startswith("llama.cpp")]
    if len(here) < len(ENGINES):
        print("llama.cpp is left out: pip install 'ftlab[llamacpp]'")
    found = turns.in_turns("benchmarks.generate", [*here, BATCH], repeats)
    batch = turns.medians({BATCH: found.pop(BATCH)})
    table = turns.medians(found)
    turns.show(table)
    turns.show(batch)
    rates = {name: row["tokens_per_second"] for name, row in table.items()}
    return {"generate": table | batch, "ratios": ratios(rates, batch[BATCH])}


def ratios(rates: dict[str, float], batch: dict[str, float]) -> dict[str, float]:
    """Return the ratios of engines, and of a batch to a single answer, from their tokens per second."""
    read = [rate for name, rate in rates.items() if name.startswith("llama.cpp")]
    own = max(rates[name] for name in ("loop", "int8", "int4"))
    found = {"best of transformers / generate": own / rates["huggingface"]}
    if read:
        found["best engine / best of llama.cpp"] = max(own, *read) / max(read)
        found["best of transformers / best of llama.cpp"] = own / max(read)
    return found | {"16 at once / alone": batch["tokens_per_second"] / batch["alone"]}


def main(variant: str) -> None:
    """Measure one variant and print it."""
    from ftlab import models
    from ftlab.runs import chat, pick_engine

    model, tokenizer = chat.load(models.fetch("smollm2-135m"))
    if variant == BATCH:
        print(json.dumps({"tokens_per_second": at_once(model, tokenizer, 16), "alone": at_once(model, tokenizer, 1)}))
        return
    (row,) = pick_engine.compare(model, tokenizer, [variant], NEW_TOKENS)
    print(json.dumps({"tokens_per_second": row.tokens_per_second, "divergence": row.divergence}))


def at_once(model: object, tokenizer: object, rows: int) -> float:
    """Return the tokens per second of `rows` answers in one batch, prompts included, the better of two."""
    from ftlab import tokens
    from ftlab.runs import chat, pick_engine

    prompt = tokens.prompt(tokenizer, [{"role": "user", "content": pick_engine.QUESTION}])
    batch = chat.padded(model, tokenizer, [prompt] * rows)
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        made = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=model.config.vocab_size)
        seconds.append(time.perf_counter() - started)
    return rows * (made.shape[1] - len(prompt)) / min(seconds)


if __name__ == "__main__":
    main(sys.argv[1])
