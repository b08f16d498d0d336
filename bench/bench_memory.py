"""Peak memory of packing from a list, as a multiple of the packed result: B = 256, T = 500, 40 floats a row.

And of an LSTM's inference along 100,000 rows, beyond its output and states: panels of weights are kept from the call before.
"""

import tracemalloc
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch

import fastpack
import fastpack.torch
from bench.rnn_cases import LayerCase
from bench.rnn_contests import inference, layer_contest

LENGTHS = np.random.default_rng(0).integers(1, 501, 256)
LONG = LayerCase("LSTM", 40, 64, 256, "cuts")
STATE_BYTES = LONG.B * LONG.H * 4


def bench_peak_memory_numpy(benchmark: Any) -> None:
    """Asked: under 1.05."""
    sequences = [np.ones((length, 40), np.float32) for length in LENGTHS]
    benchmark.group = "peak memory of packing a list"
    packed, peak = numpy_peak(lambda: fastpack.pack(sequences))
    ratio = peak / packed.data.nbytes
    benchmark.extra_info["peak / packed"] = ratio
    benchmark.name = f"fastpack.pack: {ratio:.3f} of the packed result"
    if ratio >= 1.05:
        raise MemoryError(benchmark.name)
    benchmark.pedantic(fastpack.pack, (sequences,), rounds=7)


@pytest.mark.parametrize("module", [fastpack.torch, torch.nn.utils.rnn], ids=["fastpack.torch", "torch"])
def bench_peak_memory_torch(benchmark: Any, module: Any) -> None:
    """Asked of fastpack: under 1.05."""
    sequences = [torch.ones(int(length), 40) for length in LENGTHS]
    benchmark.group = "peak memory of packing a list"
    packed, peak = torch_peak(lambda: module.pack_sequence(sequences, enforce_sorted=False))
    ratio = peak / (packed.data.numel() * packed.data.element_size())
    benchmark.extra_info["peak / packed"] = ratio
    benchmark.name = f"{module.__name__}.pack_sequence: {ratio:.3f} of the packed result"
    if module is fastpack.torch and ratio >= 1.05:
        raise MemoryError(benchmark.name)
    benchmark.pedantic(module.pack_sequence, (sequences, False), rounds=7)


@pytest.mark.parametrize("contender", ["fastpack", "fastpack, NumPy", "torch, packed"])
def bench_inference_memory(benchmark: Any, contender: str) -> None:
    """Asked of fastpack: the memory of some states, O(B H)."""
    beyond, call = inference_memory(contender)
    benchmark.group = f"memory of inference beyond output and states: {LONG.name}, 100,000 rows"
    benchmark.name = f"{contender}: {beyond / 1e3:,.0f} KB"
    if contender.startswith("fastpack") and beyond > 16 * STATE_BYTES:
        raise MemoryError(benchmark.name)
    with inference(threads=1):
        benchmark.pedantic(call, rounds=3)


def inference_memory(contender: str) -> tuple[int, Callable[[], Any]]:
    """Return the most bytes that a call on `LONG` holds beyond its output and states, and the call."""
    call = layer_contest(LONG, 1).contenders[contender]
    with inference(threads=1):
        _, peak = (numpy_peak if contender == "fastpack, NumPy" else torch_peak)(call)
    return peak - 100_000 * LONG.H * 4 - 2 * STATE_BYTES, call


def numpy_peak(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return a call's result, and the most bytes that it held at once by tracemalloc, which sees NumPy's allocations."""
    call()  # the kernels are open then, and a layer's panels made
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def torch_peak(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return a call's result, and the most bytes that it held at once by torch's profiler, which sees torch's allocations."""
    call()
    with torch.profiler.profile(profile_memory=True) as profile:
        result = call()
    return result, max(accumulate(_allocations(profile)))


def _allocations(profile: Any) -> list[int]:
    """Return the bytes allocated, or freed where negative, in the order of time."""
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
