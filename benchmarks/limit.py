"""The machine's peak rate of matrix products with the embedded model's shapes, and its memory bandwidth."""

import time
from collections.abc import Callable

import torch

from ftlab import device

ON = "cuda" if torch.cuda.is_available() else "cpu"
# The dtype that suits this machine: that of the peak rate, and of the models that other variants load.
DTYPE: torch.dtype = getattr(torch, device.describe().dtype)
# (inputs, outputs) of the seven matrices of one layer of SmolLM2-135M: q, k, v, o, gate, up, down.
SHAPES = [(576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576)]
TOKENS = 1024


def measure(repeats: int, steps: int) -> dict:
    """Print and return matrix rates in GFLOP/s and the bandwidth in GB/s."""
    rates = {
        str(dtype).removeprefix("torch."): matrix_rate(dtype, repeats) for dtype in (torch.bfloat16, torch.float32)
    }
    found = {"matrix_gflops": rates, "copy_gb_per_second": bandwidth(repeats), "ratios": {}}
    for dtype, rate in rates.items():
        print(f"{dtype:<10} {rate:>8.0f} GFLOP/s at {TOKENS} tokens x the layer's own shapes")
    print(f"memory copy {found['copy_gb_per_second']:>7.1f} GB/s")
    return found


def matrix_rate(dtype: torch.dtype, repeats: int) -> float:
    """Return the GFLOP/s of one layer's seven products, forward and with respect to the input."""
    pairs = [tuple(torch.randn(shape).to(ON, dtype) for shape in ((TOKENS, n), (m, n), (TOKENS, m))) for n, m in SHAPES]

    def layer() -> None:
        for x, weight, gradient in pairs:
            torch.nn.functional.linear(x, weight)
            gradient @ weight

    flops = sum(4 * TOKENS * n * m for n, m in SHAPES)
    return flops / best_seconds(layer, repeats) / 1e9


def bandwidth(repeats: int, numbers: int = 2**26) -> float:
    """Return the GB/s of copying `numbers` float32 numbers (by default 268 MB), reads and writes counted."""
    source = torch.ones(numbers, device=ON)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), repeats) / 1e9


def best_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the seconds of the fastest of several runs, because a peak rate is a best case."""
    work()
    seconds = []
    for _ in range(10 * repeats):
        started = time.perf_counter()
        work()
        if ON == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
