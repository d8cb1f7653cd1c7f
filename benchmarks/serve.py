"""`ftlab serve` with one client, then with many: throughput, errors, and memory growth.

    python -m benchmarks.serve [--model smollm2-135m] [--backend huggingface llama.cpp] [--clients 32] [--seconds 300]

Starts `ftlab serve` in its own process, with one engine after the other. With many clients, a quarter of the requests
are dropped mid-stream. Prints tokens per second of one client and of many, errors, memory growth, and how many greedy
answers are the same alone and in a batch; for llama.cpp also the tokens per second of llama-cpp-python's own loop. The
exit code is 1 after an error, below SPEEDUP times the tokens per second of one client, or if memory grows by GROWTH.
"""

import argparse
import json
import os
import random
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[1]
TOKENS, TEMPERATURE = 64, 0.7
DROPPED = 0.25
SPEEDUP, GROWTH = 4.0, 0.05
THINGS = ("the sea", "a bicycle", "the moon", "bread", "an old library", "winter", "a lighthouse", "coffee")


@dataclass
class Tally:
    """The results of all clients, added up under a lock."""

    answers: int = 0
    dropped: int = 0
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, tokens: int, dropped: bool) -> None:
        """Count a request without an error."""
        with self.lock:
            self.tokens += tokens
            self.dropped += dropped
            self.answers += not dropped


@contextmanager
def server(model: str, backend: str) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    """Start the server with an engine and yield a client of it and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    key = secrets.token_hex(32)
    command = [sys.executable, "-m", "ftlab", "serve", model, "--backend", backend, "--port", str(port)]
    environment = os.environ | {"API_KEY": key, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {key}"}
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120, limits=limits
            ) as client:
                wait_until_up(client, process)
                yield client, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


def wait_until_up(client: httpx.Client, process: subprocess.Popen) -> None:
    """Wait until the server responds."""
    while process.poll() is None:
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit("the server did not start")


def question(chance: random.Random) -> str:
    """Return a random question."""
    return f"Write {chance.randint(3, 9)} sentences about {chance.choice(THINGS)}."


def ask(client: httpx.Client, model: str, chance: random.Random, tally: Tally, drops: bool) -> None:
    """Stream one answer, to its end or for a few tokens, and count its tokens."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question(chance)}],
        "max_tokens": TOKENS,
        "temperature": TEMPERATURE,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    leave_after = chance.randint(1, TOKENS // 2) if drops else None
    pieces = 0
    try:
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise ValueError(f"status {response.status_code}")
            usage, ended = 0, False
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line:
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise ValueError(event["error"]["message"])
                    pieces += bool(event["choices"] and event["choices"][0]["delta"].get("content"))
                    usage = (event.get("usage") or {}).get("completion_tokens", usage)
                if leave_after and pieces >= leave_after:
                    tally.add(pieces, dropped=True)
                    return
            if not ended:
                raise ValueError("the stream was cut")
        tally.add(usage, dropped=False)
    except (httpx.HTTPError, ValueError) as error:
        with tally.lock:
            tally.errors.append(f"{type(error).__name__}: {error}")


def same_in_batch(client: httpx.Client, model: str, clients: int) -> int:
    """Return how many greedy answers, one per client, are the same alone and when all are requested at once."""

    def answer(number: int) -> str:
        messages = [{"role": "user", "content": question(random.Random(number))}]
        body = {"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": 0}
        return str(client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"])

    alone = [answer(number) for number in range(clients)]
    with ThreadPoolExecutor(clients) as pool:
        return sum(one == other for one, other in zip(alone, pool.map(answer, range(clients)), strict=True))


def load(client: httpx.Client, model: str, clients: int, seconds: float, share_dropped: float) -> tuple[Tally, float]:
    """Run the clients for some seconds; return their results and the seconds until the last one was done."""
    tally = Tally()
    start = time.monotonic()

    def work(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < start + seconds:
            ask(client, model, chance, tally, chance.random() < share_dropped)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally, time.monotonic() - start


@contextmanager
def memory_of(process: psutil.Process, every: float = 1.0) -> Iterator[list[int]]:
    """Yield a list that collects the resident bytes of the process during the block."""
    samples: list[int] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(every):
            samples.append(process.memory_info().rss)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def growth(samples: list[int]) -> float:
    """Return the relative growth from the second fifth to the last one; in the first, memory pools fill up."""
    fifth = len(samples) // 5
    return statistics.median(samples[-fifth:]) / statistics.median(samples[fifth : 2 * fifth]) - 1


def own_loop(name: str, backend: str, seconds: float) -> float:
    """Return the tokens per second of llama-cpp-python's own loop, one answer at a time."""
    import llama_cpp

    from ftlab import device, tokens
    from ftlab.runs import chat, engines

    model, tokenizer = chat.load(name)
    with engines.gguf_file(model, tokenizer, backend) as path:
        threads = device.cores()
        reader = llama_cpp.Llama(str(path), n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)
    chance, count, start = random.Random(0), 0, time.monotonic()
    while time.monotonic() < start + seconds:
        prompt = tokens.prompt(tokenizer, [{"role": "user", "content": question(chance)}])
        for number, token in enumerate(reader.generate(prompt, temp=TEMPERATURE, top_k=0, top_p=1.0, min_p=0.0), 1):
            count += 1
            if number == TOKENS or token == tokenizer.eos_token_id:
                break
    return count / (time.monotonic() - start)


def measure(options: argparse.Namespace, backend: str) -> bool:
    """Measure the server with one engine and print; return True if it meets SPEEDUP and GROWTH without an error."""
    with server(options.model, backend) as (client, process):
        load(client, options.model, 1, 3, 0)
        one, seconds = load(client, options.model, 1, options.alone, 0)
        alone = one.tokens / seconds
        print(f"{backend}, 1 client: {one.answers} answers, {alone:.1f} tokens/s, {len(one.errors)} errors", flush=True)
        with memory_of(process) as samples:
            many, seconds = load(client, options.model, options.clients, options.seconds, DROPPED)
        same = same_in_batch(client, options.model, options.clients)
    together, grown = many.tokens / seconds, growth(samples)
    print(f"{backend}, {options.clients} clients, {seconds:.0f} s: {many.answers} answers, {many.dropped} dropped")
    print(f"together: {together:.1f} tokens/s, {together / alone:.2f} times one client (required: {SPEEDUP:g})")
    print(f"greedy answers that are the same alone and in a batch: {same} of {options.clients}")
    print(f"errors to good clients: {len(many.errors)} {sorted(set(many.errors))[:3]}")
    print(f"memory: {samples[-1] / 2**20:.0f} MiB, growth {grown:+.1%} (required: below {GROWTH:.0%})", flush=True)
    return not (one.errors or many.errors) and together >= SPEEDUP * alone and grown < GROWTH


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--backend", nargs="+", default=["huggingface"], help="engines of `ftlab serve`")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--alone", type=float, default=40, help="seconds that one client is measured for")
    options = parser.parse_args()
    kept = []
    for backend in options.backend:
        if backend.startswith("llama.cpp"):
            rate = own_loop(options.model, backend, options.alone)
            print(f"llama-cpp-python's own loop: {rate:.1f} tokens/s", flush=True)
        kept.append(measure(options, backend))
    return int(not all(kept))


if __name__ == "__main__":
    raise SystemExit(main())
